//! A connection between two processes that can swallow what is sent: nothing passes, and nothing closes.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;

/// Way to a port of this machine.
pub struct Link {
    pub port: u16,
    open: watch::Sender<bool>,
}

impl Link {
    /// Listens on a free port, and passes all connections on to another one.
    pub async fn to(port: u16) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let link = Arc::new(Self {
            port: listener.local_addr().unwrap().port(),
            open: watch::Sender::new(true),
        });
        let open = link.open.subscribe();
        tokio::spawn(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                tokio::spawn(pass(near, port, open.clone()));
            }
        });
        link
    }

    /// Swallows everything for this long; bytes that were sent meanwhile arrive afterwards.
    pub async fn swallow(&self, lasts: Duration) {
        self.open.send_replace(false);
        sleep(lasts).await;
        self.open.send_replace(true);
    }
}

async fn is_open(open: &mut watch::Receiver<bool>) -> Option<()> {
    open.wait_for(|open| *open).await.ok().map(drop)
}

async fn pass(near: TcpStream, port: u16, mut open: watch::Receiver<bool>) -> Option<()> {
    is_open(&mut open).await?;
    let far = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let (near, far) = (near.into_split(), far.into_split());
    let there = tokio::spawn(carry(near.0, far.1, open.clone()));
    carry(far.0, near.1, open).await;
    // Either end closes both ways, as the loss of a process does.
    there.abort();
    Some(())
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut open: watch::Receiver<bool>) -> Option<()> {
    let mut bytes = vec![0; 16 << 10];
    loop {
        let length = from.read(&mut bytes).await.unwrap_or(0);
        is_open(&mut open).await?;
        if length == 0 {
            return to.shutdown().await.ok();
        }
        to.write_all(&bytes[..length]).await.ok()?;
    }
}
