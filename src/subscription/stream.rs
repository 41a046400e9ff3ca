//! Streams of the chain: complete, and resumable.

use std::sync::Arc;

use super::{BlockFilter, Level, LogFilter, ReceiptFilter, Start, StreamOptions, Topic, TransactionFilter};
use crate::chain::ContentKind;
use crate::delivery::Kind;
use crate::jsonrpc::{ErrorObjectOwned, INVALID_PARAMS, error};

/// Event stream of the chain: complete, and a client can resume it where it left off (E9).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    /// `newHeads`.
    Heads,
    /// `logs`.
    Logs(Arc<LogFilter>),
    /// `alchemy_minedTransactions`.
    Mined(TransactionFilter),
    /// `transactionReceipts`.
    Receipts(ReceiptFilter),
    /// `blockLogs`.
    Blocks(BlockFilter),
}

impl Stream {
    /// Returns the kind of the stream's events.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Heads => Kind::Heads,
            Self::Logs(_) => Kind::Logs,
            Self::Mined(_) => Kind::Mined,
            Self::Receipts(_) => Kind::Receipts,
            Self::Blocks(_) => Kind::Blocks,
        }
    }

    /// Checks if the stream needs these contents of blocks.
    #[must_use]
    pub fn needs(&self, kind: ContentKind) -> bool {
        match self {
            Self::Heads => false,
            Self::Logs(_) => kind == ContentKind::Logs,
            Self::Mined(_) => kind == ContentKind::Transactions,
            Self::Receipts(_) => kind == ContentKind::Receipts,
            Self::Blocks(filter) => match kind {
                ContentKind::Logs => true,
                ContentKind::Transactions => filter.include.transactions,
                ContentKind::Receipts => filter.include.receipts,
            },
        }
    }

    /// Returns the index entries that the stream's filter is charged.
    pub(super) fn index_entries(&self) -> usize {
        match self {
            Self::Heads => 0,
            Self::Logs(filter) => filter.index_entries(),
            Self::Mined(filter) => filter.addresses(),
            Self::Receipts(filter) => filter.transactions(),
            Self::Blocks(filter) => filter.logs.index_entries(),
        }
    }

    /// Returns the topic of this stream with these options.
    ///
    /// # Errors
    /// If an option is of other streams.
    pub(super) fn with(self, options: StreamOptions) -> Result<Topic, ErrorObjectOwned> {
        let StreamOptions { start, level, include } = options;
        if include.is_some() && !matches!(self, Self::Blocks(_)) {
            return Err(error(INVALID_PARAMS, "include is an option of blockLogs alone"));
        }
        Ok(match (self, level, start) {
            (Self::Blocks(_), _, Start::After { log: Some(_), .. }) => {
                let why = "blockLogs continues behind a whole block, leave out logIndex";
                return Err(error(INVALID_PARAMS, why));
            }
            (stream, level, Start::Within(_)) if level.is_some() || !matches!(stream, Self::Logs(_)) => {
                let why = "this id is within a removal of logs, which such a stream does not have";
                return Err(error(INVALID_PARAMS, why));
            }
            (stream @ Self::Blocks(_), None, start) => Topic::Trailing(Level::Head, stream, start),
            (stream, Some(level), start) => Topic::Trailing(level, stream, start),
            (Self::Mined(filter), None, Start::Live) => Topic::Mined(filter),
            (Self::Receipts(filter), None, Start::Live) => Topic::Receipts(filter),
            // Of past blocks nobody remembers which transactions were delivered.
            (Self::Mined(filter), None, _) if filter.removed => {
                let why = "cannot resume with includeRemoved, leave it out or add finality";
                return Err(error(INVALID_PARAMS, why));
            }
            (stream, None, start) => Topic::Chain(stream, start),
        })
    }
}
