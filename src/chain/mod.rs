//! One ordered history out of what the upstreams say.

mod header;
mod ingest;
mod log;
mod tracker;

pub use header::{BlockRef, Header, HeaderShape, NotAHeader};
pub use ingest::{ChainEvent, HistorySettings, Ingest, Tip};
pub use log::{BadLogs, BlockLogs, Log};
pub use tracker::{Step, Tracker};
