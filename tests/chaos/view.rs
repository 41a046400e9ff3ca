//! A client's view: the heads and logs received and not retracted. The view determines the place to resume from after
//! a lost connection.

use alloy_primitives::B256;

use crate::history::{Delivered, Log, Start};

/// Number and hash of a block.
pub type At = (u64, B256);

/// The kinds of events that a client subscribes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kinds {
    pub heads: bool,
    pub logs: bool,
}

/// The current heads and logs, oldest first.
#[derive(Clone, Debug)]
pub struct View {
    kinds: Kinds,
    /// Number of the first block that the client covers.
    from: u64,
    heads: Vec<(At, B256)>,
    logs: Vec<(At, Log)>,
    /// Lowest block of the removals received last; `None` after any other event.
    removing: Option<u64>,
}

/// The places to resume from.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub heads: Start,
    pub logs: Start,
    /// Number of the block above which heads and logs are dropped first; `None` keeps all.
    pub keep: Option<u64>,
}

impl View {
    pub fn new(kinds: Kinds, from: u64) -> Self {
        Self {
            kinds,
            from,
            heads: Vec::new(),
            logs: Vec::new(),
            removing: None,
        }
    }

    pub fn delivered(&mut self, delivered: &Delivered) {
        self.removing = None;
        match delivered {
            Delivered::Head { number, hash, parent } => {
                while self.heads.last().is_some_and(|((_, last), _)| last != parent) {
                    self.heads.pop();
                }
                self.heads.push(((*number, *hash), *parent));
            }
            Delivered::Log {
                block,
                log,
                removed: false,
            } => self.logs.push((*block, log.clone())),
            Delivered::Log { .. } | Delivered::Subscribed { .. } => {}
        }
    }

    /// Applies a log with `removed: true`.
    pub fn removed(&mut self, block: At, log: &Log) {
        self.logs
            .retain(|(other, own)| *other != block || own.index != log.index);
        self.removing = Some(self.removing.map_or(block.0, |lowest| lowest.min(block.0)));
    }

    pub fn last_head(&self) -> Option<At> {
        self.heads.last().map(|(block, _)| *block)
    }

    pub fn last_log(&self) -> Option<(B256, u64)> {
        self.logs.last().map(|((_, hash), log)| (*hash, log.index))
    }

    /// Completes the removals after a lost connection. Removals arrive oldest first, so the missing ones are those of
    /// all remaining logs from the lowest removed block on. Heads from that block on are dropped too, although no
    /// other head has replaced them. Returns the missing removals, and `true` if heads were dropped.
    pub fn take_back(&mut self) -> (Vec<Delivered>, bool) {
        let Some(lowest) = self.removing.take() else {
            return (Vec::new(), false);
        };
        let before = self.heads.len();
        self.heads.retain(|((number, _), _)| *number < lowest);
        let at = self.logs.partition_point(|((number, _), _)| *number < lowest);
        let rest = self.logs.drain(at..);
        let rest = rest.map(|(block, log)| Delivered::Log {
            block,
            log,
            removed: true,
        });
        (rest.collect(), self.heads.len() < before)
    }

    /// Returns the places to resume from: after the last event, or `back` blocks before.
    pub fn place(&self, back: usize) -> Place {
        let after = |block: B256, log| Start::After(block, log);
        let from = Start::FromBlock(self.from);
        if back == 0 {
            return Place {
                heads: self.last_head().map_or(from, |(_, hash)| after(hash, None)),
                logs: self.last_log().map_or(from, |(hash, index)| after(hash, Some(index))),
                keep: None,
            };
        }
        let mut blocks: Vec<At> = match self.kinds.heads {
            true => self.heads.iter().map(|(block, _)| *block).collect(),
            false => self.logs.iter().map(|(block, _)| *block).collect(),
        };
        blocks.dedup();
        let older = blocks.len().checked_sub(1 + back).map(|at| blocks[at]);
        let start = older.map_or(from, |(_, hash)| after(hash, None));
        Place {
            heads: start,
            logs: start,
            keep: Some(older.map_or(0, |(number, _)| number)),
        }
    }

    /// Drops all heads and logs above this block.
    pub fn keep(&mut self, number: u64) {
        self.heads.retain(|(block, _)| block.0 <= number);
        self.logs.retain(|(block, _)| block.0 <= number);
    }

    /// Returns a record with exactly the current view, each head followed by its logs.
    pub fn record(&self) -> Vec<Delivered> {
        let heads = self.heads.iter().map(|((number, hash), parent)| {
            let (number, hash, parent) = (*number, *hash, *parent);
            ((number, 0), Delivered::Head { number, hash, parent })
        });
        let logs = self.logs.iter().map(|(block, log)| {
            let delivered = Delivered::Log {
                block: *block,
                log: log.clone(),
                removed: false,
            };
            ((block.0, 1), delivered)
        });
        let mut all: Vec<_> = heads.chain(logs).collect();
        all.sort_by_key(|(place, _)| *place);
        all.into_iter().map(|(_, delivered)| delivered).collect()
    }
}
