use tokio::time::Instant;

use alloy_primitives::{B256, Bloom};
use bytes::Bytes;
use expect_test::{Expect, expect};

use super::super::{Gap, Header};
use super::*;

fn block(number: u64) -> BlockRef {
    let hash = B256::from(alloy_primitives::U256::from(number + 1000));
    BlockRef { number, hash }
}

/// `2 5- 8~`: blocks 2, 5 and 8, each the parent of the next, on top of block 1; 5 without its logs, 8 with logs
/// that are still to be delivered to live subscriptions.
fn chain(numbers: &str) -> VecDeque<PublishedBlock> {
    let mut parent = block(1).hash;
    let grow = |word: &str| {
        let block = block(word.trim_end_matches(['-', '~']).parse().expect("a number"));
        let header = Header {
            block,
            parent: std::mem::replace(&mut parent, block.hash),
            bloom: Some(Box::new(Bloom::repeat_byte(1))),
            timestamp: 0,
            json: Bytes::new(),
            seen: Instant::now(),
        };
        let logs = (!word.ends_with(['-', '~'])).then(|| Arc::new(BlockLogs::empty(block, header.seen)));
        PublishedBlock {
            header,
            logs,
            awaits_logs: word.ends_with('~'),
            lacks_logs: false,
            sequence: 0,
        }
    };
    numbers.split_whitespace().map(grow).collect()
}

/// Runs the cursor with the last `in_memory` blocks of `all` in memory; the blocks below are on the page fetched on
/// demand.
#[track_caller]
fn check(all: &str, in_memory: usize, mut cursor: Cursor, logs: bool, expect: Expect) {
    let all = chain(all);
    let mut history = History::new(100);
    for own in all.iter().skip(all.len() - in_memory) {
        history.add_head(own.header.clone());
        if let Some(logs) = &own.logs {
            history.logs(logs.clone());
        }
        if own.awaits_logs {
            history.await_logs(own.header.block.hash);
        }
    }
    let needs = || match logs {
        true => Needs::Logs,
        false => Needs::Headers,
    };
    let (mut page, mut out) = (Page::default(), Vec::new());
    for _ in 0..20 {
        let next = cursor.next(&history, &page, needs());
        out.push(match &next {
            Next::Block(own) => own.number().to_string(),
            Next::Rest(logs, up_to) => format!("{} after {up_to}", logs.block.number),
            Next::Below(number) => {
                let joined = history.oldest().map(|own| own.header.block.hash);
                match history.gap(*number) {
                    Some(Gap::Below(first, above)) => {
                        let below = |own: &&PublishedBlock| (first..above.block.number).contains(&own.number());
                        page = Page::new(first, all.iter().filter(below).cloned().collect());
                        page = joined.map_or(page.clone(), |next| page.joined(next));
                        format!("[below {number}]")
                    }
                    Some(Gap::Logs(headers)) => {
                        let numbers: Vec<String> = headers.iter().map(|own| own.block.number.to_string()).collect();
                        let fetched = headers.into_iter().map(|header| PublishedBlock {
                            logs: Some(Arc::new(BlockLogs::empty(header.block, header.seen))),
                            header,
                            awaits_logs: false,
                            lacks_logs: false,
                            sequence: 0,
                        });
                        page = Page::new(*number, fetched.collect());
                        format!("[logs of {}]", numbers.join(" "))
                    }
                    None | Some(Gap::Contents(_)) => "[nothing]".to_owned(),
                }
            }
            other => format!("{other:?}").to_lowercase(),
        });
        if !matches!(next, Next::Block(_) | Next::Rest(..) | Next::Below(_)) {
            break;
        }
        cursor.record_sent(&next);
    }
    expect.assert_eq(&out.join(" "));
}

#[test]
fn a_stream_begins_with_the_first_block_there_is() {
    for number in 6..=9 {
        check("2 5 9 12", 4, Cursor::from(number), true, expect!["9 12 level"]);
    }
    check(
        "2 5 9 12",
        4,
        Cursor::from(0),
        true,
        expect!["[below 0] 2 5 9 12 level"],
    );
    check("2 5 9 12", 4, Cursor::from(13), true, expect!["level"]);
    check("2 5 9 12", 4, Cursor::from(14), true, expect!["ahead"]);
    check("2 5 9 12~", 4, Cursor::from(10), true, expect!["level"]);
    check("2 5 9 12-", 4, Cursor::from(10), true, expect!["[logs of 12] 12 level"]);
    check("2 5 9~ 12~", 4, Cursor::from(4), true, expect!["5 awaited(9)"]);
    check("2 5 9 12~", 4, Cursor::from(10), false, expect!["12 level"]);
    check("2 5 9 12-", 4, Cursor::from(13), true, expect!["level"]);
    check("2 5 9 12~", 4, Cursor::from(13), true, expect!["pending"]);
}

#[test]
fn a_stream_goes_on_with_the_child_whatever_its_number() {
    check(
        "2 5 9 12",
        4,
        Cursor::behind(block(5), None),
        true,
        expect!["9 12 level"],
    );
    check(
        "2 5 9 12",
        4,
        Cursor::behind(block(5), Some(3)),
        true,
        expect!["5 after 3 9 12 level"],
    );
    check("2 5 9 12", 4, Cursor::behind(block(12), None), true, expect!["level"]);
    // The oldest block in memory is its child: nothing has to be fetched.
    check(
        "2 5 9 12",
        2,
        Cursor::behind(block(5), None),
        true,
        expect!["9 12 level"],
    );
    check("2 5 9 12~", 2, Cursor::behind(block(9), None), true, expect!["level"]);
    check("2 5 9 12~", 1, Cursor::behind(block(9), None), true, expect!["level"]);
}

#[test]
fn what_is_older_than_memory_joins_it_across_a_hole() {
    check(
        "2 5 9 12",
        2,
        Cursor::from(0),
        true,
        expect!["[below 0] 2 5 9 12 level"],
    );
    check("2 5 9 12", 2, Cursor::from(6), true, expect!["[below 6] 9 12 level"]);
    check(
        "2 5 9 12",
        2,
        Cursor::behind(block(2), None),
        false,
        expect!["[below 3] 5 9 12 level"],
    );
    check(
        "2 5 9 12",
        2,
        Cursor::behind(block(2), Some(0)),
        true,
        expect!["[below 2] 2 after 0 5 9 12 level"],
    );
}

#[test]
fn logs_that_memory_has_not_are_fetched() {
    check(
        "2 5- 9- 12",
        4,
        Cursor::from(2),
        true,
        expect!["2 [logs of 5 9] 5 9 12 level"],
    );
    check("2 5- 9- 12", 4, Cursor::from(2), false, expect!["2 5 9 12 level"]);
    check(
        "2- 5 9- 12",
        3,
        Cursor::behind(block(5), Some(1)),
        true,
        expect!["5 after 1 [logs of 9] 9 12 level"],
    );
    check(
        "2- 5- 9- 12~",
        4,
        Cursor::behind(block(5), Some(1)),
        true,
        expect!["[logs of 5 9] 5 after 1 9 level"],
    );
    check(
        "2- 5- 9- 12~",
        4,
        Cursor::behind(block(9), None),
        true,
        expect!["level"],
    );
}

#[test]
fn what_a_page_leaves_out_is_not_for_the_filters_it_was_fetched_for() {
    let all = chain("2- 5 9- 12- 20");
    let mut history = History::new(100);
    history.add_head(all[3].header.clone());
    history.add_head(all[4].header.clone());
    let above = all[3].header.block.hash;
    let fetched = Page::new(2, all.iter().take(3).cloned().collect()).joined(above);
    let sifted = fetched.clone().sifted();
    for (page, needs, at, expect) in [
        (&fetched, Needs::Headers, 2, expect!["2"]),
        (&fetched, Needs::Logs, 2, expect!["below(2)"]),
        (&fetched, Needs::MatchingLogs, 2, expect!["below(2)"]),
        (&sifted, Needs::MatchingLogs, 2, expect!["2"]),
        // A subscription with another filter was added meanwhile.
        (&sifted, Needs::Logs, 2, expect!["below(2)"]),
        (&sifted, Needs::Logs, 3, expect!["5"]),
        (&sifted, Needs::MatchingLogs, 3, expect!["5"]),
        (&sifted, Needs::MatchingLogs, 6, expect!["9"]),
        // In memory.
        (&sifted, Needs::MatchingLogs, 10, expect!["below(12)"]),
    ] {
        let next = Cursor::from(at).next(&history, page, needs);
        expect.assert_eq(&match next {
            Next::Block(own) => own.number().to_string(),
            other => format!("{other:?}").to_lowercase(),
        });
    }
    // No log after the delivered one matches the stream's filter.
    let next = Cursor::behind(block(2), Some(1)).next(&history, &sifted, Needs::MatchingLogs);
    assert!(matches!(next, Next::Block(own) if own.number() == 5));
}
