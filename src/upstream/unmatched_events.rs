//! Early events, of subscriptions with an id not known yet: some nodes send the first event before the answer.

use std::collections::VecDeque;

use bytes::Bytes;

use super::feeds::key;
use super::message::{Notice, Notification};

/// Most events kept.
const MAX_EVENTS: usize = 64;

/// Most bytes kept, of methods, ids and events together: a node may send events of any length.
const MAX_BYTES: usize = 1 << 20;

/// Events that may belong to a subscription in the making, oldest first.
#[derive(Debug, Default)]
pub(super) struct UnmatchedEvents {
    events: VecDeque<Notification>,
    bytes: usize,
}

fn length(event: &Notification) -> usize {
    let (Notice::Event(json) | Notice::Ended(json)) = &event.notice;
    event.method.len() + event.subscription.len() + json.len()
}

impl UnmatchedEvents {
    /// Keeps an event; returns the number of events dropped to make room (or 1 if this one is too long).
    pub(super) fn push(&mut self, event: Notification) -> usize {
        let len = length(&event);
        if len > MAX_BYTES {
            return 1;
        }
        let mut lost = 0;
        while self.events.len() == MAX_EVENTS || self.bytes + len > MAX_BYTES {
            if let Some(oldest) = self.events.pop_front() {
                self.bytes -= length(&oldest);
            }
            lost += 1;
        }
        self.bytes += len;
        // A copy: a slice would keep the whole frame in memory.
        let copy = |bytes: Bytes| Bytes::copy_from_slice(&bytes);
        self.events.push_back(Notification {
            method: copy(event.method),
            notice: match event.notice {
                Notice::Event(json) => Notice::Event(copy(json)),
                Notice::Ended(json) => Notice::Ended(copy(json)),
            },
            subscription: event.subscription,
        });
        lost
    }

    /// Takes the events of one subscription, in any spelling of its id.
    pub(super) fn take(&mut self, subscription: &str) -> Vec<Notification> {
        let id = key(subscription);
        let (own, others): (Vec<_>, _) = self.events.drain(..).partition(|event| key(&event.subscription) == id);
        self.events = others.into();
        self.bytes -= own.iter().map(length).sum::<usize>();
        own
    }

    /// Takes all events, when no subscribe request is in flight any more.
    pub(super) fn take_all(&mut self) -> VecDeque<Notification> {
        std::mem::take(self).events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: &str, json: impl Into<Bytes>) -> Notification {
        Notification {
            method: "m".into(),
            subscription: id.into(),
            notice: Notice::Event(json.into()),
        }
    }

    #[test]
    fn as_many_as_the_limit_and_not_one_more() {
        let mut early = UnmatchedEvents::default();
        let first = |n: usize| event("1", n.to_string());
        for n in 0..MAX_EVENTS {
            assert_eq!(early.push(first(n)), 0);
        }
        assert_eq!(early.push(event("2", "0")), 1);
        assert_eq!(early.take("1"), (1..MAX_EVENTS).map(first).collect::<Vec<_>>());
        assert_eq!(early.take("\"0x2\""), [event("2", "0")], "in another spelling");
        assert_eq!((early.bytes, early.events.len()), (0, 0));
    }

    #[test]
    fn as_many_bytes_as_the_limit_and_not_one_more() {
        let mut early = UnmatchedEvents::default();
        let long = |id: &str, len: usize| event(id, vec![b'x'; len]);
        assert_eq!(early.push(long("1", MAX_BYTES)), 1, "with its id it is longer");
        assert_eq!(early.push(long("1", MAX_BYTES - 2)), 0);
        assert_eq!(early.push(long("2", 1)), 1);
        assert!(early.take("1").is_empty());
        assert_eq!(early.push(long("2", MAX_BYTES - 5)), 0);
        assert_eq!(early.bytes, MAX_BYTES);
        assert_eq!(early.take_all().len(), 2);
        assert_eq!(early.push(long("2", MAX_BYTES - 2)), 0);
    }
}
