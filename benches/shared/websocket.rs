//! The RFC 6455 handshake for the loop server and the load generators, without the cost of a library.

use anyhow::{Result, ensure};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// Key that every client of the benchmark sends; there are no caches here to defend against.
pub const CLIENT_KEY: &str = "aGVhZHdhdGVyIGZhbm91dA==";

pub fn accept_value(key: &str) -> String {
    derive_accept_key(key.as_bytes())
}

/// Formats the upgrade request; with `compress`, offers permessage-deflate as browsers do.
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

/// Checks the server's response head.
///
/// # Errors
///
/// If the upgrade was refused, the accept value is wrong, or compression was not agreed exactly as requested.
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

/// Returns the length of an HTTP head with its blank line; `None` while incomplete.
pub fn http_head_len(bytes: &[u8]) -> Option<usize> {
    bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .map(|at| at + 4)
}

/// Returns the value of a header by its name, case-insensitive.
pub fn http_header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .find_map(|(key, value)| key.trim().eq_ignore_ascii_case(name).then(|| value.trim()))
}
