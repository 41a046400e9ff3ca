//! One stalled client among many that read: its cost to the others and to the server, and the time until its close.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Socket, Type};

use crate::{
    chain::Scenario,
    frames::{TEXT, client_frame},
    load::Totals,
    process::Process,
    run::{Plan, SETTLE, STEP, Server, Stage},
    table::quantile,
    usage::resident_memory,
    websocket::upgrade_request,
};

/// Write deadline of headwater in these runs; the default, 20 s, would only lengthen them.
pub const DEADLINE: Duration = Duration::from_secs(3);

/// Margin on top of the deadline: two socket buffers fill first, and headwater checks its clients once a second.
const ALLOWANCE: Duration = Duration::from_secs(2);

const PACE: Duration = Duration::from_millis(50);

/// The measurements of one run, over the clients that read.
#[derive(Clone, Copy, Debug)]
pub struct Stalled {
    /// Time from the command to produce a burst until the last of the reading clients has it.
    pub p50_us: f64,
    pub p99_us: f64,
    /// Peak growth of the server's resident memory since the start of the bursts, in bytes.
    pub growth: f64,
    /// Time from the first burst until the stalled client is closed; `None` without a stalled client.
    pub closed_after: Option<Duration>,
    pub checked: u64,
}

/// Delivers bursts for longer than the stalled client may stay connected.
///
/// # Errors
///
/// If headwater does not close the stalled client within `DEADLINE` plus `ALLOWANCE`.
pub fn measure(plan: &Plan, with_one_stalled: bool) -> Result<Stalled> {
    let counted = ((DEADLINE + ALLOWANCE + PACE).as_millis() / PACE.as_millis()) as usize;
    let plan = Plan {
        warmup: 10,
        counted,
        pace: PACE,
        ..plan.clone()
    };
    let work = plan.work(Scenario::Bursts)?;
    let deadline = format!("{}s", DEADLINE.as_secs());
    let mut stage = Stage::set(
        Server::Headwater,
        &work,
        &plan,
        &[("HEADWATER_DELIVERY_WRITE_DEADLINE", &deadline)],
    )?;
    let mut load = Process::start_role("load", &stage.load_args(&work, plan.clients).to_args())?;
    load.wait_for("ready", STEP)?;
    for event in 0..plan.warmup {
        stage.deliver(event, &mut load, plan.pace)?;
    }
    thread::sleep(SETTLE);

    let files_before = open_files(stage.server_pid)?;
    let stalled = with_one_stalled
        .then(|| subscribe_and_stall(stage.address))
        .transpose()?;
    let memory_before = resident_memory(stage.server_pid)?;
    let started = Instant::now();
    let (mut latencies, mut growth, mut closed_after) = (Vec::new(), 0, None);
    for event in plan.warmup..plan.warmup + plan.counted {
        latencies.push(stage.deliver(event, &mut load, plan.pace)?.last.as_nanos() as f64 / 1e3);
        growth = growth.max(resident_memory(stage.server_pid)?.saturating_sub(memory_before));
        // The server's open files show the close; the client would not see the close frame behind the data that it
        // does not read.
        if closed_after.is_none() && stalled.is_some() && open_files(stage.server_pid)? <= files_before {
            closed_after = Some(started.elapsed());
        }
    }
    load.send("finish")?;
    let totals = load.wait_for("finished ", STEP)?.parse::<Totals>()?;
    if with_one_stalled {
        let closed = closed_after.context("the stalled client was never closed")?;
        ensure!(
            closed <= DEADLINE + ALLOWANCE,
            "the stalled client was closed after {closed:?}, its deadline was {DEADLINE:?}"
        );
    }
    Ok(Stalled {
        p50_us: quantile(&mut latencies, 0.5),
        p99_us: quantile(&mut latencies, 0.99),
        growth: growth as f64,
        closed_after,
        checked: totals.checked,
    })
}

fn open_files(pid: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))
        .context("the server has gone")?
        .count())
}

/// Connects a client with a small receive window that reads the answer to its call and nothing more.
fn subscribe_and_stall(server: SocketAddr) -> Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
    socket.set_recv_buffer_size(4096)?;
    socket.connect(&server.into())?;
    let mut stream = TcpStream::from(socket);
    stream.write_all(upgrade_request(&server.to_string(), false).as_bytes())?;
    stream.set_read_timeout(Some(STEP))?;
    let mut answer = [0; 1024];
    ensure!(stream.read(&mut answer)? > 0, "the upgrade was not answered");
    let params = Scenario::Bursts.subscribe_params();
    let call = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":{params}}}"#);
    stream.write_all(&client_frame(TEXT, call.as_bytes()))?;
    ensure!(stream.read(&mut answer)? > 0, "eth_subscribe was not answered");
    Ok(stream)
}
