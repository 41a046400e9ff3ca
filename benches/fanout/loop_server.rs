//! The physical limit: one thread, one system call per client and event, nothing else.
//!
//! Clients have ids of their own, and an event is three slices of a `writev` for each message; or all share one id, and an
//! event is one piece of bytes for everybody.
//!
//! The server accepts, answers the upgrade and the one `eth_subscribe`, and from then on hands pre-encoded frames to
//! the kernel. epoll reports only commands, new clients and the rare socket whose buffer is full.

use std::{
    io::{ErrorKind, IoSlice, Read, Write},
    sync::{Arc, mpsc::channel},
};

use anyhow::{Context, Result, bail};
use mio::{
    Events, Interest, Poll, Token, Waker,
    net::{TcpListener, TcpStream},
};

use crate::{
    frames::{FrameReader, TEXT, header},
    notification,
    roles::{ServeArgs, on_each_event},
    websocket::{accept_value, http_head_len, http_header},
};

const LISTENER: Token = Token(usize::MAX);
const COMMANDS: Token = Token(usize::MAX - 1);

#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[command(flatten)]
    pub work: ServeArgs,
    /// Give all clients the same subscription id.
    #[arg(long)]
    pub shared: bool,
}

/// Three slices per message; `IOV_MAX` is 1,024 on Linux.
const SLICES_PER_WRITE: usize = 1023;

pub fn serve(args: &Args) -> Result<()> {
    let blocks = encode_all(args);
    let mut poll = Poll::new()?;
    let mut listener = TcpListener::bind("127.0.0.1:0".parse()?)?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;

    let (sender, commands) = channel();
    let waker = Arc::new(Waker::new(poll.registry(), COMMANDS)?);
    on_each_event(move |event| {
        let _ending = sender.send(event);
        waker.wake().expect("the poll lives as long as the process");
    });
    println!("listening {}", listener.local_addr()?);

    let mut clients: Vec<Client> = Vec::new();
    let mut ready = Events::with_capacity(1024);
    loop {
        if let Err(error) = poll.poll(&mut ready, None) {
            if error.kind() == ErrorKind::Interrupted {
                continue;
            }
            return Err(error.into());
        }
        for event in &ready {
            match event.token() {
                LISTENER => accept(&listener, &poll, &mut clients, args.shared)?,
                COMMANDS => {
                    while let Ok(event) = commands.try_recv() {
                        deliver(&blocks[event], &mut clients, &poll)?;
                    }
                }
                Token(number) => clients[number].ready(event.is_writable(), &poll, Token(number))?,
            }
        }
    }
}

/// One message, encoded for all clients: the frame header is the same for all, since every prefix has the same
/// length.
struct Encoded {
    header: Vec<u8>,
    body: Vec<u8>,
}

/// The messages of one event.
enum Block {
    /// Three slices for each message: header, envelope with the client's id, body.
    Own(Vec<Encoded>),
    /// One piece of bytes for all clients.
    Shared(Vec<u8>),
}

fn encode_all(args: &Args) -> Vec<Block> {
    let prefix = notification::prefix(&notification::subscription_id(0)).into_bytes();
    let chain = args.work.chain();
    let encode = |result: String| {
        let body = (result + notification::END).into_bytes();
        Encoded {
            header: text_header(prefix.len() + body.len()),
            body,
        }
    };
    let block = |event| {
        let messages: Vec<Encoded> = chain.results(event).into_iter().map(encode).collect();
        if !args.shared {
            return Block::Own(messages);
        }
        let pieces = messages
            .iter()
            .flat_map(|message| [&message.header, &prefix, &message.body].map(Vec::as_slice));
        Block::Shared(pieces.collect::<Vec<_>>().concat())
    };
    (0..args.work.events).map(block).collect()
}

fn deliver(block: &Block, clients: &mut [Client], poll: &Poll) -> Result<()> {
    let mut slices: Vec<IoSlice<'_>> = match block {
        Block::Shared(bytes) => vec![IoSlice::new(bytes)],
        Block::Own(messages) => messages
            .iter()
            .flat_map(|message| {
                [
                    IoSlice::new(&message.header),
                    IoSlice::new(&[]),
                    IoSlice::new(&message.body),
                ]
            })
            .collect(),
    };
    let mut unsent = Vec::new();
    for (number, client) in clients.iter().enumerate() {
        // A shared block has no slices but the first.
        for slot in slices[1..].iter_mut().step_by(3) {
            *slot = IoSlice::new(&client.prefix);
        }
        let rest = if client.backlog.is_empty() {
            write_all(&client.stream, &slices)?
        } else {
            concat(&slices, 0)
        };
        if !rest.is_empty() {
            unsent.push((number, rest));
        }
    }
    for (number, rest) in unsent {
        let client = &mut clients[number];
        client.backlog.extend_from_slice(&rest);
        client.watch(poll, Token(number), Interest::READABLE | Interest::WRITABLE)?;
    }
    Ok(())
}

/// Returns the bytes that the socket did not accept.
fn write_all(mut stream: &TcpStream, slices: &[IoSlice<'_>]) -> Result<Vec<u8>> {
    for (number, chunk) in slices.chunks(SLICES_PER_WRITE).enumerate() {
        let len: usize = chunk.iter().map(|slice| slice.len()).sum();
        let written = match stream.write_vectored(chunk) {
            Ok(written) => written,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error).context("writing to a client"),
        };
        if written < len {
            return Ok(concat(&slices[number * SLICES_PER_WRITE..], written));
        }
    }
    Ok(Vec::new())
}

/// Concatenates the slices without the first `skip` bytes.
fn concat(slices: &[IoSlice<'_>], mut skip: usize) -> Vec<u8> {
    let mut rest = Vec::with_capacity(slices.iter().map(|slice| slice.len()).sum());
    for slice in slices {
        let skipped = skip.min(slice.len());
        rest.extend_from_slice(&slice[skipped..]);
        skip -= skipped;
    }
    rest
}

fn accept(listener: &TcpListener, poll: &Poll, clients: &mut Vec<Client>, shared: bool) -> Result<()> {
    loop {
        let mut stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error).context("accepting a client"),
        };
        stream.set_nodelay(true)?;
        poll.registry()
            .register(&mut stream, Token(clients.len()), Interest::READABLE)?;
        let number = if shared { 0 } else { clients.len() };
        let id = notification::subscription_id(number as u64);
        clients.push(Client {
            stream,
            prefix: notification::prefix(&id).into_bytes(),
            answer: format!(r#"{{"jsonrpc":"2.0","id":1,"result":"{id}"}}"#).into_bytes(),
            stage: Stage::Upgrade(Vec::new()),
            backlog: Vec::new(),
        });
    }
}

enum Stage {
    Upgrade(Vec<u8>),
    Open(FrameReader),
}

struct Client {
    stream: TcpStream,
    prefix: Vec<u8>,
    answer: Vec<u8>,
    stage: Stage,
    backlog: Vec<u8>,
}

impl Client {
    fn ready(&mut self, writable: bool, poll: &Poll, token: Token) -> Result<()> {
        if writable && !self.backlog.is_empty() {
            self.flush(poll, token)?;
        }
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(len) => self.received(&buffer[..len])?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
                Err(error) => return Err(error).context("reading from a client"),
            }
        }
    }

    fn flush(&mut self, poll: &Poll, token: Token) -> Result<()> {
        while !self.backlog.is_empty() {
            match self.stream.write(&self.backlog) {
                Ok(written) => drop(self.backlog.drain(..written)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("writing to a client"),
            }
        }
        self.watch(poll, token, Interest::READABLE)
    }

    fn watch(&mut self, poll: &Poll, token: Token, interest: Interest) -> Result<()> {
        poll.registry()
            .reregister(&mut self.stream, token, interest)
            .context("watching a client")
    }

    fn received(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.stage {
            Stage::Upgrade(head) => {
                head.extend_from_slice(bytes);
                let Some(len) = http_head_len(head) else {
                    return Ok(());
                };
                if len != head.len() {
                    bail!("a client spoke before its upgrade was answered");
                }
                let head = std::str::from_utf8(head)?;
                let key = http_header(head, "sec-websocket-key").context("an upgrade without a key")?;
                self.stream.write_all(upgrade_response(key).as_bytes())?;
                self.stage = Stage::Open(FrameReader::default());
            }
            Stage::Open(frames) => {
                let (stream, answer) = (&mut self.stream, &self.answer);
                // The load generator's only request is its `eth_subscribe` with the id 1.
                frames.feed(bytes, |frame| {
                    if frame.opcode == TEXT {
                        stream.write_all(&[text_header(answer.len()), answer.clone()].concat())?;
                    }
                    Ok(())
                })?;
            }
        }
        Ok(())
    }
}

fn upgrade_response(key: &str) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\n\r\n",
        accept_value(key)
    )
}

/// The header of an unfragmented, unmasked text frame.
fn text_header(payload_len: usize) -> Vec<u8> {
    header(TEXT, payload_len, 0)
}
