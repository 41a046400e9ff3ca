//! Client address from a load balancer's header at the start of a connection: PROXY protocol, version 2.

use std::net::IpAddr;

use ppp::v2::{Addresses, Command, Header};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Length of the fixed part, in bytes: the signature, version and command, address family, and the length of the rest.
const FIXED: usize = 16;

/// Longest variable part accepted, in bytes. Addresses take up to 36; the rest is for extensions by balancers, about
/// TLS and themselves.
const MAX: usize = 2 << 10;

/// Missing or unreadable header of version 2.
#[derive(Debug, thiserror::Error)]
pub enum NotProxied {
    /// Bytes that are not a valid header.
    #[error("not a valid PROXY protocol header of version 2: {0}")]
    Malformed(String),
    /// Connection that failed or ended within the header.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Reads the header and nothing after it; returns the client's address. `None` for connections of the balancer itself,
/// such as health checks.
///
/// # Errors
/// [`NotProxied`] if the header is not valid, is too long, has no IP address, or cannot be read.
pub async fn client_of(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<IpAddr>, NotProxied> {
    let mut header = vec![0; FIXED];
    stream.read_exact(&mut header).await?;
    if !header.starts_with(ppp::v2::PROTOCOL_PREFIX) {
        return Err(NotProxied::Malformed("wrong signature".into()));
    }
    let rest = usize::from(u16::from_be_bytes([header[14], header[15]]));
    if rest > MAX {
        return Err(NotProxied::Malformed(format!("{rest} bytes long")));
    }
    header.resize(FIXED + rest, 0);
    stream.read_exact(&mut header[FIXED..]).await?;
    let header = Header::try_from(&header[..]).map_err(|why| NotProxied::Malformed(why.to_string()))?;
    Ok(match (header.command, header.addresses) {
        (Command::Local, _) => None,
        (Command::Proxy, Addresses::IPv4(addresses)) => Some(addresses.source_address.into()),
        (Command::Proxy, Addresses::IPv6(addresses)) => Some(addresses.source_address.into()),
        (Command::Proxy, _) => return Err(NotProxied::Malformed("no IP address".into())),
    })
}

#[cfg(test)]
mod tests {
    use ppp::v2::{Builder, Protocol, Version};

    use super::*;

    async fn read(bytes: &[u8]) -> Result<(Option<IpAddr>, usize), String> {
        let mut rest = bytes;
        let client = client_of(&mut rest).await.map_err(|why| why.to_string())?;
        Ok((client, rest.len()))
    }

    fn header(command: Command, from: &str, to: &str) -> Vec<u8> {
        let addresses: (std::net::SocketAddr, std::net::SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        Builder::with_addresses(Version::Two | command, Protocol::Stream, addresses)
            .write_tlv(ppp::v2::Type::NoOp, &[0; 9])
            .unwrap()
            .build()
            .unwrap()
    }

    #[tokio::test]
    async fn the_address_is_read_and_nothing_behind_it() {
        for (from, to) in [
            ("203.0.113.7:5000", "10.0.0.1:443"),
            ("[2001:db8::7]:5000", "[2001:db8::1]:443"),
        ] {
            let address: std::net::SocketAddr = from.parse().unwrap();
            let mut bytes = header(Command::Proxy, from, to);
            bytes.extend_from_slice(b"GET /");
            assert_eq!(read(&bytes).await, Ok((Some(address.ip()), 5)));
            let bytes = header(Command::Local, from, to);
            assert_eq!(read(&bytes).await, Ok((None, 0)));
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        let whole = header(Command::Proxy, "203.0.113.7:5000", "10.0.0.1:443");
        for end in 0..whole.len() {
            assert!(read(&whole[..end]).await.is_err(), "{end} bytes");
        }
        assert!(read(b"GET / HTTP/1.1\r\nhost: a\r\n").await.is_err());
        assert!(read(b"PROXY TCP4 203.0.113.7 10.0.0.1 5000 443\r\n").await.is_err());
        let mut long = whole.clone();
        long[14..16].copy_from_slice(&(MAX as u16 + 1).to_be_bytes());
        long.resize(FIXED + MAX + 1, 0);
        assert!(read(&long).await.unwrap_err().contains("2049 bytes long"));
        let mut other = whole;
        other[12] = 0x11;
        assert!(read(&other).await.is_err(), "version 1");
    }
}
