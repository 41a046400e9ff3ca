//! The heads of a connection: announced, fetched when one is announced, or polled over the same socket.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{End, Feed, Purpose, Serving};
use crate::jsonrpc::Outcome;
use crate::upstream::announcement::{Act, Announcements, Goal, Heads, Ring, Seek};
use crate::upstream::load::{BackOff, LONGEST};
use crate::upstream::{Sighting, UpstreamSettings, names_parent, place_of};

/// Longest time for which an announcement waits until it was compared with its block.
const HOLD: Duration = Duration::from_secs(1);

/// Time after which a node that serves no `newHeads` is asked for it again.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// A connection that falls silent about heads earlier than this, as the one before it did, is not given up: nodes that
/// announce a few heads and then no more do so on each connection.
const DEAF_AGAIN: Duration = Duration::from_secs(600);

/// The state of it.
#[derive(Debug)]
pub(super) struct HeadsState {
    announcements: Announcements,
    ring: Ring,
    subscription: Subscription,
    /// When the head is polled next, where it is.
    poll: Option<Instant>,
    /// The way by which announced heads come, once it was found.
    found: Option<Heads>,
    /// A head was announced on this connection.
    has_announced: bool,
    /// The connection before this one was given up since its subscription was dead.
    was_deaf: bool,
    began: Instant,
    /// Back-off of the subscription after a rate limit.
    back_off: BackOff,
}

/// The subscription to heads.
#[derive(Debug)]
enum Subscription {
    /// Asked for, since then.
    Asked(Instant),
    /// Asked for so long ago that the head is polled meanwhile.
    Late,
    /// Or it was not asked for yet.
    Stands,
    /// To be asked for then.
    Refused(Instant),
}

impl HeadsState {
    pub fn new(settings: &UpstreamSettings) -> Self {
        Self {
            announcements: Announcements::new(HOLD.min(settings.silence_timeout / 10)),
            ring: Ring::default(),
            subscription: Subscription::Stands,
            poll: None,
            found: None,
            has_announced: false,
            was_deaf: false,
            began: Instant::now(),
            back_off: BackOff::default(),
        }
    }

    /// The connection before this one was given up as deaf.
    pub fn follows_deaf(&mut self) {
        self.was_deaf = true;
    }

    /// Checks if another connection would hardly announce more heads than this one.
    pub fn is_deaf_by_nature(&self) -> bool {
        !self.has_announced || self.was_deaf && self.began.elapsed() < DEAF_AGAIN
    }

    pub fn is_polled(&self) -> bool {
        self.poll.is_some()
    }

    fn no_answer_at(&self, settings: &UpstreamSettings) -> Option<Instant> {
        match self.subscription {
            Subscription::Asked(at) => Some(at + settings.silence_timeout / 4),
            _ => None,
        }
    }

    fn ask_again_at(&self) -> Option<Instant> {
        match self.subscription {
            Subscription::Refused(at) => Some(at),
            _ => None,
        }
    }
}

impl Serving {
    /// The subscription to heads is asked for.
    pub(super) fn asked_for_heads(&mut self) {
        self.heads.subscription = Subscription::Asked(Instant::now());
    }

    /// Polls the head after a rate limit, and subscribes again in a while.
    pub(super) fn heads_put_off(&mut self) {
        let now = Instant::now();
        self.heads.back_off.refused(now, None, LONGEST);
        self.heads.subscription = Subscription::Refused(self.heads.back_off.until(now).unwrap_or(now));
        self.poll_heads("rate limited");
    }

    /// Polls the head until heads are announced again: the chain advances without announcements.
    pub(super) fn heads_unannounced(&mut self) {
        self.poll_heads("it grants the subscription and announces nothing");
    }

    pub(super) fn heads_granted(&mut self) {
        self.heads.subscription = Subscription::Stands;
        if self.heads.poll.take().is_some() {
            info!("upstream {}: it serves newHeads after all", self.shared.endpoint);
        }
    }

    /// The node serves no `newHeads`: its head is polled over the same socket, as a node's is over HTTP.
    pub(super) fn heads_refused(&mut self, why: &str) {
        self.heads.subscription = Subscription::Refused(Instant::now() + ASK_AGAIN);
        self.poll_heads(why);
    }

    fn poll_heads(&mut self, why: &str) {
        if self.heads.poll.is_none() {
            let every = self.shared.settings.poll_interval;
            if self.shared.has_heads(Heads::Polled) {
                warn!(
                    "upstream {}: no newHeads, its head is polled every {every:?}: {why}",
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
            info!("upstream {}: it announces heads after all", self.shared.endpoint);
            if let Some(found) = self.heads.found {
                self.shared.has_heads(found);
            }
        }
        // The place of one that does not name its parent is not known: its block is asked for.
        let json = if names_parent(&json) {
            json
        } else {
            Bytes::from_static(b"null")
        };
        let acts = self.heads.announcements.announced(json, Instant::now());
        self.act(acts).await;
    }

    /// The answer about a block that was announced.
    pub(super) async fn compared(&mut self, question: u64, outcome: Outcome) {
        let block = match &outcome {
            Outcome::Result(block) => Some(block),
            Outcome::Error(_) => None,
        };
        let acts = self.heads.announcements.answered(question, block, Instant::now());
        self.act(acts).await;
    }

    /// The answer about the newest head.
    pub(super) async fn rung(&mut self, outcome: Outcome) {
        let (before, mut height) = (self.head, None);
        if let Outcome::Result(json) = outcome {
            height = place_of(&json).ok().map(|place| place.number);
            self.tell(Sighting::Latest(json)).await;
        }
        let now = Instant::now();
        if self.heads.is_polled() && height.is_some() {
            self.last_head = now;
        }
        if self.heads.ring.answered(height, self.head != before, now) {
            self.ask_for_head();
        }
    }

    /// The newest head is not asked for before then.
    pub(super) fn put_off_head(&mut self, until: Instant) {
        self.heads.ring.put_off(until);
    }

    /// When [`Self::heads_turn`] is due.
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
            self.heads.subscription = Subscription::Late;
            self.poll_heads("no answer to eth_subscribe");
        }
        if self.ready && self.heads.ask_again_at().is_some_and(|at| now >= at) {
            self.ask_vital(Purpose::Subscribe(Feed::Heads));
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
                Act::Deliver(json) => self.tell(Sighting::Announced(json)).await,
                Act::Ring(goal) => {
                    if self.heads.ring.ring(goal) {
                        self.ask_for_head();
                    }
                }
                Act::Ask(question, seek) => {
                    let (method, params) = match seek {
                        Seek::Hash(hash) => ("eth_getBlockByHash", format!(r#"["{hash}",false]"#)),
                        Seek::Number(number) => ("eth_getBlockByNumber", format!(r#"["{number:#x}",false]"#)),
                    };
                    // Without room the comparison comes to nothing in time.
                    self.ask(method, &params, Purpose::Compare(question));
                }
                Act::Found(heads, why) => {
                    self.heads.found = Some(heads);
                    if self.shared.has_heads(heads) && heads == Heads::Rung {
                        warn!(
                            "upstream {}: its newHeads are not its blocks' headers, heads are fetched when it announces one: {why}",
                            self.shared.endpoint
                        );
                    }
                }
            }
        }
    }

    fn ask_for_head(&mut self) {
        if !self.ask_vital(Purpose::Rung) {
            self.heads.ring.put_off(Instant::now() + self.shared.settings.tick());
        }
    }
}
