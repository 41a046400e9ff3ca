//! The handshake of RFC 6455 as the loop server and the load generators need it; none may spend time in a library.

use anyhow::{Result, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use sha1::{Digest, Sha1};

/// Every client of the benchmark sends this key; nothing here defends against caches.
pub const CLIENT_KEY: &str = "aGVhZHdhdGVyIGZhbm91dA==";

pub fn accept_value(key: &str) -> String {
    let mut sha1 = Sha1::new();
    sha1.update(key.as_bytes());
    sha1.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(sha1.finalize())
}

/// With the offer of compression that browsers make, or without.
pub fn upgrade_request(host: &str, compress: bool) -> String {
    let offer = if compress {
        "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
    } else {
        ""
    };
    format!(
        "GET / HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{offer}\
         Sec-WebSocket-Key: {CLIENT_KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
}

/// What the server answered; with compression or without, as it was asked for.
pub fn check_upgrade(head: &str, compress: bool) -> Result<()> {
    let status = head.lines().next().unwrap_or_default();
    ensure!(
        status.split_whitespace().nth(1) == Some("101"),
        "the upgrade was refused: {status}"
    );
    let accept = http_header(head, "sec-websocket-accept");
    ensure!(
        accept == Some(&accept_value(CLIENT_KEY)),
        "the upgrade was accepted with a wrong key"
    );
    ensure!(
        http_header(head, "sec-websocket-extensions").is_some() == compress,
        "compression was not agreed on, or without an offer"
    );
    Ok(())
}

/// The length of an HTTP head with its blank line, once it is complete.
pub fn http_head_len(bytes: &[u8]) -> Option<usize> {
    bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .map(|at| at + 4)
}

/// The value of a header, by its lower-case name.
pub fn http_header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .find_map(|(key, value)| key.trim().eq_ignore_ascii_case(name).then(|| value.trim()))
}
