//! Pending transactions, by hash: the events of two scenarios.
//!
//! A node announces transactions that arrive together in a message each, one write after the other, as geth does. The
//! bare loop writes them to each client at once, which is the grouping that a server can reach.

use crate::chain::word;

/// Transactions announced together in the grouped scenario.
pub const GROUP: usize = 10;

pub const SUBSCRIBE_PARAMS: &str = r#"["newPendingTransactions"]"#;

/// Kind of the subscription at the node.
pub const KIND: &str = "newPendingTransactions";

/// Returns the hashes of an event's transactions as JSON.
pub fn results(event: usize, count: usize) -> Vec<String> {
    let hash = |index| format!(r#""{:#x}""#, word("pending", event as u64, index as u64));
    (0..count).map(hash).collect()
}
