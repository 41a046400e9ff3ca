//! A session driven by hand: `apply` is called for each event, and the frames on the client's socket are read.

use std::net::Ipv4Addr;
use std::time::Duration;

use futures_util::FutureExt as _;
use http::Request;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

use super::*;
use crate::backplane::Wanted;
use crate::chain::{Archive, History, PublishedWriter, Source};
use crate::clock::Clock;
use crate::config::{Config, typed};
use crate::door::{Caller, Door};
use crate::rpc::Rpc;
use crate::subscription::{Registry, Replays};
use crate::telemetry::Metrics;
use crate::upstream::{Channels, Pool};

/// Returns the services of a process without a node.
pub(super) fn services(edit: impl FnOnce(&mut typed::Config)) -> Arc<Services> {
    let mut typed = typed::Config::default();
    edit(&mut typed);
    let config = Config::check(&typed).unwrap();
    let (clock, metrics) = (Clock::start(), Arc::new(Metrics::new().0));
    let (wanted, wants) = watch::channel(Wanted::default());
    let channels = Channels {
        sightings: mpsc::channel(1).0,
        best_effort: mpsc::channel(1).0,
        wanted: wants,
    };
    let pool = Pool::start(&[], &config.node, &channels, metrics.clone());
    let published = PublishedWriter::new(History::new(8), metrics.clone());
    let chain = published.reader();
    let registry = Arc::new(Registry::new(published, 8, false, wanted, clock, metrics.clone()));
    let archive = Archive::new(Arc::new(Source::new(pool.clone(), config.history.verify)));
    let replays = Replays::new(registry.clone(), archive, config.replay, metrics.clone());
    let rpc = Rpc::new(pool, chain, config.rpc, metrics.clone());
    let door = Door::new(config.door, clock);
    Arc::new(Services::new(
        registry,
        replays,
        Arc::new(rpc),
        door,
        config.session,
        metrics,
        clock,
    ))
}

struct Rig {
    session: Session,
    client: TcpStream,
}

impl Rig {
    async fn new(edit: impl FnOnce(&mut typed::Config)) -> Self {
        Self::of(services(edit)).await
    }

    async fn of(services: Arc<Services>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, peer) = listener.accept().await.unwrap();
        let caller = Caller {
            peer: peer.ip(),
            connection: 1,
        };
        let request = Request::builder().header("host", "127.0.0.1").body(()).unwrap();
        let pass = services.door.admit(&request, caller, true).unwrap();
        let session = Session::new(
            socket.into(),
            Bytes::new(),
            pass,
            (Framing::WebSocket, Compression::None),
            services,
        );
        Self { session, client }
    }

    /// Sends bytes, and applies events until the session has read them all.
    async fn send(&mut self, wire: &[u8]) {
        let services = self.session.services.clone();
        let read = || services.metrics.bytes_in.get();
        let all = read() + wire.len() as u64;
        self.client.write_all(wire).await.unwrap();
        while read() < all {
            poll_fn(|cx| self.session.writer.socket().poll_readable(cx))
                .await
                .unwrap();
            self.session.apply(Wake::Readable).unwrap();
        }
    }

    /// Sends text messages in one write.
    async fn say(&mut self, messages: &[&str]) {
        let wire: Vec<u8> = messages.iter().flat_map(|text| masked(0x81, text.as_bytes())).collect();
        self.send(&wire).await;
    }

    /// Reads one frame: the text of a message, or the code and text of a close frame.
    async fn read(&mut self) -> String {
        let (first, length) = (
            self.client.read_u8().await.unwrap(),
            self.client.read_u8().await.unwrap(),
        );
        let length = match length {
            126 => self.client.read_u16().await.unwrap(),
            short => u16::from(short),
        };
        let mut payload = vec![0; length.into()];
        self.client.read_exact(&mut payload).await.unwrap();
        match (first, &payload[..]) {
            (0x81, text) => String::from_utf8(text.to_vec()).unwrap(),
            (0x8A, echoed) => format!("pong {}", String::from_utf8_lossy(echoed)),
            (0x88, [high, low, text @ ..]) => {
                let code = u16::from_be_bytes([*high, *low]);
                format!("close {code} {}", String::from_utf8_lossy(text))
            }
            other => panic!("{other:?}"),
        }
    }

    fn refused(&self, reason: &'static str) -> u64 {
        let refused = &self.session.services.metrics.refused;
        refused.get_or_create(&ReasonLabel { reason }).get()
    }
}

/// Returns a frame as a client sends it, of at most 65,535 bytes.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    if payload.len() < 126 {
        frame.push(0x80 | payload.len() as u8);
    } else {
        frame.push(0x80 | 126);
        frame.extend((payload.len() as u16).to_be_bytes());
    }
    // A mask of zeros changes nothing.
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

fn call(id: u32, method: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":["0x1"]}}"#)
}

fn error(id: u32, code: i32, message: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":{code},"message":"{message}"}}}}"#)
}

#[tokio::test]
async fn messages_of_one_read_are_answered_in_order() {
    let mut rig = Rig::new(|_| {}).await;
    let unsubscribe = call(1, "eth_unsubscribe");
    let refused = call(2, "admin_peers");
    rig.say(&[&unsubscribe, &refused, &format!("[{refused},{unsubscribe}]")])
        .await;
    let not_found = error(1, -32000, "subscription not found");
    let missing = error(2, -32601, "the method admin_peers does not exist/is not available");
    assert_eq!(rig.read().await, not_found);
    assert_eq!(rig.read().await, missing);
    assert_eq!(rig.read().await, format!("[{missing},{not_found}]"));
    rig.send(&masked(0x89, b"life")).await;
    assert_eq!(rig.read().await, "pong life");
}

#[tokio::test]
async fn after_a_violation_input_is_ignored() {
    let mut rig = Rig::new(|_| {}).await;
    let mut wire = b"\x81\x02[]".to_vec();
    wire.extend(masked(0x81, call(1, "eth_unsubscribe").as_bytes()));
    rig.send(&wire).await;
    assert_eq!(rig.read().await, "close 1002 incorrect mask flag");
    assert!(rig.session.input_closed && rig.session.reader.is_between_messages());
}

#[tokio::test]
async fn the_session_ends_with_the_client() {
    let Rig { mut session, client } = Rig::new(|_| {}).await;
    drop(client);
    poll_fn(|cx| session.writer.socket().poll_readable(cx)).await.unwrap();
    assert!(matches!(session.apply(Wake::Readable), Err(Ended::Gone)));
}

#[tokio::test]
async fn too_many_refused_messages_close_the_connection() {
    let mut rig = Rig::new(|c| {
        (c.limits.request_burst, c.limits.requests_per_second) = (1_000, 1);
        c.limits.max_refusals = 2;
        c.methods.weights = [("eth_unsubscribe".to_owned(), 1_000)].into();
    })
    .await;
    let unsubscribe = call(1, "eth_unsubscribe");
    rig.say(&[unsubscribe.as_str(); 4]).await;
    assert_eq!(rig.read().await, error(1, -32000, "subscription not found"));
    for _ in 0..3 {
        let refused = rig.read().await;
        assert!(refused.contains("\"code\":-32005"), "{refused}");
    }
    assert_eq!(rig.read().await, "close 1008 too many refused requests");
    assert_eq!(rig.refused("requests"), 3);
}

#[tokio::test]
async fn a_subscription_that_waits_keeps_its_place() {
    let mut rig = Rig::new(|c| c.limits.max_in_flight = 1).await;
    // There is no block yet, so the answer has to wait for the first.
    let subscribe = r#"{"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}"#;
    let too_many = error(1, -32005, "limit exceeded: too many calls in flight");
    rig.say(&[subscribe, subscribe, &format!("[{subscribe}]"), &call(1, "eth_call")])
        .await;
    assert_eq!(rig.read().await, too_many);
    assert_eq!(rig.read().await, format!("[{too_many}]"));
    assert_eq!(rig.read().await, too_many);
    assert_eq!(rig.session.subscriptions.len(), 1);
    assert_eq!(rig.refused("in_flight"), 3);
}

#[tokio::test]
async fn a_long_message_gives_back_its_room_when_it_is_answered() {
    let mut rig = Rig::new(|_| {}).await;
    let long = " ".repeat(2 * LONG_MESSAGE) + &call(1, "eth_unsubscribe");
    rig.say(&[&long]).await;
    assert_eq!(rig.read().await, error(1, -32000, "subscription not found"));
    let inbound = rig.session.services.inbound.clone();
    assert_eq!(inbound.used(), 0);
    // Others use all of the budget.
    let mut others = inbound.open(crate::shares::Owner::default());
    others.set_unchecked(64 << 20);
    rig.say(&[&long, &call(2, "eth_unsubscribe")]).await;
    let no_room = rig.read().await;
    assert!(no_room.contains("too many bytes of messages at once"), "{no_room}");
    assert_eq!(rig.read().await, error(2, -32000, "subscription not found"));
    assert_eq!(rig.refused("inbound_bytes"), 1);
}

#[tokio::test]
async fn a_slow_drain_holds_no_socket_of_a_client_that_has_left() {
    let services = services(|_| {});
    let rigs = [Rig::of(services.clone()).await, Rig::of(services.clone()).await];
    let writers = rigs.each_ref().map(|rig| Arc::downgrade(&rig.session.writer));
    let mut closing = Box::pin(services.clients.close_gradually(Duration::from_secs(3600)));
    assert!(closing.as_mut().now_or_never().is_none(), "the second one waits");
    drop(rigs);
    assert_eq!(writers.map(|writer| writer.strong_count()), [0, 0]);
}

#[tokio::test]
async fn a_round_checks_each_client_once() {
    let services = services(|_| {});
    let mut rigs = Vec::new();
    // More than one for each part, with a hole where one has left.
    for _ in 0..40 {
        rigs.push(Rig::of(services.clone()).await);
    }
    drop(rigs.remove(7));
    let signs = KeepaliveSettings {
        ping_interval: Duration::ZERO,
        silence_timeout: Duration::from_secs(600),
        write_deadline: Duration::from_secs(600),
    };
    let mut round = super::clients::Round::default();
    let mut seen = Vec::new();
    for part in 0..super::clients::PARTS {
        let due = services.clients.check(part as usize, &mut round, &signs);
        assert!(due.len() < 8, "the parts are alike");
        seen.extend(due.into_iter().map(|(writer, action)| {
            action.apply(&writer);
            writer.id()
        }));
    }
    seen.sort_unstable();
    let mut all: Vec<u64> = rigs.iter().map(|rig| rig.session.writer.id()).collect();
    all.sort_unstable();
    assert_eq!(seen, all);
    for mut rig in rigs {
        assert_eq!(rig.client.read_u16().await.unwrap(), 0x8900, "a ping");
    }
}

/// An idle client is mostly its task. As a `select!` over futures of the socket's readiness it took 1,152 bytes.
#[tokio::test]
async fn the_task_of_a_client_is_small() {
    let Rig { session, .. } = Rig::new(|_| {}).await;
    let (services, pass) = (session.services.clone(), session.pass.clone());
    let (socket, _peer) = crate::delivery::Pipe::pair();
    drop(session);
    let pass = Arc::into_inner(pass).unwrap();
    let form = (Compression::None, None);
    let future = serve(socket.into(), Bytes::new(), pass, form, services, None);
    assert!(size_of_val(&future) <= 400, "{}", size_of_val(&future));
}
