//! The logs of a contract with alloy, which reconnects by itself.

// docs/sessions.md
use std::error::Error;
use std::time::{SystemTime, UNIX_EPOCH};

use alloy_primitives::Address;
use alloy_provider::{Provider, ProviderBuilder, WsConnect};
use alloy_rpc_types_eth::{Filter, Log};

pub async fn follow(url: &str, address: Address, mut take: impl FnMut(Log)) -> Result<(), Box<dyn Error>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let url = format!("{url}/?session={now}-{:016x}", rand::random::<u64>());
    let provider = ProviderBuilder::new().connect_ws(WsConnect::new(url)).await?;
    let filter = Filter::new().address(address);
    let mut logs = provider.subscribe_logs(&filter).channel_size(4096).await?;
    loop {
        take(logs.recv().await?); // an error: alloy has given up, or the program was too slow for the channel
    }
}
// end
