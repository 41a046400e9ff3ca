//! Cache of answers, and calls in flight: equal calls share one answer.

use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
#[allow(clippy::disallowed_types)] // moka's clock
use std::time::Instant;

use bytes::Bytes;
use moka::Expiry;
use moka::future::Cache as Kept;
use moka::policy::EvictionPolicy;
use ring::digest::{Context, SHA256};

use super::cache_scope::CacheScope;
use crate::jsonrpc::Outcome;
use crate::upstream::CallError;

/// Approximate size of an entry besides its answer, in bytes: the key and moka's own records.
const OVERHEAD: usize = 256;

/// Part of the cache that one answer may fill (one sixteenth); a longer one would evict the answers of all others.
const LARGEST_PART: u64 = 16;

/// Call and anchor under which an answer is cached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CacheKey {
    scope: CacheScope,
    /// SHA-256 of the anchor, the method and the canonical parameters, since these may be long.
    digest: [u8; 32],
}

impl Hash for CacheKey {
    /// Hashes a part of the digest: moka hashes a key several times, and the whole key took a twentieth of a call's
    /// time.
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.digest[..8]);
    }
}

impl CacheKey {
    /// Creates the key of a method with canonical parameters.
    #[must_use]
    pub(super) fn new(scope: CacheScope, method: &str, params: &str) -> Self {
        let mut hash = Context::new(&SHA256);
        for part in scope.parts() {
            hash.update(&part.to_le_bytes());
        }
        hash.update(method.as_bytes());
        hash.update(b"\n");
        hash.update(params.as_bytes());
        let mut digest = [0; 32];
        digest.copy_from_slice(hash.finish().as_ref());
        Self { scope, digest }
    }
}

/// Answer of a node, or the reason why there is none.
type Answer = Result<Outcome, CallError>;

/// Source of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// Cached answer.
    Memory,
    /// Answer to an equal call that was in flight.
    Shared,
    /// Answer of a node to this call.
    Node,
}

/// Cache of answers, bounded in bytes; the least recently used answer is evicted first.
#[derive(Debug)]
pub(super) struct Cache {
    kept: Kept<CacheKey, Bytes>,
    largest: usize,
}

struct Lifetimes;

impl Expiry<CacheKey, Bytes> for Lifetimes {
    #[allow(clippy::disallowed_types)]
    fn expire_after_create(&self, key: &CacheKey, _: &Bytes, _: Instant) -> Option<Duration> {
        Some(key.scope.lifetime())
    }
}

impl Cache {
    /// Creates a cache of at most this many bytes, overhead included.
    #[must_use]
    pub(super) fn new(max_bytes: u64) -> Self {
        let weigh = |_: &CacheKey, answer: &Bytes| u32::try_from(answer.len() + OVERHEAD).unwrap_or(u32::MAX);
        let kept = Kept::builder()
            .max_capacity(max_bytes)
            // LRU: all clients request the answers of a new head, which have no past use by which they could be
            // preferred.
            .eviction_policy(EvictionPolicy::lru())
            .weigher(weigh)
            .expire_after(Lifetimes)
            .build();
        let largest = usize::try_from(max_bytes / LARGEST_PART).unwrap_or(usize::MAX);
        Self { kept, largest }
    }

    /// Returns the answer to a call: the cached one, that of an equal call in flight, or the one by `ask`. Only a
    /// node's result is cached, and only if `holds` returns `true` for it: it will stay the same.
    pub(super) async fn answer<A: Future<Output = Answer>>(
        &self,
        key: CacheKey,
        holds: impl Fn(&Bytes) -> bool,
        ask: impl FnOnce() -> A,
    ) -> (Answer, By) {
        if let Some(kept) = self.kept.get(&key).await {
            return (Ok(Outcome::Result(kept)), By::Memory);
        }
        let asked = AtomicBool::new(false);
        let asking = async {
            asked.store(true, Ordering::Relaxed);
            match ask().await {
                // Copied: the answer may be a small part of a buffer read from the node, which must not stay in
                // memory with it.
                Ok(Outcome::Result(json)) if json.len() <= self.largest && holds(&json) => {
                    Ok(Bytes::copy_from_slice(&json))
                }
                // Shared by all calls that wait for it, and not cached.
                other => Err(other),
            }
        };
        // Both are boxed: moka's future contains its argument several times, and a cached answer needs neither box.
        let answer = match Box::pin(self.kept.try_get_with(key, Box::pin(asking))).await {
            Ok(json) => Ok(Outcome::Result(json)),
            Err(unkept) => (*unkept).clone(),
        };
        let by = if asked.into_inner() { By::Node } else { By::Shared };
        (answer, by)
    }

    /// Returns the cached answer under this key.
    pub(super) async fn get(&self, key: &CacheKey) -> Option<Bytes> {
        self.kept.get(key).await
    }

    /// Caches an answer under another key too, if it is not too long.
    pub(super) async fn keep(&self, key: CacheKey, json: Bytes) {
        if json.len() <= self.largest {
            self.kept.insert(key, json).await;
        }
    }

    /// Returns the number of entries, and their bytes with overhead.
    pub(super) async fn size(&self) -> (u64, u64) {
        self.kept.run_pending_tasks().await;
        (self.kept.entry_count(), self.kept.weighted_size())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::future::{join, join_all};

    use super::*;

    fn key(question: &str, epoch: u64) -> CacheKey {
        CacheKey::new(CacheScope::Chain { epoch }, question, "[]")
    }

    fn result(json: &'static str) -> Answer {
        Ok(Outcome::Result(Bytes::from_static(json.as_bytes())))
    }

    #[tokio::test]
    async fn a_kept_answer_is_asked_for_once_until_its_ground_moves() {
        let cache = Cache::new(1 << 20);
        for (epoch, by) in [(0, By::Node), (0, By::Memory), (1, By::Node), (0, By::Memory)] {
            let answer = cache.answer(key("a", epoch), |_| true, || async { result("1") }).await;
            assert_eq!(answer, (result("1"), by));
        }
    }

    #[tokio::test]
    async fn what_does_not_hold_is_shared_by_those_who_wait_and_forgotten() {
        let cache = Cache::new(1 << 20);
        let error = || Ok(Outcome::Error(Bytes::from_static(b"{}")));
        for answer in [result("null"), error(), Err(CallError::Lost)] {
            let slow = || async {
                tokio::task::yield_now().await;
                answer.clone()
            };
            let holds = |json: &Bytes| &json[..] != b"null";
            let both = join(
                cache.answer(key("a", 0), holds, slow),
                cache.answer(key("a", 0), holds, slow),
            );
            assert_eq!(both.await, ((answer.clone(), By::Node), (answer.clone(), By::Shared)));
            assert_eq!(cache.answer(key("a", 0), holds, slow).await.1, By::Node);
        }
    }

    #[tokio::test]
    async fn who_was_asking_may_go_and_the_others_still_get_their_answer() {
        let cache = Cache::new(1 << 20);
        let mut first = Box::pin(cache.answer(key("a", 0), |_| true, std::future::pending::<Answer>));
        assert!(futures_util::poll!(&mut first).is_pending());
        let mut second = Box::pin(cache.answer(key("a", 0), |_| true, || async { result("1") }));
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(first);
        assert_eq!(second.await, (result("1"), By::Node));
    }

    #[tokio::test]
    async fn it_is_bounded_in_bytes_and_the_oldest_goes_first() {
        let cache = Cache::new(64 << 10);
        let long = || Ok(Outcome::Result(Bytes::from(vec![b'1'; 4000])));
        for question in 0..100 {
            let question = question.to_string();
            let _ = cache.answer(key(&question, 0), |_| true, || async { long() }).await;
            let _ = cache.answer(key("0", 0), |_| true, || async { long() }).await;
            // moka applies the recorded look-ups now and then; here, after each one.
            let _ = cache.size().await;
        }
        let (entries, bytes) = cache.size().await;
        assert!((10..=15).contains(&entries) && bytes <= 64 << 10, "{entries}, {bytes}");
        assert!(cache.get(&key("0", 0)).await.is_some(), "asked for again and again");
        assert!(cache.get(&key("1", 0)).await.is_none());
        // An answer longer than a sixteenth of the cache is not cached.
        let longer = || Ok(Outcome::Result(Bytes::from(vec![b'1'; 4097])));
        let _ = cache.answer(key("x", 0), |_| true, || async { longer() }).await;
        assert!(cache.get(&key("x", 0)).await.is_none());
    }

    #[tokio::test]
    async fn without_room_equal_calls_still_share_one_answer() {
        let cache = Arc::new(Cache::new(0));
        let ask = || async {
            tokio::task::yield_now().await;
            result("1")
        };
        let answers = join_all((0..10).map(|_| cache.answer(key("a", 0), |_| true, ask))).await;
        assert_eq!(answers.iter().filter(|(_, by)| *by == By::Node).count(), 1);
        assert!(cache.get(&key("a", 0)).await.is_none());
    }
}
