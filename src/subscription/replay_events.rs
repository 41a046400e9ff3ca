//! Events of one block for a stream that is replayed. No I/O.

use std::sync::Arc;

use tokio::time::Instant;

use super::Stream;
use super::block_filter::{Parts, adopted, removed};
use super::event_id::Ids;
use super::receipt_filter::array;
use super::transaction_event::Fate;
use crate::chain::{Content, ContentKind, Log, Next, Page, Retraction};
use crate::delivery::{Batch, Event};

impl Stream {
    /// Checks if the stream needs these contents, which memory does not keep and a page has to bring.
    pub(super) fn needs_extra(&self, kind: ContentKind) -> bool {
        kind != ContentKind::Logs && self.needs(kind)
    }

    /// Encodes the stream's events of a replayed block, with these ids; `None` if the filter matches nothing.
    pub(super) fn events(&self, next: &Next, page: &Page, ids: Ids) -> Option<Arc<Batch>> {
        let of_block = |payload: &[u8], behind| Event::new(payload).at(ids.of_block(behind));
        let events: Vec<Event> = match (self, next) {
            (Self::Heads, Next::Block(own)) => vec![of_block(&own.header.json, own.header.block.hash)],
            (Self::Mined(filter), Next::Block(own)) => {
                let hash = own.header.block.hash;
                let Some(Content::Transactions(block)) = page.content(hash, ContentKind::Transactions) else {
                    return None;
                };
                let matching = block.transactions.iter().filter(|own| filter.matches(own));
                matching
                    .map(|own| Event::new(&Fate::Adopted.json(own, filter.form)))
                    .collect()
            }
            (Self::Blocks(filter), Next::Block(own)) => {
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
                vec![of_block(&adopted(parts, filter.include, &matching), hash)]
            }
            (Self::Blocks(filter), Next::Retraction(undo)) => {
                let number = undo.header.block.number;
                let matching = undo.logs.logs.iter().filter(|log| filter.logs.matches(log, number));
                // Blocks are taken back newest first.
                let message = removed(&undo.header, &matching.collect::<Vec<_>>());
                vec![of_block(&message, undo.header.parent)]
            }
            (Self::Receipts(filter), Next::Block(own)) => {
                let hash = own.header.block.hash;
                let Some(Content::Receipts(block)) = page.content(hash, ContentKind::Receipts) else {
                    return None;
                };
                let mut matching = block.receipts.iter().filter(|own| filter.matches(own)).peekable();
                matching.peek()?;
                vec![of_block(&array(matching), hash)]
            }
            (Self::Logs(filter), next) => {
                let (logs, removed) = match next {
                    Next::Block(own) => (own.logs.as_ref()?, false),
                    Next::Rest(logs, _) => (logs, false),
                    Next::Retraction(Retraction { logs, .. }) => (logs, true),
                    _ => return None,
                };
                let wanted = |log: &&Log| {
                    let was_sent = match next {
                        Next::Rest(_, up_to) => log.index > *up_to,
                        Next::Retraction(Retraction { up_to: Some(up_to), .. }) => log.index <= *up_to,
                        _ => true,
                    };
                    was_sent && filter.matches(log, logs.block.number)
                };
                let ids = ids.of_logs(logs.block.hash);
                let encode = |log: &Log| {
                    let event = match removed {
                        true => Event::new(&log.removed_json()),
                        false => Event::new(log.json()),
                    };
                    event.at(ids.as_ref().map(|ids| ids.log(log.index)))
                };
                logs.logs.iter().filter(wanted).map(encode).collect()
            }
            _ => return None,
        };
        // Replayed events are late by nature: the latency measured is their time in the queue.
        (!events.is_empty()).then(|| Batch::new(self.kind(), events.into(), Instant::now()))
    }
}
