//! Blocking requests over HTTP, for everything that is not measured.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::value::RawValue;

/// Time limit of a read.
const PATIENCE: Duration = Duration::from_secs(20);

/// Makes one blocking request on its own connection and returns status line and body. Uses HTTP/1.0, so that the body
/// ends with the connection and is never chunked.
pub fn fetch(server: SocketAddr, method: &str, path: &str, body: &str) -> Result<(String, String)> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let len = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: {server}\r\nContent-Type: application/json\r\nContent-Length: {len}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    Ok((head.lines().next().unwrap_or_default().to_owned(), body.to_owned()))
}

/// Formats one request.
pub fn request(id: u64, method: &str, params: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{params}}}"#)
}

/// Makes one call on its own connection.
pub fn ask(server: SocketAddr, method: &str, params: &str) -> Result<Box<RawValue>> {
    #[derive(Deserialize)]
    struct Answer {
        result: Option<Box<RawValue>>,
    }

    let (_, body) = fetch(server, "POST", "/", &request(1, method, params)).with_context(|| method.to_owned())?;
    let answer: Answer = serde_json::from_str(&body).with_context(|| format!("{method}: not JSON-RPC: {body}"))?;
    answer.result.with_context(|| format!("{method}: no result: {body}"))
}

pub fn quantity(hex: &str) -> Result<u64> {
    let digits = hex.strip_prefix("0x").context("no quantity")?;
    Ok(u64::from_str_radix(digits, 16)?)
}
