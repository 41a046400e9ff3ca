//! The chain that all processes of the benchmark share.
//!
//! Each block is a function of its number, so the load generator knows every byte that it must receive from any of
//! the servers, and the scripted node can answer for any block without storing it.

use std::fmt::Write as _;

use alloy_primitives::{Address, B256, Bloom};
use clap::ValueEnum;

use crate::pending;

/// The head when a run starts. The first event is the block after it.
pub const START: u64 = 22_000_000;

/// Masks the block number in the last eight bytes of a hash; [`Chain::number_of`] recovers the number.
const NUMBER_MASK: u64 = 0x5eed_0fb1_0c4a_5400;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// One block header per event.
    Heads,
    /// The hundred logs of one block per event.
    Bursts,
    /// The message of `blockLogs` for a block of a hundred logs per event.
    Blocks,
    /// One pending transaction per event, by its hash.
    PendingAlone,
    /// Ten pending transactions per event, announced one after the other.
    PendingGrouped,
}

impl Scenario {
    pub const ALL: [Self; 5] = [
        Self::Heads,
        Self::Bursts,
        Self::Blocks,
        Self::PendingAlone,
        Self::PendingGrouped,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Heads => "heads",
            Self::Bursts => "bursts",
            Self::Blocks => "blocks",
            Self::PendingAlone => "pending-alone",
            Self::PendingGrouped => "pending-grouped",
        }
    }

    pub fn messages_per_event(self) -> usize {
        match self {
            Self::Heads | Self::Blocks | Self::PendingAlone => 1,
            Self::Bursts => 100,
            Self::PendingGrouped => pending::GROUP,
        }
    }

    /// Returns `true` if the events are pending transactions, and not the head.
    pub fn is_pending(self) -> bool {
        matches!(self, Self::PendingAlone | Self::PendingGrouped)
    }

    /// The `params` of `eth_subscribe`.
    pub fn subscribe_params(self) -> &'static str {
        match self {
            Self::Heads => r#"["newHeads"]"#,
            Self::Bursts => r#"["logs",{}]"#,
            Self::Blocks => r#"["blockLogs",{}]"#,
            Self::PendingAlone | Self::PendingGrouped => pending::SUBSCRIBE_PARAMS,
        }
    }

    /// Returns at least 1: a block without logs has an empty bloom, which would save a proxy work that real blocks
    /// require.
    fn logs_per_block(self) -> usize {
        match self {
            Self::Bursts | Self::Blocks => 100,
            Self::Heads | Self::PendingAlone | Self::PendingGrouped => 1,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Chain {
    scenario: Scenario,
    /// Unix time of the block [`START`], in seconds: a proxy may check a head's age against its clock.
    epoch: u64,
}

impl Chain {
    pub fn new(scenario: Scenario, epoch: u64) -> Self {
        Self { scenario, epoch }
    }

    pub fn block_of_event(event: usize) -> u64 {
        START + 1 + event as u64
    }

    /// Returns the `result` of each notification that a client receives for `event`, in order.
    pub fn results(&self, event: usize) -> Vec<String> {
        let number = Self::block_of_event(event);
        match self.scenario {
            Scenario::Heads => vec![self.header(number)],
            Scenario::Bursts => self.logs(number),
            Scenario::Blocks => vec![self.block_logs(number)],
            Scenario::PendingAlone | Scenario::PendingGrouped => {
                pending::results(event, self.scenario.messages_per_event())
            }
        }
    }

    pub fn is_pending(&self) -> bool {
        self.scenario.is_pending()
    }

    pub fn hash(number: u64) -> B256 {
        let mut hash = word("block", number, 0);
        hash[24..].copy_from_slice(&(number ^ NUMBER_MASK).to_be_bytes());
        hash
    }

    pub fn number_of(hash: B256) -> Option<u64> {
        let mut tail = [0; 8];
        tail.copy_from_slice(&hash[24..]);
        let number = u64::from_be_bytes(tail) ^ NUMBER_MASK;
        (Self::hash(number) == hash).then_some(number)
    }

    /// Returns a header with geth's fields in geth's order.
    pub fn header(&self, number: u64) -> String {
        format!("{{{}}}", self.header_fields(number))
    }

    /// Returns the answer to `eth_getBlockBy…` without transaction objects.
    pub fn block(&self, number: u64) -> String {
        format!(
            r#"{{{},"size":"0x3a2","transactions":[],"uncles":[],"withdrawals":[]}}"#,
            self.header_fields(number)
        )
    }

    pub fn logs(&self, number: u64) -> Vec<String> {
        (0..self.scenario.logs_per_block())
            .map(|index| self.log(number, index as u64))
            .collect()
    }

    /// Returns the result of `blockLogs` for a block of which all logs match.
    fn block_logs(&self, number: u64) -> String {
        let block = format!(
            r#"{{"number":"{number:#x}","hash":"{:#x}","parentHash":"{:#x}","timestamp":"{:#x}"}}"#,
            Self::hash(number),
            Self::hash(number.saturating_sub(1)),
            self.timestamp(number),
        );
        let logs = self.logs(number).join(",");
        format!(r#"{{"block":{block},"removed":false,"logs":[{logs}]}}"#)
    }

    fn header_fields(&self, number: u64) -> String {
        let word = |name| word(name, number, 0);
        format!(
            concat!(
                r#""parentHash":"{:#x}","sha3Uncles":"{:#x}","miner":"{:#x}","stateRoot":"{:#x}","#,
                r#""transactionsRoot":"{:#x}","receiptsRoot":"{:#x}","logsBloom":"{:#x}","difficulty":"0x0","#,
                r#""number":"{:#x}","gasLimit":"0x2255100","gasUsed":"0x10a2b3c","timestamp":"{:#x}","#,
                r#""extraData":"0x6265617665726275696c642e6f7267","mixHash":"{:#x}","nonce":"0x0000000000000000","#,
                r#""baseFeePerGas":"0x2540be400","withdrawalsRoot":"{:#x}","blobGasUsed":"0x60000","#,
                r#""excessBlobGas":"0x0","parentBeaconBlockRoot":"{:#x}","requestsHash":"{:#x}","hash":"{:#x}""#,
            ),
            Self::hash(number.saturating_sub(1)),
            word("uncles"),
            Address::from_word(word("miner")),
            word("state"),
            word("transactions"),
            word("receipts"),
            self.bloom(number),
            number,
            self.timestamp(number),
            word("mix"),
            word("withdrawals"),
            word("beacon"),
            word("requests"),
            Self::hash(number),
        )
    }

    fn log(&self, number: u64, index: u64) -> String {
        let mut log = format!(r#"{{"address":"{:#x}","topics":["#, address(number, index));
        for (position, topic) in topics(number, index).iter().enumerate() {
            let comma = if position == 0 { "" } else { "," };
            write!(log, r#"{comma}"{topic:#x}""#).expect("a String takes every write");
        }
        write!(
            log,
            concat!(
                r#"],"data":"{:#x}","blockNumber":"{:#x}","transactionHash":"{:#x}","transactionIndex":"{:#x}","#,
                r#""blockHash":"{:#x}","blockTimestamp":"{:#x}","logIndex":"{:#x}","removed":false}}"#,
            ),
            word("data", number, index),
            number,
            word("transaction", number, index),
            index,
            Self::hash(number),
            self.timestamp(number),
            index,
        )
        .expect("a String takes every write");
        log
    }

    /// Computes the block's exact bloom, so that checks for missing logs and for foreign logs both pass.
    fn bloom(&self, number: u64) -> Bloom {
        let mut bloom = Bloom::ZERO;
        for index in 0..self.scenario.logs_per_block() as u64 {
            bloom.accrue_raw_log(address(number, index), &topics(number, index));
        }
        bloom
    }

    /// Advances one second per 40 blocks, the default `--rate`, so block time stays close to wall time.
    fn timestamp(&self, number: u64) -> u64 {
        self.epoch + number.saturating_sub(START) / 40
    }
}

fn address(number: u64, index: u64) -> Address {
    Address::from_word(word("contract", number % 16, index % 8))
}

fn topics(number: u64, index: u64) -> [B256; 3] {
    let party = |name| Address::from_word(word(name, number, index)).into_word();
    [word("signature", 0, index % 4), party("from"), party("to")]
}

/// Returns 32 bytes that look random and depend only on the three inputs.
pub fn word(name: &str, number: u64, index: u64) -> B256 {
    let mut state = name.bytes().fold(number.rotate_left(32) ^ index, |state, byte| {
        mix(state ^ u64::from(byte))
    });
    let mut word = B256::ZERO;
    for lane in word.chunks_exact_mut(8) {
        state = mix(state);
        lane.copy_from_slice(&state.to_be_bytes());
    }
    word
}

/// splitmix64.
pub fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
