//! Requests of webhooks, as a receiver reads them.

// Shared by several test binaries; each uses only a part.
#![allow(dead_code, unreachable_pub)]

use std::collections::HashMap;

use headwater::webhooks::Secrets;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

/// Secret of the specification's own tests.
pub const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// One request.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Path and query.
    pub path: String,
    /// Names in lower case.
    pub headers: HashMap<String, String>,
    pub body: String,
}

impl Delivery {
    /// Returns the id of the batch.
    pub fn id(&self) -> &str {
        &self.headers["webhook-id"]
    }

    /// Checks the signature.
    pub fn is_signed(&self) -> bool {
        let secrets = Secrets::parse(SECRET).unwrap();
        let timestamp = self.headers["webhook-timestamp"].parse().unwrap();
        let signature = secrets.sign(self.id(), timestamp, self.body.as_bytes());
        self.headers["webhook-signature"].split(' ').any(|own| own == signature)
    }
}

/// Body of a request.
#[derive(Debug, Deserialize)]
pub struct Batch<'a> {
    #[serde(rename = "type")]
    pub kind: &'a str,
    pub sequence: u64,
    /// A list of events, or one of headwater's own.
    #[serde(borrow)]
    pub data: &'a RawValue,
}

impl<'a> Batch<'a> {
    /// Returns the events; none for one of headwater's own.
    pub fn events(&self) -> Vec<&'a RawValue> {
        serde_json::from_str(self.data.get()).unwrap_or_default()
    }
}

/// A connection on which requests come.
#[derive(Debug)]
pub struct Deliveries {
    pub socket: TcpStream,
    bytes: Vec<u8>,
}

impl Deliveries {
    pub fn new(socket: TcpStream) -> Self {
        Self {
            socket,
            bytes: Vec::new(),
        }
    }

    /// Reads the next request; `None` if the connection ends before.
    pub async fn next(&mut self) -> Option<Delivery> {
        loop {
            if let Some(request) = self.complete() {
                return Some(request);
            }
            if self.socket.read_buf(&mut self.bytes).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    fn complete(&mut self) -> Option<Delivery> {
        let end = self.bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
        let head = std::str::from_utf8(&self.bytes[..end]).unwrap();
        let mut words = head.split(' ');
        assert_eq!(words.next(), Some("POST"), "{head}");
        let path = words.next().unwrap().to_owned();
        let lines = head.lines().skip(1).filter_map(|line| line.split_once(": "));
        let headers: HashMap<String, String> = lines
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect();
        let body = end + 4..end + 4 + headers["content-length"].parse::<usize>().unwrap();
        let body = String::from_utf8(self.bytes.get(body)?.to_vec()).unwrap();
        self.bytes.drain(..end + 4 + body.len());
        Some(Delivery { path, headers, body })
    }
}
