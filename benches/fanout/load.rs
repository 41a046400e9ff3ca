//! The load generator: many clients in one thread, each of which checks every message it receives.
//!
//! Standard output carries `ready <nanoseconds>` (since the first connect) when all clients have subscribed,
//! `done <event> <nanoseconds>` (the system's monotonic clock) when the last client has received all of an event,
//! `fault <account>` when a client received anything but the next message, and, on the command `finish`, either a
//! fault or `finished` with the [`Totals`].
//!
//! With compression, one client in fifty inflates and checks every byte. The other clients compare each message's
//! length and last bytes with those of the first client that received the message: inflating every copy would take
//! CPU time from the server, because the machine has no spare core.

use std::{
    collections::BTreeSet,
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
use serde_json::Value;
use socket2::SockRef;

use crate::{
    chain::{Chain, Scenario},
    frames::{BINARY, CLOSE, FrameReader, Message, PING, PONG, TEXT, client_frame, header},
    notification,
    roles::LoadArgs,
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
    script: Script,
    /// Expected length and end of each compressed message, in the order of the script.
    marks: Vec<Mark>,
    /// Number of clients that have their subscription id.
    subscribed: usize,
    /// Number of clients that have all of an event, by event.
    complete: Vec<usize>,
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
            script: Script::new(args),
            marks: Vec::new(),
            subscribed: 0,
            complete: vec![0; args.work.events],
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
        stream.write_all(upgrade_request(&self.server.to_string(), self.compress).as_bytes())?;
        self.poll
            .registry()
            .register(&mut stream, Token(self.clients.len()), Interest::READABLE)?;
        self.clients.push(Client {
            stream,
            stage: Stage::Upgrade(Vec::new()),
            frames: FrameReader::new(self.compress),
            inflater: (self.compress && self.clients.len().is_multiple_of(INFLATING)).then(Inflater::default),
            compress: self.compress,
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
                self.complete[event] += 1;
                if self.complete[event] == self.wanted {
                    println!("done {event} {}", monotonic_now().as_nanos());
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

/// The messages that every client must receive, in order.
struct Script {
    scenario: Scenario,
    results: Vec<Vec<u8>>,
}

impl Script {
    fn new(args: &LoadArgs) -> Self {
        let chain = args.work.chain();
        let results = (0..args.work.events)
            .flat_map(|event| chain.results(event))
            .map(String::into_bytes)
            .collect();
        Self {
            scenario: args.work.scenario,
            results,
        }
    }

    /// Returns a result's position in the script, read from the result's fields.
    fn position_of(&self, result: &Value) -> Option<usize> {
        if self.scenario.is_pending() {
            let hash = result.to_string().into_bytes();
            return self.results.iter().position(|known| *known == hash);
        }
        let field = |name| result.get(name)?.as_str();
        let quantity = |name| usize::from_str_radix(field(name)?.strip_prefix("0x")?, 16).ok();
        let (number, hash, index) = match self.scenario {
            Scenario::Heads | Scenario::PendingAlone | Scenario::PendingGrouped => {
                (quantity("number")?, field("hash")?, 0)
            }
            Scenario::Bursts => (quantity("blockNumber")?, field("blockHash")?, quantity("logIndex")?),
        };
        if Chain::number_of(hash.parse().ok()?)? != number as u64 || index >= self.scenario.messages_per_event() {
            return None;
        }
        let first = usize::try_from(Chain::block_of_event(0)).ok()?;
        Some(number.checked_sub(first)? * self.scenario.messages_per_event() + index)
    }

    fn event_ended_by(&self, position: usize) -> Option<usize> {
        let per_event = self.scenario.messages_per_event();
        (position % per_event == per_event - 1).then_some(position / per_event)
    }

    fn describe(&self, position: usize) -> String {
        let per_event = self.scenario.messages_per_event();
        let number = Chain::block_of_event(position / per_event);
        match self.scenario {
            Scenario::Heads => format!("head {number}"),
            Scenario::Bursts => format!("log {} of block {number}", position % per_event),
            Scenario::PendingAlone | Scenario::PendingGrouped => format!("pending transaction {position}"),
        }
    }
}

struct Client {
    stream: TcpStream,
    stage: Stage,
    frames: FrameReader,
    compress: bool,
    /// Present for the clients that inflate compressed messages and check every byte.
    inflater: Option<Inflater>,
}

/// Fingerprint of a compressed message, the same for all clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    len: usize,
    /// Last bytes of the compressed event, which all clients share.
    end: [u8; 16],
}

impl Mark {
    fn of(payload: &[u8]) -> Result<Self> {
        Ok(Self {
            len: payload.len(),
            end: *payload.last_chunk().context("a compressed message of a few bytes")?,
        })
    }
}

enum Stage {
    /// Contains the bytes of the HTTP response received so far.
    Upgrade(Vec<u8>),
    Subscribing,
    Live(Feed),
}

/// The outcome of one read.
#[derive(Default)]
struct News {
    subscribed: bool,
    completed: Vec<usize>,
    rewritten: u64,
    /// Bytes of notifications on the wire.
    bytes: u64,
}

impl Client {
    fn received(&mut self, bytes: &[u8], script: &Script, marks: &mut Vec<Mark>) -> Result<News> {
        let Stage::Upgrade(head) = &mut self.stage else {
            return self.frames(bytes, script, marks);
        };
        head.extend_from_slice(bytes);
        let Some(len) = http_head_len(head) else {
            return Ok(News::default());
        };
        let rest = head.split_off(len);
        check_upgrade(std::str::from_utf8(head)?, self.compress)?;
        let params = script.scenario.subscribe_params();
        let call = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":{params}}}"#);
        self.stream.write_all(&client_frame(TEXT, call.as_bytes()))?;
        self.stage = Stage::Subscribing;
        self.frames(&rest, script, marks)
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

/// One subscription, from the answer to `eth_subscribe` on.
struct Feed {
    id: String,
    /// Notification up to the result, in the bytes that all known servers write.
    prefix: Vec<u8>,
    /// Position in the script of the next message.
    next: usize,
    /// Positions that were skipped: lost, unless the messages arrive late.
    missing: BTreeSet<usize>,
}

impl Feed {
    fn from_answer(message: &[u8]) -> Result<Self> {
        let quoted = || String::from_utf8_lossy(message);
        let answer: Value = serde_json::from_slice(message).with_context(|| format!("not JSON: {}", quoted()))?;
        let Some(id) = answer["result"].as_str().filter(|_| answer["id"] == 1) else {
            bail!("eth_subscribe was answered with {}", quoted());
        };
        Ok(Self {
            id: id.to_owned(),
            prefix: notification::prefix(id).into_bytes(),
            next: 0,
            missing: BTreeSet::new(),
        })
    }

    fn message(&mut self, message: &[u8], script: &Script, news: &mut News) -> Result<()> {
        let result = message
            .strip_prefix(&*self.prefix)
            .and_then(|rest| rest.strip_suffix(notification::END.as_bytes()));
        let expected = script.results.get(self.next).map(Vec::as_slice);
        if result.is_none() || result != expected {
            self.unexpected(message, script)?;
            news.rewritten += 1;
        }
        self.take(script, news);
        Ok(())
    }

    /// Checks that the next compressed message has the same mark for all clients; the inflating clients check its
    /// content.
    fn mark(&self, mark: Mark, script: &Script, marks: &mut Vec<Mark>) -> Result<()> {
        match marks.get(self.next) {
            Some(known) => ensure!(
                *known == mark,
                "lost, doubled, reordered or altered: in place of {} came what others did not get there",
                script.describe(self.next)
            ),
            None => {
                ensure!(
                    self.next == marks.len(),
                    "some messages are compressed and some are not"
                );
                marks.push(mark);
            }
        }
        Ok(())
    }

    fn take(&mut self, script: &Script, news: &mut News) {
        if self.missing.is_empty() {
            news.completed.extend(script.event_ended_by(self.next));
        }
        self.next += 1;
    }

    /// Accepts a message that differs from the next one in bytes but not in meaning.
    ///
    /// # Errors
    ///
    /// If the message is not a notification of this subscription, or is altered, doubled, reordered or was never
    /// produced.
    fn unexpected(&mut self, message: &[u8], script: &Script) -> Result<()> {
        let quoted = || String::from_utf8_lossy(message).chars().take(400).collect::<String>();
        let value: Value = serde_json::from_slice(message).with_context(|| format!("not JSON: {}", quoted()))?;
        let params = &value["params"];
        ensure!(
            params["subscription"] == *self.id,
            "not a notification for {}: {}",
            self.id,
            quoted()
        );
        let result = &params["result"];
        let position = script
            .position_of(result)
            .with_context(|| format!("altered or not asked for: {}", quoted()))?;
        let what = script.describe(position);
        if self.missing.contains(&position) {
            bail!("reordered: {what} came later than its successors");
        }
        ensure!(position >= self.next, "doubled: {what} came twice");
        let Some(original) = script.results.get(position) else {
            bail!("{what} came, which was never produced")
        };
        ensure!(
            *result == serde_json::from_slice::<Value>(original)?,
            "altered: {what} came as {}",
            quoted()
        );
        self.missing.extend(self.next..position);
        self.next = position;
        Ok(())
    }
}
