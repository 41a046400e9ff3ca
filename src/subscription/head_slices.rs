//! Fan-out of one head in slices: a slice of clients is written to before the next slice's queues are filled, so that
//! the first client does not wait for the queues of all.
//!
//! The registry's lock is released between slices. What joins the table meanwhile begins behind this head: it
//! subscribed after the head was published, or was replayed the head before it joined.

use std::collections::HashSet;
use std::sync::Arc;

use slab::Slab;

use super::flush::{DirtyClients, is_answered, send, tasks_for};
use super::subscriber::Subscriber;
use super::tables::Tables;
use crate::clock::Moment;
use crate::delivery::Batch;

/// Subscriptions in a slice: written to in half a millisecond. Also the unit in which large fan-outs are divided between
/// workers.
pub(super) const SLICE: usize = 64;

/// Subscriptions to heads, and the head that is being fanned out to them.
#[derive(Debug, Default)]
pub(super) struct HeadSubscribers {
    all: Slab<Subscriber>,
    under_way: Option<UnderWay>,
}

/// Head that some subscribers have got, and others have not.
#[derive(Debug)]
struct UnderWay {
    batch: Arc<Batch>,
    /// Places still to be visited.
    places: std::ops::Range<usize>,
    /// Places taken since the fan-out began.
    joined: HashSet<usize>,
    /// Slices fanned out.
    slices: usize,
    /// Tasks that write the slices by turns, this one included.
    tasks: usize,
}

impl HeadSubscribers {
    pub(super) fn insert(&mut self, subscriber: Subscriber) -> usize {
        let at = self.all.insert(subscriber);
        if let Some(under_way) = &mut self.under_way
            && under_way.places.contains(&at)
        {
            under_way.joined.insert(at);
        }
        at
    }

    pub(super) fn remove(&mut self, at: usize) -> Option<Subscriber> {
        self.all.try_remove(at)
    }

    /// Checks if the subscription in this place is still to get the head that is under way.
    pub(super) fn misses(&self, at: usize) -> bool {
        let under_way = self.under_way.as_ref();
        under_way.is_some_and(|own| own.places.contains(&at) && !own.joined.contains(&at))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Subscriber> {
        self.all.iter().map(|(_, subscriber)| subscriber)
    }

    /// Begins to fan out a head to the present subscribers.
    fn begin(&mut self, batch: Arc<Batch>) {
        let end = self.all.iter().next_back().map_or(0, |(last, _)| last + 1);
        self.under_way = Some(UnderWay {
            batch,
            places: 0..end,
            joined: HashSet::new(),
            slices: 0,
            tasks: tasks_for(self.all.len()),
        });
    }

    /// Queues the head for the next slice; returns `false` if it was the last one.
    fn next_slice(&mut self, due: &mut DirtyClients, now: Moment) -> bool {
        let Self { all, under_way } = self;
        let Some(UnderWay {
            batch,
            places,
            joined,
            slices,
            tasks,
        }) = under_way
        else {
            return false;
        };
        let slice = places.by_ref().filter(|at| !joined.contains(at));
        let slice = slice.filter_map(|at| all.get(at)).take(SLICE);
        send(slice.filter(is_answered), batch, due, now);
        let is_more = places.start < places.end;
        // What follows the last slice is divided by its own size.
        due.elsewhere(is_more && !slices.is_multiple_of(*tasks));
        *slices += 1;
        if !is_more {
            *under_way = None;
        }
        is_more
    }
}

impl Tables {
    /// Begins to fan out a head; [`Self::next_heads`] goes on until it returns `false`. No event may be fanned out before,
    /// except to subscriptions that join meanwhile.
    pub(super) fn begin_heads(&mut self, batch: Arc<Batch>) {
        self.heads.begin(batch);
    }

    /// Queues the head that is under way for the next slice of subscribers; returns `false` if there are no more.
    pub(super) fn next_heads(&mut self, due: &mut DirtyClients, now: Moment) -> bool {
        self.heads.next_slice(due, now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::time::Instant;

    use super::*;
    use crate::clock::Clock;
    use crate::delivery::{ClientWriter, Compression, Event, Kind, Pipe, Recipient, SubscriptionId};
    use crate::delivery::{WriterLimits, WriterShared};
    use crate::telemetry::Metrics;

    fn shared() -> Arc<WriterShared> {
        let limits = WriterLimits {
            max_bytes: 1 << 20,
            max_total_bytes: 1 << 20,
            max_age: Duration::from_secs(60),
            holdoff: Duration::ZERO,
        };
        WriterShared::new(limits, Clock::start(), &Metrics::new().0)
    }

    /// Returns an answered subscription of a client of its own, whose queue keeps what it gets.
    fn subscriber(shared: &Arc<WriterShared>) -> Subscriber {
        let (own, _) = Pipe::pair();
        let recipient = Recipient::new(SubscriptionId::random(), 0);
        recipient.answered();
        let writer = ClientWriter::new(own.into(), Compression::None, Arc::default(), shared.clone());
        Subscriber { recipient, writer }
    }

    fn head() -> Arc<Batch> {
        Batch::new(Kind::Heads, [Event::new(b"1")].into(), Instant::now())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Subscriptions join and leave between slices, and take the places of others.
        #[test]
        fn who_subscribes_before_a_head_and_stays_gets_it_once_and_who_joins_behind_it_does_not(
            at_first in 0usize..4 * SLICE,
            between in prop::collection::vec(prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 0..2 * SLICE), 0..8),
        ) {
            let shared = shared();
            let mut heads = HeadSubscribers::default();
            // Place, subscription, and heads due to it: all that begin while it is subscribed.
            let mut present = Vec::new();
            for _ in 0..at_first {
                let one = subscriber(&shared);
                present.push((heads.insert(one.clone()), one, 0));
            }
            let mut between = between.into_iter();
            for _ in 0..2 {
                heads.begin(head());
                present.iter_mut().for_each(|(_, _, due)| *due += 1);
                while heads.next_slice(&mut DirtyClients::default(), Moment::START) {
                    for (joins, which) in between.next().unwrap_or_default() {
                        if joins {
                            let one = subscriber(&shared);
                            present.push((heads.insert(one.clone()), one, 0));
                        } else if !present.is_empty() {
                            let (place, one, _) = present.swap_remove(which.index(present.len()));
                            let gone = heads.remove(place).map(|gone| gone.recipient.id());
                            prop_assert_eq!(gone, Some(one.recipient.id()));
                        }
                    }
                }
                prop_assert!(heads.under_way.is_none());
            }
            for (_, one, due) in present {
                prop_assert_eq!(one.writer.queued_bytes(), due * head().wire_len);
            }
        }
    }

    #[test]
    fn a_slice_is_written_to_before_the_next_is_queued() {
        let shared = shared();
        let mut heads = HeadSubscribers::default();
        let all: Vec<_> = (0..2 * SLICE + 1).map(|_| subscriber(&shared)).collect();
        for one in &all {
            heads.insert(one.clone());
        }
        let has_it = || all.iter().filter(|one| one.writer.queued_bytes() > 0).count();
        heads.begin(head());
        let mut slice = || heads.next_slice(&mut DirtyClients::default(), Moment::START);
        assert_eq!((has_it(), slice(), has_it()), (0, true, SLICE));
        assert_eq!((slice(), has_it()), (true, 2 * SLICE));
        assert_eq!((slice(), has_it(), slice()), (false, all.len(), false));
    }
}
