//! Calls under way at the nodes: equal calls share one answer.

use std::hash::RandomState;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use alloy_primitives::map::{Entry, HashMap};
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::cache::CacheKey;
use super::cache_scope::Admission;
use super::sightings::{Question, Sight, Sightings};
use crate::jsonrpc::Outcome;
use crate::shares::Owner;
use crate::upstream::CallError;

/// Answer of a node, or the reason why there is none.
pub(super) type Answer = Result<Outcome, CallError>;

/// Number of parts of the table, each with a lock of its own.
const SHARDS: usize = 64;

/// Table of calls under way, by key, with the record of questions that decides which answers are cached.
#[derive(Debug)]
pub(super) struct InFlight {
    shards: Box<[Mutex<Shard>]>,
    keys: RandomState,
}

#[derive(Debug, Default)]
struct Shard {
    calls: HashMap<CacheKey, UnderWay>,
    sightings: Sightings,
}

#[derive(Debug)]
struct UnderWay {
    call: Arc<Call>,
    /// Number of places at this call.
    waiting: usize,
}

/// Call that one place makes and all others wait for.
#[derive(Debug, Default)]
pub(super) struct Call {
    /// Answer of the node. If the client that asks goes, the next one that waits asks again.
    pub answer: OnceCell<Answer>,
    is_admitted: AtomicBool,
}

impl Call {
    /// Checks if the answer is to be cached.
    #[must_use]
    pub(super) fn is_admitted(&self) -> bool {
        self.is_admitted.load(Ordering::Relaxed)
    }
}

/// Place at a call under way. The call leaves the table with the first place that is given up after the answer, or
/// with the last one.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    shard: &'a Mutex<Shard>,
    key: &'a CacheKey,
    /// Call that this place waits for.
    pub call: Arc<Call>,
}

impl InFlight {
    /// Creates the table.
    #[must_use]
    pub(super) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            keys: RandomState::new(),
        }
    }

    /// Joins the call under this key, and begins it if there is none.
    #[must_use]
    pub(super) fn join<'a>(&'a self, key: &'a CacheKey, admission: Admission, owner: Owner) -> Waiting<'a> {
        let question = Question::new(&self.keys, key.question(), key.anchor(), owner);
        // Other bits than those that name the set of the record.
        let shard = &self.shards[(question.hash >> 16) as usize % SHARDS];
        let mut locked = shard.lock();
        let is_admitted = match admission {
            Admission::AtOnce => true,
            Admission::SecondTime => locked.sightings.see(question) == Sight::Again,
        };
        let call = match locked.calls.entry(*key) {
            Entry::Occupied(mut under_way) => {
                under_way.get_mut().waiting += 1;
                under_way.get().call.clone()
            }
            Entry::Vacant(vacant) => {
                let call = Arc::<Call>::default();
                vacant.insert(UnderWay {
                    call: call.clone(),
                    waiting: 1,
                });
                call
            }
        };
        drop(locked);
        if is_admitted {
            call.is_admitted.store(true, Ordering::Relaxed);
        }
        Waiting { shard, key, call }
    }

    /// Returns the number of calls under way.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().calls.len()).sum()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut locked = self.shard.lock();
        // A later call under the same key is not this one.
        if let Some(under_way) = locked.calls.get_mut(self.key)
            && Arc::ptr_eq(&under_way.call, &self.call)
        {
            under_way.waiting -= 1;
            if under_way.waiting == 0 || self.call.answer.initialized() {
                locked.calls.remove(self.key);
            }
        }
    }
}
