//! Log filters: any JSON is parsed or refused, and each generated filter matches the same logs as a naive reading of
//! its definition, in whatever order its values are written, alone and in the index.

#![no_main]

use std::collections::BTreeSet;
use std::time::Instant;

use alloy_primitives::{Address, B256};
use headwater::chain::{BlockLogs, BlockRef};
use headwater::subscription::{LogFilter, LogIndex};
use libfuzzer_sys::arbitrary::{self, Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

fuzz_target!(|data: &[u8]| {
    let Some((mode, rest)) = data.split_first() else { return };
    if mode & 1 == 0 {
        if let Ok(value) = serde_json::from_slice::<Value>(rest)
            && let Ok(filter) = LogFilter::parse(&value)
        {
            assert!(filter.addresses().is_sorted() && filter.addresses().len() <= 1000);
            assert!((0..5).all(|position| filter.topics_at(position).is_sorted()));
        }
    } else if let Ok(drawn) = Drawn::arbitrary(&mut Unstructured::new(rest)) {
        drawn.check();
    }
});

/// One of few values, so that filters and logs often match.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    A,
    B,
    C,
}

impl Word {
    fn address(self) -> Address {
        Address::repeat_byte(self as u8 + 1)
    }

    fn topic(self) -> B256 {
        B256::repeat_byte(self as u8 + 1)
    }
}

/// A topic position of a filter, before serialisation.
#[derive(Arbitrary, Clone, Debug)]
enum Position {
    Null,
    One(Word),
    Any(Vec<Word>),
    /// Alternatives, one of which is `null`.
    Wild(Vec<Word>),
}

impl Position {
    fn json(&self, turned: bool) -> Value {
        let words = |words: &[Word]| {
            let mut words: Vec<Value> = words.iter().map(|word| json!(word.topic())).collect();
            if turned {
                words.reverse();
                words.extend(words.first().cloned());
            }
            words
        };
        match self {
            Self::Null => Value::Null,
            Self::One(word) if turned => json!([word.topic(), word.topic()]),
            Self::One(word) => json!(word.topic()),
            Self::Any(any) => json!(words(any)),
            Self::Wild(any) => {
                let mut words = words(any);
                words.push(Value::Null);
                json!(words)
            }
        }
    }

    fn wants(&self, topic: Word) -> bool {
        match self {
            Self::Null | Self::Wild(_) => true,
            Self::One(word) => *word == topic,
            Self::Any(words) => words.is_empty() || words.contains(&topic),
        }
    }
}

#[derive(Arbitrary, Clone, Debug)]
struct Filter {
    addresses: Vec<Word>,
    positions: Vec<Position>,
    from: Option<u8>,
    /// Number of blocks from `from` to the last block.
    length: Option<u8>,
}

impl Filter {
    /// Serialises the filter; `turned` reverses and repeats values without changing the meaning.
    fn json(&self, turned: bool) -> Value {
        let mut addresses: Vec<Value> = self.addresses.iter().map(|word| json!(word.address())).collect();
        if turned {
            addresses.reverse();
            addresses.extend(addresses.first().cloned());
        }
        let address = match addresses.as_slice() {
            [one] => one.clone(),
            _ => json!(addresses),
        };
        let mut filter = json!({
            "address": address,
            "topics": self.positions.iter().map(|position| position.json(turned)).collect::<Vec<_>>(),
        });
        if let Some(from) = self.from {
            filter["fromBlock"] = json!(format!("{from:#x}"));
            if let Some(length) = self.length {
                filter["toBlock"] = json!(format!("{:#x}", u64::from(from) + u64::from(length)));
            }
        }
        filter
    }

    fn wants(&self, log: &Log, number: u64) -> bool {
        let from = u64::from(self.from.unwrap_or(0));
        let to = match (self.from, self.length) {
            (Some(_), Some(length)) => from + u64::from(length),
            _ => u64::MAX,
        };
        number >= from
            && number <= to
            && (self.addresses.is_empty() || self.addresses.contains(&log.address))
            && self.positions.len() <= log.topics.len()
            && self
                .positions
                .iter()
                .zip(&log.topics)
                .all(|(position, topic)| position.wants(*topic))
    }
}

#[derive(Arbitrary, Clone, Debug)]
struct Log {
    address: Word,
    topics: Vec<Word>,
}

#[derive(Arbitrary, Debug)]
struct Drawn {
    filters: Vec<Filter>,
    logs: Vec<Log>,
    number: u8,
}

impl Drawn {
    fn check(mut self) {
        self.filters.truncate(8);
        self.logs.truncate(16);
        self.logs.iter_mut().for_each(|log| log.topics.truncate(4));
        let number = u64::from(self.number);
        let logs = self.logs_of(number).logs;
        let mut index = LogIndex::default();
        let mut expected = BTreeSet::new();
        let mut slots = Vec::new();
        for (name, filter) in self.filters.iter().enumerate() {
            let read = LogFilter::parse(&filter.json(false));
            assert_eq!(read, LogFilter::parse(&filter.json(true)), "the same in another order");
            let Ok(read) = read else {
                assert!(filter.positions.len() > 4, "{filter:?}");
                continue;
            };
            for (position, (log, drawn)) in logs.iter().zip(&self.logs).enumerate() {
                let wants = filter.wants(drawn, number);
                assert_eq!(read.matches(log, number), wants, "{filter:?} {drawn:?}");
                if wants {
                    expected.insert((name, position as u32));
                }
            }
            slots.push(index.insert(read, name));
        }
        let mut found = BTreeSet::new();
        index.for_each_match(&logs, number, |positions, names| {
            for name in names.iter() {
                for position in positions {
                    assert!(found.insert((*name, *position)), "received twice");
                }
            }
        });
        assert_eq!(found, expected);
        for slot in slots {
            assert!(index.remove(slot).is_some(), "it was put there");
        }
        assert!(index.is_empty() && index.filters() == 0);
    }

    /// Returns the logs in a node's format.
    fn logs_of(&self, number: u64) -> BlockLogs {
        let block = BlockRef {
            number,
            hash: B256::repeat_byte(9),
        };
        let received: Vec<Value> = self
            .logs
            .iter()
            .enumerate()
            .map(|(index, log)| {
                json!({
                    "address": log.address.address(),
                    "topics": log.topics.iter().map(|topic| topic.topic()).collect::<Vec<_>>(),
                    "blockHash": block.hash,
                    "blockNumber": format!("{number:#x}"),
                    "logIndex": format!("{index:#x}"),
                })
            })
            .collect();
        BlockLogs::parse(block, &json!(received).to_string().into(), Instant::now()).expect("well-formed")
    }
}
