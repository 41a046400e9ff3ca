//! Answer of a node to one question about a block's contents, assembled from as many calls as it takes.

use std::time::Duration;

use alloy_primitives::B256;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::chain::Header;
use crate::chain::inquiry::{AttemptError, FetchWay, Question};
use crate::chain::source::{BadAnswer, Source};
use crate::jsonrpc::Outcome;
use crate::upstream::{CallError, Complaint, UpstreamId, complaint, throttled};

/// Limits for receipts of one block that are requested one by one: concurrent calls, receipts, and bytes of JSON.
const PARTS_AT_ONCE: usize = 16;
const MAX_PARTS: usize = 2000;
const MAX_PARTS_BYTES: usize = 64 << 20;

impl Source {
    /// Returns the answer to one question as JSON; an answer that takes several calls is assembled.
    pub(super) async fn answer(&self, header: &Header, question: Question) -> Result<Bytes, AttemptError> {
        let Question { node, way, within } = question;
        let (number, hash) = (header.block.number, header.block.hash);
        let params = match way {
            FetchWay::LogsByHash => format!(r#"[{{"blockHash":"{hash}"}}]"#),
            FetchWay::LogsByNumber => format!(r#"[{{"fromBlock":"{number:#x}","toBlock":"{number:#x}"}}]"#),
            FetchWay::ReceiptsByHash => format!(r#"["{hash}"]"#),
            FetchWay::ReceiptsByNumber => format!(r#"["{number:#x}"]"#),
            FetchWay::BlockByHash => format!(r#"["{hash}",true]"#),
            FetchWay::BlockByNumber => format!(r#"["{number:#x}",true]"#),
            FetchWay::EachReceipt => return self.each_receipt(header, node, within).await,
        };
        let json = self.call(node, way.method(), &params, within).await?;
        // An empty answer names no block: by number, it may be about a block of another branch.
        if matches!(way, FetchWay::LogsByNumber | FetchWay::ReceiptsByNumber) && matches!(&json[..], b"[]" | b"null") {
            self.is_canonical(header, node, within).await?;
        }
        Ok(json)
    }

    async fn is_canonical(&self, header: &Header, node: UpstreamId, within: Duration) -> Result<(), AttemptError> {
        #[derive(Deserialize)]
        struct Block {
            hash: B256,
        }
        let params = format!(r#"["{:#x}",false]"#, header.block.number);
        let json = self.call(node, "eth_getBlockByNumber", &params, within).await?;
        let found = serde_json::from_slice::<Block>(&json);
        if found.is_ok_and(|found| found.hash == header.block.hash) {
            Ok(())
        } else {
            Err(AttemptError::Other(BadAnswer::Malformed))
        }
    }

    /// Fetches a block's receipts one by one, by its transactions' hashes; returns a JSON array.
    async fn each_receipt(&self, header: &Header, node: UpstreamId, within: Duration) -> Result<Bytes, AttemptError> {
        #[derive(Deserialize)]
        struct Block<'a> {
            hash: B256,
            #[serde(borrow)]
            transactions: Vec<&'a RawValue>,
        }
        #[derive(Deserialize)]
        struct Whole {
            hash: B256,
        }
        let malformed = |_| AttemptError::Other(BadAnswer::Malformed);
        let params = format!(r#"["{}",false]"#, header.block.hash);
        let json = self.call(node, "eth_getBlockByHash", &params, within).await?;
        let block: Block<'_> = serde_json::from_slice(&json).map_err(malformed)?;
        if block.hash != header.block.hash || block.transactions.len() > MAX_PARTS {
            return Err(AttemptError::Other(BadAnswer::Malformed));
        }
        let hash_of = |item: &&RawValue| {
            let hash = serde_json::from_str::<B256>(item.get());
            hash.or_else(|_| serde_json::from_str::<Whole>(item.get()).map(|whole| whole.hash))
        };
        let hashes = block.transactions.iter().map(hash_of).collect::<Result<Vec<B256>, _>>();
        let method = FetchWay::EachReceipt.method();
        let one = |hash| async move { self.call(node, method, &format!(r#"["{hash}"]"#), within).await };
        let parts = stream::iter(hashes.map_err(malformed)?)
            .map(one)
            .buffered(PARTS_AT_ONCE);
        let join = |mut all: Vec<u8>, part: Bytes| async move {
            if &part[..] == b"null" || all.len() + part.len() > MAX_PARTS_BYTES {
                return Err(AttemptError::Other(BadAnswer::NodeError));
            }
            all.push(if all.is_empty() { b'[' } else { b',' });
            all.extend_from_slice(&part);
            Ok(all)
        };
        let mut all = parts.try_fold(Vec::new(), join).await?;
        if all.is_empty() {
            all.push(b'[');
        }
        all.push(b']');
        Ok(all.into())
    }

    async fn call(
        &self,
        node: UpstreamId,
        method: &str,
        params: &str,
        within: Duration,
    ) -> Result<Bytes, AttemptError> {
        let answer = self.pool.ask(node, method, params, within).await;
        if throttled(&answer).is_some() {
            return Err(AttemptError::Throttled);
        }
        Err(match answer {
            Ok(Outcome::Result(json)) => return Ok(json),
            Ok(error) => match complaint(&error) {
                Complaint::Throttled => AttemptError::Throttled,
                Complaint::Unsupported => AttemptError::NotServed,
                Complaint::Pruned => AttemptError::Pruned,
                Complaint::NotNow => AttemptError::NotNow,
                Complaint::Other => AttemptError::Other(BadAnswer::NodeError),
            },
            Err(CallError::Unavailable) => AttemptError::Unavailable,
            Err(CallError::TooLong) => AttemptError::TooLong,
            // Over HTTP a lost call breaks no other call.
            Err(CallError::Lost) if !self.pool.is_http(node) => AttemptError::Broken,
            Err(_) => AttemptError::Other(BadAnswer::CallFailed),
        })
    }
}
