//! Filters polled by HTTP clients.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use super::{
    block::{Block, Transaction},
    filter::LogFilter,
    shape::{self, json},
};

/// Maximum number of filters; above it the oldest is dropped. geth drops filters by time, and this node has no clock.
const MAX_FILTERS: usize = 1_024;
/// Maximum number of changes kept by an unpolled filter; the oldest are dropped first.
const MAX_CHANGES: usize = 10_000;

/// The events that a filter collects.
#[derive(Debug)]
pub(super) enum Polled {
    Blocks,
    Pending,
    Logs(LogFilter),
}

/// The filters, by id.
#[derive(Debug, Default)]
pub(super) struct Polling {
    filters: BTreeMap<u64, Filter>,
    made: u64,
}

#[derive(Debug)]
struct Filter {
    polled: Polled,
    /// JSON texts since the last poll.
    changes: VecDeque<Arc<str>>,
}

impl Polling {
    /// Creates a filter and returns its id.
    pub(super) fn make(&mut self, polled: Polled) -> u64 {
        self.made += 1;
        self.filters.insert(
            self.made,
            Filter {
                polled,
                changes: VecDeque::new(),
            },
        );
        if self.filters.len() > MAX_FILTERS {
            self.filters.pop_first();
        }
        self.made
    }

    pub(super) fn remove(&mut self, id: u64) -> bool {
        self.filters.remove(&id).is_some()
    }

    /// Takes the events since the last poll as a JSON array; returns `None` if there is no such filter.
    pub(super) fn take(&mut self, id: u64) -> Option<String> {
        let changes = std::mem::take(&mut self.filters.get_mut(&id)?.changes);
        let texts: Vec<&str> = changes.iter().map(AsRef::as_ref).collect();
        Some(format!("[{}]", texts.join(",")))
    }

    pub(super) fn log_filter(&self, id: u64) -> Option<&LogFilter> {
        match &self.filters.get(&id)?.polled {
            Polled::Logs(filter) => Some(filter),
            _ => None,
        }
    }

    pub(super) fn collect_block(&mut self, block: &Block) {
        self.collect(|polled| matches!(polled, Polled::Blocks).then(|| json(&block.hash())));
    }

    pub(super) fn collect_pending(&mut self, transaction: &Transaction) {
        self.collect(|polled| matches!(polled, Polled::Pending).then(|| json(&transaction.hash())));
    }

    pub(super) fn collect_logs(&mut self, block: &Block, removed: bool) {
        if self
            .filters
            .values()
            .any(|filter| matches!(filter.polled, Polled::Logs(_)))
        {
            for placed in block.placed_logs() {
                self.collect(|polled| match polled {
                    Polled::Logs(filter) if filter.covers(block.number()) && filter.matches(placed.log) => {
                        Some(json(&shape::log(block, placed, removed)))
                    }
                    _ => None,
                });
            }
        }
    }

    fn collect(&mut self, text: impl Fn(&Polled) -> Option<String>) {
        for filter in self.filters.values_mut() {
            if let Some(text) = text(&filter.polled) {
                if filter.changes.len() == MAX_CHANGES {
                    filter.changes.pop_front();
                }
                filter.changes.push_back(text.into());
            }
        }
    }
}
