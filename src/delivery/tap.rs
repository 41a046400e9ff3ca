//! Tap: copies of one client's messages, for an operator who looks at them.
//!
//! A tap has a budget of bytes, and ends when that is used up or its reader is gone; a reader that is too slow misses
//! messages. A client without a tap pays one relaxed load per message.

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

/// Most messages that wait for the reader.
const WAITING: usize = 256;

/// Longest message that is copied, in bytes; of a longer one only the length is told.
const MAX_TEXT: usize = 64 << 10;

/// Direction of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client.
    Received,
    /// To the client; queued, and about to be written.
    Sent,
}

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
    sender: mpsc::Sender<TappedMessage>,
    /// Bytes that may still be copied.
    budget: usize,
    missed: u64,
}

impl Tap {
    /// Creates a tap that copies `budget` bytes at most.
    pub(super) fn new(budget: usize) -> (Self, mpsc::Receiver<TappedMessage>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        let tap = Self {
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

    #[test]
    fn a_tap_ends_with_its_budget_or_its_reader() {
        let (mut tap, mut receiver) = Tap::new(10);
        assert!(tap.copy(Direction::Sent, &[b"abc", b"def"]));
        assert!(
            tap.copy(Direction::Received, &[&vec![0; MAX_TEXT + 1]]),
            "a long one is not copied"
        );
        assert!(!tap.copy(Direction::Sent, &[b"12345"]));
        drop(tap);
        let first = receiver.try_recv().unwrap();
        assert_eq!((first.length, first.text.as_deref()), (6, Some(&b"abcdef"[..])));
        let long = receiver.try_recv().unwrap();
        assert_eq!(
            (long.length, long.text, long.direction),
            (MAX_TEXT + 1, None, Direction::Received)
        );
        assert!(receiver.try_recv().is_err());

        let (mut tap, receiver) = Tap::new(10);
        assert!(!tap.is_unread());
        drop(receiver);
        assert!(tap.is_unread() && !tap.copy(Direction::Sent, &[b"a"]));
    }

    #[test]
    fn a_slow_reader_learns_what_it_missed() {
        let (mut tap, mut receiver) = Tap::new(usize::MAX);
        for _ in 0..WAITING + 3 {
            assert!(tap.copy(Direction::Sent, &[b"a"]));
        }
        assert_eq!(receiver.try_recv().unwrap().missed, 0);
        assert!(tap.copy(Direction::Sent, &[b"b"]));
        let mut last = None;
        while let Ok(message) = receiver.try_recv() {
            last = Some(message);
        }
        assert_eq!(last.unwrap().missed, 3);
    }
}
