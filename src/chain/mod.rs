//! One ordered history out of what the upstreams say.

mod archive;
mod assembly;
mod block_receipts;
mod cursor;
mod header;
mod heights;
mod history;
mod ingest;
mod log;
mod page;
mod patience;
pub mod receipts;
mod source;
mod tracker;
mod transaction;

#[cfg(test)]
mod tests;

pub use archive::{Archive, Located, Unavailable};
pub use assembly::{ChainEvent, HistorySettings, Loss};
pub use block_receipts::{BlockReceipts, NotItsReceipts, Receipt};
pub use cursor::{Cursor, Left, Needs, Next, Undo};
pub use header::{BlockRef, Header, HeaderShape, NotAHeader};
pub use history::{Forgotten, History, Published};
pub use ingest::{Ingest, Tip, View};
pub use log::{BadLogs, BlockLogs, Log};
pub use page::{Gap, Page};
pub use patience::Absent;
pub use source::{Learned, Refused, Seek, Source, Verify};
pub use tracker::{Step, Tracker};
pub use transaction::{BadTransactions, BlockTransactions, Transaction};
