//! A gate in front of a node: while it is closed, nobody listens at its address and no connection through it lives.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::{Context, Result};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream},
    task::JoinSet,
};

/// Addresses of the gate and of the node behind it.
#[derive(Clone, Debug)]
pub enum Route {
    Tcp { gate: SocketAddr, node: SocketAddr },
    Unix { gate: PathBuf, node: PathBuf },
}

/// The gate; open while there are tasks.
pub struct Gate {
    route: Route,
    open: Option<JoinSet<()>>,
}

impl Gate {
    pub fn new(route: Route) -> Self {
        Self { route, open: None }
    }

    pub fn close(&mut self) {
        self.open = None;
        if let Route::Unix { gate, .. } = &self.route {
            let _absent = std::fs::remove_file(gate);
        }
    }

    pub fn open(&mut self) -> Result<()> {
        let mut tasks = JoinSet::new();
        match self.route.clone() {
            Route::Tcp { gate, node } => {
                let socket = TcpSocket::new_v4()?;
                socket.set_reuseaddr(true)?;
                socket.bind(gate).context("the gate's address")?;
                tasks.spawn(serve_tcp(socket.listen(128)?, node));
            }
            Route::Unix { gate, node } => {
                tasks.spawn(serve_unix(UnixListener::bind(gate).context("the gate's socket")?, node));
            }
        }
        self.open = Some(tasks);
        Ok(())
    }
}

// Connections are tasks of the accepting task: closing the gate ends them.
async fn serve_tcp(listener: TcpListener, node: SocketAddr) {
    let mut connections = JoinSet::new();
    while let Ok((mut outer, _)) = listener.accept().await {
        connections.spawn(async move {
            if let Ok(mut inner) = TcpStream::connect(node).await {
                let _ended = copy_bidirectional(&mut outer, &mut inner).await;
            }
        });
    }
}

async fn serve_unix(listener: UnixListener, node: PathBuf) {
    let mut connections = JoinSet::new();
    while let Ok((mut outer, _)) = listener.accept().await {
        let node = node.clone();
        connections.spawn(async move {
            if let Ok(mut inner) = UnixStream::connect(node).await {
                let _ended = copy_bidirectional(&mut outer, &mut inner).await;
            }
        });
    }
}
