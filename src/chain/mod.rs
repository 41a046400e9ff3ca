//! The chain: merges the upstreams' announcements into one ordered history.

mod archive;
mod block_receipts;
mod bloom_bits;
mod content_fetches;
mod contents;
mod cursor;
mod evidence;
mod header;
mod heights;
mod history;
mod ingest;
mod inquiry;
mod log;
mod page;
mod pipeline;
mod published;
mod query;
mod ranges;
pub mod receipts;
mod recent_blocks;
mod source;
mod tags;
mod tracker;
mod transaction;

#[cfg(test)]
mod tests;

pub use archive::{Archive, Located, NoNodeAnswer};
pub use block_receipts::{BlockReceipts, NotItsReceipts, Receipt};
pub use content_fetches::{Content, ContentFetches, ContentKind, FetchedContent, MAX_FETCHES};
pub use cursor::{AbandonedBranch, Cursor, Delivered, Needs, Next, Removal, Retraction, SentExtent};
pub use header::{BlockRef, Header, HeaderShape, NotAHeader};
pub use history::{History, PublishedBlock};
pub use ingest::Ingest;
pub use inquiry::Absent;
pub use log::{BadLogs, BlockLogs, Log};
pub use page::{Gap, Page};
pub use pipeline::{ChainEvent, HistorySettings, Loss};
pub use published::{AdoptedBlock, Published, PublishedWriter, View};
pub use query::{Fetch, LogQuery};
pub use recent_blocks::{RecentBlock, RecentBlocks, Reorg};
pub use source::{BadAnswer, ChainProfile, Seek, Source, Verify};
pub use tags::{Tag, Tagged};
pub use tracker::{Step, Tracker};
pub use transaction::{BadTransactions, BlockTransactions, Transaction};
