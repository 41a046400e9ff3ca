//! Calls to an endpoint, with what is known of its answers.

use std::time::Duration;

use alloy_primitives::B256;
use headwater::quantity::Quantity;
use serde::Deserialize;
use serde_json::{Value, json};

use super::connection::Connection;
use super::error::TailError;
use super::event::{Header, Log, Receipt};
use super::filter::LogFilter;
use super::message::{Answer, RpcError};

/// Attempts to read a block's contents, and the time between two. Nodes announce a block before its receipts are
/// written, and a balancer may ask one that has no such block yet.
const ATTEMPTS: usize = 5;
const BETWEEN: Duration = Duration::from_millis(200);

const METHOD_NOT_FOUND: i64 = -32601;

/// Members that the answer to `headwater_accountLimits` has with any settings (docs/access.md).
#[derive(Deserialize)]
struct AccountLimits {
    #[serde(rename = "plan")]
    _plan: String,
    #[serde(rename = "maxSubscriptions")]
    _max_subscriptions: u64,
}

impl Connection {
    /// Returns the chain's id.
    ///
    /// # Errors
    /// Errors of [`Connection::call`], and the endpoint's refusal, as of all calls here.
    pub(super) async fn chain_id(&mut self) -> Result<u64, TailError> {
        match self.read::<Quantity>("eth_chainId", json!([])).await? {
            Ok(Quantity(id)) => Ok(id),
            Err(error) => Err(error.to_tail_error(self.endpoint(), "eth_chainId")),
        }
    }

    /// Checks if the endpoint is a headwater, by what only a headwater answers.
    pub(super) async fn is_headwater(&mut self) -> Result<bool, TailError> {
        // A method that costs little and that nodes do not have; settings can deny it.
        if let Ok(limits) = self.call("headwater_accountLimits", json!([])).await? {
            return Ok(serde_json::from_str::<AccountLimits>(limits.get()).is_ok());
        }
        // A block that no chain has, after which nothing can be resumed.
        let nowhere = json!(["newHeads", {"after": {"blockHash": B256::ZERO}}]);
        match self.call("eth_subscribe", nowhere).await? {
            // A node that ignores what it does not know.
            Ok(id) => {
                self.unsubscribe(id.get()).await?;
                Ok(false)
            }
            Err(error) if error.is_about_resuming() => Ok(true),
            Err(error) if error.code == METHOD_NOT_FOUND => Err(error.to_tail_error(self.endpoint(), "eth_subscribe")),
            Err(error) => match error.to_tail_error(self.endpoint(), "eth_subscribe") {
                passing @ TailError::Unavailable(_) => Err(passing),
                _ => Ok(false),
            },
        }
    }

    /// Ends a subscription, by the JSON of its id.
    pub(super) async fn unsubscribe(&mut self, id: &str) -> Result<(), TailError> {
        let id: Value = serde_json::from_str(id).unwrap_or_default();
        // Either it ends, or there was none.
        drop(self.call("eth_unsubscribe", json!([id])).await?);
        Ok(())
    }

    /// Returns the newest block's header.
    pub(super) async fn latest(&mut self) -> Result<Header, TailError> {
        match self.tagged("latest").await? {
            Some(header) => Ok(header),
            None => Err(TailError::Unavailable(format!(
                "{} has no block yet; try again later",
                self.endpoint()
            ))),
        }
    }

    /// Returns the header of the block with this tag; `None` if the endpoint has none.
    pub(super) async fn tagged(&mut self, tag: &str) -> Result<Option<Header>, TailError> {
        match self.read("eth_getBlockByNumber", json!([tag, false])).await? {
            Ok(header) => Ok(header),
            Err(_) if tag == "finalized" => Ok(None),
            Err(error) => Err(error.to_tail_error(self.endpoint(), "eth_getBlockByNumber")),
        }
    }

    /// Returns the header of the block with this number; `None` if there is none, or none yet.
    ///
    /// # Errors
    /// Also if the node says that it has pruned the block: asking again does not bring it back.
    pub(super) async fn block(&mut self, number: u64) -> Result<Option<Header>, TailError> {
        let params = json!([format!("{number:#x}"), false]);
        match self.read::<Option<Header>>("eth_getBlockByNumber", params).await? {
            // Some nodes answer with the block before, where a number has none.
            Ok(header) => Ok(header.filter(|header| header.number == number)),
            Err(error) if error.is_pruned() => Err(self.pruned(&format!("block {number}"), &error)),
            Err(error) => match error.to_tail_error(self.endpoint(), "eth_getBlockByNumber") {
                passing @ TailError::Unavailable(_) => Err(passing),
                // Others answer with an error.
                _ => Ok(None),
            },
        }
    }

    /// Returns the logs of a block that match.
    pub(super) async fn logs_of(&mut self, block: B256, filter: &LogFilter) -> Result<Vec<Log>, TailError> {
        let mut filter = filter.json();
        filter.insert("blockHash".into(), json!(block));
        let logs: Vec<Log> = self.contents("eth_getLogs", json!([filter]), block).await?;
        match logs.iter().find(|log| log.block_hash != block) {
            None => Ok(logs),
            Some(other) => Err(TailError::Garbled(format!(
                "{} sent a log of block {} as one of {block}",
                self.endpoint(),
                other.block_hash
            ))),
        }
    }

    /// Returns the receipts of a block.
    pub(super) async fn receipts_of(&mut self, block: B256) -> Result<Vec<Receipt>, TailError> {
        self.contents("eth_getBlockReceipts", json!([block]), block).await
    }

    async fn contents<T: serde::de::DeserializeOwned>(
        &mut self,
        method: &str,
        params: Value,
        block: B256,
    ) -> Result<Vec<T>, TailError> {
        let mut last = String::new();
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                tokio::time::sleep(BETWEEN).await;
            }
            match self.read::<Option<Vec<T>>>(method, params.clone()).await? {
                Ok(Some(items)) => return Ok(items),
                Ok(None) => last = "null".to_owned(),
                Err(error) if error.code == METHOD_NOT_FOUND => {
                    return Err(error.to_tail_error(self.endpoint(), method));
                }
                Err(error) if error.is_pruned() => {
                    return Err(self.pruned(&format!("the contents of block {block}"), &error));
                }
                Err(error) => last = error.text(),
            }
        }
        Err(self.interrupted(&format!("answers {method} of block {block} with {last}")))
    }

    /// Returns the refusal of what the node has pruned.
    pub(super) fn pruned(&self, what: &str, error: &RpcError) -> TailError {
        TailError::Refused(format!(
            "{} no longer has {what}: {}; give a later --from, or ask an archive node",
            self.endpoint(),
            error.text()
        ))
    }

    /// Returns the logs that match in a range of blocks; an error of the endpoint is the inner one.
    pub(super) async fn logs_between(
        &mut self,
        from: u64,
        to: u64,
        filter: &LogFilter,
    ) -> Result<Result<Vec<Log>, RpcError>, TailError> {
        let mut filter = filter.json();
        filter.insert("fromBlock".into(), json!(format!("{from:#x}")));
        filter.insert("toBlock".into(), json!(format!("{to:#x}")));
        self.read("eth_getLogs", json!([filter])).await
    }

    /// Returns the id of a subscription, as JSON, from the answer to a request of this kind.
    pub(super) fn subscribed(&self, answer: Answer, kind: &str) -> Result<String, TailError> {
        match answer {
            Ok(id) => Ok(id.get().to_owned()),
            Err(error) => Err(error.to_tail_error(self.endpoint(), &format!("the subscription {kind}"))),
        }
    }
}
