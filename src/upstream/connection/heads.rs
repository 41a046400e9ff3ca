//! Heads of a connection: announced, fetched after an announcement, or polled over the same socket.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{End, FeedState, Purpose, Serving};
use crate::backoff::{BackOff, RATE_LIMIT};
use crate::jsonrpc::Outcome;
use crate::upstream::announcement::{Act, Announcements, Goal, HeaderLookup, Heads, Ring};
use crate::upstream::{HeadReport, UpstreamSettings, names_parent, place_of};

#[cfg(test)]
mod tests;

/// Longest wait of an announcement for the comparison with its block.
const HOLD: Duration = Duration::from_secs(1);

/// Time after which `newHeads` is requested again from a node that refused it.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// Age below which a connection without further heads is not closed if the previous one was closed for that: nodes
/// that announce a few heads and then no more do so on each connection.
const STALLED_AGAIN: Duration = Duration::from_secs(600);

/// State of the heads of one connection.
#[derive(Debug)]
pub(super) struct HeadsState {
    announcements: Announcements,
    ring: Ring,
    subscription: HeadsSubscription,
    /// Time of the next poll of the head; `None` if the head is not polled.
    poll: Option<Instant>,
    /// Source of heads while the node announces them, once determined.
    found: Option<Heads>,
    /// `true` if a head was announced on this connection.
    has_announced: bool,
    /// `true` if the previous connection was closed with [`End::HeadsStalled`].
    was_stalled: bool,
    began: Instant,
    /// Back-off of the subscription after a rate limit.
    back_off: BackOff,
}

/// The subscription to heads.
#[derive(Debug)]
enum HeadsSubscription {
    /// Requested at this time, not answered yet.
    Requested(Instant),
    /// Not answered in time: the head is polled meanwhile.
    Late,
    /// Granted, or not requested yet.
    Granted,
    /// Refused, to be requested again at this time.
    Refused(Instant),
}

impl HeadsState {
    pub(super) fn new(settings: &UpstreamSettings) -> Self {
        Self {
            announcements: Announcements::new(HOLD.min(settings.silence_timeout / 10)),
            ring: Ring::default(),
            subscription: HeadsSubscription::Granted,
            poll: None,
            found: None,
            has_announced: false,
            was_stalled: false,
            began: Instant::now(),
            back_off: BackOff::default(),
        }
    }

    /// Records that the previous connection was closed with [`End::HeadsStalled`].
    pub(super) fn follows_stalled(&mut self) {
        self.was_stalled = true;
    }

    /// Checks if another connection would hardly announce more heads than this one.
    pub(super) fn rarely_announces(&self) -> bool {
        !self.has_announced || self.was_stalled && self.began.elapsed() < STALLED_AGAIN
    }

    pub(super) fn is_polled(&self) -> bool {
        self.poll.is_some()
    }

    fn no_answer_at(&self, settings: &UpstreamSettings) -> Option<Instant> {
        match self.subscription {
            HeadsSubscription::Requested(at) => Some(at + settings.silence_timeout / 4),
            _ => None,
        }
    }

    fn ask_again_at(&self) -> Option<Instant> {
        match self.subscription {
            HeadsSubscription::Refused(at) => Some(at),
            _ => None,
        }
    }
}

impl Serving {
    /// Records that the subscription to heads is requested now.
    pub(super) fn asked_for_heads(&mut self) {
        self.heads.subscription = HeadsSubscription::Requested(Instant::now());
    }

    /// Polls the head after a rate limit, and subscribes again in a while.
    pub(super) fn heads_put_off(&mut self) {
        let now = Instant::now();
        self.heads.back_off.refused(now, None, RATE_LIMIT);
        self.heads.subscription = HeadsSubscription::Refused(self.heads.back_off.until(now).unwrap_or(now));
        self.poll_heads("rate limited");
    }

    /// Polls the head until heads are announced again: the chain advances without announcements.
    pub(super) fn heads_unannounced(&mut self) {
        self.poll_heads("the node granted the subscription but announces no heads");
    }

    pub(super) fn heads_granted(&mut self) {
        self.heads.subscription = HeadsSubscription::Granted;
        if self.heads.poll.take().is_some() {
            info!(
                "upstream {}: the node serves newHeads now, polling ends",
                self.shared.endpoint
            );
        }
    }

    /// Polls the head over the same socket, as over HTTP, since the node refused `newHeads`; the subscription is
    /// requested again later.
    pub(super) fn heads_refused(&mut self, why: &str) {
        self.heads.subscription = HeadsSubscription::Refused(Instant::now() + ASK_AGAIN);
        self.poll_heads(why);
    }

    fn poll_heads(&mut self, why: &str) {
        if self.heads.poll.is_none() {
            let every = self.shared.settings.poll_interval;
            if self.shared.has_heads(Heads::Polled) {
                warn!(
                    "upstream {}: no newHeads, headwater polls its head every {every:?}: {why}",
                    self.shared.endpoint
                );
            }
            self.heads.poll = Some(Instant::now() + every);
        }
        if !self.ready {
            self.ask_vital(Purpose::Latest);
        }
    }

    pub(super) async fn announced(&mut self, json: Bytes) {
        self.heads.has_announced = true;
        if self.heads.poll.take().is_some() {
            info!(
                "upstream {}: the node announces heads now, polling ends",
                self.shared.endpoint
            );
            if let Some(found) = self.heads.found {
                self.shared.has_heads(found);
            }
        }
        // A head that does not name its parent cannot be placed in the chain: its block is fetched.
        let json = if names_parent(&json) {
            json
        } else {
            Bytes::from_static(b"null")
        };
        let acts = self.heads.announcements.announced(json, Instant::now());
        self.act(acts).await;
    }

    /// Handles the answer to the request for an announced block.
    pub(super) async fn compared(&mut self, question: u64, outcome: Outcome) {
        let block = match &outcome {
            Outcome::Result(block) => Some(block),
            Outcome::Error(_) => None,
        };
        let acts = self.heads.announcements.answered(question, block, Instant::now());
        self.act(acts).await;
    }

    /// Handles the answer to a fetch of the newest head.
    pub(super) async fn rung(&mut self, outcome: Outcome) {
        let (before, mut height) = (self.head, None);
        if let Outcome::Result(json) = outcome {
            height = place_of(&json).ok().map(|place| place.number);
            self.report(HeadReport::Latest(json)).await;
        }
        let now = Instant::now();
        if self.heads.is_polled() && height.is_some() {
            self.last_head = now;
        }
        if self.heads.ring.answered(height, self.head != before, now) {
            self.ask_for_head();
        }
    }

    /// Postpones the next fetch of the newest head.
    pub(super) fn put_off_head(&mut self, until: Instant) {
        self.heads.ring.set_rate_limited(until);
    }

    /// Returns the time at which [`Self::heads_turn`] is due; `None` if nothing is scheduled.
    pub(super) fn heads_due(&self) -> Option<Instant> {
        let heads = &self.heads;
        let times = [
            heads.announcements.due(),
            heads.ring.due(),
            heads.poll.filter(|_| self.ready),
            heads.no_answer_at(&self.shared.settings),
            heads.ask_again_at().filter(|_| self.ready),
        ];
        times.into_iter().flatten().min()
    }

    pub(super) async fn heads_turn(&mut self) -> Result<(), End> {
        let now = Instant::now();
        let acts = self.heads.announcements.turn(now);
        self.act(acts).await;
        if self
            .heads
            .no_answer_at(&self.shared.settings)
            .is_some_and(|at| now >= at)
        {
            self.heads.subscription = HeadsSubscription::Late;
            self.poll_heads("no answer to eth_subscribe");
        }
        if self.ready && self.heads.ask_again_at().is_some_and(|at| now >= at) {
            self.ask_vital(Purpose::Subscribe(FeedState::Heads));
        }
        if let Some(poll) = self.heads.poll
            && self.ready
            && now >= poll
        {
            self.heads.poll = Some(now + self.shared.settings.poll_interval);
            if self.heads.ring.ring(Goal::Any) {
                self.ask_for_head();
            }
        }
        if self.heads.ring.turn(now) {
            self.ask_for_head();
        }
        Ok(())
    }

    async fn act(&mut self, acts: Vec<Act>) {
        for act in acts {
            match act {
                Act::Deliver(json) => self.report(HeadReport::Announced(json)).await,
                Act::Ring(goal) => {
                    if self.heads.ring.ring(goal) {
                        self.ask_for_head();
                    }
                }
                Act::Ask(question, seek) => {
                    let (method, params) = match seek {
                        HeaderLookup::Hash(hash) => ("eth_getBlockByHash", format!(r#"["{hash}",false]"#)),
                        HeaderLookup::Number(number) => ("eth_getBlockByNumber", format!(r#"["{number:#x}",false]"#)),
                    };
                    // If the write queue is full, the comparison ends undecided at its time limit.
                    self.ask(method, &params, Purpose::Compare(question));
                }
                Act::Found(heads, why) => {
                    self.heads.found = Some(heads);
                    if self.shared.has_heads(heads) && heads == Heads::Rung {
                        warn!(
                            "upstream {}: its newHeads are not its blocks' headers, headwater \
                             fetches each announced head: {why}",
                            self.shared.endpoint
                        );
                    }
                }
            }
        }
    }

    fn ask_for_head(&mut self) {
        if !self.ask_vital(Purpose::Rung) {
            self.heads
                .ring
                .set_rate_limited(Instant::now() + self.shared.settings.tick());
        }
    }
}
