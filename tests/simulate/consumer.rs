//! Clients beside the planned ones, whose connections end now and then by a seed of their own.

use std::fmt::Debug;

use crate::history::Canonical;

/// Counts of a consumer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub events: u64,
    /// Connections that went on behind an earlier one.
    pub resumed: usize,
    /// Events that came again, where the contract allows it.
    pub repeated: u64,
    /// Positions that were lost, of which the client was notified.
    pub lost: usize,
}

/// A running client.
pub trait Consumer: Debug {
    fn name(&self) -> String;

    fn counts(&self) -> Counts;

    /// Checks if the client has everything of a chain that stands still.
    fn has_arrived(&self, canonical: &Canonical) -> bool;

    /// Ends the client; returns everything that contradicts the contract, now that the chain has this history.
    fn judge(&self, canonical: &Canonical) -> Vec<String>;
}
