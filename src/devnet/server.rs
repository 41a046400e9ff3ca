//! The running node: its listeners and its timers.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use thiserror::Error;
use tokio::{
    net::{TcpListener, UnixListener},
    time::{Instant, sleep, sleep_until},
};

use super::{config::Config, control::Control, http::serve_connection, node::SimulatedNode, session::serve_ipc};

/// Shortest interval between pending transactions; at higher rates several are added at once.
const PENDING_TICK: Duration = Duration::from_millis(5);
/// Wait after a failed accept, as when the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The reason why a node could not start.
#[derive(Debug, Error)]
pub enum Error {
    /// The TCP address cannot be bound.
    #[error("devnet cannot listen on {address}: {source}; port 0 takes any free one")]
    Listen {
        /// The configured address.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// The Unix socket cannot be bound.
    #[error("devnet cannot listen on {}: {source}", path.display())]
    Ipc {
        /// The configured path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// A running simulated node. Dropping it closes its listeners and connections; the tasks stop soon after.
#[derive(Debug)]
pub struct Devnet {
    node: Arc<SimulatedNode>,
    address: SocketAddr,
    ipc: Option<PathBuf>,
}

impl Devnet {
    /// Builds the chain, binds, and serves in tasks of the current tokio runtime.
    ///
    /// # Errors
    ///
    /// Returns an error if an address cannot be bound; no task runs then.
    pub async fn start(config: Config) -> Result<Self, Error> {
        let address = config.listen;
        let listen_error = |source| Error::Listen { address, source };
        let tcp = TcpListener::bind(address).await.map_err(listen_error)?;
        let address = tcp.local_addr().map_err(listen_error)?;
        let unix = config.ipc.as_deref().map(bind_unix).transpose()?;

        let node = Arc::new(SimulatedNode::new(&config));
        spawn(&node, accept_tcp(node.clone(), tcp));
        if let Some(unix) = unix {
            spawn(&node, accept_unix(node.clone(), unix));
        }
        spawn(&node, mine_by_time(node.clone()));
        spawn(&node, add_pending_by_time(node.clone()));
        Ok(Self {
            node,
            address,
            ipc: config.ipc,
        })
    }

    /// Returns `ws://` and the address.
    pub fn ws_url(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// Returns `http://` and the address.
    pub fn http_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the TCP address with the actual port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the path of the Unix socket, if there is one.
    pub fn ipc_path(&self) -> Option<&Path> {
        self.ipc.as_deref()
    }

    /// Returns a handle for commands.
    pub fn handle(&self) -> Control {
        Control::new(self.node.clone())
    }
}

impl Drop for Devnet {
    fn drop(&mut self) {
        self.node.shutdown.cancel();
        if let Some(path) = &self.ipc {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Spawns a task that ends with the node at the latest.
pub(super) fn spawn(node: &Arc<SimulatedNode>, task: impl Future<Output = ()> + Send + 'static) {
    let shutdown = node.shutdown.clone();
    tokio::spawn(async move {
        shutdown.run_until_cancelled(task).await;
    });
}

fn bind_unix(path: &Path) -> Result<UnixListener, Error> {
    // Left by a killed process; only a socket is ever removed.
    if std::fs::symlink_metadata(path).is_ok_and(|file| std::os::unix::fs::FileTypeExt::is_socket(&file.file_type())) {
        let _ = std::fs::remove_file(path);
    }
    UnixListener::bind(path).map_err(|source| Error::Ipc {
        path: path.to_owned(),
        source,
    })
}

async fn accept_tcp(node: Arc<SimulatedNode>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok(_) if node.lock().faults.refuse_connections => {}
            Ok((stream, _)) => spawn(&node, serve_connection(node.clone(), stream)),
            Err(_) => sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn accept_unix(node: Arc<SimulatedNode>, listener: UnixListener) {
    loop {
        match listener.accept().await {
            Ok(_) if node.lock().faults.refuse_connections => {}
            Ok((stream, _)) => spawn(&node, serve_ipc(node.clone(), node.cuts.subscribe(), stream)),
            Err(_) => sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// Mines at regular times, however long mining takes.
async fn mine_by_time(node: Arc<SimulatedNode>) {
    let mut timing = node.timing.subscribe();
    let mut due = Instant::now();
    loop {
        let block_time = timing.borrow_and_update().block_time.filter(|time| !time.is_zero());
        let Some(block_time) = block_time else {
            if timing.changed().await.is_err() {
                return;
            }
            due = Instant::now();
            continue;
        };
        // Late blocks are not caught up with.
        due = (due + block_time).max(Instant::now());
        tokio::select! {
            () = sleep_until(due) => drop(node.lock().mine()),
            _ = timing.changed() => due = Instant::now(),
        }
    }
}

async fn add_pending_by_time(node: Arc<SimulatedNode>) {
    let mut timing = node.timing.subscribe();
    loop {
        let rate = timing.borrow_and_update().pending_rate;
        if !(rate > 0.0 && rate.is_finite()) {
            if timing.changed().await.is_err() {
                return;
            }
            continue;
        }
        let tick = Duration::try_from_secs_f64(1.0 / rate)
            .unwrap_or(Duration::MAX)
            .max(PENDING_TICK);
        let (mut due, mut owed) = (Instant::now(), 0.0);
        while !timing.has_changed().unwrap_or(true) {
            due = (due + tick).max(Instant::now());
            tokio::select! {
                () = sleep_until(due) => {}
                _ = timing.changed() => break,
            }
            owed += rate * tick.as_secs_f64();
            // One lock per transaction, so that requests are served in between.
            while owed >= 0.999 {
                owed -= 1.0;
                node.lock().add_pending();
            }
        }
    }
}
