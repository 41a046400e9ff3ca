//! A client of server-sent events that parses the stream as the specification says, and keeps the last id.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::harness::{Event, within};

/// Message of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Value of `event`; empty without.
    pub event: String,
    pub data: String,
    /// Last id when the message was dispatched.
    pub id: String,
}

impl Message {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|why| panic!("{why}: {self:?}"))
    }

    /// Returns the message as a line of a story.
    pub fn line(&self) -> String {
        let (subscription, payload) = (String::new(), self.data.clone());
        Event { subscription, payload }.line()
    }
}

/// Open stream.
pub struct Source {
    socket: TcpStream,
    /// `true` if the body comes in chunks.
    chunked: bool,
    raw: Vec<u8>,
    text: String,
    pub head: String,
    /// Last id received.
    pub id: String,
    pub retry: Option<u32>,
    pub comments: usize,
    /// Ids that came without an event.
    pub marks: usize,
}

impl Source {
    /// Opens a stream with this query, which must be answered with 200.
    pub async fn open(address: SocketAddr, query: &str) -> Self {
        Self::open_behind(address, query, "").await
    }

    /// Like [`Self::open`], as a client that has the events up to this id.
    pub async fn open_behind(address: SocketAddr, query: &str, id: &str) -> Self {
        let socket = within("connect", TcpStream::connect(address)).await.unwrap();
        Self::over(socket, query, id).await
    }

    /// Opens a stream whose client takes few bytes at once.
    pub async fn narrow(address: SocketAddr, query: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(16 << 10).unwrap();
        Self::over(within("connect", socket.connect(address)).await.unwrap(), query, "").await
    }

    /// Opens a stream on a connection on which other requests may have been answered.
    pub async fn over(mut socket: TcpStream, query: &str, id: &str) -> Self {
        let last = if id.is_empty() {
            String::new()
        } else {
            format!("last-event-id: {id}\r\n")
        };
        let request = format!("GET /events?{query} HTTP/1.1\r\nhost: localhost\r\n{last}\r\n");
        within("write", socket.write_all(request.as_bytes())).await.unwrap();
        let mut source = Self {
            socket,
            chunked: false,
            raw: Vec::new(),
            text: String::new(),
            head: String::new(),
            id: id.to_owned(),
            retry: None,
            comments: 0,
            marks: 0,
        };
        let end = loop {
            if let Some(end) = source.raw.windows(4).position(|four| four == b"\r\n\r\n") {
                break end;
            }
            assert!(
                source.read().await,
                "no response: {:?}",
                String::from_utf8_lossy(&source.raw)
            );
        };
        source.head = String::from_utf8(source.raw.drain(..end + 4).collect())
            .unwrap()
            .to_ascii_lowercase();
        source.chunked = source.head.contains("transfer-encoding: chunked");
        assert!(
            source.head.starts_with("http/1.1 200 "),
            "{}{}",
            source.head,
            String::from_utf8_lossy(&source.raw)
        );
        assert!(
            source.head.contains("content-type: text/event-stream\r\n"),
            "{}",
            source.head
        );
        source
    }

    /// Reads once; `false` at the end.
    async fn read(&mut self) -> bool {
        let read = within("bytes", self.socket.read_buf(&mut self.raw)).await;
        read.is_ok_and(|read| read > 0)
    }

    /// Moves what was read of the body to the text; `false` at the end of the body.
    fn unwrap_body(&mut self) -> bool {
        if !self.chunked {
            self.text.push_str(std::str::from_utf8(&self.raw).unwrap());
            self.raw.clear();
            return true;
        }
        while let Some(at) = self.raw.windows(2).position(|two| two == b"\r\n") {
            let len = usize::from_str_radix(std::str::from_utf8(&self.raw[..at]).unwrap(), 16).unwrap();
            if self.raw.len() < at + 4 + len {
                break;
            }
            let chunk: Vec<u8> = self.raw.drain(..at + 4 + len).collect();
            if len == 0 {
                return false;
            }
            self.text
                .push_str(std::str::from_utf8(&chunk[at + 2..at + 2 + len]).unwrap());
        }
        true
    }

    /// Returns the next block of lines; `None` at the end of the stream.
    async fn block(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let block = self.text[..end].to_owned();
                self.text.drain(..end + 2);
                return Some(block);
            }
            let goes_on = self.unwrap_body();
            if self.text.contains("\n\n") {
                continue;
            }
            if !goes_on || !self.read().await {
                return None;
            }
        }
    }

    /// Takes one block in; returns the message, if it is one.
    fn dispatch(&mut self, block: &str) -> Option<Message> {
        let (mut event, mut data): (String, Option<String>) = (String::new(), None);
        let mut has_id = false;
        for line in block.lines() {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match name {
                "" => self.comments += 1,
                "event" => event = value.to_owned(),
                "data" => match &mut data {
                    Some(data) => {
                        data.push('\n');
                        data.push_str(value);
                    }
                    None => data = Some(value.to_owned()),
                },
                "id" => (self.id, has_id) = (value.to_owned(), true),
                "retry" => self.retry = Some(value.parse().unwrap()),
                other => panic!("{other} in {block:?}"),
            }
        }
        self.marks += usize::from(has_id && data.is_none());
        let id = self.id.clone();
        data.map(|data| Message { event, data, id })
    }

    /// Returns the next message; `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<Message> {
        loop {
            let block = self.block().await?;
            if let Some(message) = self.dispatch(&block) {
                return Some(message);
            }
        }
    }

    pub async fn message(&mut self) -> Message {
        self.next().await.expect("a message before the end of the stream")
    }

    /// Reads until an id comes without a message, and returns it.
    pub async fn mark(&mut self) -> String {
        let marks = self.marks;
        while self.marks == marks {
            let block = self.block().await.expect("a mark before the end of the stream");
            let message = self.dispatch(&block);
            assert_eq!(message, None);
        }
        self.id.clone()
    }

    /// Reads until a comment comes.
    pub async fn comment(&mut self) {
        let comments = self.comments;
        while self.comments == comments {
            let block = self.block().await.expect("a comment before the end of the stream");
            self.dispatch(&block);
        }
    }

    /// Reads as many messages as the story has lines, and compares each.
    pub async fn expect(&mut self, story: &[String]) {
        for (at, line) in story.iter().enumerate() {
            let received = self.message().await;
            assert_eq!(received.line(), *line, "message {at} of {story:?}");
        }
    }

    /// Reads to the end; returns the messages.
    pub async fn rest(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Some(message) = self.next().await {
            messages.push(message);
        }
        messages
    }
}
