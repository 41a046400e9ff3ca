//! Response of `GET /events`, as its client reads it.

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

/// Response that is read in parts.
#[derive(Debug)]
pub struct Response {
    socket: TcpStream,
    raw: Vec<u8>,
    /// Text that was not taken yet; the body, if it is no stream.
    pub text: String,
    is_chunked: bool,
    is_over: bool,
}

impl Response {
    pub fn new(socket: TcpStream) -> Self {
        Self {
            socket,
            raw: Vec::new(),
            text: String::new(),
            is_chunked: false,
            is_over: false,
        }
    }

    /// Reads once; `false` at the end.
    async fn read(&mut self) -> bool {
        self.socket.read_buf(&mut self.raw).await.is_ok_and(|read| read > 0)
    }

    /// Reads the head, and the body too if it is no stream; `None` if the connection ends before.
    pub async fn status(&mut self) -> Option<u16> {
        let end = loop {
            if let Some(end) = self.raw.windows(4).position(|four| four == b"\r\n\r\n") {
                break end;
            }
            if !self.read().await {
                return None;
            }
        };
        let head: Vec<u8> = self.raw.drain(..end + 4).collect();
        let head = String::from_utf8(head).ok()?.to_ascii_lowercase();
        self.is_chunked = head.contains("transfer-encoding: chunked");
        let status = head.split(' ').nth(1)?.parse().ok()?;
        if status != 200 {
            let len = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let len = len.map_or(0, |len| len.trim().parse::<usize>().unwrap());
            while self.raw.len() < len && self.read().await {}
            self.text = String::from_utf8_lossy(&self.raw).into_owned();
        }
        Some(status)
    }

    /// Moves complete chunks to the text.
    fn unwrap_body(&mut self) {
        if !self.is_chunked {
            self.text.push_str(&String::from_utf8_lossy(&self.raw));
            self.raw.clear();
            return;
        }
        while let Some(at) = self.raw.windows(2).position(|two| two == b"\r\n") {
            let len = usize::from_str_radix(std::str::from_utf8(&self.raw[..at]).unwrap(), 16).unwrap();
            if self.raw.len() < at + 4 + len {
                break;
            }
            let chunk: Vec<u8> = self.raw.drain(..at + 4 + len).collect();
            self.is_over |= len == 0;
            self.text
                .push_str(std::str::from_utf8(&chunk[at + 2..at + 2 + len]).unwrap());
        }
    }

    /// Returns the next block of lines; `None` at the end of the stream, without the rest.
    pub async fn block(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let block = self.text[..end].to_owned();
                self.text.drain(..end + 2);
                return Some(block);
            }
            self.unwrap_body();
            if self.text.contains("\n\n") {
                continue;
            }
            if self.is_over || !self.read().await {
                return None;
            }
        }
    }
}

/// Returns a field of a block of lines.
pub fn field<'a>(block: &'a str, name: &str) -> Option<&'a str> {
    block
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}
