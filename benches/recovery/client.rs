//! A client of headwater that checks the order of its events.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_tungstenite::{connect_async, tungstenite::Message};

use crate::LIMIT;

/// One subscription on its own connection, read by a task of its own.
pub struct Client(mpsc::UnboundedReceiver<Result<Instant>>);

#[derive(Deserialize)]
struct Notification {
    params: Params,
}

#[derive(Deserialize)]
struct Params {
    result: Event,
}

/// A head or a log.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    hash: Option<String>,
    parent_hash: Option<String>,
    block_hash: Option<String>,
    block_number: Option<String>,
    log_index: Option<String>,
}

/// Events that were delivered.
#[derive(Default)]
struct Story {
    heads: HashSet<String>,
    log: Option<(u64, u64)>,
    /// Blocks whose logs were delivered.
    blocks: HashSet<String>,
}

impl Client {
    pub async fn subscribe(url: &str, params: &str) -> Result<Self> {
        let (mut socket, _) = connect_async(url).await.context("connecting to headwater")?;
        let request = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":{params}}}"#);
        socket.send(Message::text(request)).await?;
        let answer = socket.next().await.context("no answer")??;
        ensure!(answer.to_text()?.contains("\"result\""), "refused: {answer}");
        let (sender, events) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut story = Story::default();
            while let Some(message) = socket.next().await {
                let outcome = match message {
                    Ok(Message::Text(text)) => story.check(&text).map(|()| Instant::now()),
                    Ok(Message::Close(frame)) => Err(anyhow::anyhow!("headwater closed the connection: {frame:?}")),
                    Ok(_) => continue,
                    Err(error) => Err(error.into()),
                };
                let is_over = outcome.is_err();
                if sender.send(outcome).is_err() || is_over {
                    return;
                }
            }
        });
        Ok(Self(events))
    }

    /// Waits for the first event after `since`, and returns how long after it was received.
    pub async fn first_since(&mut self, since: Instant) -> Result<Duration> {
        loop {
            match tokio::time::timeout(LIMIT, self.0.recv()).await {
                Err(_) => bail!("no event for {LIMIT:?}"),
                Ok(None) => bail!("the connection ended"),
                Ok(Some(received)) => {
                    if let Some(after) = received?.checked_duration_since(since) {
                        return Ok(after);
                    }
                }
            }
        }
    }
}

impl Story {
    fn check(&mut self, message: &str) -> Result<()> {
        let event: Notification = serde_json::from_str(message).with_context(|| format!("not an event: {message}"))?;
        let event = event.params.result;
        if let (Some(hash), Some(parent)) = (event.hash, event.parent_hash) {
            ensure!(
                self.heads.is_empty() || self.heads.contains(&parent),
                "a head is missing before {hash}"
            );
            ensure!(self.heads.insert(hash.clone()), "the head {hash} came twice");
            return Ok(());
        }
        let number = |text: Option<String>| {
            let text = text.context("a log without a number")?;
            u64::from_str_radix(text.trim_start_matches("0x"), 16).context("not a number")
        };
        let place = (number(event.block_number)?, number(event.log_index)?);
        let follows = match self.log {
            None => true,
            Some((block, index)) if block == place.0 => place.1 == index + 1,
            Some((block, _)) => place == (block + 1, 0),
        };
        ensure!(follows, "the log {place:?} after {:?}", self.log);
        self.log = Some(place);
        self.blocks.insert(event.block_hash.context("a log without a block")?);
        Ok(())
    }
}
