//! `headwater tail`: subscribes to any endpoint and prints one line per event.

use std::collections::HashMap;
use std::io::Write as _;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    Heads,
    Logs,
    Pending,
}

#[derive(Debug, Args)]
pub struct TailArgs {
    /// Endpoint to subscribe to.
    #[arg(default_value = "ws://127.0.0.1:9546")]
    url: String,
    /// Kind of events to subscribe to; repeat for several.
    #[arg(long = "kind", value_enum, default_values = ["heads", "logs", "pending"])]
    kinds: Vec<Kind>,
    /// Print the events as JSON.
    #[arg(long)]
    json: bool,
    /// Stop after this many events.
    #[arg(long, value_name = "N")]
    count: Option<usize>,
}

impl Kind {
    fn params(self) -> Value {
        match self {
            Self::Heads => json!(["newHeads"]),
            Self::Logs => json!(["logs", {}]),
            Self::Pending => json!(["newPendingTransactions"]),
        }
    }

    fn line(self, event: &Value) -> String {
        let text = |name: &str| event[name].as_str().unwrap_or("?").to_owned();
        let number = |name: &str| u64::from_str_radix(text(name).trim_start_matches("0x"), 16).unwrap_or_default();
        match self {
            Self::Heads => format!("head    {:>9}  {}", number("number"), text("hash")),
            Self::Logs => {
                let mark = if event["removed"] == true { "  removed" } else { "" };
                format!(
                    "log     {:>9}  #{} of {}{mark}",
                    number("blockNumber"),
                    number("logIndex"),
                    text("address")
                )
            }
            Self::Pending => format!("pending            {}", event.as_str().unwrap_or("?")),
        }
    }
}

/// Subscribes and prints until the endpoint closes or `count` events are printed.
pub async fn tail(args: TailArgs) -> anyhow::Result<()> {
    // Fails if a provider is installed already, which serves as well.
    drop(rustls::crypto::ring::default_provider().install_default());
    let (mut socket, _) = tokio_tungstenite::connect_async(&args.url)
        .await
        .with_context(|| format!("cannot connect to {}; is headwater running there?", args.url))?;
    for (id, kind) in args.kinds.iter().enumerate() {
        let request = json!({"jsonrpc": "2.0", "id": id, "method": "eth_subscribe", "params": kind.params()});
        socket.send(Message::text(request.to_string())).await?;
    }
    let mut kinds: HashMap<String, Kind> = HashMap::new();
    let mut left = args.count.unwrap_or(usize::MAX);
    while left > 0 {
        let text = match socket.next().await {
            Some(Ok(Message::Text(text))) => text,
            Some(Ok(Message::Close(Some(frame)))) => {
                bail!("the endpoint closed the connection: {} {}", frame.code, frame.reason)
            }
            Some(Ok(Message::Close(None))) | None => bail!("the endpoint closed the connection"),
            Some(Ok(_)) => continue,
            Some(Err(error)) => return Err(error.into()),
        };
        let message: Value = serde_json::from_str(&text)?;
        if let Some(id) = message["id"].as_u64() {
            let kind = usize::try_from(id).ok().and_then(|id| args.kinds.get(id));
            match (message["result"].as_str(), kind) {
                (Some(subscription), Some(kind)) => drop(kinds.insert(subscription.to_owned(), *kind)),
                _ => bail!("the endpoint refused a subscription: {}", message["error"]),
            }
            continue;
        }
        let params = &message["params"];
        let Some(kind) = params["subscription"].as_str().and_then(|id| kinds.get(id)) else {
            continue;
        };
        let line = if args.json {
            params["result"].to_string()
        } else {
            kind.line(&params["result"])
        };
        // A closed pipe ends the command, as it ends any filter.
        if writeln!(std::io::stdout(), "{line}").is_err() {
            return Ok(());
        }
        left -= 1;
    }
    Ok(())
}
