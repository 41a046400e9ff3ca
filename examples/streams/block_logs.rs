//! Every block with the logs of a contract, in one message.

// docs/block-logs.md
use std::error::Error;

use alloy_primitives::{Address, B256};
use alloy_rpc_types_eth::Log;
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_tungstenite::{connect_async, tungstenite::Message};

#[derive(Deserialize)]
pub struct Block {
    pub hash: B256,
}

#[derive(Deserialize)]
pub struct BlockLogs {
    pub block: Block,
    pub removed: bool,
    pub logs: Vec<Log>,
}

pub async fn follow(
    url: &str,
    address: Address,
    last: Option<B256>, // the last block that you have: behind it the stream goes on
    mut take: impl FnMut(BlockLogs),
) -> Result<(), Box<dyn Error>> {
    let (mut socket, _) = connect_async(url).await?;
    let mut params = vec![json!("blockLogs"), json!({"address": address})];
    params.extend(last.map(|hash| json!({"after": {"blockHash": hash}})));
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_subscribe", "params": params});
    socket.send(Message::text(request.to_string())).await?;
    while let Some(message) = socket.next().await {
        let Message::Text(text) = message? else { continue };
        let mut message: Value = serde_json::from_str(&text)?;
        if let Some(error) = message.get("error") {
            return Err(error.to_string().into());
        }
        if let Some(whole) = message.pointer_mut("/params/result") {
            take(serde_json::from_value(whole.take())?);
        }
    }
    Ok(()) // call again, with the last block that is left
}
// end
