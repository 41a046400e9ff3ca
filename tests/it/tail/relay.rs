//! A relay before an endpoint, which cuts connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// A handle to the relay, which runs until the end of the test's runtime.
#[derive(Clone)]
pub struct Relay(Arc<Inner>);

struct Inner {
    address: SocketAddr,
    to: SocketAddr,
    is_closed: AtomicBool,
    /// Bytes to the client after which a connection is cut.
    budget: AtomicU64,
    cut: Mutex<CancellationToken>,
}

impl Relay {
    pub async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = Self(Arc::new(Inner {
            address: listener.local_addr().unwrap(),
            to,
            is_closed: AtomicBool::new(false),
            budget: AtomicU64::new(u64::MAX),
            cut: Mutex::default(),
        }));
        let accepting = relay.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if !accepting.0.is_closed.load(Ordering::SeqCst) {
                    let cut = accepting.0.cut.lock().clone();
                    let relay = accepting.clone();
                    tokio::spawn(cut.run_until_cancelled_owned(async move { relay.carry(client).await }));
                }
            }
        });
        relay
    }

    async fn carry(&self, client: TcpStream) {
        let Ok(server) = TcpStream::connect(self.0.to).await else {
            return;
        };
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        let mut left = self.0.budget.load(Ordering::SeqCst);
        let down = async {
            let mut buffer = [0; 1 << 12];
            while let Ok(length @ 1..) = from_server.read(&mut buffer).await {
                let sent = (length as u64).min(left) as usize;
                left -= sent as u64;
                if to_client.write_all(&buffer[..sent]).await.is_err() || left == 0 {
                    break;
                }
            }
        };
        tokio::select! {
            () = down => {}
            _ = copy(&mut from_client, &mut to_server) => {}
        }
    }

    pub fn url(&self) -> String {
        format!("ws://{}", self.0.address)
    }

    /// Cuts all connections, and accepts no others until [`Self::open`].
    pub fn close(&self) {
        self.0.is_closed.store(true, Ordering::SeqCst);
        self.cut();
    }

    pub fn open(&self) {
        self.0.is_closed.store(false, Ordering::SeqCst);
    }

    /// Cuts all connections; new ones are accepted.
    pub fn cut(&self) {
        std::mem::take(&mut *self.0.cut.lock()).cancel();
    }

    /// Sets the bytes after which each new connection is cut.
    pub fn cut_after(&self, bytes: u64) {
        self.0.budget.store(bytes, Ordering::SeqCst);
    }
}
