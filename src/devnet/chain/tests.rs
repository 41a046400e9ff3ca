use std::collections::HashSet;

use super::*;

fn chain() -> Chain {
    Chain::new(&Config::manual())
}

fn hashes(blocks: &[Arc<Block>]) -> Vec<B256> {
    blocks.iter().map(|block| block.hash()).collect()
}

/// Checks the invariants that hold after every command.
#[track_caller]
fn check(chain: &Chain) {
    let kept = chain.oldest_number()..=chain.head().number();
    let canonical: Vec<_> = kept.map(|number| chain.block_at(number).unwrap()).collect();
    let mut seen = HashSet::new();
    for pair in canonical.windows(2) {
        assert_eq!(pair[1].parent_hash(), pair[0].hash(), "hashes link");
        assert_eq!(pair[1].header().timestamp - pair[0].header().timestamp, 2);
        for (index, transaction) in pair[1].transactions().iter().enumerate() {
            assert!(
                seen.insert((transaction.from(), transaction.nonce())),
                "a nonce is used once"
            );
            let (block, found) = chain
                .mined(transaction.hash())
                .expect("canonical transactions are found");
            assert_eq!((block.hash(), found), (pair[1].hash(), index));
            assert!(pair[1].nonce_of(transaction.from()) > transaction.nonce());
        }
    }
}

#[test]
fn same_seed_same_hashes() {
    let run = |seed| {
        let mut chain = Chain::new(&Config {
            seed,
            ..Config::manual()
        });
        chain.next_pending();
        chain.mine();
        chain.reorg(2, 3).unwrap();
        chain.rewind(1).unwrap();
        chain.mine().hash()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn nodes_of_one_network_share_blocks_and_fork_apart() {
    let node = |fork_seed| {
        Chain::new(&Config {
            fork_seed,
            ..Config::manual()
        })
    };
    let (mut leader, mut follower) = (node(0), node(1));
    assert_eq!(leader.head().hash(), follower.head().hash());
    let blocks: Vec<_> = (0..3).map(|_| leader.mine()).collect();
    let behind = follower.import(&blocks[..2]).unwrap();
    assert_eq!(
        (behind.dropped.len(), hashes(&behind.adopted)),
        (0, hashes(&blocks[..2]))
    );
    check(&follower);

    let fork: Vec<_> = (0..2).map(|_| follower.mine()).collect();
    assert_ne!(fork[0].hash(), blocks[2].hash(), "the same parent, another block");
    check(&follower);
    let healed = follower.import(&blocks).unwrap();
    assert_eq!(hashes(&healed.adopted), hashes(&blocks[2..]));
    assert_eq!(healed.dropped.len(), 2);
    assert_eq!(follower.head().hash(), leader.head().hash());
    check(&follower);

    let reorg = leader.reorg(2, 3).unwrap();
    assert_eq!(
        follower.import(&reorg.adopted[1..]).unwrap_err(),
        ChainError::UnknownBlock
    );
    follower.import(&reorg.adopted).unwrap();
    check(&follower);
    leader.mine();
    check(&leader);
}

#[test]
fn pending_transactions_are_mined_in_the_next_block() {
    let mut chain = chain();
    let pending: Vec<_> = (0..5).map(|_| chain.next_pending().unwrap().hash()).collect();
    assert!(chain.pending(pending[0]).is_some());
    let block = chain.mine();
    let mined: Vec<_> = block
        .transactions()
        .iter()
        .map(|transaction| transaction.hash())
        .collect();
    assert_eq!(mined, pending);
    assert_eq!(chain.pending_len(), 0);
    check(&chain);
}

#[test]
fn reorg_replaces_the_newest_blocks_and_keeps_the_old_readable() {
    let mut chain = Chain::new(&Config {
        initial_blocks: 100,
        ..Config::manual()
    });
    for (depth, new_len) in [(1, 1), (3, 5), (5, 3), (64, 65), (0, 1)] {
        let before = chain.head().number();
        let reorg = chain.reorg(depth, new_len).unwrap();
        assert_eq!(
            (reorg.dropped.len() as u64, reorg.adopted.len() as u64),
            (depth, new_len)
        );
        assert_eq!(reorg.ancestor.number(), before - depth);
        assert_eq!(reorg.adopted[0].parent_hash(), reorg.ancestor.hash());
        assert_eq!(chain.head().hash(), reorg.adopted.last().unwrap().hash());
        assert!(
            reorg
                .dropped
                .iter()
                .all(|block| !chain.is_canonical(block) && chain.block(block.hash()).is_some())
        );
        check(&chain);
    }
}

#[test]
fn reorg_mines_most_transactions_again_and_loses_some() {
    let mut chain = Chain::new(&Config {
        initial_blocks: 20,
        ..Config::manual()
    });
    let reorg = chain.reorg(10, 11).unwrap();
    let dropped: Vec<_> = reorg.dropped.iter().flat_map(|block| block.transactions()).collect();
    let again = dropped
        .iter()
        .filter(|transaction| chain.mined(transaction.hash()).is_some())
        .count();
    assert!(
        again > dropped.len() / 2 && again < dropped.len(),
        "{again} of {}",
        dropped.len()
    );
}

#[test]
fn switching_back_and_forth_adopts_the_same_blocks() {
    let mut chain = chain();
    assert_eq!(chain.switch_back().unwrap_err(), ChainError::NothingAbandoned);
    let there = chain.reorg(3, 4).unwrap();
    let back = chain.switch_back().unwrap();
    assert_eq!(
        hashes(&back.adopted),
        hashes(&there.dropped.iter().rev().cloned().collect::<Vec<_>>())
    );
    assert_eq!(
        hashes(&back.dropped),
        hashes(&there.adopted.iter().rev().cloned().collect::<Vec<_>>())
    );
    check(&chain);
    let again = chain.switch_back().unwrap();
    assert_eq!(hashes(&again.adopted), hashes(&there.adopted));
    check(&chain);
    chain.mine();
    check(&chain);
}

#[test]
fn rewind_returns_transactions_to_the_pool() {
    let mut chain = chain();
    let reorg = chain.rewind(2).unwrap();
    assert_eq!((chain.head().number(), chain.pending_len()), (2, 6));
    assert!(reorg.adopted.is_empty());
    let block = chain.mine();
    assert_eq!(block.transactions().len(), 6);
    check(&chain);
}

#[test]
fn too_deep_is_refused_and_changes_nothing() {
    let mut chain = chain();
    let head = chain.head().hash();
    assert_eq!(
        chain.reorg(5, 1).unwrap_err(),
        ChainError::TooDeep { depth: 5, available: 4 }
    );
    assert_eq!(chain.head().hash(), head);
}

#[test]
fn old_blocks_are_forgotten_on_all_branches() {
    let mut chain = Chain::new(&Config {
        keep_blocks: 8,
        ..Config::manual()
    });
    let dropped = chain.reorg(2, 2).unwrap().dropped;
    for _ in 0..20 {
        chain.mine();
    }
    assert_eq!(chain.oldest_number(), 17);
    assert!(dropped.iter().all(|block| chain.block(block.hash()).is_none()));
    assert!(chain.block_at(16).is_none() && chain.block_at(17).is_some() && chain.block_at(0).is_some());
    assert_eq!(chain.mined.len(), 8 * 3);
    assert_eq!(chain.blocks.len(), 8 + 1);
    check(&chain);
}

#[test]
fn transactions_are_refused_in_geths_words() {
    let mut chain = chain();
    let (mined, pending) = (chain.head().transactions()[0].clone(), chain.next_pending().unwrap());
    let again = |chain: &mut Chain, transaction: &Transaction| chain.submit(transaction.clone()).unwrap_err();
    assert!(
        again(&mut chain, &mined)
            .to_string()
            .starts_with("nonce too low: next nonce ")
    );
    assert_eq!(again(&mut chain, &pending), ChainError::AlreadyKnown);
    let elsewhere = Chain::new(&Config {
        chain_id: 5,
        ..Config::manual()
    })
    .head()
    .transactions()[0]
        .clone();
    assert_eq!(
        again(&mut chain, &elsewhere),
        ChainError::WrongChain { have: 5, want: 1337 }
    );
}

#[test]
fn numbers_have_holes_and_all_else_is_as_without() {
    let with = |holes, initial_blocks| {
        Chain::new(&Config {
            holes,
            initial_blocks,
            ..Config::manual()
        })
    };
    let (plain, mut chain) = (with(0, 60), with(3, 60));
    let kept: Vec<_> = (0..=chain.head().number())
        .filter_map(|number| chain.block_at(number).cloned())
        .collect();
    assert_eq!(kept.len(), 61);
    assert!(chain.head().number() > 70, "{}", chain.head().number());
    for (pair, plain) in kept.windows(2).zip((1..).map_while(|number| plain.block_at(number))) {
        assert_eq!(pair[1].parent_hash(), pair[0].hash());
        assert!((1..=4).contains(&(pair[1].number() - pair[0].number())));
        assert_eq!(pair[1].transactions(), plain.transactions());
    }
    let above = kept
        .windows(2)
        .find(|pair| pair[1].number() > pair[0].number() + 1)
        .unwrap();
    let hole = above[1].number() - 1;
    assert!(chain.block_at(hole).is_none());
    assert_eq!(chain.block_at_or_below(hole).unwrap().hash(), above[0].hash());
    // Depths are counted in blocks.
    let reorg = chain.reorg(20, 25).unwrap();
    assert_eq!((reorg.dropped.len(), reorg.adopted.len()), (20, 25));
    let back = chain.switch_back().unwrap();
    assert_eq!((back.dropped.len(), back.adopted.len()), (25, 20));
    assert_eq!(chain.head().hash(), kept[60].hash());
    let mut follower = with(3, 60);
    follower.reorg(3, 3).unwrap();
    assert_eq!(follower.import(&kept[1..]).unwrap().adopted.len(), 3);
}

#[test]
fn blooms_lie_where_they_are_to() {
    let blooms = |empty_blooms, greedy_blooms| {
        let chain = Chain::new(&Config {
            empty_blooms,
            greedy_blooms,
            initial_blocks: 60,
            ..Config::manual()
        });
        let (mut empty, mut greedy, mut honest) = (0, 0, 0);
        for block in (1..=60).map(|number| chain.block_at(number).unwrap()) {
            let (bloom, logs) = (
                block.header().logs_bloom,
                block.logs().collect::<alloy_primitives::Bloom>(),
            );
            assert!(bloom.is_zero() || bloom & logs == logs);
            empty += usize::from(bloom.is_zero());
            greedy += usize::from(!bloom.is_zero() && bloom != logs);
            honest += usize::from(bloom == logs);
        }
        (empty, greedy, honest)
    };
    assert_eq!(blooms(0, 0), (0, 0, 60));
    assert_eq!(blooms(1, 0), (60, 0, 0));
    assert_eq!(blooms(0, 1), (0, 60, 0));
    let (empty, greedy, honest) = blooms(3, 3);
    assert!(empty > 5 && greedy > 5 && honest > 5, "{empty} {greedy} {honest}");
}
