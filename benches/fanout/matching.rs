//! Matching of a block's logs against filters, in this process: the index alone, without a socket.
//!
//! Most filters select transfers to a wallet, as dapps do; the others select a contract, or one event of a contract.
//! Each result is checked against a scan of all filters.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use alloy_primitives::{Address, B256, map::B256Set};
use anyhow::{Result, anyhow, ensure};
use bytes::Bytes;
use headwater::{
    chain::{BlockLogs, BlockRef},
    subscription::{LogFilter, LogIndex},
};
use serde_json::{Value, json};

use crate::{
    chain::{self, mix},
    results::median,
    usage::resident_memory,
};

const LOGS: u64 = 400;

/// Number of the contract that the hot filters share; it emits [`HOT_LOGS`] of the block's logs.
const HOT: u64 = 2 << 40;
const HOT_LOGS: u64 = 10;

/// First number of the contracts and wallets that no filter selects.
const QUIET: u64 = 1 << 40;

const NUMBER: u64 = 22_000_000;

/// The size of one measurement.
#[derive(Clone, Copy, Debug)]
struct Case {
    /// Distinct filters.
    filters: u64,
    /// Number of logs that are transfers to a wallet with a filter.
    watched: u64,
    /// Number of filters that select the hot contract.
    hot: u64,
}

const fn case(filters: u64, watched: u64, hot: u64) -> Case {
    Case { filters, watched, hot }
}

/// Growing numbers of filters for the same matches, then growing numbers of matches for the same filters.
const CASES: [Case; 7] = [
    case(1_000, 100, 0),
    case(10_000, 100, 0),
    case(100_000, 100, 0),
    case(1_000_000, 100, 0),
    case(100_000, 390, 0),
    case(100_000, 390, 1_000),
    case(100_000, 390, 10_000),
];

#[derive(Clone, Copy, Debug)]
pub struct Matching {
    pub filters: u64,
    pub matches: usize,
    pub block_us: f64,
    pub scan_us: f64,
    /// Time of a look-up for each address and topic of the block, in a table of as many keys as filters.
    pub lookups_us: f64,
    /// Growth of resident memory for each filter in the index, in bytes.
    pub memory_bytes: f64,
    /// Size of a filter's address and topics, in bytes.
    pub filter_bytes: f64,
}

pub fn measure() -> Result<Vec<Matching>> {
    CASES.into_iter().map(measure_one).collect()
}

fn measure_one(case: Case) -> Result<Matching> {
    let Case { filters, hot, .. } = case;
    let common = (0..filters - hot).map(filter);
    let all: Vec<LogFilter> = common.chain((0..hot).map(hot_filter)).collect::<Result<_>>()?;
    let mut index = LogIndex::default();
    let own = std::process::id();
    let before = resident_memory(own)?;
    for (number, filter) in all.iter().enumerate() {
        index.insert(filter.clone(), number);
    }
    let memory = resident_memory(own)?.saturating_sub(before);
    ensure!(
        index.filters() as u64 == filters,
        "filters that ought to be distinct are not"
    );
    let block = block(case)?;

    let (block_us, found, scan_us) = matched(&mut index, &all, &block)?;
    Ok(Matching {
        filters,
        matches: found.iter().map(|(_, matches)| matches).sum(),
        block_us,
        scan_us,
        lookups_us: lookups_us(filters, &block),
        memory_bytes: memory as f64 / filters as f64,
        filter_bytes: FILTER_BYTES,
    })
}

/// Average size of the filters' addresses and topics: an address, an address and a topic, or two topics.
const FILTER_BYTES: f64 = (20.0 + 52.0 + 8.0 * 64.0) / 10.0;

/// Measures one look-up for each address and topic of the block, in a table of as many keys as there are filters.
fn lookups_us(filters: u64, block: &BlockLogs) -> f64 {
    let keys: B256Set = (0..filters).map(wallet).collect();
    let sought: Vec<B256> = block
        .logs
        .iter()
        .flat_map(|log| [log.address.into_word()].into_iter().chain(log.topics.iter().copied()))
        .collect();
    let mut times = Vec::new();
    for _ in 0..15 {
        let started = Instant::now();
        black_box(sought.iter().filter(|key| keys.contains(*key)).count());
        times.push(started.elapsed().as_secs_f64() * 1e6);
    }
    median(&mut times)
}

/// Pairs of a filter's number and the count of the block's logs it matches; only filters with a match.
type Matches = Vec<(usize, usize)>;

/// Returns the median time per block in microseconds, the matches found, and the time of a scan with the same
/// matches.
fn matched(index: &mut LogIndex<usize>, all: &[LogFilter], block: &BlockLogs) -> Result<(f64, Matches, f64)> {
    let mut times = Vec::new();
    let mut found = Vec::new();
    let end = Instant::now() + Duration::from_millis(500);
    while times.len() < 15 || Instant::now() < end {
        found.clear();
        let started = Instant::now();
        index.for_each_match(&block.logs, NUMBER, |positions, takers| {
            found.extend(takers.iter().map(|subscriber| (*subscriber, positions.len())));
        });
        times.push(started.elapsed().as_secs_f64() * 1e6);
        black_box(&found);
    }

    let wanted_by = |filter: &LogFilter| block.logs.iter().filter(|log| filter.matches(log, NUMBER)).count();
    let started = Instant::now();
    let scanned: Vec<_> = all
        .iter()
        .map(wanted_by)
        .enumerate()
        .filter(|(_, matches)| *matches > 0)
        .collect();
    let scan_us = started.elapsed().as_secs_f64() * 1e6;
    found.sort_unstable();
    ensure!(found == scanned, "the index finds something else than a scan");
    Ok((median(&mut times), found, scan_us))
}

/// The properties that all filters share, where few of the filters match.
#[derive(Clone, Copy, Debug)]
pub enum Sharing {
    /// No sharing: each filter names another contract.
    Nothing,
    /// Same address and topics, different `fromBlock`.
    AllButBlocks,
    /// Same address and event, different values in one more topic.
    AllButTopic,
}

impl Sharing {
    pub fn words(self) -> &'static str {
        match self {
            Self::Nothing => "their event",
            Self::AllButBlocks => "all but `fromBlock`",
            Self::AllButTopic => "all but one topic",
        }
    }

    /// Builds filter `number`; only the first [`SHARED_WANT`] filters match the hot contract's logs of the block.
    fn filter(self, number: u64) -> Result<LogFilter> {
        let wants = number < SHARED_WANT;
        let contract = |number: u64| Address::from_word(word("contract", number));
        let (hot, event) = (contract(HOT), word("event", 0));
        parse(&match self {
            Self::Nothing if wants => json!({"address": [hot, contract(number)], "topics": [event]}),
            Self::Nothing => json!({"address": contract(number), "topics": [event]}),
            Self::AllButBlocks => {
                let first = if wants { number } else { NUMBER + number };
                json!({"address": hot, "topics": [event], "fromBlock": format!("{first:#x}")})
            }
            Self::AllButTopic => {
                let senders = (LOGS - HOT_LOGS..LOGS).map(sender).filter(|_| wants);
                let any: Vec<B256> = senders.chain([wallet(number)]).collect();
                json!({"address": hot, "topics": [event, any]})
            }
        })
    }
}

const SHARED_FILTERS: u64 = 100_000;
const SHARED_WANT: u64 = 100;

#[derive(Clone, Copy, Debug)]
pub struct Shared {
    pub sharing: Sharing,
    pub filters: u64,
    pub matches: usize,
    pub block_us: f64,
    /// Time to remove all filters, in microseconds.
    pub leave_us: f64,
}

/// Measures 100,000 filters of each `Sharing`, with the same matches.
pub fn measure_shared() -> Result<Vec<Shared>> {
    let kinds = [Sharing::Nothing, Sharing::AllButBlocks, Sharing::AllButTopic];
    kinds.into_iter().map(measure_sharing).collect()
}

fn measure_sharing(sharing: Sharing) -> Result<Shared> {
    let all: Vec<LogFilter> = (0..SHARED_FILTERS)
        .map(|number| sharing.filter(number))
        .collect::<Result<_>>()?;
    let mut index = LogIndex::default();
    let slots: Vec<_> = all
        .iter()
        .enumerate()
        .map(|(number, filter)| index.insert(filter.clone(), number))
        .collect();
    let block = block(case(SHARED_FILTERS, 0, 0))?;
    let (block_us, found, _) = matched(&mut index, &all, &block)?;
    let started = Instant::now();
    for slot in slots {
        ensure!(index.remove(slot).is_some(), "a filter that is not there");
    }
    Ok(Shared {
        sharing,
        filters: SHARED_FILTERS,
        matches: found.iter().map(|(_, matches)| matches).sum(),
        block_us,
        leave_us: started.elapsed().as_secs_f64() * 1e6,
    })
}

fn filter(number: u64) -> Result<LogFilter> {
    let contract = Address::from_word(word("contract", number));
    parse(&match number % 10 {
        0 => json!({"address": contract}),
        1 => json!({"address": contract, "topics": [word("event", number % 7)]}),
        _ => json!({"topics": [word("event", 0), null, wallet(number)]}),
    })
}

/// Builds a distinct filter that matches the same logs as all other hot filters.
fn hot_filter(number: u64) -> Result<LogFilter> {
    let contract = Address::from_word(word("contract", HOT));
    parse(&json!({"address": contract, "topics": [[word("event", 0), word("event", HOT + number)]]}))
}

fn parse(typed: &Value) -> Result<LogFilter> {
    LogFilter::parse(typed).map_err(|error| anyhow!("{}", error.message()))
}

fn block(case: Case) -> Result<BlockLogs> {
    let logs: Vec<Value> = (0..LOGS)
        .map(|index| {
            // Filters 2 to 9 of each ten are wallets.
            let to = if index < case.watched {
                wallet(mix(index) % ((case.filters - case.hot) / 10) * 10 + 2 + index % 8)
            } else {
                wallet(QUIET + index)
            };
            let contract = if index < LOGS - HOT_LOGS {
                QUIET + index % 50
            } else {
                HOT
            };
            json!({
                "address": Address::from_word(word("contract", contract)),
                "topics": [word("event", 0), sender(index), to],
                "blockHash": B256::ZERO, "blockNumber": format!("{NUMBER:#x}"), "logIndex": format!("{index:#x}"),
            })
        })
        .collect();
    let at = BlockRef {
        number: NUMBER,
        hash: B256::ZERO,
    };
    let answer = Bytes::from(serde_json::to_vec(&logs)?);
    Ok(BlockLogs::parse(at, &answer, tokio::time::Instant::now())?)
}

fn sender(index: u64) -> B256 {
    wallet(QUIET + LOGS + index)
}

fn wallet(number: u64) -> B256 {
    Address::from_word(word("wallet", number)).into_word()
}

fn word(name: &str, number: u64) -> B256 {
    chain::word(name, number, 0)
}
