//! Cache of answers, and calls in flight: equal calls share one answer.

mod packed;

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;
#[allow(clippy::disallowed_types)] // moka's clock
use std::time::Instant;

use alloy_primitives::map::DefaultHashBuilder;
use bytes::Bytes;
use moka::Expiry;
use moka::ops::compute::Op;
use moka::policy::EvictionPolicy;
use moka::sync::Cache as Kept;
use ring::digest::{Context, SHA256};

use self::packed::{Register, Registration, SHARE_FROM};
use super::cache_scope::{Admission, CacheScope};
use super::in_flight::{Answer, InFlight};
use crate::content_coding::{ContentCoding, Packed};
use crate::jsonrpc::Outcome;
use crate::shares::Owner;

/// Approximate size of an entry besides its answer, in bytes: the key and moka's own records.
const OVERHEAD: usize = 256;

/// Part of the cache that one answer may fill (one sixteenth); a longer one would evict the answers of all others.
const LARGEST_PART: u64 = 16;

/// Call and anchor under which an answer is cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CacheKey {
    scope: CacheScope,
    /// SHA-256 of the method and the canonical parameters, since these may be long.
    question: [u8; 32],
}

impl Hash for CacheKey {
    /// Hashes a part of the digest: moka hashes a key several times, and the whole key took a twentieth of a call's
    /// time.
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.question().wrapping_add(self.anchor()));
    }
}

impl CacheKey {
    /// Creates the key of a method with canonical parameters.
    #[must_use]
    pub(super) fn new(scope: CacheScope, method: &str, params: &str) -> Self {
        let mut hash = Context::new(&SHA256);
        hash.update(method.as_bytes());
        hash.update(b"\n");
        hash.update(params.as_bytes());
        let mut question = [0; 32];
        question.copy_from_slice(hash.finish().as_ref());
        Self { scope, question }
    }

    /// Returns a part of the question's digest, which is the same under each anchor.
    #[must_use]
    pub(super) fn question(&self) -> u64 {
        let beginning = self.question.first_chunk().expect("a digest has 32 bytes");
        u64::from_le_bytes(*beginning)
    }

    /// Returns a number for the anchor, another one for each head.
    #[must_use]
    pub(super) fn anchor(&self) -> u64 {
        let parts = self.scope.parts().into_iter();
        parts.fold(0, |sum: u64, part| sum.wrapping_mul(31).wrapping_add(part))
    }
}

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

/// A cached answer with what belongs to it. Fields are dropped in their order.
#[derive(Clone, Debug)]
struct CachedAnswer {
    /// Entry in the register of long answers.
    _registration: Option<Arc<Registration>>,
    json: Bytes,
    /// Bytes of its packed forms.
    packed: usize,
}

/// Packed form of an answer.
#[derive(Clone, Debug)]
pub(super) enum PackedAnswer {
    /// The form, which is shared.
    Packed(Packed),
    /// The answer is cached, and is to be sent as it is: it is hardly shorter when packed, or there is no place to pack
    /// it now.
    AsItIs,
    /// The answer is short or not cached.
    NotCached,
}

/// Cache of answers, bounded in bytes, packed forms included; the least recently used answer is evicted first.
#[derive(Debug)]
pub(super) struct Cache {
    kept: Kept<CacheKey, CachedAnswer, DefaultHashBuilder>,
    register: Arc<Register>,
    largest: usize,
    in_flight: InFlight,
}

struct Lifetimes;

impl Expiry<CacheKey, CachedAnswer> for Lifetimes {
    #[allow(clippy::disallowed_types)]
    fn expire_after_create(&self, key: &CacheKey, _: &CachedAnswer, _: Instant) -> Option<Duration> {
        Some(key.scope.lifetime())
    }
}

impl Cache {
    /// Creates a cache of at most this many bytes, overhead included.
    #[must_use]
    pub(super) fn new(max_bytes: u64) -> Self {
        let weigh = |_: &CacheKey, CachedAnswer { json, packed, .. }: &CachedAnswer| {
            u32::try_from(json.len() + packed + OVERHEAD).unwrap_or(u32::MAX)
        };
        let kept = Kept::builder()
            .max_capacity(max_bytes)
            // LRU: all clients request the answers of a new head, which have no past use by which they could be
            // preferred.
            .eviction_policy(EvictionPolicy::lru())
            .weigher(weigh)
            .expire_after(Lifetimes)
            .build_with_hasher(DefaultHashBuilder::default());
        let largest = usize::try_from(max_bytes / LARGEST_PART).unwrap_or(usize::MAX);
        Self {
            kept,
            register: Arc::default(),
            largest,
            in_flight: InFlight::new(),
        }
    }

    /// Returns the answer to a call: the cached one, that of an equal call in flight, or the one by `ask`. Only a
    /// node's result is cached, if it is admitted and `holds` returns `true` for it: it will stay the same.
    pub(super) async fn answer<A: Future<Output = Answer>>(
        &self,
        key: &CacheKey,
        (admission, owner): (Admission, Owner),
        holds: impl Fn(&Bytes) -> bool,
        ask: impl FnOnce() -> A,
    ) -> (Answer, By) {
        let waiting = self.in_flight.join(key, admission, owner);
        let call = &*waiting.call;
        let mut by = By::Shared;
        let asking = async {
            // An equal call may have been answered since the caller looked for a cached answer.
            if call.is_admitted()
                && let Some(kept) = self.get(key)
            {
                by = By::Memory;
                return Ok(Outcome::Result(kept));
            }
            by = By::Node;
            match ask().await {
                Ok(Outcome::Result(json)) if call.is_admitted() && json.len() <= self.largest && holds(&json) => {
                    // Copied: the answer may be a small part of a buffer read from the node, which must not stay in
                    // memory with it.
                    let json = Bytes::copy_from_slice(&json);
                    self.insert(*key, json.clone());
                    Ok(Outcome::Result(json))
                }
                other => other,
            }
        };
        let answer = call.answer.get_or_init(|| asking).await.clone();
        (answer, by)
    }

    /// Returns the cached answer under this key.
    pub(super) fn get(&self, key: &CacheKey) -> Option<Bytes> {
        self.kept.get(key).map(|cached| cached.json)
    }

    fn insert(&self, key: CacheKey, json: Bytes) {
        let registration = (json.len() >= SHARE_FROM).then(|| self.register.enter(key, &json));
        let cached = CachedAnswer {
            _registration: registration,
            json,
            packed: 0,
        };
        self.kept.insert(key, cached);
    }

    /// Returns the packed form of a cached answer. The first caller packs it, those that come meanwhile wait for that;
    /// the form then counts among the bytes of the cache.
    pub(super) async fn packed<E, P: Future<Output = Result<Packed, E>>>(
        &self,
        json: &Bytes,
        coding: ContentCoding,
        pack: impl FnOnce() -> P,
    ) -> PackedAnswer {
        if json.len() < SHARE_FROM {
            return PackedAnswer::NotCached;
        }
        let Some((key, forms)) = self.register.find(json) else {
            return PackedAnswer::NotCached;
        };
        let packing = async {
            let packed = pack().await?;
            let is_worth_it = packed.len() < json.len() / 4 * 3;
            if is_worth_it {
                self.weigh_form(key, json, packed.len());
            }
            Ok::<_, E>(is_worth_it.then_some(packed))
        };
        match forms.of(coding).get_or_try_init(|| packing).await {
            Ok(Some(packed)) => PackedAnswer::Packed(packed.clone()),
            Ok(None) | Err(_) => PackedAnswer::AsItIs,
        }
    }

    /// Counts the bytes of another form of an answer that is cached still.
    fn weigh_form(&self, key: CacheKey, json: &Bytes, bytes: usize) {
        self.kept.entry(key).and_compute_with(|entry| match entry {
            Some(entry) if entry.value().json.as_ptr() == json.as_ptr() => {
                let cached = entry.into_value();
                Op::Put(CachedAnswer {
                    packed: cached.packed + bytes,
                    ..cached
                })
            }
            _ => Op::Nop,
        });
    }

    /// Caches an answer under another key too, if it is not too long.
    pub(super) fn keep(&self, key: CacheKey, json: Bytes) {
        if json.len() <= self.largest {
            self.insert(key, json);
        }
    }

    /// Returns the number of entries, and their bytes with overhead.
    pub(super) fn size(&self) -> (u64, u64) {
        self.kept.run_pending_tasks();
        (self.kept.entry_count(), self.kept.weighted_size())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::future::{join, join_all};

    use super::*;
    use crate::upstream::CallError;

    fn key(question: &str, epoch: u64) -> CacheKey {
        CacheKey::new(CacheScope::Chain { epoch }, question, "[]")
    }

    fn result(json: &'static str) -> Answer {
        Ok(Outcome::Result(Bytes::from_static(json.as_bytes())))
    }

    /// An answer that is cached at once.
    const AT_ONCE: (Admission, Owner) = (Admission::AtOnce, Owner::OURS);

    #[tokio::test]
    async fn a_kept_answer_is_asked_for_once_until_its_ground_moves() {
        let cache = Cache::new(1 << 20);
        for (epoch, by) in [(0, By::Node), (0, By::Memory), (1, By::Node), (0, By::Memory)] {
            let key = key("a", epoch);
            let answer = cache.answer(&key, AT_ONCE, |_| true, || async { result("1") });
            assert_eq!(answer.await, (result("1"), by));
        }
    }

    #[tokio::test]
    async fn a_long_answer_is_packed_once_and_counts_as_long_as_it_is_cached() {
        use std::sync::atomic::{AtomicUsize, Ordering};

        let cache = Cache::new(4 << 20);
        let long = Bytes::from(vec![b'7'; 200 << 10]);
        let key_of = key;
        let (key, json) = (key("long", 0), long.clone());
        let asking = || async { Ok(Outcome::Result(json)) };
        let (answer, _) = cache.answer(&key, AT_ONCE, |_| true, asking).await;
        let Ok(Outcome::Result(cached)) = answer else { panic!() };
        let times = AtomicUsize::new(0);
        let pack = |json: &Bytes, coding| {
            let (cache, times, json) = (&cache, &times, json.clone());
            async move {
                let text = json.clone();
                let packing = || async move {
                    times.fetch_add(1, Ordering::Relaxed);
                    tokio::task::yield_now().await;
                    crate::content_coding::pack(coding, &[text])
                };
                cache.packed(&json, coding, packing).await
            }
        };
        let before = cache.size().1;
        let all = join_all((0..10).map(|_| pack(&cached, ContentCoding::Gzip))).await;
        let PackedAnswer::Packed(Packed::Gzip { blocks, .. }) = &all[0] else {
            panic!()
        };
        for form in &all {
            let PackedAnswer::Packed(Packed::Gzip { blocks: own, .. }) = form else {
                panic!()
            };
            assert_eq!(own.as_ptr(), blocks.as_ptr(), "the same bytes");
        }
        assert_eq!(times.load(Ordering::Relaxed), 1);
        assert_eq!(cache.size(), (1, before + blocks.len() as u64));
        pack(&cached, ContentCoding::Zstd).await;
        pack(&cached, ContentCoding::Zstd).await;
        assert_eq!(times.load(Ordering::Relaxed), 2, "once for each coding");
        assert!(cache.size().1 > before + blocks.len() as u64);
        // Equal bytes elsewhere are not the cached ones, and neither is a short answer.
        assert!(matches!(
            pack(&long, ContentCoding::Gzip).await,
            PackedAnswer::NotCached
        ));
        let short = Bytes::from_static(b"1");
        assert!(matches!(
            pack(&short, ContentCoding::Gzip).await,
            PackedAnswer::NotCached
        ));
        // A failure is not remembered; a text that hardly shrinks is.
        let mut word = 1_u64;
        let noise = std::iter::repeat_with(|| {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (word >> 33) as u8
        });
        let noise = Bytes::from_iter(noise.take(SHARE_FROM));
        cache.keep(
            CacheKey::new(CacheScope::Chain { epoch: 0 }, "noise", "[]"),
            noise.clone(),
        );
        let failing = cache.packed(&noise, ContentCoding::Gzip, || async { Err::<Packed, ()>(()) });
        assert!(matches!(failing.await, PackedAnswer::AsItIs));
        let counted = times.load(Ordering::Relaxed);
        for _ in 0..3 {
            assert!(matches!(pack(&noise, ContentCoding::Gzip).await, PackedAnswer::AsItIs));
        }
        assert_eq!(times.load(Ordering::Relaxed), counted + 1);
        // What is evicted is forgotten with its forms.
        assert_eq!(cache.register.len(), 2);
        cache.kept.invalidate_all();
        // The cache frees memory some operations later.
        let mut operations = 0..100_000;
        while cache.register.len() > 0 {
            let number = operations.next().expect("the answers are freed");
            cache.keep(key_of(&number.to_string(), 0), short.clone());
            cache.size();
        }
        assert!(matches!(
            pack(&cached, ContentCoding::Gzip).await,
            PackedAnswer::NotCached
        ));
    }

    #[tokio::test]
    async fn an_answer_that_is_cached_from_the_second_time_on_costs_one_more_call() {
        let cache = Cache::new(1 << 20);
        let rows = [
            ("a", 0, By::Node),
            ("b", 0, By::Node),
            ("a", 0, By::Node),
            ("a", 0, By::Memory),
            // It came twice under one anchor: at the next one, once is enough.
            ("a", 1, By::Node),
            ("a", 1, By::Memory),
            ("b", 1, By::Node),
            ("b", 1, By::Node),
            ("b", 1, By::Memory),
        ];
        for (question, epoch, by) in rows {
            let admission = (Admission::SecondTime, Owner::default());
            let key = key(question, epoch);
            let answer = cache.answer(&key, admission, |_| true, || async { result("1") });
            assert_eq!(answer.await, (result("1"), by), "{question} {epoch}");
        }
        assert_eq!(cache.size().0, 3);
    }

    #[tokio::test]
    async fn equal_calls_in_flight_share_an_answer_which_is_then_cached() {
        let cache = Cache::new(1 << 20);
        let ask = || async {
            tokio::task::yield_now().await;
            result("1")
        };
        let (key, admission) = (key("a", 0), (Admission::SecondTime, Owner::OURS));
        let both = join(
            cache.answer(&key, admission, |_| true, ask),
            cache.answer(&key, admission, |_| true, ask),
        );
        assert_eq!(both.await, ((result("1"), By::Node), (result("1"), By::Shared)));
        assert!(cache.get(&key).is_some());
        assert_eq!(cache.in_flight.len(), 0);
    }

    #[tokio::test]
    async fn what_does_not_hold_is_shared_by_those_who_wait_and_forgotten() {
        let cache = Cache::new(1 << 20);
        let error = || Ok(Outcome::Error(Bytes::from_static(b"{}")));
        let key = key("a", 0);
        for answer in [result("null"), error(), Err(CallError::Lost)] {
            let slow = || async {
                tokio::task::yield_now().await;
                answer.clone()
            };
            let holds = |json: &Bytes| &json[..] != b"null";
            let both = join(
                cache.answer(&key, AT_ONCE, holds, slow),
                cache.answer(&key, AT_ONCE, holds, slow),
            );
            assert_eq!(both.await, ((answer.clone(), By::Node), (answer.clone(), By::Shared)));
            assert_eq!(cache.answer(&key, AT_ONCE, holds, slow).await.1, By::Node);
            assert_eq!(cache.in_flight.len(), 0);
        }
    }

    #[tokio::test]
    async fn who_was_asking_may_go_and_the_others_still_get_their_answer() {
        let cache = Cache::new(1 << 20);
        let (one, other) = (key("a", 0), key("b", 0));
        let mut first = Box::pin(cache.answer(&one, AT_ONCE, |_| true, std::future::pending::<Answer>));
        assert!(futures_util::poll!(&mut first).is_pending());
        let mut second = Box::pin(cache.answer(&one, AT_ONCE, |_| true, || async { result("1") }));
        assert!(futures_util::poll!(&mut second).is_pending());
        assert_eq!(cache.in_flight.len(), 1);
        drop(first);
        assert_eq!(second.await, (result("1"), By::Node));
        assert_eq!(cache.in_flight.len(), 0);
        let mut last = Box::pin(cache.answer(&other, AT_ONCE, |_| true, std::future::pending::<Answer>));
        assert!(futures_util::poll!(&mut last).is_pending());
        drop(last);
        assert_eq!(cache.in_flight.len(), 0);
    }

    #[tokio::test]
    async fn it_is_bounded_in_bytes_and_the_oldest_goes_first() {
        let cache = Cache::new(64 << 10);
        let long = || Ok(Outcome::Result(Bytes::from(vec![b'1'; 4000])));
        for question in 0..100 {
            for question in [question.to_string(), "0".to_owned()] {
                let _ = cache
                    .answer(&key(&question, 0), AT_ONCE, |_| true, || async { long() })
                    .await;
            }
            // moka applies the recorded look-ups now and then; here, after each one.
            let _ = cache.size();
        }
        let (entries, bytes) = cache.size();
        assert!((10..=15).contains(&entries) && bytes <= 64 << 10, "{entries}, {bytes}");
        assert!(cache.get(&key("0", 0)).is_some(), "asked for again and again");
        assert!(cache.get(&key("1", 0)).is_none());
        // An answer longer than a sixteenth of the cache is not cached.
        let longer = || Ok(Outcome::Result(Bytes::from(vec![b'1'; 4097])));
        let _ = cache
            .answer(&key("x", 0), AT_ONCE, |_| true, || async { longer() })
            .await;
        assert!(cache.get(&key("x", 0)).is_none());
    }

    #[tokio::test]
    async fn without_room_equal_calls_still_share_one_answer() {
        let cache = Arc::new(Cache::new(0));
        let ask = || async {
            tokio::task::yield_now().await;
            result("1")
        };
        let key = key("a", 0);
        let answers = join_all((0..10).map(|_| cache.answer(&key, AT_ONCE, |_| true, ask))).await;
        assert_eq!(answers.iter().filter(|(_, by)| *by == By::Node).count(), 1);
        assert!(cache.get(&key).is_none());
    }
}
