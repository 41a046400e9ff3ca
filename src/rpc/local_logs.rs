//! Answers to `eth_getLogs` from the logs of blocks in memory.

use std::sync::Arc;

use serde_json::Value;
use serde_json::value::RawValue;

use super::params::BlockName;
use crate::chain::{BlockLogs, BlockRef, History};
use crate::jsonrpc::Outcome;
use crate::subscription::LogFilter;

/// Logs that are matched in a row before the task yields.
const IN_A_ROW: usize = 4096;

/// Blocks of a query, as far as they are in memory.
#[derive(Debug)]
pub(super) enum LocalRange {
    /// All of them, oldest first.
    Blocks(Vec<Arc<BlockLogs>>),
    /// Not in memory yet, but about to be: the logs of the newest block, or blocks that replace dropped ones.
    Later,
    /// Not in memory: a node must be asked.
    No,
}

/// Query for logs of a form that can be answered from memory.
#[derive(Clone, Debug)]
pub(super) struct RangeQuery {
    blocks: Blocks,
    filter: LogFilter,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blocks {
    /// First and last number; `None` for the newest.
    Range(Option<u64>, Option<u64>),
    Hash(alloy_primitives::B256),
}

impl RangeQuery {
    /// Reads the parameter of `eth_getLogs`; `None` for a query that is not plainly valid: the node has its own
    /// errors, and its own reading of members that are not known here.
    #[must_use]
    pub(super) fn parse(args: &[&RawValue]) -> Option<Self> {
        let [query] = args else { return None };
        let Value::Object(mut members) = serde_json::from_str(query.get()).ok()? else {
            return None;
        };
        let mut take = |name: &str| members.remove(name).filter(|value| !value.is_null());
        let (from, to, hash) = (take("fromBlock"), take("toBlock"), take("blockHash"));
        if members.keys().any(|name| name != "address" && name != "topics") {
            return None;
        }
        let blocks = match hash {
            Some(_) if from.is_some() || to.is_some() => return None,
            Some(hash) => match block(&hash)? {
                BlockName::Hash(hash) => Blocks::Hash(hash),
                _ => return None,
            },
            None => Blocks::Range(bound(from)?, bound(to)?),
        };
        // A filter that ends in "anything" needs one more topic in geth's reading, and none in reth's (PROTOCOL fact
        // 14).
        let last = members
            .get("topics")
            .and_then(Value::as_array)
            .and_then(|topics| topics.last());
        if last.is_some_and(|last| last.is_null() || last.as_array().is_some_and(Vec::is_empty)) {
            return None;
        }
        let filter = LogFilter::parse(&Value::Object(members)).ok()?;
        Some(Self { blocks, filter })
    }

    /// Returns the last block of the query.
    #[must_use]
    pub(super) fn last(&self) -> BlockName {
        match self.blocks {
            Blocks::Range(_, to) => to.map_or(BlockName::Latest, BlockName::Number),
            Blocks::Hash(hash) => BlockName::Hash(hash),
        }
    }

    /// Returns the blocks of the query, where `head` is the one that `history` stands at.
    #[must_use]
    pub(super) fn held(&self, history: &History, head: BlockRef) -> LocalRange {
        if self.is_older(history) {
            return LocalRange::No;
        }
        // The chain went back, and is about to adopt other blocks.
        if history.tip().is_none_or(|tip| tip.header.block != head) {
            return LocalRange::Later;
        }
        let Some((first, last)) = self.range(history) else {
            return LocalRange::No;
        };
        // Skipped numbers have no block, and no logs.
        let own = history.between(first, last);
        let Some(blocks) = own.map(|own| own.logs.clone()).collect::<Option<Vec<_>>>() else {
            // Logs that live subscriptions wait for are on their way; other missing ones were never fetched.
            let are_coming = history
                .between(first, last)
                .all(|own| own.logs.is_some() || own.awaits_logs && own.header.block == head);
            return if are_coming { LocalRange::Later } else { LocalRange::No };
        };
        // Empty lists are trusted only on a chain with meaningful blooms: some chains leave all blooms empty.
        if blocks.iter().all(|block| !block.logs.is_empty()) || history.has_blooms() {
            LocalRange::Blocks(blocks)
        } else {
            LocalRange::No
        }
    }

    /// Checks if the query begins before the blocks in memory, so that no wait can help.
    fn is_older(&self, history: &History) -> bool {
        let oldest = history.oldest().map(|oldest| oldest.header.block.number);
        match self.blocks {
            Blocks::Range(from, _) => from.zip(oldest).is_some_and(|(from, oldest)| from < oldest),
            Blocks::Hash(hash) => history.find(hash).is_none(),
        }
    }

    /// Returns the first and last number of the query; `None` if not all canonical blocks between them are in memory.
    fn range(&self, history: &History) -> Option<(u64, u64)> {
        let tip = history.tip()?.header.block;
        if history.head() != Some(tip) {
            return None;
        }
        let (from, to) = match self.blocks {
            Blocks::Hash(hash) => {
                let block = history.find(hash)?.header.block;
                history.is_canonical(block).then_some((block.number, block.number))?
            }
            Blocks::Range(from, to) => (from.unwrap_or(tip.number), to.unwrap_or(tip.number)),
        };
        let oldest = history.oldest()?.header.block.number;
        (from <= to && from >= oldest && to <= tip.number).then_some((from, to))
    }

    /// Returns the node's own bytes of every log that matches; `None` if they are more than `max_bytes`.
    pub(super) async fn answer(&self, blocks: &[Arc<BlockLogs>], max_bytes: usize) -> Option<Outcome> {
        let mut out = vec![b'['];
        let mut looked = 0;
        for logs in blocks {
            looked += logs.logs.len() + 1;
            if looked > IN_A_ROW {
                looked = 0;
                tokio::task::yield_now().await;
            }
            for log in &logs.logs {
                if self.filter.matches(log, logs.block.number) {
                    if out.len() > 1 {
                        out.push(b',');
                    }
                    out.extend_from_slice(log.json());
                    if out.len() > max_bytes {
                        return None;
                    }
                }
            }
        }
        out.push(b']');
        Some(Outcome::Result(out.into()))
    }
}

/// Returns the most bytes that an answer from these blocks can have, without its brackets.
#[must_use]
pub(super) fn length(blocks: &[Arc<BlockLogs>]) -> usize {
    blocks.iter().map(|block| block.json_len() + block.logs.len()).sum()
}

/// Reads one end of a range: `None` if it is not understood, `Some(None)` for the newest block.
fn bound(value: Option<Value>) -> Option<Option<u64>> {
    match value.map(|value| block(&value)) {
        None | Some(Some(BlockName::Latest)) => Some(None),
        Some(Some(BlockName::Number(number))) => Some(Some(number)),
        _ => None,
    }
}

fn block(value: &Value) -> Option<BlockName> {
    let raw = serde_json::value::to_raw_value(value.as_str()?).ok()?;
    BlockName::parse(&raw)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use alloy_primitives::{B256, Bloom};
    use serde_json::json;
    use tokio::time::Instant;

    use super::*;
    use crate::chain::{ChainEvent, Header, PublishedWriter};
    use crate::telemetry::Metrics;

    fn header(number: u64) -> Header {
        let (hash, parent) = (
            B256::with_last_byte(number as u8),
            B256::with_last_byte(number as u8 - 1),
        );
        let json = json!({
            "number": format!("{number:#x}"), "hash": hash, "parentHash": parent,
            "logsBloom": Bloom::repeat_byte(1), "timestamp": "0x1",
        });
        Header::parse(json.to_string().into(), Instant::now()).unwrap()
    }

    /// Logs of blocks are fetched while a client subscribes to logs, which may have begun or ended at any block.
    #[test]
    fn only_logs_that_are_being_fetched_are_worth_a_wait() {
        let mut writer = PublishedWriter::new(History::new(9), Arc::new(Metrics::new().0));
        for (number, fetched) in [(5, true), (6, false), (7, false)] {
            let header = header(number);
            let block = header.block;
            assert!(writer.apply(ChainEvent::Head(header)).is_ok());
            if fetched {
                let logs = BlockLogs::parse(block, &"[]".into(), Instant::now()).unwrap();
                writer.change_logs(|history| history.logs(Arc::new(logs)));
            }
        }
        let ask = |writer: &PublishedWriter, query: &str| {
            let args = serde_json::value::RawValue::from_string(query.to_owned()).unwrap();
            let query = RangeQuery::parse(&[&args]).unwrap();
            let head = header(7).block;
            match writer.with_history(|history| query.held(history, head)) {
                LocalRange::Blocks(_) => "blocks",
                LocalRange::Later => "later",
                LocalRange::No => "no",
            }
        };
        let newest = r#"{"fromBlock":"latest"}"#;
        let both = r#"{"fromBlock":"0x6","toBlock":"0x7"}"#;
        let older = r#"{"fromBlock":"0x5","toBlock":"0x5"}"#;
        let by_hash = json!({"blockHash": header(7).block.hash}).to_string();
        assert_eq!(
            [newest, both, older, &by_hash].map(|query| ask(&writer, query)),
            ["no", "no", "blocks", "no"]
        );
        writer.change_logs(|history| history.await_logs(header(7).block.hash));
        assert_eq!(
            [newest, both, older, &by_hash].map(|query| ask(&writer, query)),
            ["later", "no", "blocks", "later"]
        );
        writer.change_logs(History::await_no_logs);
        assert_eq!(ask(&writer, newest), "no");
    }
}
