//! Filter of a `blockLogs` subscription, and its messages: one for each block, with the logs that match. No I/O.

use std::collections::HashSet;

use alloy_primitives::B256;
use serde::Deserialize;

use super::LogFilter;
use crate::chain::{BlockReceipts, BlockTransactions, Header, Log};

/// Filter of logs, and further parts of each message.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BlockFilter {
    /// Logs in the message.
    pub logs: LogFilter,
    /// Further parts.
    pub include: Include,
}

/// Parts of a message besides the logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Include {
    /// The block's header, whole.
    pub header: bool,
    /// Receipts of the logs' transactions.
    pub receipts: bool,
    /// The logs' transactions, whole.
    pub transactions: bool,
}

/// Name of a part.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Part {
    Header,
    Receipts,
    Transactions,
}

impl FromIterator<Part> for Include {
    fn from_iter<T: IntoIterator<Item = Part>>(parts: T) -> Self {
        let mut include = Self::default();
        for part in parts {
            match part {
                Part::Header => include.header = true,
                Part::Receipts => include.receipts = true,
                Part::Transactions => include.transactions = true,
            }
        }
        include
    }
}

/// Contents of a block from which messages are built.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts<'a> {
    pub header: &'a Header,
    pub transactions: Option<&'a BlockTransactions>,
    pub receipts: Option<&'a BlockReceipts>,
}

/// Returns the message of a block that became part of the stream.
pub(super) fn adopted(parts: Parts<'_>, include: Include, logs: &[&Log]) -> Vec<u8> {
    let mut json = opening(parts.header, false);
    list(&mut json, "logs", logs.iter().map(|log| &log.json()[..]));
    if include.header {
        json.extend_from_slice(br#","header":"#);
        json.extend_from_slice(&parts.header.json);
    }
    if include.receipts || include.transactions {
        let named: HashSet<B256> = logs.iter().filter_map(|log| transaction_of(log)).collect();
        if include.receipts {
            let all = parts.receipts.map_or(&[][..], |block| &block.receipts);
            let own = all.iter().filter(|own| named.contains(&own.transaction));
            json.push(b',');
            list(&mut json, "receipts", own.map(|own| &own.json()[..]));
        }
        if include.transactions {
            let all = parts.transactions.map_or(&[][..], |block| &block.transactions);
            let own = all.iter().filter(|own| named.contains(&own.hash));
            json.push(b',');
            list(&mut json, "transactions", own.map(|own| &own.json()[..]));
        }
    }
    json.push(b'}');
    json
}

/// Returns the message of a block that is taken back: its logs alone, whatever the subscription includes.
pub(super) fn removed(header: &Header, logs: &[&Log]) -> Vec<u8> {
    let mut json = opening(header, true);
    let logs: Vec<Vec<u8>> = logs.iter().map(|log| log.removed_json()).collect();
    list(&mut json, "logs", logs.iter().map(|log| &log[..]));
    json.push(b'}');
    json
}

fn opening(header: &Header, removed: bool) -> Vec<u8> {
    let (block, parent, timestamp) = (header.block, header.parent, header.timestamp);
    format!(
        r#"{{"block":{{"number":"{:#x}","hash":"{}","parentHash":"{parent}","timestamp":"{timestamp:#x}"}},"removed":{removed},"#,
        block.number, block.hash
    )
    .into_bytes()
}

fn list<'a>(json: &mut Vec<u8>, name: &str, items: impl Iterator<Item = &'a [u8]>) {
    json.extend_from_slice(format!(r#""{name}":["#).as_bytes());
    for (at, item) in items.enumerate() {
        if at > 0 {
            json.push(b',');
        }
        json.extend_from_slice(item);
    }
    json.push(b']');
}

/// Returns the hash of a log's transaction; `None` if the node does not name it.
fn transaction_of(log: &Log) -> Option<B256> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Fields {
        transaction_hash: Option<B256>,
    }
    serde_json::from_slice::<Fields>(log.json()).ok()?.transaction_hash
}
