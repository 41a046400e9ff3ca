//! A connection to a node on which one question is asked at a time.

use std::collections::VecDeque;

use super::identity::{NETWORK_ID, has_no_chain_id};
use super::link::{self, Inbound, LinkError, Outbound, Reader, Writer};
use super::message::{self, NodeMessage};
use super::{Endpoint, UpstreamSettings};
use crate::jsonrpc::Outcome;

/// The connection.
#[derive(Debug)]
pub(super) struct Alone {
    reader: Reader,
    writer: Writer,
    last_id: u64,
}

impl Alone {
    /// Connects.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn connect(endpoint: &Endpoint, settings: &UpstreamSettings) -> Result<Self, LinkError> {
        // On the heap: connecting takes some 10 kB, which would be part of every call that may come to need it.
        let connecting = Box::pin(link::connect(endpoint, settings.max_message_bytes, &settings.trust));
        let (reader, writer) = connecting.await?;
        Ok(Self {
            reader,
            writer,
            last_id: 0,
        })
    }

    /// Asks, and waits for the answer; `params` are JSON, empty for none.
    ///
    /// # Errors
    /// [`LinkError`] where the connection ends first. There is no time limit.
    pub async fn ask(&mut self, method: &str, params: &str) -> Result<Outcome, LinkError> {
        self.last_id += 1;
        let request = message::request(self.last_id, method, params);
        let mut queue = VecDeque::from([Outbound::Message(request)]);
        self.writer.drain(&mut queue).await?;
        loop {
            let Inbound::Message(frame) = self.reader.next().await? else {
                continue;
            };
            let answer = NodeMessage::parse(&frame)
                .into_iter()
                .find_map(|message| match message {
                    NodeMessage::Answer(id, outcome) if id == self.last_id => Some(outcome),
                    _ => None,
                });
            if let Some(outcome) = answer {
                return Ok(outcome);
            }
        }
    }

    /// Asks for the id of the node's chain; see [`Self::ask`].
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn chain_id(&mut self) -> Result<Outcome, LinkError> {
        let answer = self.ask("eth_chainId", "").await?;
        if has_no_chain_id(&answer) {
            return self.ask(NETWORK_ID, "").await;
        }
        Ok(answer)
    }

    /// The two halves, for many calls at a time.
    pub fn into_halves(self) -> (Reader, Writer) {
        (self.reader, self.writer)
    }
}
