use proptest::prelude::*;

use super::*;

const BLOCK: BlockRef = BlockRef {
    number: 7,
    hash: B256::repeat_byte(7),
};

fn log(index: u64, tail: &str) -> String {
    let (a, t, h) = (Address::repeat_byte(1), B256::repeat_byte(2), BLOCK.hash);
    format!(
        r#"{{"address":"{a}","topics":["{t}"],"data":"0x","blockNumber":"0x7","blockHash":"{h}","logIndex":"0x{index:x}"{tail}}}"#
    )
}

/// Reads an answer, and checks that the pass over plain answers agrees with serde on it, or leaves it to serde.
fn parse(answer: &str) -> Result<BlockLogs, BadLogs> {
    let (answer, seen) = (Bytes::copy_from_slice(answer.as_bytes()), Instant::now());
    let all = |logs: &BlockLogs| {
        let one = |log: &Log| {
            (
                log.address,
                log.topics.clone(),
                log.index,
                log.json.clone(),
                log.removed.clone(),
            )
        };
        (logs.disputed, logs.logs.iter().map(one).collect::<Vec<_>>())
    };
    let by_serde = BlockLogs::parse_any(BLOCK, &answer, seen);
    let read = BlockLogs::parse(BLOCK, &answer, seen);
    assert_eq!(
        read.as_ref().ok().map(all),
        by_serde.as_ref().ok().map(all),
        "{answer:?}"
    );
    let why = |refused: &BadLogs| refused.to_string();
    assert_eq!(read.as_ref().err().map(why), by_serde.as_ref().err().map(why));
    read
}

#[test]
fn a_removed_copy_differs_in_removed_alone() {
    let plain = log(0, r#","removed":false,"x":1"#);
    let bare = log(1, "");
    let block = parse(&format!("[{plain}, {bare}]")).expect("logs");
    assert_eq!(block.logs[0].json(), plain.as_bytes());
    assert_eq!(
        block.logs[0].removed_json(),
        log(0, r#","removed":true,"x":1"#).as_bytes()
    );
    assert_eq!(block.logs[1].removed_json(), log(1, r#","removed":true"#).as_bytes());
}

/// Replaces the `blockHash` of `log`, or removes it.
fn named(log: &str, hash: &str) -> String {
    let own = format!(r#""blockHash":"{}","#, BLOCK.hash);
    log.replace(&own, hash)
}

#[test]
fn a_log_is_disputed_where_it_names_another_block_or_is_marked_removed() {
    let good = log(1, "");
    let zero = format!(r#""blockHash":"{}","#, B256::ZERO);
    for (one, expect) in [
        (good.clone(), false),
        (good.replace("\"0x7\"", "\"0x8\""), false),
        (good.replace("\"0x7\"", "8"), false),
        (named(&good, ""), false),
        (named(&good, r#""blockHash":null,"#), false),
        (named(&good, &zero), false),
        (named(&good, "").replace("\"0x7\"", "null"), false),
        (good.replace("0x0707", "0x0807"), true),
        (log(1, r#","removed":true"#), true),
    ] {
        let logs = parse(&format!("[{},{one}]", log(0, ""))).expect(&one);
        assert_eq!(logs.is_disputed(), expect, "{one}");
    }
    let (marked, plain) = (log(0, r#","removed":true,"x":1"#), log(0, r#","removed":false,"x":1"#));
    let logs = parse(&format!("[{marked}]")).expect("logs").logs;
    assert_eq!(
        (&logs[0].json()[..], &logs[0].removed_json()[..]),
        (plain.as_bytes(), marked.as_bytes())
    );
}

/// Each word is a log: its index, and its transaction's letter if it has one. Expected are the indices that
/// remain.
#[test]
fn copies_are_dropped_where_that_leaves_each_index_to_one_log() {
    for (words, expect) in [
        ("0a 0a 1a 1a 2b 2b", "0 1 2"),
        ("0a 1a 2b 0a 1a 2b", "0 1 2"),
        ("0a 0a", "0"),
        // Indices that restart in each transaction.
        ("0a 1a 0b 1b", "0 1 0 1"),
        ("0a 0a 0b", "0 0 0"),
        // Nothing proves that they are the same log.
        ("0 0", "0 0"),
    ] {
        let one = |word: &str| {
            let (index, transaction) = word.split_at(1);
            let hash = format!(r#","transactionHash":"{}""#, keccak256(transaction));
            log(
                index.parse().expect("a digit"),
                if transaction.is_empty() { "" } else { &hash },
            )
        };
        let answer = words.split_whitespace().map(one).collect::<Vec<_>>().join(",");
        let logs = parse(&format!("[{answer}]")).expect(words).logs;
        let indices: Vec<String> = logs.iter().map(|log| log.index.to_string()).collect();
        assert_eq!(indices.join(" "), expect, "{words}");
    }
}

#[test]
fn logs_that_cannot_be_this_blocks_are_refused() {
    let good = log(1, "");
    for (answer, why) in [
        (
            format!("[{good},{}]", named(&good, "").replace("\"0x7\"", "\"0x8\"")),
            "a log of another block at position 1",
        ),
        (
            format!("[{}]", named(&good, r#""blockHash":"0x7","#)),
            "not an array of logs",
        ),
        (
            format!("[{}]", good.replace("[\"0x", "[\"")).replace("\"topics\":[\"", "\"topics\":[1,\""),
            "not an array of logs",
        ),
        ("{}".to_owned(), "not an array of logs"),
        ("[null]".to_owned(), "a log of another block"),
        ("[[]]".to_owned(), "a log of another block"),
        ("[{}]".to_owned(), "not an array of logs"),
    ] {
        let refused = parse(&answer).expect_err(&answer).to_string();
        assert!(refused.starts_with(why), "{answer}: {refused}");
    }
}

/// Each row: the answer, and the delivered logs with their indices.
#[test]
fn what_is_odd_and_harmless_is_read() {
    let (zero, one, two) = (log(0, ""), log(1, ""), log(2, ""));
    let spelled = |log: &str, index: &str| log.replace(r#""logIndex":"0x1""#, &format!(r#""logIndex":{index}"#));
    let topics = |log: &str, to: &str| {
        let from = format!(r#""topics":["{}"],"#, B256::repeat_byte(2));
        log.replace(&from, to)
    };
    let at_end = |log: &str| format!(r#"{},"topics":[]}}"#, &log[..log.len() - 1]);
    for (answer, expect) in [
        ("null".to_owned(), vec![]),
        ("[]".to_owned(), vec![]),
        (
            format!("[{two},{one},{zero}]"),
            vec![(zero.clone(), 0), (one.clone(), 1), (two.clone(), 2)],
        ),
        (
            format!("[{one}, {zero}, {two}]"),
            vec![(zero.clone(), 0), (one.clone(), 1), (two.clone(), 2)],
        ),
        // Indices that restart in each transaction: the node's order.
        (
            format!("[{zero},{one},{zero},{one}]"),
            vec![(zero.clone(), 0), (one.clone(), 1), (zero.clone(), 0), (one.clone(), 1)],
        ),
        (
            format!("[{one},{zero},{one}]"),
            vec![(one.clone(), 1), (zero.clone(), 0), (one.clone(), 1)],
        ),
        // Indices with holes, as numbers, with leading zeros, and absent.
        (format!("[{zero},{two}]"), vec![(zero.clone(), 0), (two.clone(), 2)]),
        (format!("[{}]", spelled(&one, "1")), vec![(spelled(&one, "1"), 1)]),
        (
            format!("[{}]", spelled(&one, r#""0x01""#)),
            vec![(spelled(&one, r#""0x01""#), 1)],
        ),
        (
            format!("[{},{}]", spelled(&one, "null"), spelled(&one, "null")),
            vec![(spelled(&one, "null"), 0), (spelled(&one, "null"), 1)],
        ),
        (
            format!("[{}]", zero.replace("\"0x7\"", "7")),
            vec![(zero.replace("\"0x7\"", "7"), 0)],
        ),
        (
            format!("[{}]", zero.replace("\"0x7\"", "null")),
            vec![(zero.replace("\"0x7\"", "null"), 0)],
        ),
        (
            format!("[{}]", topics(&zero, r#""topics": null ,"#)),
            vec![(topics(&zero, r#""topics": [] ,"#), 0)],
        ),
        (
            format!("[{}]", topics(&zero, "")),
            vec![(at_end(&topics(&zero, "")), 0)],
        ),
        (
            format!("[{}]", topics(&zero, r#""topics":[],"#)),
            vec![(topics(&zero, r#""topics":[],"#), 0)],
        ),
    ] {
        let logs = parse(&answer).expect(&answer).logs;
        let read: Vec<_> = logs
            .iter()
            .map(|log| (String::from_utf8_lossy(log.json()).into_owned(), log.index))
            .collect();
        assert_eq!(read, expect, "{answer}");
        for log in &logs {
            let removed: serde_json::Value = serde_json::from_slice(&log.removed_json()).expect("JSON");
            assert_eq!(
                (&removed["removed"], removed["topics"].is_array()),
                (&true.into(), true),
                "{answer}"
            );
        }
    }
    assert!(parse(&format!("[{zero},{zero}]")).expect("logs").repeats_indices());
    assert!(!parse(&format!("[{one},{zero}]")).expect("logs").repeats_indices());
}

#[test]
fn a_print_is_of_what_the_logs_are() {
    let (zero, one) = (log(0, ""), log(1, ""));
    let other = one.replace(r#""data":"0x""#, r#""data":"0xAb""#);
    let print = |logs: &[&str]| parse(&format!("[{}]", logs.join(","))).expect("logs").print();
    assert_eq!(
        print(&[&zero, &other]),
        print(&[&other.replace("Ab", "ab"), &log(0, r#","x":1"#)])
    );
    assert_ne!(print(&[&zero, &other]), print(&[&zero, &one]));
    assert_ne!(print(&[&zero]), print(&[&zero, &zero]));
    assert_ne!(print(&[]), print(&[&zero]));
}

#[test]
fn the_bloom_shows_what_is_missing() {
    let block = parse(&format!("[{}]", log(0, ""))).expect("logs");
    let mut bloom = Bloom::ZERO;
    bloom.accrue(BloomInput::Raw(Address::repeat_byte(1).as_slice()));
    assert_ne!(block.bloom(), bloom);
    bloom.accrue(BloomInput::Raw(B256::repeat_byte(2).as_slice()));
    assert_eq!(block.bloom(), bloom);
    assert_ne!(BlockLogs::empty(BLOCK, Instant::now()).bloom(), bloom);
}

#[test]
fn answers_of_common_nodes_are_read_in_one_pass() {
    let (a, t, h) = (Address::repeat_byte(0xab), B256::repeat_byte(2), BLOCK.hash);
    let common = format!(
        r#"{{"address":"{a:#x}","topics":["{t}","{t}"],"data":"0x00","blockNumber":"0x7","transactionHash":"{t}","transactionIndex":"0x1","blockHash":"{h}","blockTimestamp":"0x65","logIndex":"0x2","removed":false}}"#
    );
    for answer in [
        "[]".to_owned(),
        format!("[{common}]"),
        format!("[{common},{}]", log(3, "")),
    ] {
        assert!(plain::read(BLOCK, &answer.clone().into()).is_some(), "{answer}");
        parse(&answer).expect("logs");
    }
}

/// A value of a member, usual or odd.
fn value(usual: &[String]) -> impl Strategy<Value = String> + use<> {
    let odd = ["null", "7", "\"0x7\"", "\"0x\"", "true", "[]", "{}", "\"\"", "1.5", "x"].map(str::to_owned);
    prop_oneof![8 => prop::sample::select(usual.to_vec()), 1 => prop::sample::select(odd.to_vec())]
}

fn member() -> impl Strategy<Value = String> {
    let text = |word: &dyn std::fmt::Display| format!("\"{word}\"");
    let [one, two] = [1, 2].map(|byte| text(&B256::repeat_byte(byte)));
    let all = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>();
    let topics = [
        format!("[{one}]"),
        format!("[{one},{two}]"),
        format!("[{one}, {two}]"),
        format!("[{one},{one},{one},{one},{one}]"),
    ];
    let members = [
        (
            "address",
            vec![
                text(&Address::repeat_byte(0xab)),
                text(&Address::ZERO).replace("0x", ""),
            ],
        ),
        ("topics", topics.to_vec()),
        ("blockHash", vec![text(&BLOCK.hash), two.clone(), text(&B256::ZERO)]),
        ("blockNumber", all(&["\"0x7\"", "\"0x8\"", "8"])),
        ("logIndex", all(&["\"0x1\"", "\"0x2\"", "\"0x01\"", "3"])),
        ("transactionHash", vec![one, two]),
        ("removed", all(&["false", "true"])),
        ("data", all(&["\"0x\"", "\"a\\u0041\""])),
    ];
    let one =
        |(key, usual): (&'static str, Vec<String>)| value(&usual).prop_map(move |value| format!("\"{key}\":{value}"));
    prop::strategy::Union::new(members.map(one))
}

proptest! {
    /// Members in any number and order, between two that no log lacks: most logs are valid, some are not.
    #[test]
    fn the_one_pass_agrees_with_serde(
        logs in prop::collection::vec((prop::collection::vec(member(), 0..6), any::<bool>()), 0..4),
        between in prop_oneof![8 => Just(","), 1 => Just(", "), 1 => Just("")],
        after in prop_oneof![8 => Just(""), 1 => Just(" "), 1 => Just("]")],
    ) {
        let address = Address::repeat_byte(1);
        let log = |(members, is_whole): &(Vec<String>, bool)| match is_whole {
            true => format!(r#"{{"address":"{address}",{}}}"#, [&members[..], &["\"topics\":[]".to_owned()]].concat().join(",")),
            false => format!("{{{}}}", members.join(",")),
        };
        let logs: Vec<String> = logs.iter().map(log).collect();
        let _ = parse(&format!("[{}]{after}", logs.join(between)));
    }
}
