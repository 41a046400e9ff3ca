//! Stories of blocks and logs, and what is left to do after each.

use alloy_primitives::{Address, Bytes};
use expect_test::{Expect, expect};

use super::*;

/// Returns the hash of a block that is written as `3a`: its number and its branch.
pub(crate) fn hash(block: &str) -> B256 {
    let mut bytes = [0; 32];
    bytes[..block.len()].copy_from_slice(block.as_bytes());
    B256::from(bytes)
}

pub(crate) fn name(hash: B256) -> String {
    String::from_utf8_lossy(&hash[..]).trim_end_matches('\0').to_owned()
}

/// Reads `3b<2a`: block 3 of branch b, whose parent is block 2 of branch a. Without a parent it is the block before, of the
/// same branch.
pub(crate) fn header(text: &str) -> Header {
    let (own, parent) = text.split_once('<').unwrap_or((text, ""));
    let (number, branch) = own.split_at(own.len() - 1);
    let number: u64 = number.parse().unwrap();
    let before = format!("{}{branch}", number.saturating_sub(1));
    Header {
        number,
        hash: hash(own),
        parent_hash: hash(if parent.is_empty() { &before } else { parent }),
        timestamp: None,
        gas_used: None,
        gas_limit: None,
        base_fee_per_gas: None,
    }
}

fn log(block: &str, index: u64, removed: bool) -> Log {
    let header = header(block);
    Log {
        block_number: header.number,
        block_hash: header.hash,
        transaction_hash: B256::ZERO,
        transaction_index: 0,
        log_index: index,
        address: Address::ZERO,
        topics: Vec::new(),
        data: Bytes::new(),
        removed,
    }
}

fn shown(event: &Event) -> String {
    match event {
        Event::Head(header) => name(header.hash),
        Event::Log(log) => format!("{}.{}", name(log.block_hash), log.log_index),
        other => format!("{other:?}"),
    }
}

/// Plays a story of announcements as a headwater sends them, and checks what is printed (`-` for what is taken back) and
/// the points to continue at. Words: `3a` a head, `3a.0` a log, `-3a.0` its removal, `settle` what a reconnect does.
#[track_caller]
fn check(start: u64, anchor: &str, story: &str, expect: Expect) {
    let mut window = Window::new(start, Some(&header(anchor)));
    let mut printed = Vec::new();
    for word in story.split_whitespace() {
        let removed = |events: Vec<Event>| {
            events
                .iter()
                .map(|event| format!("-{}", shown(event)))
                .collect::<Vec<_>>()
        };
        match word.trim_start_matches('-').split_once('.') {
            Some((block, index)) if word.starts_with('-') => {
                printed.extend(removed(
                    window
                        .take_back(&log(block, index.parse().unwrap(), true))
                        .into_iter()
                        .collect(),
                ));
            }
            Some((block, index)) => match window.take(log(block, index.parse().unwrap(), false)) {
                Ok(Some(event)) => printed.push(shown(event)),
                Ok(None) => {}
                Err(_) => printed.push(format!("{word}?")),
            },
            None if word == "settle" => printed.extend(removed(window.settle())),
            None => {
                let header = header(word);
                match window.make_room(&header) {
                    Ok(events) => printed.extend(removed(events)),
                    Err(TooDeep) => {
                        printed.push("too deep".to_owned());
                        break;
                    }
                }
                let events: Vec<Event> = (header.number >= start)
                    .then(|| Event::Head(header.clone()))
                    .into_iter()
                    .collect();
                printed.extend(events.iter().map(shown));
                window.adopt(&header, events, Contents::Following);
            }
        }
    }
    let points = window.resume_points().map_or("the start".to_owned(), |points| {
        points
            .map(|point| name(point.block) + &point.log.map_or(String::new(), |log| format!(".{log}")))
            .join(", ")
    });
    expect.assert_eq(&format!("{} | {points}", printed.join(" ")));
}

#[test]
fn a_stream_continues_after_what_was_printed() {
    check(1, "0a", "", expect![" | 0a, 0a"]);
    // The newest block may be without its logs: they come again from the block before.
    check(1, "0a", "1a 2a", expect!["1a 2a | 2a, 1a"]);
    check(
        1,
        "0a",
        "1a 1a.0 2a 2a.0 2a.4",
        expect!["1a 1a.0 2a 2a.0 2a.4 | 2a, 2a.4"],
    );
    // Once more, after a disconnect.
    check(1, "0a", "1a 1a.0 1a.0 1a.1", expect!["1a 1a.0 1a.1 | 1a, 1a.1"]);
    // Blocks before the first that is wanted.
    check(3, "0a", "1a 2a 3a", expect!["3a | 3a, 2a"]);
    check(3, "0a", "1a 2a", expect![" | 2a, 2a"]);
}

#[test]
fn a_reorg_takes_back_what_was_printed() {
    check(
        1,
        "0a",
        "1a 1a.0 2a 2a.0 -1a.0 -2a.0 1b<0a 1b.0",
        expect!["1a 1a.0 2a 2a.0 -1a.0 -2a.0 -1a -2a 1b 1b.0 | 1b, 1b.0"],
    );
    // What the endpoint leaves out is taken back all the same.
    check(
        1,
        "0a",
        "1a 1a.0 2a 2a.0 1b<0a",
        expect!["1a 1a.0 2a 2a.0 -1a -1a.0 -2a -2a.0 1b | 1b, 0a"],
    );
    // A log of a block that was never announced.
    check(1, "0a", "1a 1b.0", expect!["1a 1b.0? | 1a, 0a"]);
    // Below the start, nothing was printed.
    check(3, "2a", "3a 2b<1a 3b", expect!["3a -3a 3b | 3b, 2b"]);
}

#[test]
fn a_removal_that_broke_off_is_ended_before_the_stream_continues() {
    check(
        1,
        "0a",
        "1a 1a.0 1a.1 2a 2a.0 -1a.0 settle",
        expect!["1a 1a.0 1a.1 2a 2a.0 -1a.0 -1a -1a.1 -2a -2a.0 | 0a, 0a"],
    );
    check(1, "0a", "1a 1a.0 2a settle", expect!["1a 1a.0 2a | 2a, 1a"]);
    // A removal of what was not printed begins nothing.
    check(1, "0a", "1a 1a.0 -1a.5 settle", expect!["1a 1a.0 | 1a, 1a.0"]);
}

#[test]
fn what_is_forgotten_cannot_be_taken_back() {
    let mut window = Window::new(1, Some(&header("0a")));
    for number in 1..=MAX_BLOCKS as u64 + 3 {
        let header = header(&format!("{number}a"));
        window.adopt(&header, vec![Event::Head(header.clone())], Contents::Complete);
    }
    assert_eq!((window.len(), window.block(0)), (MAX_BLOCKS, Some((4, hash("4a")))));
    assert!(window.is_trimmed());
    assert_eq!(window.make_room(&header("4b<3a")), Err(TooDeep));
    assert_eq!(window.make_room(&header("5b<4a")).unwrap().len(), MAX_BLOCKS - 1);
    assert_eq!(window.bytes, Event::Head(header("4a")).size());
    // An anchor that was not printed can be forgotten.
    let mut window = Window::new(1, Some(&header("0a")));
    for number in 1..=MAX_BLOCKS as u64 {
        window.adopt(&header(&format!("{number}a")), Vec::new(), Contents::Complete);
    }
    assert!(!window.is_trimmed());
}

#[test]
fn large_logs_are_forgotten_earlier() {
    let mut window = Window::new(1, Some(&header("0a")));
    for number in 1..=10 {
        let block = format!("{number}a");
        window.adopt(&header(&block), Vec::new(), Contents::Following);
        let mut log = log(&block, 0, false);
        log.data = vec![0; MAX_BYTES / 4].into();
        assert!(window.take(log).unwrap().is_some());
    }
    assert!(window.len() < 6 && window.bytes < MAX_BYTES * 3 / 2, "{}", window.bytes);
    assert!(window.is_trimmed());
}
