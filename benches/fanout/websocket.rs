//! As much of RFC 6455 as the loop server and the load generator need; neither may spend time in a library.

use std::borrow::Cow;

use anyhow::{Context, Result, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use sha1::{Digest, Sha1};

/// Every client of the benchmark sends this key; nothing here defends against caches.
pub const CLIENT_KEY: &str = "aGVhZHdhdGVyIGZhbm91dA==";

const MASK: [u8; 4] = [0x17, 0x2b, 0x3d, 0x59];

pub const TEXT: u8 = 0x1;
pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;
pub const PONG: u8 = 0xa;

pub fn accept_value(key: &str) -> String {
    let mut sha1 = Sha1::new();
    sha1.update(key.as_bytes());
    sha1.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(sha1.finalize())
}

pub fn upgrade_request(host: &str) -> String {
    format!(
        "GET / HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
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

/// A whole frame as a client sends it.
pub fn client_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = header(opcode, payload.len(), 0x80);
    frame.extend_from_slice(&MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

fn header(opcode: u8, payload_len: usize, mask_bit: u8) -> Vec<u8> {
    let mut header = vec![0x80 | opcode];
    if payload_len < 126 {
        header.push(mask_bit | payload_len as u8);
    } else if let Ok(len) = u16::try_from(payload_len) {
        header.push(mask_bit | 126);
        header.extend_from_slice(&len.to_be_bytes());
    } else {
        header.push(mask_bit | 127);
        header.extend_from_slice(&(payload_len as u64).to_be_bytes());
    }
    header
}

pub struct Frame<'a> {
    pub opcode: u8,
    pub payload: Cow<'a, [u8]>,
}

/// Cuts a byte stream into frames. Bytes are copied only when a frame spans two reads.
#[derive(Default)]
pub struct FrameReader {
    partial: Vec<u8>,
}

impl FrameReader {
    pub fn feed(&mut self, bytes: &[u8], mut on_frame: impl FnMut(Frame<'_>) -> Result<()>) -> Result<()> {
        if self.partial.is_empty() {
            let rest = take_frames(bytes, &mut on_frame)?;
            self.partial.extend_from_slice(rest);
        } else {
            self.partial.extend_from_slice(bytes);
            let rest = take_frames(&self.partial, &mut on_frame)?.len();
            self.partial.drain(..self.partial.len() - rest);
        }
        Ok(())
    }
}

fn take_frames<'a>(mut bytes: &'a [u8], on_frame: &mut impl FnMut(Frame<'_>) -> Result<()>) -> Result<&'a [u8]> {
    while let Some((frame, len)) = first_frame(bytes)? {
        on_frame(frame)?;
        bytes = &bytes[len..];
    }
    Ok(bytes)
}

/// The first frame and its whole length, or `None` when more bytes are needed.
fn first_frame(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>> {
    let [first, second, rest @ ..] = bytes else {
        return Ok(None);
    };
    if first & 0xf0 != 0x80 {
        bail!("a fragmented or extended frame (first byte {first:#04x}), which nothing in this benchmark asks for");
    }
    let (payload_len, rest) = match second & 0x7f {
        126 => {
            let Some((len, rest)) = rest.split_first_chunk::<2>() else {
                return Ok(None);
            };
            (usize::from(u16::from_be_bytes(*len)), rest)
        }
        127 => {
            let Some((len, rest)) = rest.split_first_chunk::<8>() else {
                return Ok(None);
            };
            (usize::try_from(u64::from_be_bytes(*len)).context("frame length")?, rest)
        }
        short => (usize::from(short), rest),
    };
    let (mask, rest) = if second & 0x80 == 0 {
        (None, rest)
    } else {
        let Some((mask, rest)) = rest.split_first_chunk::<4>() else {
            return Ok(None);
        };
        (Some(mask), rest)
    };
    let Some(payload) = rest.get(..payload_len) else {
        return Ok(None);
    };
    let len = bytes.len() - rest.len() + payload_len;
    let payload = match mask {
        None => Cow::Borrowed(payload),
        Some(mask) => payload
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, mask)| byte ^ mask)
            .collect(),
    };
    Ok(Some((
        Frame {
            opcode: first & 0x0f,
            payload,
        },
        len,
    )))
}
