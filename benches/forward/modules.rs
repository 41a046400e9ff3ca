//! The price of an embedder's module: for calls that are in no module, and for a call of one.
//!
//! The look-up and the call are measured in this process, without a socket; the whole call over WebSocket, at servers of a
//! process of their own with and without a module.

use std::{
    fmt::Write as _,
    future,
    hint::black_box,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures_util::FutureExt;
use headwater::{
    app::App,
    config::{Config, typed},
    extension::{Call as ModuleCall, Client, Extension},
    jsonrpc::Outcome,
    rpc::Local,
    telemetry::Metrics,
};
use jsonrpsee::{Methods, RpcModule, types::Params};
use serde_json::value::RawValue;

use crate::{
    call::Call,
    http::fetch,
    line::Transport,
    load,
    node::Node,
    process::Process,
    results::median,
    run::{Plan, STEP, turn},
    svg::shown,
};

/// Methods in the module.
const METHODS: usize = 64;

/// Look-ups of one call: for its place among the calls in flight, and for its answer.
const LOOKUPS: f64 = 2.0;

/// Twice what the prototype cost (6 to 7 ns, and 0.5 µs).
const LOOKUPS_NS: f64 = 14.0;
const CALL_US: f64 = 1.0;

const IN_FLIGHT: usize = 256;

const ANSWER: &str = "0x7a69";

/// Names that are in no module, as clients call them.
const OTHERS: [&str; 8] = [
    "eth_call",
    "eth_chainId",
    "eth_blockNumber",
    "eth_getBalance",
    "eth_getBlockByNumber",
    "eth_getTransactionReceipt",
    "eth_sendRawTransaction",
    "net_version",
];

#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[arg(long)]
    pub node: SocketAddr,
    /// Serve a module.
    #[arg(long)]
    pub module: bool,
}

/// A program with headwater in it, with or without a module.
pub fn embed(args: &Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut settings = typed::Config {
            listen: "127.0.0.1:0".to_owned(),
            admin: "127.0.0.1:0".to_owned(),
            upstream: vec![format!("ws://{}", args.node).into()],
            ..typed::Config::default()
        };
        settings.limits.requests_per_second = 1_000_000;
        settings.limits.request_burst = 1_000_000;
        let mut app = App::bind(Config::check(&settings)?).await?;
        if args.module {
            app = app.serve(module()?)?;
        }
        println!("listening {} {}", app.address()?, app.admin_address()?);
        Ok(app.run(future::pending()).await?)
    })
}

fn module() -> Result<Methods> {
    let mut module = RpcModule::new(());
    let answer = |_: Params<'_>, _: &(), _: &jsonrpsee::Extensions| ANSWER;
    module.register_method(Call::Module.method(), answer)?;
    for number in 1..METHODS {
        // Names live as long as the process; there are few.
        let name = Box::leak(format!("bench_method{number}").into_boxed_str());
        module.register_method(name, answer)?;
    }
    Ok(module.into())
}

/// CPU time of a call at the servers, in microseconds; medians over the turns.
pub struct Modules {
    /// Look-up of a name, in nanoseconds: in an empty table, and in one without the name.
    empty_ns: f64,
    absent_ns: f64,
    /// Call of a module's method within the process, in microseconds.
    call_us: f64,
    without_us: f64,
    with_us: f64,
    method_us: f64,
    /// Difference between neighbouring turns.
    added_us: f64,
    pub checked: u64,
}

impl Modules {
    pub fn measure(node: &Node, plan: &Plan, rounds: usize) -> Result<Self> {
        let metrics = Arc::new(Metrics::new().0);
        let extension = |methods| Extension::new(methods, 1 << 20, metrics.clone());
        let (empty, full) = (extension(Methods::new()), extension(module()?));
        let (plain, embedding) = (Server::start(node, false)?, Server::start(node, true)?);
        let (mut without, mut with, mut method, mut checked) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for turn in 0..2 * rounds as u64 {
            let mut measure = |server: &Server, call, us: &mut Vec<f64>| -> Result<()> {
                let (calls, cpu_us) = server.turn(call, turn, plan)?;
                us.push(cpu_us);
                checked += calls;
                Ok(())
            };
            measure(&plain, Call::ChainId, &mut without)?;
            measure(&embedding, Call::ChainId, &mut with)?;
            measure(&embedding, Call::Module, &mut method)?;
        }
        let mut added: Vec<f64> = method.iter().zip(&with).map(|(method, with)| method - with).collect();
        Ok(Self {
            empty_ns: lookup_ns(&empty),
            absent_ns: lookup_ns(&full),
            call_us: call_us(&full)?,
            without_us: median(&mut without),
            with_us: median(&mut with),
            method_us: median(&mut method),
            added_us: median(&mut added),
            checked,
        })
    }

    /// Returns rows of the table of targets: subject, target, measured value, and `true` if it is met.
    pub fn targets(&self) -> [(&'static str, String, String, bool); 3] {
        let lookups = self.absent_ns * LOOKUPS;
        [
            (
                "a call that is in no module: its look-ups",
                format!("≤ {LOOKUPS_NS} ns"),
                format!("{lookups:.1} ns"),
                lookups <= LOOKUPS_NS,
            ),
            (
                "a module's method, in process",
                format!("≤ {CALL_US} µs"),
                format!("{:.2} µs", self.call_us),
                self.call_us <= CALL_US,
            ),
            (
                "a module's method, CPU above `eth_chainId`'s, WebSocket",
                format!("≤ {CALL_US} µs"),
                format!("{:.2} µs", self.added_us),
                self.added_us <= CALL_US,
            ),
        ]
    }

    pub fn table(&self) -> String {
        let mut out = format!(
            "\n## The price of an embedder's module\n\nA module of {METHODS} methods, by `App::serve`. Look-up and call in this \
             process, the best of many batches; whole calls over WebSocket with {IN_FLIGHT} in flight, CPU of the server.\n\n\
             | what | cost |\n|---|---|\n"
        );
        let rows = [
            ("look-up in a table without methods", self.empty_ns, "ns"),
            ("look-up of a name that is in no module", self.absent_ns, "ns"),
            ("call of a module's method, in process", self.call_us, "µs"),
            ("`eth_chainId` at a headwater without a module", self.without_us, "µs"),
            ("`eth_chainId` at a headwater with a module", self.with_us, "µs"),
            ("a module's method, with an answer as short", self.method_us, "µs"),
        ];
        for (what, cost, unit) in rows {
            let _infallible = writeln!(out, "| {what} | {} {unit} |", shown(cost));
        }
        out
    }
}

/// A running program with headwater in it.
struct Server {
    process: Process,
    address: SocketAddr,
}

impl Server {
    fn start(node: &Node, module: bool) -> Result<Self> {
        let mut args = vec![format!("--node={}", node.address)];
        args.extend(module.then(|| "--module".to_owned()));
        let mut process = Process::start_role("embed", &args)?;
        let line = process.wait_for("listening ", STEP)?;
        let (address, admin) = line.split_once(' ').context("two addresses")?;
        let (address, admin): (SocketAddr, SocketAddr) = (address.parse()?, admin.parse()?);
        let until = Instant::now() + STEP;
        while !fetch(admin, "GET", "/ready", "")?.0.contains(" 200 ") {
            ensure!(Instant::now() < until, "the embedding program does not follow its node");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Self { process, address })
    }

    /// Returns the number of calls, and the CPU microseconds of each.
    fn turn(&self, call: Call, turn_number: u64, plan: &Plan) -> Result<(u64, f64)> {
        let args = load::Args {
            server: self.address,
            // The server answers the reference call itself: the node has no such method.
            node: self.address,
            call,
            transport: Transport::Ws,
            in_flight: IN_FLIGHT,
            sockets: load::ONE_PROGRAM,
            first: turn_number << 32,
            warmup_ms: plan.warmup.as_millis() as u64,
            counted_ms: plan.counted.as_millis() as u64,
        };
        let (measured, cpu_us) = turn(&args, self.process.pid())?;
        Ok((measured.calls, cpu_us))
    }
}

/// Returns the cost of one operation in nanoseconds: the best of many batches, since the machine may be busy with other
/// things.
fn best_ns(operations: u32, mut batch: impl FnMut()) -> f64 {
    let mut best = Duration::MAX;
    for _ in 0..200 {
        let started = Instant::now();
        batch();
        best = best.min(started.elapsed());
    }
    best.as_nanos() as f64 / f64::from(operations)
}

fn lookup_ns(extension: &Extension) -> f64 {
    const TIMES: u32 = 50_000;
    best_ns(TIMES * OTHERS.len() as u32, || {
        for _ in 0..TIMES {
            for name in OTHERS {
                black_box(extension.role(black_box(name)));
            }
        }
    })
}

fn call_us(extension: &Extension) -> Result<f64> {
    const TIMES: u32 = 2_000;
    let params = RawValue::from_string(Call::Module.params(0))?;
    let connection = extension.connect();
    let call = ModuleCall {
        method: Call::Module.method(),
        params: Some(&params),
        client: Client {
            account: 0,
            address: None,
        },
        connection: &connection,
    };
    let answer = || match extension.call(&call) {
        Local::Later(outcome) => outcome.now_or_never(),
        Local::Now(outcome) => Some(outcome),
        Local::InDevelopment => None,
    };
    let Some(Outcome::Result(result)) = answer() else {
        anyhow::bail!("a module's method did not answer");
    };
    ensure!(
        result == format!("\"{ANSWER}\"").as_bytes(),
        "a module's method gave another answer"
    );
    let nanos = best_ns(TIMES, || {
        for _ in 0..TIMES {
            black_box(answer());
        }
    });
    Ok(nanos / 1e3)
}
