//! `headwater health`: the health check of a container without a shell.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const TIMEOUT: Duration = Duration::from_secs(3);

/// Requests `/health` on the admin port. Any answer but 200 is an error.
pub async fn health(mut admin: SocketAddr) -> anyhow::Result<()> {
    // A listener on all addresses is asked on loopback.
    if admin.ip().is_unspecified() {
        let loopback = if admin.is_ipv4() {
            IpAddr::V4(Ipv4Addr::LOCALHOST)
        } else {
            IpAddr::V6(Ipv6Addr::LOCALHOST)
        };
        admin.set_ip(loopback);
    }
    let asked = async {
        let mut socket = TcpStream::connect(admin).await?;
        socket
            .write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .await?;
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(TIMEOUT, asked)
        .await
        .with_context(|| format!("no answer from {admin} within {TIMEOUT:?}"))?
        .with_context(|| format!("nothing answers on the admin address {admin}; is headwater running?"))?;
    if !answer.starts_with(b"HTTP/1.1 200") {
        bail!(
            "{admin} answered {:?}",
            String::from_utf8_lossy(&answer).lines().next().unwrap_or_default()
        );
    }
    Ok(())
}
