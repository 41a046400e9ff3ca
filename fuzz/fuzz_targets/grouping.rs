//! Log filters subscribe and leave while block numbers rise and fall: filters that differ only in their block range
//! form one group, and each receives exactly the logs that a scan of all filters finds for it.

#![no_main]

use std::collections::BTreeSet;
use std::time::Instant;

use alloy_primitives::{Address, B256};
use headwater::chain::{BlockLogs, BlockRef};
use headwater::subscription::{LogFilter, LogIndex, LogSlot};
use libfuzzer_sys::arbitrary::{self, Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

fuzz_target!(|data: &[u8]| {
    if let Ok(steps) = Vec::<Step>::arbitrary(&mut Unstructured::new(data)) {
        check(steps);
    }
});

/// Alternatives in one field; no value means any. `many` adds more combinations than a filter has keys.
#[derive(Arbitrary, Clone, Debug)]
struct Values {
    few: [bool; 3],
    many: bool,
}

impl Values {
    fn words(&self) -> Vec<B256> {
        let few = (1..).zip(self.few).filter(|(_, is_named)| *is_named).map(|(word, _)| word);
        let many = (0..20).filter(|_| self.many).map(|word| word + 2);
        few.chain(many).map(B256::repeat_byte).collect()
    }
}

#[derive(Arbitrary, Clone, Debug)]
struct Filter {
    addresses: Values,
    topics: Vec<Values>,
    first: Option<u8>,
    length: Option<u8>,
}

impl Filter {
    fn read(&self) -> LogFilter {
        let addresses = self.addresses.words().into_iter().map(Address::from_word);
        let mut filter = json!({
            "address": addresses.collect::<Vec<_>>(),
            "topics": self.topics.iter().take(4).map(Values::words).collect::<Vec<_>>(),
        });
        if let Some(first) = self.first {
            filter["fromBlock"] = json!(format!("{first:#x}"));
            if let Some(length) = self.length {
                filter["toBlock"] = json!(format!("{:#x}", u64::from(first) + u64::from(length)));
            }
        }
        LogFilter::parse(&filter).expect("well-formed")
    }
}

#[derive(Arbitrary, Clone, Debug)]
enum Step {
    Subscribe(Filter),
    Leave(usize),
    /// A block of this number with logs, as pairs of address and topics.
    Block(u8, Vec<(u8, Vec<u8>)>),
}

fn check(steps: Vec<Step>) {
    let mut index = LogIndex::default();
    let mut alive: Vec<(usize, LogFilter, LogSlot)> = Vec::new();
    for (name, step) in steps.into_iter().take(64).enumerate() {
        match step {
            Step::Subscribe(filter) => {
                let filter = filter.read();
                alive.push((name, filter.clone(), index.insert(filter, name)));
            }
            Step::Leave(which) if !alive.is_empty() => {
                let (name, _, slot) = alive.swap_remove(which % alive.len());
                assert_eq!(index.remove(slot), Some(name));
            }
            Step::Leave(_) => {}
            Step::Block(number, logs) => {
                let number = u64::from(number);
                let logs = logs_of(number, &logs).logs;
                let mut found = BTreeSet::new();
                index.for_each_match(&logs, number, |positions, names| {
                    for name in names.iter() {
                        for position in positions {
                            assert!(found.insert((*name, *position)), "delivered twice");
                        }
                    }
                });
                let all = || (0u32..).zip(&logs);
                let matches = |(name, filter, _): &(usize, LogFilter, LogSlot)| {
                    let own = all().filter(|(_, log)| filter.matches(log, number));
                    own.map(|(position, _)| (*name, position)).collect::<Vec<_>>()
                };
                assert_eq!(found, alive.iter().flat_map(matches).collect());
            }
        }
        assert_eq!((index.len(), index.iter().count()), (alive.len(), alive.len()));
    }
    for (name, _, slot) in alive {
        assert_eq!(index.remove(slot), Some(name));
    }
    assert!(index.is_empty() && index.filters() == 0);
}

/// Returns the logs of a block in a node's format.
fn logs_of(number: u64, logs: &[(u8, Vec<u8>)]) -> BlockLogs {
    let block = BlockRef {
        number,
        hash: B256::repeat_byte(9),
    };
    let word = |word: u8| B256::repeat_byte(word % 5);
    let received: Vec<Value> = (0..)
        .zip(logs.iter().take(16))
        .map(|(index, (address, topics)): (u32, _)| {
            json!({
                "address": Address::from_word(word(*address)),
                "topics": topics.iter().take(4).map(|topic| word(*topic)).collect::<Vec<_>>(),
                "blockHash": block.hash,
                "blockNumber": format!("{number:#x}"),
                "logIndex": format!("{index:#x}"),
            })
        })
        .collect();
    BlockLogs::parse(block, &json!(received).to_string().into(), Instant::now()).expect("well-formed")
}
