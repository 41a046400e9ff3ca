//! A connection to a node that carries one request at a time.

use std::collections::VecDeque;

use super::identity::{NETWORK_ID, has_no_chain_id};
use super::link::{self, Inbound, LinkError, LinkReader, Outbound, Writer};
use super::message::{self, NodeMessage};
use super::{Endpoint, UpstreamSettings};
use crate::jsonrpc::Outcome;

/// A connection without other traffic: each request waits for its answer.
#[derive(Debug)]
pub(super) struct DedicatedConnection {
    reader: LinkReader,
    writer: Writer,
    last_id: u64,
}

impl DedicatedConnection {
    /// Connects to the node.
    ///
    /// # Errors
    /// [`LinkError`] if connecting or the handshake fails, or if the endpoint is HTTP.
    pub(super) async fn connect(endpoint: &Endpoint, settings: &UpstreamSettings) -> Result<Self, LinkError> {
        // Boxed: the future of a connect takes some 10 kB, which would enlarge the future of every call that may need
        // one.
        let connecting = Box::pin(link::connect(endpoint, settings.max_message_bytes, &settings.trust));
        let (reader, writer) = connecting.await?;
        Ok(Self {
            reader,
            writer,
            last_id: 0,
        })
    }

    /// Sends a request and waits for its answer; `params` is JSON, empty for none. Notifications are dropped.
    ///
    /// # Errors
    /// [`LinkError`] if the connection ends before the answer. There is no time limit.
    pub(super) async fn ask(&mut self, method: &str, params: &str) -> Result<Outcome, LinkError> {
        self.last_id += 1;
        let request = message::request(self.last_id, method, params);
        let mut queue = VecDeque::from([Outbound::Message(request)]);
        self.writer.drain(&mut queue).await?;
        loop {
            let Inbound::Message(frame) = self.reader.next().await? else {
                continue;
            };
            let answer = NodeMessage::parse(&frame).find_map(|message| match message {
                NodeMessage::Answer(id, outcome) if id == self.last_id => Some(outcome),
                _ => None,
            });
            if let Some(outcome) = answer {
                return Ok(outcome);
            }
        }
    }

    /// Requests the chain id, or [`NETWORK_ID`] from a node without `eth_chainId`.
    ///
    /// # Errors
    /// [`LinkError`] if the connection ends before an answer, as for [`Self::ask`].
    pub(super) async fn chain_id(&mut self) -> Result<Outcome, LinkError> {
        let answer = self.ask("eth_chainId", "").await?;
        if has_no_chain_id(&answer) {
            return self.ask(NETWORK_ID, "").await;
        }
        Ok(answer)
    }

    /// Returns the two halves, for many calls at a time.
    pub(super) fn into_halves(self) -> (LinkReader, Writer) {
        (self.reader, self.writer)
    }
}
