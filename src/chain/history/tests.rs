use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use tokio::time::Instant;

use super::*;

fn header(number: u64, parent: B256) -> Header {
    let hash = B256::from(alloy_primitives::U256::from(number + 1000));
    Header {
        block: BlockRef { number, hash },
        parent,
        bloom: Some(Box::default()),
        timestamp: 0,
        json: Bytes::new(),
        seen: Instant::now(),
    }
}

/// Makes a chain of blocks with these numbers.
fn chain(numbers: &[u64]) -> Vec<Header> {
    let mut parent = B256::with_last_byte(7);
    let grow = |number: &u64| {
        let own = header(*number, parent);
        parent = own.block.hash;
        own
    };
    numbers.iter().map(grow).collect()
}

#[test]
fn what_a_stream_was_told_of_is_known_before_its_first_block_is() {
    let blocks = chain(&[2, 5, 9, 10, 20, 21]);
    let mut history = History::new(9);
    history.add_head(blocks[4].clone());
    history.add_head(blocks[5].clone());
    // Streams that began at these numbers were delivered all blocks from there on, and none below.
    let since: Vec<(u64, u64)> = (1..=21).map(|first| (first, history.sequence_from(first))).collect();
    for own in blocks[..4].iter().rev() {
        history.past(own.clone());
    }
    assert_eq!(history.oldest().map(PublishedBlock::number), Some(2));
    for (first, since) in since {
        for own in history.between(0, u64::MAX) {
            assert_eq!(own.sequence >= since, own.number() >= first, "{first} {}", own.number());
        }
    }
    assert_eq!(history.sequence_from(0), 0);
}

#[test]
fn a_child_whose_number_is_not_higher_is_no_child() {
    let mut history = History::new(9);
    history.add_head(header(5, B256::ZERO));
    let tip = history.tip().expect("one").header.block;
    history.add_head(header(4, tip.hash));
    assert_eq!(history.oldest().map(PublishedBlock::number), Some(4), "it starts anew");
    let below = header(4, B256::ZERO);
    history.past(below.clone());
    assert_eq!(history.between(0, 9).count(), 1);
}

proptest! {
    #[test]
    fn blocks_are_found_by_number_wherever_there_are_holes(
        numbers in prop::collection::btree_set(0u64..80, 1..30),
        limit in 1usize..40,
        back in any::<prop::sample::Index>(),
        above in 1u64..5,
        blocks in 0u64..40,
    ) {
        let numbers: Vec<u64> = numbers.into_iter().collect();
        let all = chain(&numbers);
        let mut history = History::new(limit);
        for own in &all {
            prop_assert_eq!(history.add_head(own.clone()).map(|dropped| dropped.len()), Some(0));
        }
        let kept: BTreeMap<u64, B256> =
            all.iter().rev().take(limit).map(|own| (own.block.number, own.block.hash)).collect();
        for number in 0..90 {
            let hash = |own: &PublishedBlock| own.header.block.hash;
            prop_assert_eq!(history.at(number).map(hash), kept.get(&number).copied());
            prop_assert_eq!(history.from(number).map(hash), kept.range(number..).next().map(|(_, hash)| *hash));
            let between: Vec<B256> = history.between(number, number + 9).map(hash).collect();
            prop_assert_eq!(between, kept.range(number..number + 10).map(|(_, hash)| *hash).collect::<Vec<_>>());
        }
        let reach = history.reach(blocks);
        let (oldest, count) = (*kept.keys().next().expect("one"), kept.len() as u64);
        let down_to = |number: u64| kept.range(number..).count() as u64 + oldest.saturating_sub(number) - 1;
        prop_assert!(down_to(reach) <= blocks);
        if reach > 0 && (reach <= oldest || count - 1 > blocks) {
            prop_assert!(down_to(reach - 1) > blocks || reach == oldest && count - 1 == blocks);
        }
        // Back to any block, and on from there by another branch.
        let at = *kept.keys().nth(back.index(kept.len())).expect("one");
        let to = history.at(at).expect("kept").header.block;
        history.rewind(to).expect("it is canonical");
        let own = header(at + above, to.hash);
        let again = kept.range(at + 1..).next().map(|(number, _)| *number) == Some(at + above);
        let dropped = history.add_head(own.clone());
        let gone: Vec<u64> = kept.range(at + 1..).map(|(number, _)| *number).collect();
        match dropped {
            None => prop_assert!(again),
            Some(dropped) => {
                prop_assert_eq!(dropped.iter().map(PublishedBlock::number).collect::<Vec<_>>(), gone);
                prop_assert_eq!(history.tip().map(|tip| tip.header.block), Some(own.block));
            }
        }
        prop_assert_eq!(history.head(), Some(own.block));
    }
}
