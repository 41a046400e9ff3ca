//! One subscription as the delivery path sees it: an id, the bytes before its events, and when it may first be served.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use super::frame::Deflated;
use super::series::Series;
use super::{Compression, Event, Kind, Prefix};
use crate::clock::Millis;

/// `0x` and 32 hex digits, the first not zero: unguessable, and its own canonical form as a number (alloy parses ids as
/// 256-bit integers and sends that form back).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SubscriptionId(u128);

impl SubscriptionId {
    /// Length of the text form in bytes.
    pub const TEXT_LEN: usize = 34;

    /// A fresh id from the thread's cryptographic generator.
    #[must_use]
    pub fn random() -> Self {
        loop {
            let id: u128 = rand::random();
            if id >> 124 != 0 {
                return Self(id);
            }
        }
    }

    /// Reads an id as any client may write it back: hex, either case, leading zeros or none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"))?;
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
        plain.then(|| u128::from_str_radix(digits, 16).ok())?.map(Self)
    }
}

impl fmt::Display for SubscriptionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#034x}", self.0)
    }
}

impl fmt::Debug for SubscriptionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The receiving end of one subscription.
#[derive(Debug)]
pub struct Recipient {
    id: SubscriptionId,
    prefix: Prefix,
    /// First moment at which a notification may be written; [`UNANSWERED`] or [`ANSWERING`] before it is known.
    release_at: AtomicU64,
    /// Fan-outs before this one were not for it.
    since: AtomicU64,
    /// It is told what was before it goes live.
    resumed: bool,
}

/// The answer is not queued yet: the client cannot know the id, and events pass it by.
const UNANSWERED: Millis = Millis::MAX;

/// There will be no events: what it asked for was refused after all.
const OVER: Millis = Millis::MAX - 2;

/// The answer is queued, not yet written: events queue up behind it.
const ANSWERING: Millis = Millis::MAX - 1;

impl Recipient {
    /// A recipient that waits for its answer to be written.
    #[must_use]
    pub fn new(id: SubscriptionId, since: u64) -> Arc<Self> {
        Arc::new(Self::made(id, since, false))
    }

    /// As [`Self::new`], of a subscription in this namespace.
    #[must_use]
    pub fn within(namespace: &str, id: SubscriptionId) -> Arc<Self> {
        let prefix = Prefix::within(namespace, id);
        let made = Self::made(id, 0, false);
        Arc::new(Self { prefix, ..made })
    }

    /// As [`Self::new`], of a subscription whose events name their method themselves ([`Event::naming`]).
    #[must_use]
    pub fn unnamed(id: SubscriptionId) -> Arc<Self> {
        let prefix = Prefix::unnamed(id);
        let made = Self::made(id, 0, false);
        Arc::new(Self { prefix, ..made })
    }

    /// One that is told what was before, and takes no live events until it [begins](Self::begin).
    #[must_use]
    pub fn resumed(id: SubscriptionId) -> Arc<Self> {
        Arc::new(Self::made(id, u64::MAX, true))
    }

    fn made(id: SubscriptionId, since: u64, resumed: bool) -> Self {
        Self {
            id,
            prefix: Prefix::new(id),
            release_at: AtomicU64::new(UNANSWERED),
            since: AtomicU64::new(since),
            resumed,
        }
    }

    /// Whether it is told what was before.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// The id that the client knows.
    #[must_use]
    pub fn id(&self) -> SubscriptionId {
        self.id
    }

    /// The bytes before each event.
    #[must_use]
    pub fn prefix(&self) -> &Prefix {
        &self.prefix
    }

    /// The answer is queued.
    pub fn answered(&self) {
        if !self.is_over() {
            self.release_at.store(ANSWERING, Ordering::Relaxed);
        }
    }

    /// The answer is an error.
    pub fn give_up(&self) {
        self.release_at.store(OVER, Ordering::Relaxed);
    }

    /// Whether the answer was an error.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.release_at.load(Ordering::Relaxed) == OVER
    }

    /// Whether its answer is on its way at least.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        self.release_at.load(Ordering::Relaxed) != UNANSWERED
    }

    /// It has been sent everything from fan-out number `since` on.
    pub fn begin(&self, since: u64) {
        self.since.store(since, Ordering::Relaxed);
    }

    /// Whether fan-out number `sequence` is for it. A subscription that waits for its answer (in a batch with a slow
    /// call) is passed by, and begins with the fan-out after.
    #[must_use]
    pub fn takes(&self, sequence: u64) -> bool {
        let answered = self.is_answered();
        if !answered {
            self.since.store(sequence + 1, Ordering::Relaxed);
        }
        answered
    }

    /// Whether it was sent what fan-out number `sequence` sent.
    #[must_use]
    pub fn was_sent(&self, sequence: u64) -> bool {
        self.since.load(Ordering::Relaxed) <= sequence
    }

    /// The answer left; events may follow from `at` on (E5: web3.js 4 and web3.py 8 lose what arrives with the answer).
    pub fn release(&self, at: Millis) {
        if !self.is_over() {
            self.release_at.store(at, Ordering::Relaxed);
        }
    }

    /// First moment at which a notification may be written; `None` until the answer was.
    #[must_use]
    pub fn release_at(&self) -> Option<Millis> {
        Some(self.release_at.load(Ordering::Relaxed)).filter(|&at| at < OVER)
    }
}

/// The events that one block (or one transaction) has for one filter; shared by all subscriptions of that filter.
#[derive(Debug)]
pub struct Batch {
    /// What the events are.
    pub kind: Kind,
    /// In the order in which they are delivered; never empty.
    pub events: Box<[Event]>,
    /// Bytes on the wire for one subscription, uncompressed: the queue counts every client's backlog by it.
    pub wire_len: usize,
    /// When the node's message arrived, for the latency histogram.
    pub seen: Instant,
    /// The events compressed as [`Series`], one behind the other, when the first client needs them; none where each is
    /// compressed alone.
    series: Box<[OnceLock<Series>]>,
}

impl Batch {
    /// A batch of at least one event.
    #[must_use]
    pub fn new(kind: Kind, events: Box<[Event]>, seen: Instant) -> Arc<Self> {
        Arc::new(Self::alone(kind, events, seen))
    }

    /// A batch whose events refer to those before them where the client can read that: shorter, but compressed for this
    /// batch and no other that the events are in.
    #[must_use]
    pub fn in_series(kind: Kind, events: Box<[Event]>, seen: Instant) -> Arc<Self> {
        let series = events.chunks(Series::MAX).map(|_| OnceLock::new()).collect();
        let alone = Self::alone(kind, events, seen);
        Arc::new(Self { series, ..alone })
    }

    fn alone(kind: Kind, events: Box<[Event]>, seen: Instant) -> Self {
        let wire_len = events.iter().map(|event| event.wire_len()).sum();
        Self {
            kind,
            events,
            wire_len,
            seen,
            series: Box::default(),
        }
    }

    /// The pieces of the frame of one event. The batch is sent whole, with nothing compressed in between.
    #[must_use]
    pub fn slices<'a>(&'a self, at: usize, prefix: &'a Prefix, compression: Compression) -> [&'a [u8]; 3] {
        match self.deflated(at, compression) {
            Some(deflated) => deflated.slices(prefix),
            None => self.events[at].slices(prefix),
        }
    }

    /// Bytes on the wire of one event.
    #[must_use]
    pub fn event_len(&self, at: usize, compression: Compression) -> usize {
        match self.deflated(at, compression) {
            Some(deflated) => deflated.wire_len(),
            None => self.events[at].wire_len(),
        }
    }

    fn deflated(&self, at: usize, compression: Compression) -> Option<&Deflated> {
        match compression {
            Compression::None => None,
            Compression::Takeover if !self.series.is_empty() => self.series(at / Series::MAX).frame(at % Series::MAX),
            Compression::NoTakeover | Compression::Takeover => self.events[at].deflated(),
        }
    }

    fn series(&self, number: usize) -> &Series {
        self.series[number].get_or_init(|| {
            let from = number * Series::MAX;
            Series::of(&self.events[from..self.events.len().min(from + Series::MAX)])
        })
    }

    /// Bytes that compression has kept off the wire for one subscription.
    #[must_use]
    pub fn saved(&self, compression: Compression) -> usize {
        let sent = (0..self.events.len()).map(|at| self.event_len(at, compression)).sum();
        // In a series what does not get shorter gets longer.
        self.wire_len.saturating_sub(sent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_shaped_like_geths_and_survive_alloys_round_trip() {
        for _ in 0..1000 {
            let id = SubscriptionId::random();
            let text = id.to_string();
            assert_eq!(text.len(), SubscriptionId::TEXT_LEN);
            assert_ne!(text.as_bytes()[2], b'0');
            assert_eq!(SubscriptionId::parse(&text), Some(id));
            assert_eq!(
                SubscriptionId::parse(&text.to_uppercase().replace("0X", "0x")),
                Some(id)
            );
        }
        for wrong in ["", "0x", "1", "0x+1", "0xzz", "0x123456789012345678901234567890123"] {
            assert_eq!(SubscriptionId::parse(wrong), None, "{wrong}");
        }
    }
}
