//! A client of headwater's server-sent events: what it requests, and the notifications in what it reads.

use anyhow::{Result, ensure};

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

/// Bytes of an event that has not arrived whole.
#[derive(Default)]
pub struct Reader {
    kept: Vec<u8>,
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
        while let Some(len) = self.kept[at..].windows(2).position(|two| two == b"\n\n") {
            let block = &self.kept[at..at + len];
            let data = block
                .split(|byte| *byte == b'\n')
                .find_map(|line| line.strip_prefix(b"data: "));
            if let Some(data) = data {
                take(
                    &[prefix.as_bytes(), data, notification::END.as_bytes()].concat(),
                    len + 2,
                )?;
            }
            at += len + 2;
        }
        self.kept.drain(..at);
        Ok(())
    }
}
