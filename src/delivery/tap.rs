//! Tap: copies of one client's messages, for an operator who looks at them.
//!
//! A tap has a budget of bytes, and ends when that is used up or its reader is gone; a reader that is too slow misses
//! messages. A client without a tap pays one relaxed load per message.
//!
//! Results of calls are for the client alone unless the tap has seen the request, and its judge has disclosed the result:
//! the answer carries a [`Disclosure`] from the request on. A long message, a slow reader or an id that is used twice
//! changes nothing about that.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

/// Most messages that wait for the reader.
const WAITING: usize = 256;

/// Longest message that is copied, in bytes; of a longer one only the length is given.
const MAX_TEXT: usize = 64 << 10;

/// Direction of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client.
    Received,
    /// To the client; queued, and about to be written.
    Sent(Results),
}

/// Results in a message to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Results {
    /// May be shown: events, and answers to requests that the tap has seen and disclosed.
    Disclosed,
    /// For the client alone.
    Hidden,
}

/// Permission for a tap to show the answer to a request; the default is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disclosure(Option<NonZeroU64>);

/// Judge of requests: `true` if the results of all calls in this message may be shown.
pub type Discloses = fn(&[u8]) -> bool;

/// Number of the newest tap.
static NEWEST: AtomicU64 = AtomicU64::new(0);

/// Copy of a message.
#[derive(Debug, PartialEq, Eq)]
pub struct TappedMessage {
    /// Direction.
    pub direction: Direction,
    /// Length, in bytes, without framing and compression.
    pub length: usize,
    /// Text; `None` if it is too long to be copied.
    pub text: Option<Vec<u8>>,
    /// Messages before this one that the reader missed.
    pub missed: u64,
}

/// Writing end of a tap.
#[derive(Debug)]
pub(super) struct Tap {
    /// Number that no other tap has.
    number: Option<NonZeroU64>,
    discloses: Discloses,
    sender: mpsc::Sender<TappedMessage>,
    /// Bytes that may still be copied.
    budget: usize,
    missed: u64,
}

impl Tap {
    /// Creates a tap that copies `budget` bytes at most.
    pub(super) fn new(budget: usize, discloses: Discloses) -> (Self, mpsc::Receiver<TappedMessage>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        let tap = Self {
            number: NonZeroU64::new(NEWEST.fetch_add(1, Ordering::Relaxed) + 1),
            discloses,
            sender,
            budget,
            missed: 0,
        };
        (tap, receiver)
    }

    /// Checks if the reader is gone.
    pub(super) fn is_unread(&self) -> bool {
        self.sender.is_closed()
    }

    /// Judges a message from the client, whether or not there is room for its copy.
    pub(super) fn judge(&self, message: &[u8]) -> Disclosure {
        Disclosure(self.number.filter(|_| (self.discloses)(message)))
    }

    /// Returns what may be shown of an answer.
    pub(super) fn results(&self, disclosure: Disclosure) -> Results {
        if disclosure.0.is_some() && disclosure.0 == self.number {
            Results::Disclosed
        } else {
            Results::Hidden
        }
    }

    /// Copies a message that consists of these parts; `false` once the tap is over.
    pub(super) fn copy(&mut self, direction: Direction, parts: &[&[u8]]) -> bool {
        let length = parts.iter().map(|part| part.len()).sum();
        let is_short = length <= MAX_TEXT;
        if is_short && length > self.budget {
            return false;
        }
        let message = TappedMessage {
            direction,
            length,
            text: is_short.then(|| parts.concat()),
            missed: self.missed,
        };
        match self.sender.try_send(message) {
            Ok(()) => {
                self.missed = 0;
                self.budget -= if is_short { length } else { 0 };
                true
            }
            Err(TrySendError::Full(_)) => {
                self.missed += 1;
                true
            }
            Err(TrySendError::Closed(_)) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENT: Direction = Direction::Sent(Results::Disclosed);

    fn judging(budget: usize) -> (Tap, mpsc::Receiver<TappedMessage>) {
        Tap::new(budget, |message| message != b"secret")
    }

    #[test]
    fn results_are_hidden_unless_this_tap_has_seen_and_disclosed_the_request() {
        let (mut first, _reader) = judging(usize::MAX);
        let (second, _reader) = judging(usize::MAX);
        let disclosed = first.judge(b"request");
        assert_eq!(first.results(disclosed), Results::Disclosed);
        assert_eq!(second.results(disclosed), Results::Hidden, "of another tap");
        assert_eq!(first.results(first.judge(b"secret")), Results::Hidden);
        assert_eq!(first.results(Disclosure::default()), Results::Hidden, "before the tap");
        // A reader that misses the request changes nothing.
        while first.missed == 0 {
            assert!(first.copy(Direction::Received, &[b"secret"]));
        }
        assert_eq!(first.results(first.judge(b"secret")), Results::Hidden);
        assert_eq!(first.results(first.judge(b"request")), Results::Disclosed);
    }

    #[test]
    fn a_tap_ends_with_its_budget_or_its_reader() {
        let (mut tap, mut receiver) = judging(10);
        assert!(tap.copy(SENT, &[b"abc", b"def"]));
        assert!(
            tap.copy(Direction::Received, &[&vec![0; MAX_TEXT + 1]]),
            "a long one is not copied"
        );
        assert!(!tap.copy(SENT, &[b"12345"]));
        drop(tap);
        let first = receiver.try_recv().unwrap();
        assert_eq!((first.length, first.text.as_deref()), (6, Some(&b"abcdef"[..])));
        let long = receiver.try_recv().unwrap();
        assert_eq!(
            (long.length, long.text, long.direction),
            (MAX_TEXT + 1, None, Direction::Received)
        );
        assert!(receiver.try_recv().is_err());

        let (mut tap, receiver) = judging(10);
        assert!(!tap.is_unread());
        drop(receiver);
        assert!(tap.is_unread() && !tap.copy(SENT, &[b"a"]));
    }

    #[test]
    fn a_slow_reader_learns_what_it_missed() {
        let (mut tap, mut receiver) = judging(usize::MAX);
        for _ in 0..WAITING + 3 {
            assert!(tap.copy(SENT, &[b"a"]));
        }
        assert_eq!(receiver.try_recv().unwrap().missed, 0);
        assert!(tap.copy(SENT, &[b"b"]));
        let mut last = None;
        while let Ok(message) = receiver.try_recv() {
            last = Some(message);
        }
        assert_eq!(last.unwrap().missed, 3);
    }
}
