//! The logs of a contract, each once and none left out, also after a disconnect.

// docs/resume.md
use std::error::Error;

use alloy_primitives::{Address, U64};
use alloy_rpc_types_eth::Log;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::{connect_async, tungstenite::Message};

/// Blocks of the application, oldest first, and their file; a table in production.
pub struct Kept<S> {
    logs: Vec<Log>,
    save: S,
}

pub enum Ended {
    TooOld,
    Lost(Box<dyn Error>),
}

impl<E: Error + 'static> From<E> for Ended {
    fn from(error: E) -> Self {
        Self::Lost(error.into())
    }
}

impl<S: FnMut(&[Log])> Kept<S> {
    pub fn new(save: S) -> Self {
        Self { logs: Vec::new(), save }
    }

    fn take(&mut self, log: Log) {
        if log.removed {
            self.undo(|own| (own.block_hash, own.log_index) == (log.block_hash, log.log_index));
        } else {
            self.logs.push(log);
        }
        (self.save)(&self.logs);
    }

    fn undo(&mut self, is_dropped: impl Fn(&Log) -> bool) {
        let at = self.logs.iter().position(is_dropped);
        self.logs.truncate(at.unwrap_or(self.logs.len())); // and everything after it, which is built on it
    }

    fn place(&self, from_block: u64) -> Value {
        let after = |last: &Log| json!({"blockHash": last.block_hash, "logIndex": last.log_index.map(U64::from)});
        match self.logs.last() {
            Some(last) => json!({"after": after(last)}),
            None => json!({"fromBlock": U64::from(from_block)}),
        }
    }

    fn refused(&mut self, error: &Value) -> Result<(), Ended> {
        if error["code"] != -32001 {
            return Ok(()); // the node is busy: try again
        }
        let oldest = serde_json::from_value::<U64>(error["data"]["oldestBlock"].clone())?;
        let last = self.logs.last().filter(|last| last.block_number >= Some(oldest.to()));
        let dropped = last.ok_or(Ended::TooOld)?.block_hash;
        self.undo(|own| own.block_hash == dropped); // dropped and forgotten: resume after the block before
        (self.save)(&self.logs);
        Ok(())
    }
}

pub async fn follow<S: FnMut(&[Log])>(
    url: &str,
    address: Address,
    from_block: u64,
    kept: &mut Kept<S>,
) -> Result<(), Ended> {
    let (mut socket, _) = connect_async(url).await?;
    let params = json!(["logs", {"address": address}, kept.place(from_block)]);
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_subscribe", "params": params});
    socket.send(Message::text(request.to_string())).await?;
    while let Some(message) = socket.next().await {
        let Message::Text(text) = message? else { continue };
        let mut message: Value = serde_json::from_str(&text)?;
        if let Some(error) = message.get("error") {
            return kept.refused(error);
        }
        if let Some(log) = message.pointer_mut("/params/result") {
            kept.take(serde_json::from_value(log.take())?);
        }
    }
    Ok(()) // call again: it goes on behind what is kept
}
// end
