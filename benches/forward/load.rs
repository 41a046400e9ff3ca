//! The load generator: one thread that keeps a number of calls in flight and checks each answer.
//!
//! Standard output carries `ready` after connecting and, after a line on standard input and the calls, `measured`
//! with the [`Measured`] values, or `fault` with a description of the failure.

use std::{
    fmt,
    io::ErrorKind,
    net::SocketAddr,
    str::FromStr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use mio::{Events, Poll, Token};
use serde_json::value::RawValue;

use crate::{
    call::{Call, Message},
    http::{ask, request},
    line::{Line, Transport},
};

/// Number of WebSocket connections that one program is likely to open.
pub const ONE_PROGRAM: usize = 8;

/// Time without any answer after which the calls in flight count as lost.
const LOST: Duration = Duration::from_secs(20);

const READ_BUFFER: usize = 64 * 1024;

#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[arg(long)]
    pub server: SocketAddr,
    /// Node that answers the reference call before the run.
    #[arg(long)]
    pub node: SocketAddr,
    #[arg(long)]
    pub call: Call,
    #[arg(long)]
    pub transport: Transport,
    #[arg(long)]
    pub in_flight: usize,
    /// Maximum number of WebSocket connections.
    #[arg(long)]
    pub sockets: usize,
    /// Number of the first call; the ranges of different runs do not overlap.
    #[arg(long)]
    pub first: u64,
    #[arg(long)]
    pub warmup_ms: u64,
    #[arg(long)]
    pub counted_ms: u64,
}

impl Args {
    pub fn to_args(&self) -> Vec<String> {
        let Self {
            server,
            node,
            call,
            transport,
            in_flight,
            sockets,
            first,
            warmup_ms,
            counted_ms,
        } = self;
        vec![
            format!("--server={server}"),
            format!("--node={node}"),
            format!("--call={}", name(call)),
            format!("--transport={}", name(transport)),
            format!("--in-flight={in_flight}"),
            format!("--sockets={sockets}"),
            format!("--first={first}"),
            format!("--warmup-ms={warmup_ms}"),
            format!("--counted-ms={counted_ms}"),
        ]
    }
}

fn name(value: &impl clap::ValueEnum) -> String {
    let value = value.to_possible_value().expect("no variant is skipped");
    value.get_name().to_owned()
}

/// The measurements of a run; times in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Number of all calls, including those before and after the counted time.
    pub calls: u64,
    pub per_second: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            calls,
            per_second,
            p50,
            p90,
            p99,
        } = self;
        write!(f, "{calls} {per_second} {p50} {p90} {p99}")
    }
}

impl FromStr for Measured {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Self> {
        let numbers: Vec<f64> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
        let [calls, per_second, p50, p90, p99] = numbers[..] else {
            bail!("an odd line from the load generator: {line}")
        };
        Ok(Self {
            calls: calls as u64,
            per_second,
            p50,
            p90,
            p99,
        })
    }
}

pub fn run(args: &Args) -> Result<()> {
    let fixed = ask(args.node, args.call.method(), &args.call.params(0))?;
    let mut load = Load::connect(args, fixed)?;
    println!("ready");
    std::io::stdin().read_line(&mut String::new())?;
    println!("measured {}", load.measure()?);
    Ok(())
}

struct Load<'a> {
    args: &'a Args,
    fixed: Box<RawValue>,
    poll: Poll,
    lines: Vec<Line>,
    /// The slots for calls in flight; a slot always uses the same connection.
    places: Vec<Place>,
    calls: u64,
}

struct Place {
    /// Id of the call in flight, or of the next one. Grows by the number of slots, so the id identifies the slot too.
    id: u64,
    asked: Option<Instant>,
}

impl<'a> Load<'a> {
    fn connect(args: &'a Args, fixed: Box<RawValue>) -> Result<Self> {
        let sockets = match args.transport {
            Transport::Ws => args.in_flight.min(args.sockets),
            Transport::Http => args.in_flight,
        };
        let poll = Poll::new()?;
        let mut lines = Vec::with_capacity(sockets);
        for token in 0..sockets {
            let mut line = Line::connect(args.server, args.transport)?;
            line.register(poll.registry(), token)?;
            lines.push(line);
        }
        Ok(Self {
            args,
            fixed,
            poll,
            lines,
            places: (0..args.in_flight as u64).map(|id| Place { id, asked: None }).collect(),
            calls: 0,
        })
    }

    fn measure(&mut self) -> Result<Measured> {
        let counted = Duration::from_millis(self.args.counted_ms);
        let from = Instant::now() + Duration::from_millis(self.args.warmup_ms);
        let until = from + counted;
        let mut latencies =
            Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3).expect("bounds that fit three digits");
        let mut answered = 0_u64;
        let mut under_way = self.args.in_flight;
        for place in 0..self.places.len() {
            self.ask(place);
        }
        for line in &mut self.lines {
            line.flush()?;
        }
        let mut ready = Events::with_capacity(1024);
        let mut buffer = vec![0; READ_BUFFER];
        let mut free = Vec::new();
        while under_way > 0 {
            if let Err(error) = self.poll.poll(&mut ready, Some(LOST)) {
                ensure!(error.kind() == ErrorKind::Interrupted, error);
                continue;
            }
            ensure!(
                !ready.is_empty(),
                "{under_way} calls got no answer in {} s",
                LOST.as_secs()
            );
            for event in &ready {
                let Token(number) = event.token();
                let Self {
                    args,
                    fixed,
                    lines,
                    places,
                    ..
                } = self;
                let sockets = lines.len();
                lines[number].read(&mut buffer, |message| {
                    let now = Instant::now();
                    let (id, result) = Message::answer(message)?;
                    let (all, number_of) = (places.len() as u64, (id % places.len() as u64) as usize);
                    let place = &mut places[number_of];
                    let asked = place.asked.filter(|_| place.id == id && number_of % sockets == number);
                    let asked =
                        asked.with_context(|| format!("an answer to {id}, which nobody asked or which had one"))?;
                    *place = Place {
                        id: id + all,
                        asked: None,
                    };
                    args.call.check(args.first + id, result, fixed)?;
                    if (from..until).contains(&now) {
                        answered += 1;
                        if asked >= from {
                            latencies.saturating_record((now - asked).as_nanos() as u64);
                        }
                    }
                    free.push(number_of);
                    Ok(())
                })?;
                let over = Instant::now() >= until;
                for place in free.drain(..) {
                    if over {
                        under_way -= 1;
                    } else {
                        self.ask(place);
                    }
                }
                self.lines[number].flush()?;
            }
        }
        let micros = |share: f64| latencies.value_at_quantile(share) as f64 / 1e3;
        Ok(Measured {
            calls: self.calls,
            per_second: answered as f64 / counted.as_secs_f64(),
            p50: micros(0.5),
            p90: micros(0.9),
            p99: micros(0.99),
        })
    }

    fn ask(&mut self, number: usize) {
        let Self {
            args, lines, places, ..
        } = self;
        let (line, place) = (number % lines.len(), &mut places[number]);
        let params = args.call.params(args.first + place.id);
        lines[line].ask(&request(place.id, args.call.method(), &params));
        place.asked = Some(Instant::now());
        self.calls += 1;
    }
}
