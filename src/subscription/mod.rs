//! Subscriptions of all clients: matches chain events and contents against them, and queues what matches.

mod chain_event;
mod content_stream;
mod contents;
mod criteria;
mod dispatch;
mod due;
mod fan_out;
mod filter;
mod gate;
mod gossip;
mod index;
mod kind;
mod log_index;
mod members;
mod passing;
mod postings;
mod ranged;
mod receipt_filter;
mod refusal;
mod registry;
mod replay;
mod start;
mod subscriber;
mod tables;
mod transaction_event;
mod transaction_filter;

#[cfg(test)]
mod tests;

pub use crate::backplane::{NodeSubscription, Passed};
pub use dispatch::dispatch;
pub use filter::LogFilter;
pub use index::{Filter, Index, Slot};
pub use kind::{Stream, Topic, no_such_kind};
pub use log_index::{LogIndex, LogSlot};
pub use passing::Full;
pub use ranged::Takers;
pub use receipt_filter::{ReceiptFilter, ReceiptKey};
pub use registry::{Asked, Registry, Subscription};
pub use replay::{Finding, ReplaySettings, Replays};
pub use start::Start;
pub use transaction_filter::{Parties, TransactionFilter};
