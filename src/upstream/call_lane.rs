//! Second connection to a node, for calls, next to the stream's connection.
//!
//! The lane is open only while the stream's connection is, and both must lead to one node: chain, genesis and newest
//! head are checked before the lane is used, since a load balancer may lead the second connection to another node.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, sleep, timeout};
use tracing::{debug, info, warn};

use super::call::CallReceiver;
use super::complaint::is_throttled;
use super::dedicated_connection::DedicatedConnection;
use super::identity::{NETWORK_ID, has_no_chain_id};
use super::lanes::{Attempts, EARLY, LaneEnd, Lanes, NextLane};
use super::link::{Inbound, LinkError, LinkReader, Outbound, Writer};
use super::message::NodeMessage;
use super::shared::UpstreamShared;
use super::under_way::UnderWay;
use super::{CallError, HeadReport, place_of};
use crate::backoff::{Failure, LANE_HEAD, LANE_THROTTLED};
use crate::jsonrpc::Outcome;
use crate::panics;

/// Reason for the end of the lane.
#[derive(Debug, thiserror::Error)]
enum CallLaneEnd {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("not opened within {0:?}")]
    Late(Duration),
    #[error("nothing received for {0:?}, not even a pong")]
    Silent(Duration),
    #[error("{0}")]
    OtherNode(String),
    #[error("the stream's connection is lost")]
    StreamLost,
    #[error("a bug in headwater; the log has the panic")]
    Panicked,
    #[error("shutting down")]
    Shutdown,
}

/// Actor of the lane.
#[derive(Debug)]
pub(super) struct CallLane {
    shared: Arc<UpstreamShared>,
    calls: CallReceiver,
    /// Number of the stream's connection, `None` while there is none.
    stream: watch::Receiver<Option<u64>>,
    attempts: Attempts,
}

impl CallLane {
    pub(super) fn new(shared: Arc<UpstreamShared>, calls: CallReceiver) -> Self {
        let stream = shared.stream.subscribe();
        Self {
            shared,
            calls,
            stream,
            attempts: Attempts::default(),
        }
    }

    /// Runs until the pool is gone.
    pub(super) async fn run(mut self) {
        let settings = self.shared.settings.clone();
        let mut reconnection = settings.reconnection();
        loop {
            let Some(stream) = self.stream_is_up().await else {
                return;
            };
            // Calls to a node that counts as single-connection share the stream's while the next attempt is made.
            if self.lanes() != Lanes::One {
                self.shared.lanes.send_replace(Lanes::Opening);
            }
            let began = Instant::now();
            let shared = self.shared.clone();
            let served = panics::caught("node", shared.active.metrics(), self.connect_and_serve(stream)).await;
            let (end, used) = served.unwrap_or((CallLaneEnd::Panicked, true));
            if matches!(end, CallLaneEnd::Panicked) {
                self.shared.lanes.send_replace(Lanes::Opening);
            }
            let ended = match &end {
                CallLaneEnd::Shutdown => return,
                CallLaneEnd::StreamLost => LaneEnd::StreamLost {
                    early: began.elapsed() < EARLY,
                },
                _ if used => LaneEnd::InUse,
                _ => LaneEnd::NotOpened,
            };
            let next = self.attempts.ended(ended);
            let endpoint = &self.shared.endpoint;
            match (next, &end) {
                (NextLane::Share(span), _) => {
                    if self.lanes() != Lanes::One {
                        warn!(
                            "upstream {endpoint}: no second connection ({end}); calls share the stream's connection: \
                             allow two connections at the node, or set node.lanes = 1"
                        );
                        self.shared.lanes.send_replace(Lanes::One);
                    }
                    if !self.calls.refuse_for(span).await {
                        return;
                    }
                }
                (NextLane::Again, CallLaneEnd::StreamLost) => {}
                (NextLane::Again, _) => {
                    if used {
                        warn!("upstream {endpoint}: the connection for calls ended: {end}; reconnecting");
                        self.shared.lanes.send_replace(Lanes::Opening);
                    } else {
                        debug!("upstream {endpoint}: no connection for calls: {end}");
                    }
                    // A lane that was in use is reopened at once, however often it breaks: the stream shows that the
                    // node lives.
                    let wait = if used {
                        reconnection = settings.reconnection();
                        settings.reconnect_min
                    } else {
                        reconnection.wait(Failure::Other, began.elapsed())
                    };
                    if !self.calls.refuse_for(wait).await {
                        return;
                    }
                }
            }
        }
    }

    fn lanes(&self) -> Lanes {
        *self.shared.lanes.borrow()
    }

    /// Waits for the stream's connection; `None` when the pool is gone.
    async fn stream_is_up(&mut self) -> Option<u64> {
        loop {
            if let Some(stream) = *self.stream.borrow_and_update() {
                return Some(stream);
            }
            if self.lanes() != Lanes::One {
                self.shared.lanes.send_replace(Lanes::Down);
            }
            tokio::select! {
                changed = self.stream.changed() => changed.ok()?,
                call = self.calls.next(true) => drop(call?.reply.send(Err(CallError::Unavailable))),
            }
        }
    }

    /// Connects and serves calls; returns the reason of the end, and `true` if the lane was in use before.
    async fn connect_and_serve(&mut self, stream: u64) -> (CallLaneEnd, bool) {
        let settings = &self.shared.settings;
        let time_limit = settings.connect_timeout.min(settings.silence_timeout / 2);
        let opening = timeout(time_limit, open(&self.shared));
        let opened = tokio::select! {
            opened = opening => opened.unwrap_or(Err(CallLaneEnd::Late(time_limit))),
            changed = self.stream.changed() => Err(if changed.is_ok() { CallLaneEnd::StreamLost } else { CallLaneEnd::Shutdown }),
        };
        let (reader, writer) = match opened {
            Ok(link) => link.into_halves(),
            Err(end) => return (end, false),
        };
        if *self.stream.borrow() != Some(stream) {
            return (CallLaneEnd::StreamLost, false);
        }
        if self.lanes() == Lanes::One {
            info!("upstream {}: calls have their own connection now", self.shared.endpoint);
        }
        self.shared.lanes.send_replace(Lanes::Two);
        self.shared.active.moved();
        (self.serve(reader, writer).await, true)
    }

    async fn serve(&mut self, mut reader: LinkReader, mut writer: Writer) -> CallLaneEnd {
        let settings = self.shared.settings.clone();
        let mut under_way = UnderWay::default();
        let mut life = Life::new(reader.received());
        *self.shared.call_bytes.lock() = reader.meter();
        let mut tick = tokio::time::interval(settings.tick());
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let end = loop {
            let room = under_way.len() < settings.max_in_flight;
            let (writable, unsent) = (under_way.is_writable(), !under_way.out.is_empty() || life.is_unsent);
            let outcome = tokio::select! {
                inbound = reader.next() => match inbound {
                    Ok(Inbound::Message(frame)) => {
                        NodeMessage::parse(&frame).for_each(|message| under_way.received(message));
                        Ok(())
                    }
                    Ok(Inbound::Alive) => Ok(()),
                    Err(error) => Err(CallLaneEnd::Link(error)),
                },
                call = self.calls.next(room), if writable => match call {
                    Some(call) => {
                        under_way.begin(call);
                        if under_way.len() > 1 {
                            // With several calls under way, more are about to be queued.
                            tokio::task::yield_now().await;
                        }
                        // Queued calls leave in the same write.
                        while under_way.len() < settings.max_in_flight
                            && under_way.is_writable()
                            && let Some(call) = self.calls.try_next()
                        {
                            under_way.begin(call);
                        }
                        life.is_unsent = true;
                        Ok(())
                    }
                    None => Err(CallLaneEnd::Shutdown),
                },
                _ = tick.tick() => {
                    under_way.forget_closed();
                    life.tick(&reader, &mut under_way, settings.silence_timeout)
                }
                changed = self.stream.changed() => Err(if changed.is_ok() { CallLaneEnd::StreamLost } else { CallLaneEnd::Shutdown }),
                written = writer.drain(&mut under_way.out), if unsent => {
                    life.is_unsent = false;
                    written.map_err(CallLaneEnd::from)
                }
            };
            if let Err(end) = outcome {
                break end;
            }
        };
        // Closed before waiting calls fail: a retry must not find the lane open.
        self.shared.lanes.send_replace(match end {
            CallLaneEnd::StreamLost | CallLaneEnd::Shutdown => Lanes::Down,
            _ => Lanes::Opening,
        });
        under_way.lose_all(matches!(&end, CallLaneEnd::Link(error) if error.is_too_big()));
        end
    }
}

/// Signs of life of the lane.
#[derive(Debug)]
struct Life {
    received: u64,
    last: Instant,
    /// `true` while queued bytes are not with the kernel yet.
    is_unsent: bool,
}

impl Life {
    fn new(received: u64) -> Self {
        Self {
            received,
            last: Instant::now(),
            is_unsent: false,
        }
    }

    fn tick(&mut self, reader: &LinkReader, under_way: &mut UnderWay, time_limit: Duration) -> Result<(), CallLaneEnd> {
        let received = reader.received();
        if received != self.received {
            (self.received, self.last) = (received, Instant::now());
        }
        let quiet = self.last.elapsed();
        if quiet >= time_limit {
            return Err(CallLaneEnd::Silent(time_limit));
        }
        if quiet >= time_limit / 3 && under_way.is_writable() {
            if reader.has_pings() {
                under_way.out.push_back(Outbound::Ping);
            } else {
                under_way.probe("eth_chainId");
            }
            self.is_unsent = true;
        }
        Ok(())
    }
}

/// Connects, and checks that the other end is the stream's node or its equal: of the same chain, with the newest head.
async fn open(shared: &UpstreamShared) -> Result<DedicatedConnection, CallLaneEnd> {
    let mut link = DedicatedConnection::connect(&shared.endpoint, &shared.settings).await?;
    let mut chain_id = ask_within_request_timeout(&mut link, "eth_chainId", "").await?;
    if has_no_chain_id(&chain_id) {
        chain_id = ask_within_request_timeout(&mut link, NETWORK_ID, "").await?;
    }
    let chain_id = match chain_id {
        Outcome::Result(json) => String::from_utf8_lossy(&json).into_owned(),
        Outcome::Error(error) => return Err(CallLaneEnd::OtherNode(String::from_utf8_lossy(&error).into_owned())),
    };
    let checked = shared.identity.check_chain_id(&shared.endpoint, &chain_id);
    checked.map_err(CallLaneEnd::OtherNode)?;
    let genesis = ask_within_request_timeout(&mut link, "eth_getBlockByNumber", r#"["0x0",false]"#).await?;
    let is_same = match &genesis {
        Outcome::Result(block) => shared.identity.other_genesis(block).is_none(),
        Outcome::Error(_) => true,
    };
    let mut attempt = 0;
    loop {
        // A development node that started from a dumped state has another genesis and the same blocks.
        if newest(shared).is_none() {
            return if is_same {
                Ok(link)
            } else {
                Err(CallLaneEnd::OtherNode(
                    "its genesis differs from that of the stream's connection".into(),
                ))
            };
        }
        if knows_head(shared, &mut link).await? {
            return Ok(link);
        }
        debug!(upstream = %shared.endpoint, "the connection for calls does not know the newest head yet");
        sleep(LANE_HEAD.nth(attempt)).await;
        attempt += 1;
    }
}

/// Checks if the node at the other end of the link has the newest block that the stream's connection reported. While
/// there is none, any node has.
pub(super) async fn knows_head(shared: &UpstreamShared, link: &mut DedicatedConnection) -> Result<bool, LinkError> {
    let Some(head) = newest(shared) else {
        return Ok(true);
    };
    let question = format!(r#"["{head}",false]"#);
    let answer = ask_within_request_timeout(link, "eth_getBlockByHash", &question).await?;
    Ok(matches!(&answer, Outcome::Result(block) if place_of(block).is_ok_and(|place| place.hash == head)))
}

/// Returns the hash of the newest block that the stream's connection reported.
fn newest(shared: &UpstreamShared) -> Option<alloy_primitives::B256> {
    let newest = shared.newest.lock();
    match newest.as_ref()? {
        HeadReport::Announced(json) | HeadReport::Latest(json) => place_of(json).ok().map(|place| place.hash),
        HeadReport::Replaced => None,
    }
}

/// Sends a request, and repeats it while the node reports a rate limit.
async fn ask_within_request_timeout(
    link: &mut DedicatedConnection,
    method: &str,
    params: &str,
) -> Result<Outcome, LinkError> {
    let mut attempt = 0;
    loop {
        let outcome = link.ask(method, params).await?;
        if !is_throttled(&outcome) {
            return Ok(outcome);
        }
        sleep(LANE_THROTTLED.nth(attempt)).await;
        attempt += 1;
    }
}
