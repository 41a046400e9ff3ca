//! Search for the first block at or above a number, on a chain on which some numbers have no block.
//!
//! Asked for such a number, a node answers with an error (Lotus: "requested epoch was a null round"), `null`, or the
//! block before (Forest, filecoin-project/lotus#12633, ChainSafe/forest#7276). A node that is behind, failing, rate
//! limited or pruned answers the same, so no answer by number is believed as proof that there is no block: the proof is
//! a block above the number whose parent is below.

use std::future::Future;

use super::Header;

/// Largest number of requests in one search, by number or for a parent.
const MAX_QUESTIONS: u32 = 4096;

/// A node's chain, as the search requests it.
pub(super) trait Heights {
    /// Fetches the canonical block of this number; `None` is no evidence.
    fn at(&self, number: u64) -> impl Future<Output = Option<Header>> + Send;

    /// Fetches the parent of `child`; `None` if no node gives it.
    fn parent(&self, child: &Header) -> impl Future<Output = Option<Header>> + Send;
}

/// Finds the first canonical block at or above `number`, starting from `above`, a canonical block; `None` if it cannot
/// be proved.
///
/// The search bisects towards `number`, so that a hole of thousands costs a few requests. If bisection finds no block,
/// blocks are far apart, and twice as many parents are followed before the next bisection.
pub(super) async fn first_from(chain: &impl Heights, number: u64, above: Header) -> Option<Header> {
    if above.block.number < number {
        return None;
    }
    let (mut lowest, mut left) = (above, MAX_QUESTIONS);
    let mut strides = 1_u32;
    loop {
        for _ in 0..strides {
            if lowest.block.number == number {
                return Some(lowest);
            }
            left = left.checked_sub(1)?;
            let parent = chain.parent(&lowest).await?;
            if parent.block.number >= lowest.block.number {
                return None;
            }
            if parent.block.number < number {
                return Some(lowest);
            }
            lowest = parent;
        }
        let (mut first, mut found) = (number, false);
        while first < lowest.block.number {
            left = left.checked_sub(1)?;
            let middle = first + (lowest.block.number - first) / 2;
            match chain.at(middle).await.filter(|block| block.block.number == middle) {
                Some(block) => (lowest, found) = (block, true),
                None => first = middle + 1,
            }
        }
        strides = if found { 1 } else { strides.saturating_mul(2) };
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicU32, Ordering};

    use alloy_primitives::B256;
    use bytes::Bytes;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::super::BlockRef;
    use super::*;

    struct Chain {
        blocks: BTreeMap<u64, Header>,
        /// Numbers for which the node does not return the block it has.
        hidden: Vec<u64>,
        questions: AtomicU32,
    }

    impl Chain {
        fn of(numbers: impl IntoIterator<Item = u64>) -> Self {
            let before = Cell::new(B256::ZERO);
            let block = |number: u64| {
                let hash = B256::from(alloy_primitives::U256::from(number + 1));
                let header = Header {
                    block: BlockRef { number, hash },
                    parent: before.replace(hash),
                    bloom: Some(Box::default()),
                    timestamp: 0,
                    json: Bytes::new(),
                    seen: tokio::time::Instant::now(),
                };
                (number, header)
            };
            Self {
                blocks: numbers.into_iter().map(block).collect(),
                hidden: Vec::new(),
                questions: AtomicU32::new(0),
            }
        }

        fn first_from(&self, number: u64) -> Option<u64> {
            let above = self.blocks.values().last()?.clone();
            let found = futures_util::FutureExt::now_or_never(first_from(self, number, above));
            found.expect("nothing waits").map(|header| header.block.number)
        }
    }

    impl Heights for Chain {
        async fn at(&self, number: u64) -> Option<Header> {
            self.questions.fetch_add(1, Ordering::Relaxed);
            self.blocks
                .get(&number)
                .filter(|_| !self.hidden.contains(&number))
                .cloned()
        }

        async fn parent(&self, child: &Header) -> Option<Header> {
            self.questions.fetch_add(1, Ordering::Relaxed);
            let mut below = self.blocks.range(..child.block.number).rev();
            below.next().map(|(_, header)| header.clone())
        }
    }

    #[track_caller]
    fn check(chain: &Chain, number: u64, expect: Expect) {
        let found = chain.first_from(number);
        let questions = chain.questions.swap(0, Ordering::Relaxed);
        expect.assert_eq(&format!("{found:?} in {questions}"));
    }

    #[test]
    fn a_hole_of_thousands_costs_a_few_questions() {
        let chain = Chain::of((0..100).chain(9_000..12_000));
        check(&chain, 100, expect!["Some(9000) in 15"]);
        check(&chain, 8_999, expect!["Some(9000) in 14"]);
        check(&chain, 99, expect!["Some(99) in 15"]);
        check(&chain, 9_000, expect!["Some(9000) in 13"]);
        check(&chain, 11_999, expect!["Some(11999) in 0"]);
        check(&chain, 12_000, expect!["None in 0"]);
    }

    #[test]
    fn blocks_that_are_far_apart_cost_a_question_for_each() {
        check(&Chain::of((0..50).map(|n| n * 1_000)), 1, expect!["Some(1000) in 28"]);
        check(&Chain::of((0..1_000).map(|n| n * 997)), 1, expect!["Some(997) in 111"]);
        check(&Chain::of((0..3_000).map(|n| n * 2)), 3, expect!["Some(4) in 75"]);
    }

    #[test]
    fn a_block_that_a_node_does_not_tell_is_found_by_its_child() {
        let mut chain = Chain::of(0..100);
        chain.hidden = vec![40, 41];
        check(&chain, 40, expect!["Some(40) in 10"]);
        chain.hidden = (0..100).collect();
        check(&chain, 40, expect!["Some(40) in 83"]);
        // No parent proves that the lowest block is the first one at or above 40.
        check(&Chain::of(50..100), 40, expect!["None in 8"]);
    }

    proptest! {
        #[test]
        fn whatever_is_missing_it_is_the_first(
            numbers in prop::collection::btree_set(1u64..500, 1..200),
            hidden in prop::collection::vec(0u64..500, 0..100),
            number in 1u64..500,
        ) {
            let mut chain = Chain::of(std::iter::once(0).chain(numbers.iter().copied()));
            chain.hidden = hidden;
            prop_assert_eq!(chain.first_from(number), numbers.range(number..).next().copied());
        }
    }
}
