//! A client of headwater's server-sent events: what it requests, and the notifications in what it reads.

use anyhow::{Result, ensure};
use memchr::memmem;

use crate::{chain::Scenario, notification};

/// Subscription of a stream, which has no id on the wire.
const ID: u64 = 1;

/// Returns the request for a scenario's events.
pub fn request(host: &str, scenario: Scenario) -> String {
    let kind = match scenario {
        Scenario::Heads => "heads",
        Scenario::Bursts => "logs",
        Scenario::Blocks => "blockLogs",
        Scenario::PendingAlone | Scenario::PendingGrouped => "pending",
    };
    format!("GET /events?kind={kind} HTTP/1.1\r\nHost: {host}\r\n\r\n")
}

/// Checks the head of the response.
///
/// # Errors
///
/// If there is no stream.
pub fn check(head: &str) -> Result<()> {
    ensure!(head.starts_with("HTTP/1.1 200 "), "there is no stream: {head}");
    Ok(())
}

/// Returns the answer to `eth_subscribe` that begins the same stream.
pub fn answer() -> String {
    let id = notification::subscription_id(ID);
    format!(r#"{{"jsonrpc":"2.0","id":1,"result":"{id}"}}"#)
}

/// End of an event: an empty line.
const EVENT_END: &[u8] = b"\n\n";

/// Bytes of an event that has not arrived whole.
#[derive(Default)]
pub struct Reader {
    kept: Vec<u8>,
    /// Bytes at the start of `kept` in which no event ends.
    searched: usize,
}

impl Reader {
    /// Calls `take` with each event as a notification, and with its length on the wire.
    ///
    /// # Errors
    ///
    /// Passes on the errors of `take`.
    pub fn feed(&mut self, bytes: &[u8], mut take: impl FnMut(&[u8], usize) -> Result<()>) -> Result<()> {
        self.kept.extend_from_slice(bytes);
        let prefix = notification::prefix(&notification::subscription_id(ID));
        let mut at = 0;
        while let Some(end) = memmem::find(&self.kept[self.searched..], EVENT_END) {
            let end = self.searched + end;
            let data = self.kept[at..end]
                .split(|byte| *byte == b'\n')
                .find_map(|line| line.strip_prefix(b"data: "));
            let len = end + EVENT_END.len() - at;
            if let Some(data) = data {
                take(&[prefix.as_bytes(), data, notification::END.as_bytes()].concat(), len)?;
            }
            at += len;
            self.searched = at;
        }
        self.kept.drain(..at);
        // The end may be in two parts.
        self.searched = self.kept.len().saturating_sub(EVENT_END.len() - 1);
        Ok(())
    }
}
