//! The messages that every client of the load generator must receive.

use serde_json::Value;

use crate::{
    chain::{Chain, Scenario},
    roles::ServeArgs,
};

/// The messages that every client must receive, in order.
pub struct Script {
    pub scenario: Scenario,
    pub results: Vec<Vec<u8>>,
}

impl Script {
    pub fn new(work: &ServeArgs) -> Self {
        let chain = work.chain();
        let results = (0..work.events)
            .flat_map(|event| chain.results(event))
            .map(String::into_bytes)
            .collect();
        Self {
            scenario: work.scenario,
            results,
        }
    }

    /// Returns a result's position in the script, read from the result's fields.
    pub fn position_of(&self, result: &Value) -> Option<usize> {
        if self.scenario.is_pending() {
            let hash = result.to_string().into_bytes();
            return self.results.iter().position(|known| *known == hash);
        }
        let place = match self.scenario {
            Scenario::Blocks => result.get("block")?,
            _ => result,
        };
        let field = |name| place.get(name)?.as_str();
        let quantity = |name| usize::from_str_radix(field(name)?.strip_prefix("0x")?, 16).ok();
        let (number, hash, index) = match self.scenario {
            Scenario::Heads | Scenario::Blocks | Scenario::PendingAlone | Scenario::PendingGrouped => {
                (quantity("number")?, field("hash")?, 0)
            }
            Scenario::Bursts => (quantity("blockNumber")?, field("blockHash")?, quantity("logIndex")?),
        };
        if Chain::number_of(hash.parse().ok()?)? != number as u64 || index >= self.scenario.messages_per_event() {
            return None;
        }
        let first = usize::try_from(Chain::block_of_event(0)).ok()?;
        Some(number.checked_sub(first)? * self.scenario.messages_per_event() + index)
    }

    pub fn event_ended_by(&self, position: usize) -> Option<usize> {
        let per_event = self.scenario.messages_per_event();
        (position % per_event == per_event - 1).then_some(position / per_event)
    }

    pub fn describe(&self, position: usize) -> String {
        let per_event = self.scenario.messages_per_event();
        let number = Chain::block_of_event(position / per_event);
        match self.scenario {
            Scenario::Heads => format!("head {number}"),
            Scenario::Blocks => format!("block {number}"),
            Scenario::Bursts => format!("log {} of block {number}", position % per_event),
            Scenario::PendingAlone | Scenario::PendingGrouped => format!("pending transaction {position}"),
        }
    }
}
