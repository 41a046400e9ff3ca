//! First bytes of a connection without TLS: HTTP/2 by prior knowledge (RFC 9113 section 3.3), or HTTP/1.1.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;

/// Begin of the preface of HTTP/2. No method of HTTP/1.1 begins like this: `PRI` is reserved (RFC 9113 section 11.6).
const BEGIN: &[u8] = b"PRI ";

/// First and longest wait for the rest of the first four bytes: a socket with unread bytes is always readable.
const WAITS: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(250)];

/// Waits for the first bytes of a connection, and checks if they begin HTTP/2. Leaves them unread.
///
/// # Errors
/// If the socket fails, with the system's error.
pub(in super::super) async fn is_preface(stream: &TcpStream) -> io::Result<bool> {
    let [mut wait, longest] = WAITS;
    let mut begin = [0; BEGIN.len()];
    let mut before = 0;
    loop {
        let seen = stream.peek(&mut begin).await?;
        match verdict(&begin[..seen]) {
            Some(verdict) => return Ok(verdict),
            // No more came: perhaps the end of the stream, which reading finds.
            None if seen == before && wait >= longest => return Ok(false),
            None => {}
        }
        before = seen;
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(longest);
    }
}

/// Returns if the first bytes of a connection begin HTTP/2; `None` if that is open.
fn verdict(seen: &[u8]) -> Option<bool> {
    match seen {
        [] => Some(false),
        BEGIN => Some(true),
        part if BEGIN.starts_with(part) => None,
        _ => Some(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_bytes_tell_the_preface_from_every_request() {
        for (seen, expect) in [
            ("", Some(false)),
            ("P", None),
            ("PR", None),
            ("PRI", None),
            ("PRI ", Some(true)),
            ("PRID", Some(false)),
            ("PO", Some(false)),
            ("POST", Some(false)),
            ("PROP", Some(false)),
            ("GET ", Some(false)),
            ("pri ", Some(false)),
            ("\x16\x03\x01", Some(false)),
        ] {
            assert_eq!(verdict(seen.as_bytes()), expect, "{seen:?}");
        }
    }
}
