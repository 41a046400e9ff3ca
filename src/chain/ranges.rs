//! Finds the blocks of a page that have logs for a few filters, by one `eth_getLogs` over the page for each filter: a
//! narrow filter must not cost the node a call for each block, and blooms cannot prove that a block has no logs
//! (issue 11: Polygon's state sync, HyperEVM's system transactions).
//!
//! Only block hashes are taken from such an answer; the logs of a named block are fetched and verified as usual. The
//! absence of a block cannot be verified: a node whose log index is behind names too few. So blocks that may match by
//! their bloom are fetched in any case; only logs that no bloom shows depend on the answer.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use alloy_primitives::{B256, keccak256};
use bytes::Bytes;
use moka::future::Cache;
use serde::Deserialize;
use tracing::debug;

use super::source::BadAnswer;
use super::{BlockRef, Gap, Header, LogQuery};
use crate::quantity;

/// Maximum size of the cached answers, in bytes.
const KEPT_BYTES: u64 = 16 << 20;

/// Pause in range queries after a node did not serve or did not answer one.
const REST: Duration = Duration::from_secs(30);

/// Maximum number of calls about one page, for all clients together, while answers are cached. For many clients with
/// a filter each, fetching all logs once is cheaper.
const CALLS: u32 = 16;

/// A node that answers queries about a range of blocks.
pub(super) trait Between {
    /// Returns the logs of the node's canonical blocks from `first` to `last`, both included, that match the criteria
    /// of a [`LogQuery`], as JSON.
    fn logs(
        &self,
        first: BlockRef,
        last: BlockRef,
        criteria: &str,
    ) -> impl Future<Output = Result<Bytes, BadAnswer>> + Send;
}

/// Cached answers to range queries.
#[derive(Debug)]
pub(super) struct Ranges {
    /// Hashes of the named blocks, by the hashes of the range's first and last block and of the criteria.
    named: Cache<(B256, B256, B256), Arc<HashSet<B256>>>,
    /// Calls made, by the first block's number divided by [`Gap::MAX`].
    calls: Cache<u64, Arc<AtomicU32>>,
    /// Has an entry during a [`REST`].
    refused: Cache<(), ()>,
}

impl Ranges {
    /// Creates an empty cache that keeps each answer for `kept_for`.
    pub(super) fn new(kept_for: Duration) -> Self {
        let named = Cache::builder()
            .weigher(|_, named: &Arc<HashSet<B256>>| (512 + 64 * named.len()).try_into().unwrap_or(u32::MAX))
            .max_capacity(KEPT_BYTES)
            .time_to_live(kept_for)
            .build();
        Self {
            named,
            calls: Cache::builder().max_capacity(10_000).time_to_live(kept_for).build(),
            refused: Cache::builder().time_to_live(REST).build(),
        }
    }

    /// Drops the cached answers, which may belong to an abandoned branch.
    pub(super) fn forget(&self) {
        self.named.invalidate_all();
    }

    /// Returns the hashes of the blocks whose logs must be fetched for these queries; `None` means all blocks. Blocks
    /// with cached logs are always included: they cost no call.
    pub(super) async fn needed(
        &self,
        headers: &VecDeque<Header>,
        queries: &[LogQuery],
        is_kept: impl Fn(&Header) -> bool + Send,
        node: &(impl Between + Sync),
    ) -> Option<HashSet<B256>> {
        let is_needed = |header: &&Header| is_kept(header) || queries.iter().any(|query| query.is_claimed_by(header));
        let (needed, open): (Vec<&Header>, Vec<&Header>) = headers.iter().partition(is_needed);
        let mut needed: HashSet<B256> = needed.into_iter().map(|header| header.block.hash).collect();
        let (Some(first), Some(last)) = (open.first(), open.last()) else {
            return Some(needed);
        };
        if open.len() <= queries.len() {
            return None;
        }
        let between = |header: &&Header| (first.block.number..=last.block.number).contains(&header.block.number);
        let range: Vec<BlockRef> = headers.iter().filter(between).map(|header| header.block).collect();
        for query in queries {
            needed.extend(self.named(&range, query.criteria(), node).await?.iter());
        }
        Some(needed)
    }

    /// Returns the hashes of the range's blocks with logs that match the criteria; `None` if there is no usable
    /// answer.
    async fn named(
        &self,
        range: &[BlockRef],
        criteria: &str,
        node: &(impl Between + Sync),
    ) -> Option<Arc<HashSet<B256>>> {
        let (first, last) = (*range.first()?, *range.last()?);
        let fetch = async {
            if self.refused.contains_key(&()) || !self.may_call(first.number).await {
                return None;
            }
            let answer = node.logs(first, last, criteria).await;
            if let Err(why @ (BadAnswer::CallFailed | BadAnswer::NotServed)) = answer {
                debug!(
                    "cannot fetch logs of a range of blocks for now ({}); fetching them block by block",
                    why.label()
                );
                self.refused.insert((), ()).await;
            }
            names(&answer.ok()?, range).map(Arc::new)
        };
        let key = (first.hash, last.hash, keccak256(criteria));
        self.named.optionally_get_with(key, fetch).await
    }

    async fn may_call(&self, number: u64) -> bool {
        let calls = self.calls.get_with(number / Gap::MAX as u64, async { Arc::default() });
        calls.await.fetch_add(1, Ordering::Relaxed) < CALLS
    }
}

/// Returns the hashes of the range's blocks that an answer names; `None` if the answer is not an array of logs, or
/// names other blocks because the node is on another branch.
fn names(answer: &[u8], range: &[BlockRef]) -> Option<HashSet<B256>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Named {
        block_hash: Option<B256>,
        #[serde(default, deserialize_with = "quantity::optional")]
        block_number: Option<u64>,
    }
    let logs: Vec<Named> = serde_json::from_slice(answer).ok()?;
    let known: HashSet<B256> = range.iter().map(|block| block.hash).collect();
    // Some nodes' logs of system transactions have only a number (bnb-chain/bsc#443).
    let numbers: HashMap<u64, B256> = range.iter().map(|block| (block.number, block.hash)).collect();
    let of = |log: Named| match log.block_hash {
        None | Some(B256::ZERO) => numbers.get(&log.block_number?).copied(),
        hash => hash,
    };
    let named = logs.into_iter().map(of).collect::<Option<HashSet<B256>>>()?;
    named.is_subset(&known).then_some(named)
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use alloy_primitives::{Address, Bloom, U256};
    use expect_test::{Expect, expect};
    use parking_lot::Mutex;

    use super::*;

    fn hash(number: u64) -> B256 {
        B256::from(U256::from(number + 1000))
    }

    /// `2 5! 8?`: blocks with these numbers; the bloom of 5 claims every log, the bloom of 8 is unknown.
    fn page(words: &str) -> VecDeque<Header> {
        let header = |word: &str| {
            let number = word.trim_end_matches(['!', '?']).parse().expect("a number");
            let bloom = match word.chars().last() {
                Some('!') => Some(Bloom::repeat_byte(0xff)),
                Some('?') => None,
                _ => Some(Bloom::ZERO),
            };
            Header {
                block: BlockRef {
                    number,
                    hash: hash(number),
                },
                parent: B256::ZERO,
                bloom: bloom.map(Box::new),
                timestamp: 0,
                json: Bytes::new(),
                seen: Instant::now(),
            }
        };
        words.split_whitespace().map(header).collect()
    }

    fn queries(count: u8) -> Vec<LogQuery> {
        let query = |byte| LogQuery::new(&[Address::repeat_byte(byte)], &[]);
        (0..count).map(query).collect()
    }

    /// A node with one answer, and the ranges that it was asked for.
    struct Node {
        answer: Result<String, BadAnswer>,
        asked: Mutex<Vec<String>>,
    }

    impl Node {
        /// Creates a node with logs in the blocks of these numbers.
        fn with_logs_in(numbers: &[u64]) -> Self {
            let log = |number: &u64| format!(r#"{{"blockHash":"{}","logIndex":"0x0"}}"#, hash(*number));
            let logs: Vec<String> = numbers.iter().map(log).collect();
            Self::that_says(Ok(format!("[{}]", logs.join(","))))
        }

        fn that_says(answer: Result<String, BadAnswer>) -> Self {
            let asked = Mutex::default();
            Self { answer, asked }
        }
    }

    impl Between for Node {
        async fn logs(&self, first: BlockRef, last: BlockRef, _: &str) -> Result<Bytes, BadAnswer> {
            self.asked.lock().push(format!("{}-{}", first.number, last.number));
            self.answer.clone().map(Bytes::from)
        }
    }

    /// Returns the needed blocks and the requested ranges; logs of the blocks in `kept` are cached.
    async fn needed(ranges: &Ranges, words: &str, count: u8, kept: &[u64], node: &Node) -> String {
        let headers = page(words);
        let is_kept = |header: &Header| kept.contains(&header.block.number);
        let found = ranges.needed(&headers, &queries(count), is_kept, node).await;
        let asked = std::mem::take(&mut *node.asked.lock()).join(" ");
        let numbers = headers.iter().map(|header| header.block);
        let needed = found.map_or("all".to_owned(), |found| {
            let numbers = numbers.filter(|block| found.contains(&block.hash));
            let words: Vec<String> = numbers.map(|block| block.number.to_string()).collect();
            words.join(" ")
        });
        format!("{needed} [{asked}]")
    }

    async fn check(words: &str, count: u8, kept: &[u64], node: Node, expect: Expect) {
        let ranges = Ranges::new(Duration::from_secs(60));
        expect.assert_eq(&needed(&ranges, words, count, kept, &node).await);
    }

    #[tokio::test]
    async fn blocks_are_needed_where_their_bloom_or_the_nodes_answer_says_so() {
        let node = Node::with_logs_in;
        check("1 2 3 4", 1, &[], node(&[]), expect![" [1-4]"]).await;
        check("1 2 3 4", 1, &[], node(&[3, 3]), expect!["3 [1-4]"]).await;
        check("1 2! 3 4?", 1, &[], node(&[4]), expect!["2 4 [1-4]"]).await;
        // Blocks claimed by their bloom at either end are left out of the range; within it they may be named too.
        check("1! 3 5! 9 12!", 1, &[], node(&[5, 9]), expect!["1 5 9 12 [3-9]"]).await;
        check("1 2 3 4", 3, &[], node(&[2]), expect!["2 [1-4 1-4 1-4]"]).await;
        check("1 2 3 4", 1, &[1, 2], node(&[]), expect!["1 2 [3-4]"]).await;
        // A range query would save no call.
        check("1! 2! 3!", 1, &[], node(&[]), expect!["1 2 3 []"]).await;
        check("1 2! 3!", 1, &[], node(&[]), expect!["all []"]).await;
        check("1 2 3 4", 2, &[1, 2], node(&[]), expect!["all []"]).await;
        check("", 1, &[], node(&[]), expect![" []"]).await;
    }

    #[tokio::test]
    async fn a_log_without_a_hash_names_its_block_by_number() {
        let zero = format!(r#"[{{"blockHash":"{}","blockNumber":"0x3"}}]"#, B256::ZERO);
        for answer in [
            r#"[{"blockHash":null,"blockNumber":"0x3"}]"#,
            r#"[{"blockNumber":3}]"#,
            &zero,
        ] {
            let node = Node::that_says(Ok(answer.to_owned()));
            check("1 2 3 4", 1, &[], node, expect!["3 [1-4]"]).await;
        }
    }

    #[tokio::test]
    async fn all_blocks_are_needed_where_the_answer_is_of_no_use() {
        for answer in [
            "null",
            "{}",
            "7",
            "",
            r#"[{"logIndex":"0x0"}]"#,
            r#"[{"blockHash":null}]"#,
            r#"[{"blockHash":null,"blockNumber":"0x9"}]"#,
            "[[]]",
        ] {
            let node = Node::that_says(Ok(answer.to_owned()));
            check("1 2 3", 1, &[], node, expect!["all [1-3]"]).await;
        }
        // Blocks of another branch, or outside the range.
        check("1 2 3", 1, &[], Node::with_logs_in(&[2, 7]), expect!["all [1-3]"]).await;
        check("1! 2 3", 1, &[], Node::with_logs_in(&[1]), expect!["all [2-3]"]).await;
        for why in [
            BadAnswer::NodeError,
            BadAnswer::Pruned,
            BadAnswer::NotServed,
            BadAnswer::CallFailed,
        ] {
            check("1 2 3", 2, &[], Node::that_says(Err(why)), expect!["all [1-3]"]).await;
        }
    }

    #[tokio::test]
    async fn a_crowd_costs_little() {
        let ranges = Ranges::new(Duration::from_secs(60));
        let node = Node::with_logs_in(&[2]);
        for asked in ["1-9", "", ""] {
            let expected = format!("2 [{asked}]");
            assert_eq!(needed(&ranges, "1 2 3 9", 1, &[], &node).await, expected);
        }
        ranges.forget();
        assert_eq!(needed(&ranges, "1 2 3 9", 1, &[], &node).await, "2 [1-9]");
        // A different range each, as if each client had another filter.
        for last in 10..40 {
            let asked = needed(&ranges, &format!("1 2 3 {last}"), 1, &[], &node).await;
            let is_asked = last < 8 + u64::from(CALLS);
            assert_eq!(asked.starts_with("2 "), is_asked, "{last}: {asked}");
        }
        assert_eq!(
            needed(&ranges, "64 65 66", 1, &[], &node).await,
            "all [64-66]",
            "another page"
        );
    }

    #[tokio::test]
    async fn a_node_that_serves_no_ranges_is_left_alone_for_a_while() {
        for (why, then) in [
            (BadAnswer::NotServed, "all []"),
            (BadAnswer::CallFailed, "all []"),
            (BadAnswer::NodeError, "all [70-72]"),
        ] {
            let ranges = Ranges::new(Duration::from_secs(60));
            let node = Node::that_says(Err(why));
            assert_eq!(needed(&ranges, "1 2 3", 1, &[], &node).await, "all [1-3]");
            assert_eq!(needed(&ranges, "70 71 72", 1, &[], &node).await, then, "{why:?}");
        }
    }
}
