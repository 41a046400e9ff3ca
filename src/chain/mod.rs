//! One ordered history out of what the upstreams say.

mod archive;
mod assembly;
mod block_receipts;
mod contents;
mod cursor;
mod header;
mod history;
mod ingest;
mod log;
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
pub use contents::{Content, ContentKind, Contents, FetchedContent, MAX_FETCHES};
pub use cursor::{Cursor, Left, Needs, Next, Page, Undo};
pub use header::{BlockRef, Header, HeaderShape, NotAHeader};
pub use history::{Forgotten, History, Published};
pub use ingest::{Ingest, Tip, View};
pub use log::{BadLogs, BlockLogs, Log};
pub use patience::Absent;
pub use source::{Learned, Refused, Seek, Source, Verify};
pub use tracker::{Step, Tracker};
pub use transaction::{BadTransactions, BlockTransactions, Transaction};
