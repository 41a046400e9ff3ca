//! The logs of a contract once they are final.

// docs/finality.md
use std::error::Error;

use alloy_primitives::{Address, U64};
use alloy_rpc_types_eth::Log;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::{connect_async, tungstenite::Message};

pub async fn follow(
    url: &str,
    address: Address,
    last: Option<Log>, // the one that was saved last: behind it the stream goes on
    mut save: impl FnMut(Log),
) -> Result<(), Box<dyn Error>> {
    let (mut socket, _) = connect_async(url).await?;
    let mut options = json!({"finality": "finalized"});
    if let Some(last) = last {
        options["after"] = json!({"blockHash": last.block_hash, "logIndex": last.log_index.map(U64::from)});
    }
    let params = json!(["logs", {"address": address}, options]);
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_subscribe", "params": params});
    socket.send(Message::text(request.to_string())).await?;
    while let Some(message) = socket.next().await {
        let Message::Text(text) = message? else { continue };
        let mut message: Value = serde_json::from_str(&text)?;
        if let Some(error) = message.get("error") {
            return Err(error.to_string().into());
        }
        if let Some(log) = message.pointer_mut("/params/result") {
            save(serde_json::from_value(log.take())?);
        }
    }
    Ok(()) // call again, with the log that was saved last
}
// end
