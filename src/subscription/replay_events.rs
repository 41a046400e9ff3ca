//! Content of a stream that is replayed, and the events of one block. No I/O.

use std::sync::Arc;

use tokio::time::Instant;

use super::block_filter::{BlockFilter, Parts, adopted, removed};
use super::receipt_filter::array;
use super::transaction_event::Fate;
use super::{LogFilter, ReceiptFilter, Stream, TransactionFilter};
use crate::chain::{Content, ContentKind, Log, Next, Page, Retraction};
use crate::delivery::{Batch, Event, Kind};

/// Content of a stream that can be resumed.
#[derive(Clone, Debug)]
pub(super) enum Wants {
    Heads,
    Logs(Arc<LogFilter>),
    Mined(Arc<TransactionFilter>),
    Receipts(Arc<ReceiptFilter>),
    Blocks(Arc<BlockFilter>),
}

impl Wants {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Heads => Kind::Heads,
            Self::Logs(_) => Kind::Logs,
            Self::Mined(_) => Kind::Mined,
            Self::Receipts(_) => Kind::Receipts,
            Self::Blocks(_) => Kind::Blocks,
        }
    }

    /// Checks if the stream needs the logs of blocks.
    pub(super) fn needs_logs(&self) -> bool {
        matches!(self, Self::Logs(_) | Self::Blocks(_))
    }

    /// Checks if the stream needs these contents, which memory does not keep and a page has to bring.
    pub(super) fn needs_extra(&self, kind: ContentKind) -> bool {
        match self {
            Self::Heads | Self::Logs(_) => false,
            Self::Mined(_) => kind == ContentKind::Transactions,
            Self::Receipts(_) => kind == ContentKind::Receipts,
            Self::Blocks(filter) => match kind {
                ContentKind::Logs => false,
                ContentKind::Transactions => filter.include.transactions,
                ContentKind::Receipts => filter.include.receipts,
            },
        }
    }

    /// Builds the stream's events; `None` if the filter matches nothing.
    pub(super) fn events(&self, next: &Next, page: &Page) -> Option<Arc<Batch>> {
        let events: Vec<Event> = match (self, next) {
            (Wants::Heads, Next::Block(own)) => vec![Event::new(&own.header.json)],
            (Wants::Mined(filter), Next::Block(own)) => {
                let hash = own.header.block.hash;
                let Some(Content::Transactions(block)) = page.content(hash, ContentKind::Transactions) else {
                    return None;
                };
                let matching = block.transactions.iter().filter(|own| filter.matches(own));
                matching
                    .map(|own| Event::new(&Fate::Adopted.json(own, filter.form)))
                    .collect()
            }
            (Wants::Blocks(filter), Next::Block(own)) => {
                let (header, hash) = (&own.header, own.header.block.hash);
                let logs = &own.logs.as_ref()?.logs;
                let matching = logs.iter().filter(|log| filter.logs.matches(log, own.number()));
                let matching: Vec<&Log> = matching.collect();
                let parts = Parts {
                    header,
                    transactions: match page.content(hash, ContentKind::Transactions) {
                        Some(Content::Transactions(block)) => Some(block),
                        _ => None,
                    },
                    receipts: match page.content(hash, ContentKind::Receipts) {
                        Some(Content::Receipts(block)) => Some(block),
                        _ => None,
                    },
                };
                vec![Event::new(&adopted(parts, filter.include, &matching))]
            }
            (Wants::Blocks(filter), Next::Retraction(undo)) => {
                let number = undo.header.block.number;
                let matching = undo.logs.logs.iter().filter(|log| filter.logs.matches(log, number));
                vec![Event::new(&removed(&undo.header, &matching.collect::<Vec<_>>()))]
            }
            (Wants::Receipts(filter), Next::Block(own)) => {
                let hash = own.header.block.hash;
                let Some(Content::Receipts(block)) = page.content(hash, ContentKind::Receipts) else {
                    return None;
                };
                let mut matching = block.receipts.iter().filter(|own| filter.matches(own)).peekable();
                matching.peek()?;
                vec![Event::new(&array(matching))]
            }
            (Wants::Logs(filter), next) => {
                let (logs, removed) = match next {
                    Next::Block(own) => (own.logs.as_ref()?, false),
                    Next::Rest(logs, _) => (logs, false),
                    Next::Retraction(Retraction { logs, .. }) => (logs, true),
                    _ => return None,
                };
                let wanted = |log: &&Log| {
                    let told = match next {
                        Next::Rest(_, up_to) => log.index > *up_to,
                        Next::Retraction(Retraction { up_to: Some(up_to), .. }) => log.index <= *up_to,
                        _ => true,
                    };
                    told && filter.matches(log, logs.block.number)
                };
                let encode = |log: &Log| match removed {
                    true => Event::new(&log.removed_json()),
                    false => Event::new(log.json()),
                };
                logs.logs.iter().filter(wanted).map(encode).collect()
            }
            _ => return None,
        };
        // Replayed events are late by nature: the latency measured is their time in the queue.
        (!events.is_empty()).then(|| Batch::new(self.kind(), events.into(), Instant::now()))
    }
}

impl From<Stream> for Wants {
    fn from(stream: Stream) -> Self {
        match stream {
            Stream::Heads => Self::Heads,
            Stream::Logs(filter) => Self::Logs(filter.into()),
            Stream::Mined(filter) => Self::Mined(filter.into()),
            Stream::Receipts(filter) => Self::Receipts(filter.into()),
            Stream::Blocks(filter) => Self::Blocks(filter.into()),
        }
    }
}

impl From<Wants> for Stream {
    fn from(wants: Wants) -> Self {
        match wants {
            Wants::Heads => Self::Heads,
            Wants::Logs(filter) => Self::Logs(Arc::unwrap_or_clone(filter)),
            Wants::Mined(filter) => Self::Mined(Arc::unwrap_or_clone(filter)),
            Wants::Receipts(filter) => Self::Receipts(Arc::unwrap_or_clone(filter)),
            Wants::Blocks(filter) => Self::Blocks(Arc::unwrap_or_clone(filter)),
        }
    }
}
