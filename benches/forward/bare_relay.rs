//! The physical limit of a proxy: one thread that reads bytes and writes them on, and does nothing else.
//!
//! Standard output carries `listening <address>`.

use std::{
    io::{ErrorKind, Read, Write},
    net::SocketAddr,
};

use anyhow::{Context, Result};
use mio::{
    Events, Interest, Poll, Registry, Token,
    net::{TcpListener, TcpStream},
};

#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[arg(long)]
    pub node: SocketAddr,
}

const LISTENER: Token = Token(usize::MAX);

pub fn run(args: &Args) -> Result<()> {
    let mut poll = Poll::new()?;
    let mut listener = TcpListener::bind("127.0.0.1:0".parse()?)?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    println!("listening {}", listener.local_addr()?);
    // Ends of connections; those of a pair stand next to each other.
    let mut ends: Vec<Option<End>> = Vec::new();
    let mut ready = Events::with_capacity(1024);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        if let Err(error) = poll.poll(&mut ready, None) {
            if error.kind() == ErrorKind::Interrupted {
                continue;
            }
            return Err(error.into());
        }
        for event in &ready {
            let Token(number) = event.token();
            if event.token() == LISTENER {
                accept(&listener, args.node, poll.registry(), &mut ends)?;
                continue;
            }
            // Writable: what the other end sent before. Readable: what this end sends now.
            let pair = number & !1;
            let [Some(first), Some(second)] = &mut ends[pair..pair + 2] else {
                continue;
            };
            let (this, other) = if number == pair {
                (first, second)
            } else {
                (second, first)
            };
            if this.flush().and_then(|()| pass_on(this, other, &mut buffer)).is_err() {
                ends[pair..pair + 2].fill_with(|| None);
            }
        }
    }
}

/// One end of a pair of connections.
struct End {
    stream: TcpStream,
    /// Bytes that the socket did not accept yet.
    backlog: Vec<u8>,
}

impl End {
    fn write(&mut self, mut bytes: &[u8]) -> std::io::Result<()> {
        while self.backlog.is_empty() && !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        self.backlog.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let backlog = std::mem::take(&mut self.backlog);
        self.write(&backlog)
    }
}

/// Passes on all that an end has sent. A short read has emptied the socket; later data raises a new edge (epoll(7), question 9).
fn pass_on(from: &mut End, to: &mut End, buffer: &mut [u8]) -> std::io::Result<()> {
    loop {
        match from.stream.read(buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(len) => {
                to.write(&buffer[..len])?;
                if len < buffer.len() {
                    return Ok(());
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

fn accept(listener: &TcpListener, node: SocketAddr, registry: &Registry, ends: &mut Vec<Option<End>>) -> Result<()> {
    loop {
        let client = match listener.accept() {
            Ok((client, _)) => client,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error).context("accepting a client"),
        };
        // Blocking is fine here: on the loopback a connect lasts as long as its system call.
        let node = std::net::TcpStream::connect(node).context("connecting to the node")?;
        node.set_nonblocking(true)?;
        for mut stream in [client, TcpStream::from_std(node)] {
            stream.set_nodelay(true)?;
            registry.register(&mut stream, Token(ends.len()), Interest::READABLE | Interest::WRITABLE)?;
            ends.push(Some(End {
                stream,
                backlog: Vec::new(),
            }));
        }
    }
}
