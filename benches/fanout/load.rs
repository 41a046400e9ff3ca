//! The load generator: many clients in one thread, each of which checks every message it receives.
//!
//! Standard output carries `ready <nanoseconds>` (since the first connect) when all clients have subscribed,
//! `done <event>` with the [`Arrivals`] when the last client has received all of an event,
//! `fault <account>` when a client received anything but the next message, and, on the command `finish`, either a
//! fault or `finished` with the [`Totals`].
//!
//! With compression, one client in fifty inflates and checks every byte. The other clients compare each message's
//! length and last bytes with those of the first client that received the message: inflating every copy would take
//! CPU time from the server, because the machine has no spare core.

use std::{
    fmt,
    io::{ErrorKind, Read, Write},
    net::SocketAddr,
    str::FromStr,
    sync::{Arc, mpsc::channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use headwater::deflate::Inflater;
use mio::{Events, Interest, Poll, Token, Waker, event::Event, net::TcpStream};
use rustix::time::{ClockId, clock_gettime};
use socket2::SockRef;

use crate::{
    arrivals::Arrivals,
    event_stream,
    feed::{Feed, Mark, News},
    frames::{BINARY, CLOSE, FrameReader, Message, PING, PONG, TEXT, client_frame, header},
    roles::LoadArgs,
    script::Script,
    websocket::{check_upgrade, http_head_len, upgrade_request},
};

const COMMANDS: Token = Token(usize::MAX);

/// Limit on clients between connect and the answer to their subscribe call.
const CONNECTING_AT_ONCE: usize = 64;

/// Size in bytes, larger than a burst of a hundred logs, so that a client usually needs one read per burst.
const READ_BUFFER: usize = 256 * 1024;

pub fn receive(args: &LoadArgs) -> Result<()> {
    // The benchmark reads faults from standard output.
    if let Err(error) = Load::new(args).and_then(Load::run) {
        println!("fault {}", format!("{error:#}").replace('\n', " "));
    }
    Ok(())
}

/// Reads the system's monotonic clock, which all processes share.
pub fn monotonic_now() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(
        now.tv_sec.unsigned_abs(),
        u32::try_from(now.tv_nsec).expect("nanoseconds are below 10^9"),
    )
}

/// The sums over all clients.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    pub checked: u64,
    /// Messages among `checked` whose bytes differ from the node's, although the JSON is equal.
    pub rewritten: u64,
    /// Bytes on the wire.
    pub bytes: u64,
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            checked,
            rewritten,
            bytes,
        } = self;
        write!(f, "{checked} {rewritten} {bytes}")
    }
}

impl FromStr for Totals {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Self> {
        let numbers: Vec<u64> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
        let [checked, rewritten, bytes] = numbers[..] else {
            bail!("an odd line from the load generator: {line}")
        };
        Ok(Self {
            checked,
            rewritten,
            bytes,
        })
    }
}

/// One client in this many inflates its messages.
const INFLATING: usize = 50;

struct Load {
    server: SocketAddr,
    poll: Poll,
    clients: Vec<Client>,
    wanted: usize,
    compress: bool,
    event_stream: bool,
    script: Script,
    /// Expected length and end of each compressed message, in the order of the script.
    marks: Vec<Mark>,
    /// Number of clients that have their subscription id.
    subscribed: usize,
    /// Moments at which clients had all of an event, by event.
    complete: Vec<Vec<Duration>>,
    totals: Totals,
    buffer: Vec<u8>,
    started: Instant,
}

impl Load {
    fn new(args: &LoadArgs) -> Result<Self> {
        Ok(Self {
            server: args.server,
            poll: Poll::new()?,
            clients: Vec::with_capacity(args.clients),
            wanted: args.clients,
            compress: args.compress,
            event_stream: args.event_stream,
            script: Script::new(&args.work),
            marks: Vec::new(),
            subscribed: 0,
            complete: vec![Vec::new(); args.work.events],
            totals: Totals::default(),
            buffer: vec![0; READ_BUFFER],
            started: Instant::now(),
        })
    }

    fn run(mut self) -> Result<()> {
        let (sender, commands) = channel();
        let waker = Arc::new(Waker::new(self.poll.registry(), COMMANDS)?);
        thread::spawn(move || {
            for _finish in std::io::stdin().lines().map_while(Result::ok) {
                let _ending = sender.send(());
                waker.wake().expect("the poll lives as long as the process");
            }
        });
        let mut ready = Events::with_capacity(1024);
        while self.clients.len() < self.wanted.min(CONNECTING_AT_ONCE) {
            self.connect()?;
        }
        loop {
            if let Err(error) = self.poll.poll(&mut ready, None) {
                ensure!(error.kind() == ErrorKind::Interrupted, error);
            }
            for event in &ready {
                if event.token() != COMMANDS {
                    self.read(event)?;
                }
            }
            if commands.try_recv().is_ok() {
                return self.finish();
            }
        }
    }

    fn connect(&mut self) -> Result<()> {
        // Blocking is fine here: on the loopback a connect lasts as long as its system call.
        let stream = std::net::TcpStream::connect(self.server).context("connecting")?;
        // A reset instead of a FIN: thousands of sockets in TIME_WAIT would disturb the next runs.
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        let host = self.server.to_string();
        let request = match self.event_stream {
            true => event_stream::request(&host, self.script.scenario),
            false => upgrade_request(&host, self.compress),
        };
        stream.write_all(request.as_bytes())?;
        self.poll
            .registry()
            .register(&mut stream, Token(self.clients.len()), Interest::READABLE)?;
        self.clients.push(Client {
            stream,
            stage: Stage::Upgrade(Vec::new()),
            frames: FrameReader::new(self.compress),
            inflater: (self.compress && self.clients.len().is_multiple_of(INFLATING)).then(Inflater::default),
            compress: self.compress,
            events: self.event_stream.then(event_stream::Reader::default),
        });
        Ok(())
    }

    fn read(&mut self, event: &Event) -> Result<()> {
        let Token(number) = event.token();
        loop {
            let client = &mut self.clients[number];
            let len = match client.stream.read(&mut self.buffer) {
                Ok(0) => bail!("closed: client {number} met the end of the stream"),
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => {
                    return Err(error).with_context(|| format!("closed: client {number}"));
                }
            };
            let news = client
                .received(&self.buffer[..len], &self.script, &mut self.marks)
                .with_context(|| format!("client {number}"))?;
            self.totals.rewritten += news.rewritten;
            self.totals.bytes += news.bytes;
            if news.subscribed {
                self.one_more_subscribed()?;
            }
            for event in news.completed {
                let moments = &mut self.complete[event];
                moments.push(monotonic_now());
                if moments.len() == self.wanted
                    && let Some(arrivals) = Arrivals::of(moments)
                {
                    println!("done {event} {arrivals}");
                    *moments = Vec::new();
                }
            }
            // A short read has emptied the socket; later data raises a new edge (epoll(7), question 9). The end of
            // the stream raises none after its own.
            if len < self.buffer.len() && !event.is_read_closed() {
                return Ok(());
            }
        }
    }

    fn one_more_subscribed(&mut self) -> Result<()> {
        self.subscribed += 1;
        if self.subscribed == self.wanted {
            println!("ready {}", self.started.elapsed().as_nanos());
        }
        if self.clients.len() < self.wanted {
            self.connect()?;
        }
        Ok(())
    }

    /// Checks that every client has received every message; a message that is missing now is lost.
    fn finish(mut self) -> Result<()> {
        for (number, client) in self.clients.iter().enumerate() {
            let Stage::Live(feed) = &client.stage else {
                bail!("client {number} has no subscription yet")
            };
            if let Some(missing) = feed.missing.first() {
                bail!(
                    "lost: client {number} never got {}, but later ones",
                    self.script.describe(*missing)
                );
            }
            if feed.next < self.script.results.len() {
                bail!(
                    "lost: client {number} got nothing from {} on",
                    self.script.describe(feed.next)
                );
            }
            self.totals.checked += feed.next as u64;
        }
        println!("finished {}", self.totals);
        Ok(())
    }
}

struct Client {
    stream: TcpStream,
    stage: Stage,
    frames: FrameReader,
    compress: bool,
    /// Present for the clients that inflate compressed messages and check every byte.
    inflater: Option<Inflater>,
    /// Present for the clients of server-sent events.
    events: Option<event_stream::Reader>,
}

enum Stage {
    /// Contains the bytes of the HTTP response received so far.
    Upgrade(Vec<u8>),
    Subscribing,
    Live(Feed),
}

impl Client {
    fn received(&mut self, bytes: &[u8], script: &Script, marks: &mut Vec<Mark>) -> Result<News> {
        let Stage::Upgrade(head) = &mut self.stage else {
            return match self.events {
                Some(_) => self.events(bytes, script),
                None => self.frames(bytes, script, marks),
            };
        };
        head.extend_from_slice(bytes);
        let Some(len) = http_head_len(head) else {
            return Ok(News::default());
        };
        let rest = head.split_off(len);
        if self.events.is_some() {
            event_stream::check(std::str::from_utf8(head)?)?;
            self.stage = Stage::Live(Feed::from_answer(event_stream::answer().as_bytes())?);
            let news = self.events(&rest, script)?;
            return Ok(News {
                subscribed: true,
                ..news
            });
        }
        check_upgrade(std::str::from_utf8(head)?, self.compress)?;
        let params = script.scenario.subscribe_params();
        let call = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":{params}}}"#);
        self.stream.write_all(&client_frame(TEXT, call.as_bytes()))?;
        self.stage = Stage::Subscribing;
        self.frames(&rest, script, marks)
    }

    fn events(&mut self, bytes: &[u8], script: &Script) -> Result<News> {
        let mut news = News::default();
        if let (Stage::Live(feed), Some(events)) = (&mut self.stage, &mut self.events) {
            events.feed(bytes, |message, len| {
                news.bytes += len as u64;
                feed.message(message, script, &mut news)
            })?;
        }
        Ok(news)
    }

    fn frames(&mut self, bytes: &[u8], script: &Script, marks: &mut Vec<Mark>) -> Result<News> {
        let mut news = News::default();
        let Self {
            stream,
            stage,
            frames,
            inflater,
            ..
        } = self;
        let on_message = |Message {
                              opcode,
                              compressed,
                              payload,
                          }: Message<'_>| match opcode {
            TEXT | BINARY => match stage {
                Stage::Live(feed) => {
                    news.bytes += (header(opcode, payload.len(), 0).len() + payload.len()) as u64;
                    if !compressed {
                        return feed.message(&payload, script, &mut news);
                    }
                    feed.mark(Mark::of(&payload)?, script, marks)?;
                    match inflater {
                        Some(inflater) => {
                            let mut text = Vec::with_capacity(4 * payload.len());
                            inflater.inflate(&payload, &mut text).context("no DEFLATE")?;
                            feed.message(&text, script, &mut news)
                        }
                        None => {
                            feed.take(script, &mut news);
                            Ok(())
                        }
                    }
                }
                Stage::Upgrade(_) | Stage::Subscribing => {
                    *stage = Stage::Live(Feed::from_answer(&payload)?);
                    news.subscribed = true;
                    Ok(())
                }
            },
            PING => Ok(stream.write_all(&client_frame(PONG, &payload))?),
            PONG => Ok(()),
            CLOSE => {
                let code = payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
                let reason = String::from_utf8_lossy(payload.get(2..).unwrap_or_default());
                bail!("closed by the server with {code} {reason:?}")
            }
            other => bail!("a frame with opcode {other:#x}"),
        };
        frames.feed(bytes, on_message)?;
        Ok(news)
    }
}
