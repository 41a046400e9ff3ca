//! Events of subscriptions whose id is not known yet: some nodes send the first event before the answer.

use std::collections::VecDeque;

use bytes::Bytes;

use super::feeds::key;

/// Events that are kept.
const MAX_EVENTS: usize = 64;

/// Bytes that are kept, of ids and events together: a node may send events of any length.
const MAX_BYTES: usize = 1 << 20;

/// What may turn out to be ours, oldest first.
#[derive(Debug, Default)]
pub(super) struct Early {
    events: VecDeque<(String, Bytes)>,
    bytes: usize,
}

impl Early {
    /// Keeps one more; how many are lost for it.
    pub fn push(&mut self, subscription: String, json: &Bytes) -> usize {
        let len = subscription.len() + json.len();
        if len > MAX_BYTES {
            return 1;
        }
        let mut lost = 0;
        while self.events.len() == MAX_EVENTS || self.bytes + len > MAX_BYTES {
            if let Some((subscription, json)) = self.events.pop_front() {
                self.bytes -= subscription.len() + json.len();
            }
            lost += 1;
        }
        self.bytes += len;
        // A copy: what is kept of a frame must not keep all of it.
        self.events.push_back((subscription, Bytes::copy_from_slice(json)));
        lost
    }

    /// Takes out those of one subscription.
    pub fn take(&mut self, subscription: &str) -> Vec<Bytes> {
        let id = key(subscription);
        let (own, others): (Vec<_>, _) = self.events.drain(..).partition(|(own, _)| key(own) == id);
        self.events = others.into();
        self.bytes -= own.iter().map(|(id, json)| id.len() + json.len()).sum::<usize>();
        own.into_iter().map(|(_, json)| json).collect()
    }

    /// Nobody's id is awaited any more.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_the_limit_and_not_one_more() {
        let mut early = Early::default();
        let event = |n: usize| Bytes::from(n.to_string());
        for n in 0..MAX_EVENTS {
            assert_eq!(early.push("1".into(), &event(n)), 0);
        }
        assert_eq!(early.push("2".into(), &event(0)), 1);
        assert_eq!(early.take("1"), (1..MAX_EVENTS).map(event).collect::<Vec<_>>());
        assert_eq!(early.take("\"0x2\""), [event(0)], "in another spelling");
        assert_eq!((early.bytes, early.events.len()), (0, 0));
    }

    #[test]
    fn as_many_bytes_as_the_limit_and_not_one_more() {
        let mut early = Early::default();
        let event = |len: usize| Bytes::from(vec![b'x'; len]);
        assert_eq!(early.push("1".into(), &event(MAX_BYTES)), 1, "with its id it is longer");
        assert_eq!(early.push("1".into(), &event(MAX_BYTES - 1)), 0);
        assert_eq!(early.push("2".into(), &event(1)), 1);
        assert!(early.take("1").is_empty());
        assert_eq!(early.push("2".into(), &event(MAX_BYTES - 3)), 0);
        assert_eq!(early.bytes, MAX_BYTES);
        early.clear();
        assert_eq!(early.push("2".into(), &event(MAX_BYTES - 1)), 0);
    }
}
