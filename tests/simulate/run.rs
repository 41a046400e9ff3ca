//! One simulation: the app in front of its nodes, the execution of the plan, and the verdict on every record.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use alloy_primitives::Address;
use headwater::app::{App, Broken};
use headwater::config::typed;
use headwater::reload::{ConfigSource, Follower};
use headwater::upstream::Endpoint;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::client::{Client, Command, selects};
use crate::clock::{STEP, Still, step};
use crate::consumer::Consumer;
use crate::event_sources::EventSource;
use crate::fleet::{Fleet, Progress};
use crate::history::{self, Delivered, Record, Start, Verdict};
use crate::plan::{Act, Kind, Plan};
use crate::sessions::SessionClient;
use crate::trailing::Trailing;
use crate::webhooks::WebhookReceiver;

/// The result of a simulation.
#[derive(Debug, Default)]
pub struct Outcome {
    pub clients: usize,
    pub records: usize,
    pub events: u64,
    pub resumed: usize,
    /// Events or batches that came again, as sessions and webhooks may send them, and positions that were lost with notice.
    pub repeated: u64,
    pub lost_positions: usize,
    pub verdict: Verdict,
    /// Number of blocks that clients requested and received.
    pub asked: u64,
    /// Other violations than those of the event contract, in words.
    pub complaints: Vec<String>,
    /// Record of the first fault.
    pub evidence: Option<Record>,
    /// Hash of all events of all clients; equal fingerprints mean that two runs took the same course.
    pub fingerprint: u64,
}

impl Outcome {
    pub fn is_clean(&self) -> bool {
        self.verdict.is_clean() && self.complaints.is_empty()
    }
}

/// Time limit, after the repair, for all clients to receive everything. The longest timeout in use is that of the
/// connection to a node, which must detect silence and reconnect.
const RECOVERY: Duration = Duration::from_secs(120);

/// Time without any event after which no further event is expected.
const QUIET: Duration = Duration::from_secs(5);

/// Pause in real time within a step of waiting: bytes in transit between sockets, and files, take real time, of which a
/// simulation has hardly any.
const REAL: Duration = Duration::from_micros(200);

/// Executes a plan.
pub fn run(plan: &Plan) -> Outcome {
    // Upstreams wait before they reconnect, with jitter from this thread's generator.
    fastrand::seed(plan.seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let outcome = runtime.block_on(simulate(plan));
    runtime.shutdown_background();
    outcome
}

/// Settings of the app that no act changes.
struct Setup<'a> {
    plan: &'a Plan,
    /// File with the settings, in the folder of all other files.
    file: PathBuf,
    webhooks: BTreeMap<String, typed::Webhook>,
}

impl Setup<'_> {
    fn settings(&self, listen: &str, fleet: &Fleet, nodes: &[usize]) -> typed::Config {
        let upstreams = fleet.urls(self.plan, nodes);
        typed::Config {
            listen: listen.into(),
            admin: "127.0.0.1:0".into(),
            upstream: upstreams.into_iter().map(Into::into).collect(),
            webhooks: self.webhooks.clone(),
            ..settings(self.plan, &self.file)
        }
    }
}

fn settings(plan: &Plan, file: &Path) -> typed::Config {
    let mut typed = typed::Config::default();
    typed.history.blocks = plan.history;
    typed.node.request_timeout = Duration::from_secs(4);
    typed.node.connect_timeout = Duration::from_secs(2);
    typed.node.reconnect_max = Duration::from_secs(1);
    typed.node.silence_timeout = Duration::from_secs(4);
    typed.node.poll_interval = Duration::from_millis(200);
    // Small, so that a client that stops reading soon exceeds its limits.
    typed.delivery.max_queue_bytes = bytesize::ByteSize::kib(2048);
    typed.delivery.notsent_lowat = bytesize::ByteSize::kib(8);
    typed.delivery.max_queue_age = Duration::from_secs(8);
    typed.delivery.write_deadline = Duration::from_secs(6);
    // Quotas use the real clock, which hardly advances here.
    typed.limits.requests_per_second = 1_000_000;
    typed.limits.request_burst = 1_000_000;
    typed.limits.handshakes_per_minute = 1_000_000;
    if plan.keeps_positions {
        typed.sessions.file = file.with_file_name("positions").to_str().unwrap().to_owned();
    }
    typed
}

/// The app between two restarts.
struct Life {
    server: SocketAddr,
    admin: SocketAddr,
    stop: CancellationToken,
    running: JoinHandle<Result<(), Broken>>,
}

impl Life {
    /// Starts the app with these nodes as upstreams.
    async fn begin(setup: &Setup<'_>, listen: &str, fleet: &Fleet, nodes: &[usize]) -> Self {
        fleet.progress().lives.fetch_add(1, Ordering::Relaxed);
        write(&setup.file, &setup.settings(listen, fleet, nodes));
        let source = ConfigSource {
            file: Some(setup.file.clone()),
            ..ConfigSource::default()
        };
        let (typed, config) = source.read().unwrap();
        let follower = Follower::new(source, typed).unwrap();
        let app = App::bind(config).await.unwrap().follow(follower);
        let (server, admin) = (app.address().unwrap(), app.admin_address().unwrap());
        let stop = CancellationToken::new();
        let running = tokio::spawn(app.run(stop.clone().cancelled_owned()));
        Self {
            server,
            admin,
            stop,
            running,
        }
    }

    /// Reloads the settings with these nodes as upstreams.
    fn reload(&self, setup: &Setup<'_>, fleet: &Fleet, nodes: &[usize]) {
        write(&setup.file, &setup.settings(&self.server.to_string(), fleet, nodes));
        self.operate("reload", "");
    }

    /// Calls a method of the operator's API about the node with this address; its answer is not awaited.
    fn operate_on(&self, method: &str, url: &str) {
        let address = url.parse::<Endpoint>().unwrap().to_string();
        self.operate(method, &format!("{address:?}"));
    }

    /// Calls a method of the operator's API; its answer is not awaited.
    fn operate(&self, method: &str, params: &str) {
        let call = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"operator_{method}","params":[{params}]}}"#);
        let head = "POST /api HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json";
        let request = format!("{head}\r\ncontent-length: {}\r\n\r\n{call}", call.len());
        let admin = self.admin;
        tokio::spawn(async move {
            // While the app restarts there is nobody to call.
            let Ok(mut socket) = TcpStream::connect(admin).await else {
                return;
            };
            let mut answer = String::new();
            let asked = socket.write_all(request.as_bytes()).await;
            if asked.is_ok() && socket.read_to_string(&mut answer).await.is_ok() {
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            }
        });
    }
}

/// Replaces the file in one step.
fn write(file: &Path, typed: &typed::Config) {
    let fresh = file.with_extension("new");
    std::fs::write(&fresh, toml::to_string(typed).unwrap()).unwrap();
    std::fs::rename(fresh, file).unwrap();
}

async fn simulate(plan: &Plan) -> Outcome {
    let _still = Still::hold();
    let mut fleet = Fleet::start(plan).await;
    let progress = fleet.progress();
    let contracts = fleet.leader().with_chain(|chain| chain.tokens().to_vec());
    // In memory where that is at hand: a flush of a disk takes real time, of which a simulation has hardly any.
    let folder = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    let mut setup = Setup {
        plan,
        file: folder.path().join("headwater.toml"),
        webhooks: BTreeMap::new(),
    };
    let mut consumers: Vec<Box<dyn Consumer>> = Vec::new();
    for at in 0..4 {
        let (receiver, (name, webhook)) =
            WebhookReceiver::start(plan, at, &contracts, progress.clone(), folder.path()).await;
        setup.webhooks.insert(name, webhook);
        consumers.push(Box::new(receiver));
    }
    let mut listed = plan.order.clone();
    let mut life = Life::begin(&setup, "127.0.0.1:0", &fleet, &listed).await;
    let mut clients: Vec<Option<Client>> = (0..plan.clients.len()).map(|_| None).collect();
    let mut outcome = Outcome::default();

    consumers.extend(clients_of_streams(plan, life.server, &contracts, &progress));

    let mut now = 0;
    let mut acts = plan.acts.iter().peekable();
    while acts.peek().is_some() || progress.down.load(Ordering::Relaxed) {
        step().await;
        now += STEP.as_millis() as u64;
        if progress.down.load(Ordering::Relaxed) && life.running.is_finished() {
            life = Life::begin(&setup, &life.server.to_string(), &fleet, &listed).await;
            progress.down.store(false, Ordering::Relaxed);
        }
        while let Some((_, act)) = acts.next_if(|(at, _)| *at <= now) {
            let order = |client: usize, command| {
                if let Some(client) = &clients[client] {
                    client.command(command);
                }
            };
            match *act {
                Act::Reload(ref nodes) => {
                    listed.clone_from(nodes);
                    life.reload(&setup, &fleet, nodes);
                }
                Act::Join(client) => {
                    clients[client] = Some(Client::start(client, life.server, &contracts, progress.clone(), plan));
                }
                Act::Break(client) => order(client, Command::Break),
                Act::Hang(client, span) => order(client, Command::Hang(Duration::from_millis(span))),
                Act::Upgrade => {
                    progress.down.store(true, Ordering::Relaxed);
                    life.stop.cancel();
                }
                Act::Cordon(node, _) => life.operate_on("cordon", &fleet.url(plan, node)),
                Act::Uncordon(node) => life.operate_on("uncordon", &fleet.url(plan, node)),
                _ => fleet.act(act),
            }
        }
    }
    life.reload(&setup, &fleet, &plan.order);
    for node in 0..plan.nodes {
        life.operate_on("uncordon", &fleet.url(plan, node));
    }
    let clients: Vec<Client> = clients.into_iter().flatten().collect();
    recover(&mut fleet, &clients, &consumers, &mut outcome).await;
    if life.running.is_finished() {
        outcome
            .complaints
            .push(format!("the app ended: {:?}", life.running.await));
    }
    judge(plan, &fleet, clients, &mut outcome);
    let canonical = fleet.canonical();
    for consumer in &consumers {
        let counts = consumer.counts();
        outcome.clients += 1;
        outcome.events += counts.events;
        outcome.resumed += counts.resumed;
        outcome.repeated += counts.repeated;
        outcome.lost_positions += counts.lost;
        outcome.complaints.extend(consumer.judge(&canonical));
    }
    life.stop.cancel();
    outcome
}

/// Starts the clients beside the planned ones.
fn clients_of_streams(
    plan: &Plan,
    server: SocketAddr,
    contracts: &[Address],
    progress: &Arc<Progress>,
) -> Vec<Box<dyn Consumer>> {
    let mut all: Vec<Box<dyn Consumer>> = Vec::new();
    for at in 0..4 {
        let history = plan.history as u64;
        all.push(Box::new(Trailing::start(
            plan.seed,
            at,
            server,
            history,
            progress.clone(),
        )));
        all.push(Box::new(EventSource::start(
            plan,
            at,
            server,
            contracts,
            progress.clone(),
        )));
    }
    for at in 0..3 {
        all.push(Box::new(SessionClient::start(
            plan,
            at,
            server,
            contracts,
            progress.clone(),
        )));
    }
    all
}

/// Repairs everything, then checks that clients catch up without a new block, and after that receive the next blocks.
async fn recover(fleet: &mut Fleet, clients: &[Client], consumers: &[Box<dyn Consumer>], outcome: &mut Outcome) {
    fleet.repair();
    fleet.act(&Act::Mine(1));
    let without = settled(fleet, clients).await;
    let words = |name| format!("{name}: without the newest block {RECOVERY:?} after everything was repaired");
    outcome.complaints.extend(without.into_iter().map(words));
    // Mines beyond all earlier numbers, so that every record has an event to end with.
    let newest = fleet.leader().head().number();
    let highest = fleet.progress().highest.load(Ordering::Relaxed);
    fleet.act(&Act::Mine(highest + 1 - newest));
    let without = settled(fleet, clients).await;
    let words = |name| format!("{name}: without the blocks that followed {RECOVERY:?} later");
    outcome.complaints.extend(without.into_iter().map(words));
    // From now on the chain stands still.
    let canonical = fleet.canonical();
    let mut waited = Duration::ZERO;
    while waited < RECOVERY && !consumers.iter().all(|client| client.has_arrived(&canonical)) {
        step().await;
        waited += STEP;
        std::thread::sleep(REAL);
    }
    let without = consumers.iter().filter(|client| !client.has_arrived(&canonical));
    let words = without.map(|client| format!("{}: without the newest blocks", client.name()));
    outcome.complaints.extend(words);
}

/// Waits until all clients have caught up and no event follows; returns the names of those that have not.
async fn settled(fleet: &Fleet, clients: &[Client]) -> Vec<String> {
    let newest = fleet.leader().head();
    let blocks = fleet.progress().blocks.load(Ordering::Relaxed);
    let (mut waited, mut quiet, mut events) = (Duration::ZERO, Duration::ZERO, 0);
    let arrived = |client: &Client| {
        client.look(|diary| {
            let asked_for_later = diary.current.as_ref().is_some_and(|(record, _)| {
                let started = record.delivered.iter().rev().find_map(|delivered| match delivered {
                    Delivered::Subscribed { from, .. } => Some(from),
                    _ => None,
                });
                matches!(started, Some(Start::FromBlock(number)) if *number > newest.number())
            });
            let late = diary.since >= blocks || asked_for_later;
            let arrived = matches!(client.kind, Kind::Logs(_)) || late || diary.last_head == Some(newest.hash());
            diary.subscribed && arrived
        })
    };
    while waited < RECOVERY {
        step().await;
        waited += STEP;
        let delivered: u64 = clients.iter().map(|client| client.look(|diary| diary.events)).sum();
        quiet = if delivered == events {
            quiet + STEP
        } else {
            Duration::ZERO
        };
        events = delivered;
        if quiet >= QUIET {
            if waited > Duration::from_secs(15) && clients.iter().all(arrived) {
                return Vec::new();
            }
            std::thread::sleep(REAL);
        }
    }
    clients
        .iter()
        .filter(|client| !arrived(client))
        .map(|client| client.name.clone())
        .collect()
}

fn judge(plan: &Plan, fleet: &Fleet, clients: Vec<Client>, outcome: &mut Outcome) {
    let canonical = fleet.canonical();
    let contracts = fleet.leader().with_chain(|chain| chain.tokens().to_vec());
    let may_lose_continuity = plan.may_lose_continuity();
    let mut fingerprint = DefaultHasher::new();
    for client in clients {
        let diary = client.diary();
        let delivered = diary
            .ended
            .iter()
            .chain(&diary.current)
            .flat_map(|(record, _)| &record.delivered);
        delivered.for_each(|delivered| fingerprint.write(format!("{delivered:?}").as_bytes()));
        let selects = |log: &history::Log| selects(client.kind, &contracts, log);
        outcome.clients += 1;
        outcome.events += diary.events;
        outcome.resumed += diary.resumed;
        outcome.asked += diary.asked;
        outcome.complaints.extend(diary.complaints);
        if diary.closed.contains(&1012) && !may_lose_continuity {
            outcome.complaints.push(format!(
                "{}: closed with 1012, and history reaches far enough",
                client.name
            ));
        }
        if diary.current.is_none() || !diary.subscribed {
            outcome
                .complaints
                .push(format!("{}: not subscribed at the end", client.name));
        }
        let accused = outcome.complaints.iter().any(|words| words.starts_with(&client.name));
        if accused && outcome.evidence.is_none() {
            outcome.evidence = diary.current.as_ref().map(|(record, _)| record.clone());
        }
        let ended = diary
            .ended
            .iter()
            .map(|(record, from)| (record, history::check_cut(record, &canonical, selects, *from)));
        let current = diary
            .current
            .iter()
            .map(|(record, from)| (record, history::check(record, &canonical, selects, *from)));
        for (record, verdict) in ended.chain(current) {
            outcome.records += 1;
            if !verdict.is_clean() && outcome.evidence.is_none() {
                outcome.evidence = Some(record.clone());
            }
            outcome.verdict.merge(verdict);
        }
    }
    outcome.fingerprint = fingerprint.finish();
}
