//! One subscription of a client of the load generator: each message is checked as it arrives.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{notification, script::Script};

/// The outcome of one read.
#[derive(Default)]
pub struct News {
    pub subscribed: bool,
    pub completed: Vec<usize>,
    pub rewritten: u64,
    /// Bytes of notifications on the wire.
    pub bytes: u64,
}

/// Fingerprint of a compressed message, the same for all clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    len: usize,
    /// Last bytes of the compressed event, which all clients share.
    end: [u8; 16],
}

impl Mark {
    pub fn of(payload: &[u8]) -> Result<Self> {
        Ok(Self {
            len: payload.len(),
            end: *payload.last_chunk().context("a compressed message of a few bytes")?,
        })
    }
}

/// One subscription, from the answer to `eth_subscribe` on.
pub struct Feed {
    id: String,
    /// Notification up to the result, in the bytes that all known servers write.
    prefix: Vec<u8>,
    /// Position in the script of the next message.
    pub next: usize,
    /// Positions that were skipped: lost, unless the messages arrive late.
    pub missing: BTreeSet<usize>,
}

impl Feed {
    pub fn from_answer(message: &[u8]) -> Result<Self> {
        let quoted = || String::from_utf8_lossy(message);
        let answer: Value = serde_json::from_slice(message).with_context(|| format!("not JSON: {}", quoted()))?;
        let Some(id) = answer["result"].as_str().filter(|_| answer["id"] == 1) else {
            bail!("eth_subscribe was answered with {}", quoted());
        };
        Ok(Self {
            id: id.to_owned(),
            prefix: notification::prefix(id).into_bytes(),
            next: 0,
            missing: BTreeSet::new(),
        })
    }

    pub fn message(&mut self, message: &[u8], script: &Script, news: &mut News) -> Result<()> {
        let result = message
            .strip_prefix(&*self.prefix)
            .and_then(|rest| rest.strip_suffix(notification::END.as_bytes()));
        let expected = script.results.get(self.next).map(Vec::as_slice);
        if result.is_none() || result != expected {
            self.unexpected(message, script)?;
            news.rewritten += 1;
        }
        self.take(script, news);
        Ok(())
    }

    /// Checks that the next compressed message has the same mark for all clients; the inflating clients check its
    /// content.
    pub fn mark(&self, mark: Mark, script: &Script, marks: &mut Vec<Mark>) -> Result<()> {
        match marks.get(self.next) {
            Some(known) => ensure!(
                *known == mark,
                "lost, doubled, reordered or altered: in place of {} came what others did not get there",
                script.describe(self.next)
            ),
            None => {
                ensure!(
                    self.next == marks.len(),
                    "some messages are compressed and some are not"
                );
                marks.push(mark);
            }
        }
        Ok(())
    }

    pub fn take(&mut self, script: &Script, news: &mut News) {
        if self.missing.is_empty() {
            news.completed.extend(script.event_ended_by(self.next));
        }
        self.next += 1;
    }

    /// Accepts a message that differs from the next one in bytes but not in meaning.
    ///
    /// # Errors
    ///
    /// If the message is not a notification of this subscription, or is altered, doubled, reordered or was never
    /// produced.
    fn unexpected(&mut self, message: &[u8], script: &Script) -> Result<()> {
        let quoted = || String::from_utf8_lossy(message).chars().take(400).collect::<String>();
        let value: Value = serde_json::from_slice(message).with_context(|| format!("not JSON: {}", quoted()))?;
        let params = &value["params"];
        ensure!(
            params["subscription"] == *self.id,
            "not a notification for {}: {}",
            self.id,
            quoted()
        );
        let result = &params["result"];
        let position = script
            .position_of(result)
            .with_context(|| format!("altered or not asked for: {}", quoted()))?;
        let what = script.describe(position);
        if self.missing.contains(&position) {
            bail!("reordered: {what} came later than its successors");
        }
        ensure!(position >= self.next, "doubled: {what} came twice");
        let Some(original) = script.results.get(position) else {
            bail!("{what} came, which was never produced")
        };
        ensure!(
            *result == serde_json::from_slice::<Value>(original)?,
            "altered: {what} came as {}",
            quoted()
        );
        self.missing.extend(self.next..position);
        self.next = position;
        Ok(())
    }
}
