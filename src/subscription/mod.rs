//! Subscriptions of all clients: matches chain events and contents against them, and queues what matches.

mod best_effort;
mod block_filter;
mod block_table;
mod chain_event;
mod content_stream;
mod contents;
mod cooldown;
mod criteria;
mod dispatch;
mod fan_out;
mod filter;
mod flush;
mod gate;
mod head_slices;
mod index;
mod kind;
mod level;
mod log_index;
mod passthrough;
mod pending_group;
mod postings;
mod ranged;
mod receipt_filter;
mod registry;
mod replay;
mod replay_events;
mod replay_group;
mod start;
mod stream;
mod subscriber;
mod tables;
mod topics;
mod trail;
mod trails;
mod transaction_event;
mod transaction_filter;

#[cfg(test)]
mod tests;

pub use crate::backplane::{NodeSubscription, Passthrough};
pub use block_filter::{BlockFilter, Include};
pub use dispatch::dispatch;
pub use filter::LogFilter;
pub use index::{Filter, Index, Slot};
pub use kind::{Topic, no_such_kind};
pub use level::Level;
pub use log_index::{LogIndex, LogSlot};
pub use passthrough::PassthroughFull;
pub use ranged::Takers;
pub use receipt_filter::{ReceiptFilter, ReceiptKey};
pub use registry::{Asked, Registry, Subscription};
pub use replay::{ReplaySettings, Replays, StartLookup};
pub use start::{Start, StreamOptions};
pub use stream::Stream;
pub use trails::LevelState;
pub use transaction_filter::{Parties, TransactionFilter};
