//! The handshake of RFC 6455 as the loop server and the load generator need it; neither may spend time in a library.

use base64::{Engine, engine::general_purpose::STANDARD};
use sha1::{Digest, Sha1};

use crate::frames::{TEXT, header};

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

pub fn upgrade_response(key: &str) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\n\r\n",
        accept_value(key)
    )
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

/// The header of an unfragmented, unmasked text frame.
pub fn text_header(payload_len: usize) -> Vec<u8> {
    header(TEXT, payload_len, 0)
}
