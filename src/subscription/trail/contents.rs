//! The contents that the next blocks of a walk lack: what is needed, awaited and fetched.

use std::sync::Arc;

use alloy_primitives::B256;

use super::{Step, Trail, WholeBlock};
use crate::chain::{BlockLogs, Content, ContentKind, Header, History, PublishedBlock};
use crate::subscription::subscriber::is_open;

/// Blocks whose contents are fetched ahead of the walk.
const AHEAD: usize = 4;

impl Trail {
    /// Returns the block with all contents that subscribers need; `None` if some are missing.
    pub(super) fn whole(&mut self, header: Header, logs: Option<Arc<BlockLogs>>) -> Option<WholeBlock> {
        let hash = header.block.hash;
        let kept = |kind| self.fetched.get(&(hash, kind));
        let logs = logs.or_else(|| match kept(ContentKind::Logs) {
            Some(Content::Logs(logs)) => Some(logs.clone()),
            _ => None,
        });
        let transactions = match kept(ContentKind::Transactions) {
            Some(Content::Transactions(transactions)) => Some(transactions.clone()),
            _ => None,
        };
        let receipts = match kept(ContentKind::Receipts) {
            Some(Content::Receipts(receipts)) => Some(receipts.clone()),
            _ => None,
        };
        let is_lacking = |kind, is_there: bool| !is_there && self.needs(kind);
        if is_lacking(ContentKind::Logs, logs.is_some())
            || is_lacking(ContentKind::Transactions, transactions.is_some())
            || is_lacking(ContentKind::Receipts, receipts.is_some())
        {
            return None;
        }
        self.fetched.retain(|(of, _), _| *of != hash);
        Some(WholeBlock {
            header,
            logs,
            transactions,
            receipts,
            more: false,
        })
    }

    fn needs(&self, kind: ContentKind) -> bool {
        self.subscribers_to(kind).any(is_open)
    }

    /// Notes the contents that the next blocks lack.
    pub(super) fn lacking(&mut self, history: &History, awaits_logs: bool, end: u64) -> Step {
        let next = self.next().unwrap_or(end);
        let last = end.saturating_sub(1);
        let oldest = history.oldest().map_or(0, |oldest| oldest.number());
        let below = self.page.blocks().iter();
        let below = below.filter(|own| (next..oldest.min(end)).contains(&own.number()));
        let ahead: Vec<_> = below
            .chain(history.between(next.max(oldest), last))
            .take(AHEAD)
            .collect();
        let needed: Vec<ContentKind> = ContentKind::ALL.into_iter().filter(|kind| self.needs(*kind)).collect();
        let lacks = |kind: ContentKind, own: &PublishedBlock| match kind {
            // Live subscriptions have them fetched already.
            ContentKind::Logs if own.logs.is_some() || own.awaits_logs => false,
            kind => !self.fetched.contains_key(&(own.header.block.hash, kind)),
        };
        let mut awaited = Vec::new();
        for own in ahead {
            let lacked = needed.iter().filter(|kind| lacks(**kind, own));
            awaited.extend(lacked.map(|kind| (*kind, own.header.clone())));
        }
        let key = |(kind, header): &(ContentKind, Header)| (*kind, header.block.hash);
        let is_same = awaited.iter().map(key).eq(self.awaited.iter().map(key));
        self.awaited = awaited;
        if is_same || (awaits_logs && self.awaited.is_empty()) {
            Step::Idle
        } else {
            Step::Await
        }
    }

    /// Returns the contents that are to be fetched now, the next block's first.
    pub(in crate::subscription) fn awaited(&self) -> &[(ContentKind, Header)] {
        &self.awaited
    }

    /// Returns the length of the fetched contents and of the page, in bytes of JSON.
    pub(in crate::subscription) fn fetched_bytes(&self) -> usize {
        let contents = self.fetched.values().map(Content::json_len).sum::<usize>();
        contents + self.page.json_len()
    }

    /// Checks if the awaited contents at this place belong to the block that comes first.
    pub(in crate::subscription) fn awaits_next(&self, at: usize) -> bool {
        let block = |at: usize| self.awaited.get(at).map(|(_, header)| header.block);
        block(at) == block(0)
    }

    /// Checks if the next block waits for contents of this kind.
    pub(in crate::subscription) fn is_waiting_for(&self, kind: ContentKind) -> bool {
        let mut awaited = self.awaited.iter().enumerate();
        awaited.any(|(at, (own, _))| *own == kind && self.awaits_next(at))
    }

    /// Takes contents if they are awaited; `false` if they are not.
    pub(in crate::subscription) fn take(&mut self, block: B256, kind: ContentKind, content: Option<&Content>) -> bool {
        let is_it = |(own, header): &(ContentKind, Header)| *own == kind && header.block.hash == block;
        let before = self.awaited.len();
        self.awaited.retain(|own| !is_it(own));
        let is_awaited = self.awaited.len() < before;
        if let Some(content) = content.filter(|_| is_awaited) {
            self.fetched.insert((block, kind), content.clone());
        }
        is_awaited
    }
}
