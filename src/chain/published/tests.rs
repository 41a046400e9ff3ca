use alloy_primitives::B256;
use bytes::Bytes;
use expect_test::{Expect, expect};
use futures_util::FutureExt;

use super::*;

/// Spells the name as a hash: `a3` is block 3 of branch a.
fn block(name: &str) -> BlockRef {
    let mut hash = B256::ZERO;
    hash[..name.len()].copy_from_slice(name.as_bytes());
    let number = name[1..].parse().expect("a letter and a number");
    BlockRef { number, hash }
}

fn name(block: BlockRef) -> String {
    String::from_utf8_lossy(&block.hash[..])
        .trim_end_matches('\0')
        .to_owned()
}

fn header(name: &str, parent: B256) -> Header {
    Header {
        block: block(name),
        parent,
        bloom: None,
        timestamp: 0,
        json: Bytes::new(),
        seen: Instant::now(),
    }
}

/// Makes the parent of the first block of a chain: `a4` for `a5`.
fn parent_of_first(own: &str) -> B256 {
    let (branch, number) = own.split_at(1);
    let number: u64 = number.parse().expect("a number");
    block(&format!("{branch}{}", number - 1)).hash
}

fn show(applied: Result<Option<AdoptedBlock>, Loss>) -> String {
    match applied {
        Ok(None) => "-".to_owned(),
        Ok(Some(adopted)) => {
            let dropped = adopted
                .dropped
                .iter()
                .map(|own| format!("-{} ", name(own.header.block)));
            dropped.collect::<String>() + "+" + &name(adopted.header.block)
        }
        Err(loss) => format!("lost: {}", loss.label()),
    }
}

fn show_view(view: View) -> String {
    let head = view.head.map_or("none".to_owned(), name);
    let settled = if view.is_settled { "settled" } else { "moving" };
    let last_final = view.final_block.map_or("-".to_owned(), |number| number.to_string());
    format!(
        "{head:4} {settled:7} branch {} epoch {} final {last_final}",
        view.branch, view.epoch
    )
}

/// Applies one event per word, with three blocks of memory: `a5` adopts a block on top of the chain, `<a4` goes back to
/// a block, `_a2` adds a block below the others, `!` is a loss of continuity; `f3` reports block 3 as final. Each line
/// has the word, its effect, the view, and the blocks in memory.
#[track_caller]
fn check(words: &str, expect: Expect) {
    let mut state = PublishedState::new(History::new(3));
    let mut last_sequence = None;
    let mut lines = String::new();
    for word in words.split_whitespace() {
        let event = match word.split_at(1) {
            ("f", number) => {
                state.note_final(number.parse().expect("a number"));
                None
            }
            ("<", to) => Some(ChainEvent::Rewind(block(to))),
            ("_", own) => Some(ChainEvent::Backfilled(header(own, B256::ZERO))),
            ("!", _) => Some(ChainEvent::ContinuityLost(Loss::Replaced)),
            _ => {
                let parent = state
                    .view()
                    .head
                    .map_or_else(|| parent_of_first(word), |head| head.hash);
                Some(ChainEvent::Head(header(word, parent)))
            }
        };
        let applied = event.map_or(Ok(None), |event| state.apply(event));
        if let Ok(Some(adopted)) = &applied {
            let follows = last_sequence.replace(adopted.sequence).map(|last| last + 1);
            assert_eq!(follows.unwrap_or(adopted.sequence), adopted.sequence, "at {word}");
        }
        let memory: Vec<String> = state
            .history
            .between(0, u64::MAX)
            .map(|own| name(own.header.block))
            .collect();
        let (effect, view) = (show(applied), show_view(state.view()));
        lines += &format!("{word:4} {effect:16} {view}  [{}]\n", memory.join(" "));
    }
    expect.assert_eq(&lines);
}

#[test]
fn heads_and_older_blocks() {
    check(
        "a4 _a3 _a1 a5 a6 a7",
        expect![[r#"
        a4   +a4              a4   settled branch 0 epoch 0 final -  [a4]
        _a3  -                a4   settled branch 0 epoch 0 final -  [a3 a4]
        _a1  -                a4   settled branch 0 epoch 0 final -  [a3 a4]
        a5   +a5              a5   settled branch 0 epoch 0 final -  [a3 a4 a5]
        a6   +a6              a6   settled branch 0 epoch 0 final -  [a4 a5 a6]
        a7   +a7              a7   settled branch 0 epoch 0 final -  [a5 a6 a7]
    "#]],
    );
}

#[test]
fn a_reorg_drops_blocks_when_their_successors_are_known() {
    check(
        "a1 a2 a3 <a1 b2 b3 b4",
        expect![[r#"
        a1   +a1              a1   settled branch 0 epoch 0 final -  [a1]
        a2   +a2              a2   settled branch 0 epoch 0 final -  [a1 a2]
        a3   +a3              a3   settled branch 0 epoch 0 final -  [a1 a2 a3]
        <a1  -                a1   moving  branch 1 epoch 0 final -  [a1 a2 a3]
        b2   -a2 -a3 +b2      b2   moving  branch 1 epoch 0 final -  [a1 b2]
        b3   +b3              b3   settled branch 1 epoch 0 final -  [a1 b2 b3]
        b4   +b4              b4   settled branch 1 epoch 0 final -  [b2 b3 b4]
    "#]],
    );
}

#[test]
fn a_chain_that_adopts_the_same_blocks_again_publishes_none() {
    check(
        "a1 a2 a3 <a1 a2 a3 a4",
        expect![[r#"
        a1   +a1              a1   settled branch 0 epoch 0 final -  [a1]
        a2   +a2              a2   settled branch 0 epoch 0 final -  [a1 a2]
        a3   +a3              a3   settled branch 0 epoch 0 final -  [a1 a2 a3]
        <a1  -                a1   moving  branch 1 epoch 0 final -  [a1 a2 a3]
        a2   -                a2   moving  branch 1 epoch 0 final -  [a1 a2 a3]
        a3   -                a3   settled branch 1 epoch 0 final -  [a1 a2 a3]
        a4   +a4              a4   settled branch 1 epoch 0 final -  [a2 a3 a4]
    "#]],
    );
}

#[test]
fn a_final_block_is_at_most_the_head_and_its_loss_begins_an_epoch() {
    check(
        "f9 a1 a2 f9 a3 <a2 b3 f1 <a1 f2 a2",
        expect![[r#"
        f9   -                none moving  branch 0 epoch 0 final -  []
        a1   +a1              a1   settled branch 0 epoch 0 final -  [a1]
        a2   +a2              a2   settled branch 0 epoch 0 final -  [a1 a2]
        f9   -                a2   settled branch 0 epoch 0 final 2  [a1 a2]
        a3   +a3              a3   settled branch 0 epoch 0 final 2  [a1 a2 a3]
        <a2  -                a2   moving  branch 1 epoch 0 final 2  [a1 a2 a3]
        b3   -a3 +b3          b3   settled branch 1 epoch 0 final 2  [a1 a2 b3]
        f1   -                b3   settled branch 1 epoch 0 final 2  [a1 a2 b3]
        <a1  -                a1   moving  branch 2 epoch 1 final -  [a1 a2 b3]
        f2   -                a1   moving  branch 2 epoch 1 final 1  [a1 a2 b3]
        a2   -                a2   moving  branch 2 epoch 1 final 1  [a1 a2 b3]
    "#]],
    );
}

#[test]
fn a_rewind_beyond_memory_keeps_the_height() {
    check(
        "a1 a2 a3 a4 f2 <a1 b2 b3 b4",
        expect![[r#"
        a1   +a1              a1   settled branch 0 epoch 0 final -  [a1]
        a2   +a2              a2   settled branch 0 epoch 0 final -  [a1 a2]
        a3   +a3              a3   settled branch 0 epoch 0 final -  [a1 a2 a3]
        a4   +a4              a4   settled branch 0 epoch 0 final -  [a2 a3 a4]
        f2   -                a4   settled branch 0 epoch 0 final 2  [a2 a3 a4]
        <a1  lost: too_far    none moving  branch 1 epoch 1 final -  []
        b2   +b2              b2   moving  branch 1 epoch 1 final -  [b2]
        b3   +b3              b3   moving  branch 1 epoch 1 final -  [b2 b3]
        b4   +b4              b4   settled branch 1 epoch 1 final -  [b2 b3 b4]
    "#]],
    );
}

#[test]
fn a_chain_that_starts_anew_is_settled_at_any_height() {
    check(
        "a7 a8 f7 ! <a7 b2 b3",
        expect![[r#"
        a7   +a7              a7   settled branch 0 epoch 0 final -  [a7]
        a8   +a8              a8   settled branch 0 epoch 0 final -  [a7 a8]
        f7   -                a8   settled branch 0 epoch 0 final 7  [a7 a8]
        !    lost: replaced   none moving  branch 1 epoch 1 final -  []
        <a7  lost: too_far    none moving  branch 2 epoch 1 final -  []
        b2   +b2              b2   settled branch 2 epoch 1 final -  [b2]
        b3   +b3              b3   settled branch 2 epoch 1 final -  [b2 b3]
    "#]],
    );
}

#[test]
fn readers_see_what_the_writer_applied() {
    let metrics = Arc::new(Metrics::new().0);
    let head_number = metrics.head_number.clone();
    let mut writer = PublishedWriter::new(History::new(3), metrics);
    let reader = writer.reader();
    assert_eq!((reader.view(), reader.has_begun()), (View::default(), false));
    assert!(!reader.is_at_its_tip() && reader.last_adopted().is_none());
    for (own, parent) in [("a5", "a4"), ("a6", "a5")] {
        let event = ChainEvent::Head(header(own, block(parent).hash));
        assert!(matches!(writer.apply(event), Ok(Some(_))));
    }
    assert_eq!((reader.view().head, head_number.get()), (Some(block("a6")), 6));
    assert!(reader.has_begun() && reader.is_at_its_tip());
    assert!(matches!(writer.apply(ChainEvent::Rewind(block("a5"))), Ok(None)));
    assert_eq!((reader.view().head, head_number.get()), (Some(block("a5")), 5));
    assert!(reader.has_begun() && !reader.is_at_its_tip());
    assert_eq!(reader.last_adopted().map(|(block, _)| block), Some(block("a6")));
}

#[tokio::test]
async fn the_first_block_ends_the_wait_for_it() {
    let mut writer = PublishedWriter::new(History::new(3), Arc::new(Metrics::new().0));
    let reader = writer.reader();
    let mut begun = std::pin::pin!(reader.begun());
    assert!(begun.as_mut().now_or_never().is_none());
    reader.notify();
    assert!(begun.as_mut().now_or_never().is_none(), "nothing was published");
    let first = ChainEvent::Head(header("a5", block("a4").hash));
    assert!(matches!(writer.apply(first), Ok(Some(_))));
    reader.notify();
    assert!(begun.now_or_never().is_some());
}
