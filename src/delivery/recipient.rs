//! Recipient of events: one subscription as the delivery path sees it, with its id, the bytes before its events, and
//! the moment from which events may be written.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::frame::Deflated;
use super::series::Series;
use super::{Compression, Event, Framing, Kind, Prefix, event_stream};
use crate::clock::Moment;

/// Subscription id: `0x` and 32 hex digits, the first not zero. Unguessable, and in canonical form as a number (alloy
/// parses ids as 256-bit integers and sends them back in that form).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SubscriptionId(u128);

impl SubscriptionId {
    /// Length of the text form in bytes.
    pub const TEXT_LEN: usize = 34;

    /// Generates an id with the thread's cryptographic generator.
    #[must_use]
    pub fn random() -> Self {
        loop {
            let id: u128 = rand::random();
            if id >> 124 != 0 {
                return Self(id);
            }
        }
    }

    /// Parses an id as any client may send it back: hex in either case, with or without leading zeros.
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

/// Receiving end of one subscription.
#[derive(Debug)]
pub struct Recipient {
    id: SubscriptionId,
    prefix: Prefix,
    release: ReleaseCell,
    /// Sequence number of the first fan-out that this subscription receives.
    since: AtomicU64,
    source: Source,
}

/// Source of a subscription's events.
#[derive(Debug)]
enum Source {
    /// Live fan-outs.
    Live,
    /// Replay of past events, then live fan-outs.
    Replay,
    /// Task of its own, which waits until the answer is queued.
    Task(Box<Notify>),
}

/// State of a subscription's answer, which its notifications wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Release {
    /// The answer is not queued: the client cannot know the id, and events skip this subscription.
    Unanswered,
    /// The answer is queued but not written: events queue behind it.
    Answering,
    /// The answer is written: notifications may be written from this moment on.
    From(Moment),
    /// The answer is an error: there will be no events.
    Refused,
}

/// A [`Release`] in eight bytes: 0, which no moment has, and the two largest values encode the other states.
#[derive(Debug)]
struct ReleaseCell(AtomicU64);

impl ReleaseCell {
    const UNANSWERED: u64 = 0;
    const ANSWERING: u64 = u64::MAX;
    const REFUSED: u64 = u64::MAX - 1;

    fn new(release: Release) -> Self {
        Self(AtomicU64::new(Self::code(release)))
    }

    fn code(release: Release) -> u64 {
        match release {
            Release::Unanswered => Self::UNANSWERED,
            Release::Answering => Self::ANSWERING,
            Release::Refused => Self::REFUSED,
            Release::From(at) => at.to_bits().min(Self::REFUSED - 1),
        }
    }

    fn decode(bits: u64) -> Release {
        match bits {
            Self::ANSWERING => Release::Answering,
            Self::REFUSED => Release::Refused,
            bits => Moment::from_bits(bits).map_or(Release::Unanswered, Release::From),
        }
    }

    fn get(&self) -> Release {
        Self::decode(self.0.load(Ordering::Relaxed))
    }

    /// Changes the state to the one that `next` returns for it; `None` leaves it.
    fn change(&self, next: impl Fn(Release) -> Option<Release>) {
        let change = |bits| next(Self::decode(bits)).map(Self::code);
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
    }

    fn set(&self, release: Release) {
        self.0.store(Self::code(release), Ordering::Relaxed);
    }
}

impl Recipient {
    /// Creates a recipient whose answer is not queued yet, for fan-outs from number `since` on.
    #[must_use]
    pub fn new(id: SubscriptionId, since: u64) -> Arc<Self> {
        Arc::new(Self::made(id, since, Source::Live))
    }

    /// Like [`Self::new`], for a subscription in this namespace, from the first fan-out on.
    #[must_use]
    pub fn within(namespace: &str, id: SubscriptionId) -> Arc<Self> {
        let prefix = Prefix::within(namespace, id);
        let made = Self::made(id, 0, Source::Live);
        Arc::new(Self { prefix, ..made })
    }

    /// Like [`Self::new`], for a subscription whose events contain their own method name ([`Event::naming`]).
    #[must_use]
    pub fn unnamed(id: SubscriptionId) -> Arc<Self> {
        let prefix = Prefix::unnamed(id);
        let made = Self::made(id, 0, Source::Live);
        Arc::new(Self { prefix, ..made })
    }

    /// Creates a recipient that gets replayed events, and no live ones until [`Self::begin`].
    #[must_use]
    pub fn resumed(id: SubscriptionId) -> Arc<Self> {
        Arc::new(Self::made(id, u64::MAX, Source::Replay))
    }

    /// Creates a recipient of whole messages ([`Event::whole`]), sent by a task of its own, which waits for
    /// [`Self::until_answered`].
    #[must_use]
    pub fn whole(id: SubscriptionId) -> Arc<Self> {
        let made = Self::made(id, 0, Source::Task(Box::default()));
        let prefix = Prefix::empty();
        Arc::new(Self { prefix, ..made })
    }

    fn made(id: SubscriptionId, since: u64, source: Source) -> Self {
        Self {
            id,
            prefix: Prefix::new(id),
            release: ReleaseCell::new(Release::Unanswered),
            since: AtomicU64::new(since),
            source,
        }
    }

    /// Checks if past events are replayed before live ones.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        matches!(self.source, Source::Replay)
    }

    /// Returns the id that the client knows.
    #[must_use]
    pub fn id(&self) -> SubscriptionId {
        self.id
    }

    /// Returns the bytes before each event.
    #[must_use]
    pub fn prefix(&self) -> &Prefix {
        &self.prefix
    }

    /// Records that the answer is queued.
    pub fn answered(&self) {
        self.release
            .change(|now| (now != Release::Refused).then_some(Release::Answering));
        self.wake();
    }

    /// Records that the answer is an error: there will be no events.
    pub fn refuse(&self) {
        self.release.set(Release::Refused);
        self.wake();
    }

    fn wake(&self) {
        if let Source::Task(waits) = &self.source {
            waits.notify_one();
        }
    }

    /// Waits until the answer is queued; `false` if it is an error. For the one task of [`Self::whole`].
    pub async fn until_answered(&self) -> bool {
        while let (Source::Task(waits), Release::Unanswered) = (&self.source, self.release.get()) {
            waits.notified().await;
        }
        !self.is_refused()
    }

    /// Checks if the answer was an error.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.release.get() == Release::Refused
    }

    /// Checks if the answer has at least been queued.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        self.release.get() != Release::Unanswered
    }

    /// Starts live events with fan-out number `since`.
    pub fn begin(&self, since: u64) {
        self.since.store(since, Ordering::Relaxed);
    }

    /// Returns the number with which live events start.
    #[must_use]
    pub fn since(&self) -> u64 {
        self.since.load(Ordering::Relaxed)
    }

    /// Checks if fan-out number `sequence` is for this subscription. A subscription whose answer is not queued (in a
    /// batch with a slow call) is skipped, and starts with the next fan-out.
    #[must_use]
    pub fn takes(&self, sequence: u64) -> bool {
        let answered = self.is_answered();
        if !answered {
            self.since.store(sequence + 1, Ordering::Relaxed);
        }
        answered
    }

    /// Checks if this subscription received fan-out number `sequence`.
    #[must_use]
    pub fn was_sent(&self, sequence: u64) -> bool {
        self.since.load(Ordering::Relaxed) <= sequence
    }

    /// Records that the answer is written: events may follow from `at` on (E5: web3.js 4 and web3.py 8 lose events that
    /// arrive with the answer).
    pub fn release(&self, at: Moment) {
        self.release
            .change(|now| (now != Release::Refused).then_some(Release::From(at)));
    }

    /// Returns the first moment at which a notification may be written; `None` until the answer is written.
    #[must_use]
    pub fn release_at(&self) -> Option<Moment> {
        match self.release.get() {
            Release::From(at) => Some(at),
            Release::Unanswered | Release::Answering | Release::Refused => None,
        }
    }
}

/// Events of one block, or of pending transactions that arrived together, for one filter; shared by all subscriptions of that filter.
#[derive(Debug)]
pub struct Batch {
    /// Kind of the events.
    pub kind: Kind,
    /// Events in order of delivery; never empty.
    pub events: Box<[Event]>,
    /// Bytes on the wire for one subscription, uncompressed; counted by every client's queue.
    pub wire_len: usize,
    /// Arrival of the node's message, for the latency histogram.
    pub seen: Instant,
    /// Events compressed as successive [`Series`], each made for the first client that needs it; empty if each event is
    /// compressed alone.
    series: Box<[OnceLock<Series>]>,
    /// The same events as server-sent events, made for the first client that needs them; empty if these are.
    event_stream: OnceLock<Arc<Batch>>,
    /// `true` if the batch holds a position alone, and no event.
    is_mark: bool,
}

impl Batch {
    /// Creates a batch of at least one event, each compressed alone.
    #[must_use]
    pub fn new(kind: Kind, events: Box<[Event]>, seen: Instant) -> Arc<Self> {
        Arc::new(Self::alone(kind, events, seen))
    }

    /// Creates a batch whose events refer to earlier ones for clients that can read this: shorter, but compressed for
    /// this batch and not shared with other batches that contain the same events.
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
            event_stream: OnceLock::new(),
            is_mark: false,
        }
    }

    /// Creates a batch without an event, which only moves the position of clients of server-sent events.
    #[must_use]
    pub fn mark(kind: Kind, id: &str) -> Arc<Self> {
        let text = Event::text(event_stream::mark(id));
        let alone = Self::alone(kind, [text].into(), Instant::now());
        let is_mark = true;
        Arc::new(Self { is_mark, ..alone })
    }

    /// Returns the same events as clients of this framing get them.
    #[must_use]
    pub fn framed(self: &Arc<Self>, framing: Framing) -> &Arc<Self> {
        match framing {
            Framing::EventStream if !self.is_mark => self.event_stream.get_or_init(|| {
                let events = self.events.iter().map(|event| event.streamed(self.kind));
                Self::new(self.kind, events.collect(), self.seen)
            }),
            Framing::EventStream | Framing::WebSocket => self,
        }
    }

    /// Returns the number of events that count as notifications.
    #[must_use]
    pub fn notifications(&self) -> u64 {
        if self.is_mark { 0 } else { self.events.len() as u64 }
    }

    /// Returns the pieces of the frame of event number `at`. The batch must be sent whole, with nothing compressed in
    /// between.
    #[must_use]
    pub fn slices<'a>(&'a self, at: usize, prefix: &'a Prefix, compression: Compression) -> [&'a [u8]; 3] {
        match self.deflated(at, compression) {
            Some(deflated) => deflated.slices(prefix),
            None => self.events[at].slices(prefix),
        }
    }

    /// Returns the bytes on the wire of event number `at`.
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

    /// Returns the bytes that compression saves on the wire for one subscription.
    #[must_use]
    pub fn saved(&self, compression: Compression) -> usize {
        let sent = (0..self.events.len()).map(|at| self.event_len(at, compression)).sum();
        // In a series an event that does not compress becomes longer.
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
