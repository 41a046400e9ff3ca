//! Stream of events as a query of `GET /events` selects it, and what its client has of it.

use std::collections::HashSet;

use alloy_primitives::{Address, B256};
use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::Value;

use crate::blocks::{BlockShape, Blocks};
use crate::client::{self, HeadShape, LogShape};
use crate::history::{self, Canonical, Delivered, Log, Record, Start};
use crate::plan::{Kind, Selection};
use crate::trailing::Level;

/// Events of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    Heads,
    Logs(Selection),
    /// `blockLogs`, at the head or at a level of finality.
    Blocks(Level),
}

impl Of {
    /// Draws the stream of the client with this number: each of four has another form.
    pub fn draw(at: u64, blocks_in_memory: u64, rng: &mut StdRng) -> Self {
        match at {
            0 => Self::Heads,
            1 => Self::Logs(Selection::draw(rng)),
            2 => Self::Blocks(Level::Head),
            _ => {
                let depth = rng.random_range(1..=blocks_in_memory.min(24));
                Self::Blocks([Level::Safe, Level::Confirmations(depth)][rng.random_range(0..2)])
            }
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self::Heads => Kind::Heads,
            Self::Logs(selection) => Kind::Logs(selection),
            Self::Blocks(_) => Kind::Logs(Selection::All),
        }
    }

    pub fn level(self) -> Level {
        match self {
            Self::Blocks(level) => level,
            Self::Heads | Self::Logs(_) => Level::Head,
        }
    }

    /// Returns the name of the kind of events.
    pub fn name(self) -> &'static str {
        match self {
            Self::Heads => "heads",
            Self::Logs(_) => "logs",
            Self::Blocks(_) => "blockLogs",
        }
    }

    pub fn query(self, contracts: &[Address]) -> String {
        match self {
            Self::Heads | Self::Logs(Selection::All) => format!("kind={}", self.name()),
            Self::Logs(Selection::Contracts(count)) => {
                let all: Vec<String> = contracts[..count].iter().map(Address::to_string).collect();
                format!("kind=logs&address={}", all.join(","))
            }
            Self::Logs(Selection::Transfers) => format!("kind=logs&topic0={}", client::transfer()),
            Self::Blocks(level) => {
                let options = level.options();
                let options = options.as_object().into_iter().flatten();
                let options = options.map(|(name, value)| match value {
                    Value::String(text) => format!("&{name}={text}"),
                    other => format!("&{name}={other}"),
                });
                format!("kind=blockLogs{}", options.collect::<String>())
            }
        }
    }
}

/// Everything that the client has of its stream.
#[derive(Debug)]
pub struct Story {
    of: Of,
    contracts: Vec<Address>,
    current: Chapter,
    /// Records whose position could not be served any more, each with its first block.
    ended: Vec<(Record, u64)>,
}

/// Events that the client has since it began anew last.
#[derive(Debug, Default)]
struct Chapter {
    /// Heads or logs; with the number of the first block that they must cover.
    record: Option<(Record, u64)>,
    /// Logs that are applied.
    logs: HashSet<(B256, u64)>,
    head: Option<B256>,
    blocks: Blocks,
}

impl Story {
    pub fn new(of: Of, contracts: &[Address]) -> Self {
        Self {
            of,
            contracts: contracts.to_vec(),
            current: Chapter::default(),
            ended: Vec::new(),
        }
    }

    /// Checks if the client has begun since the last end.
    pub fn has_begun(&self) -> bool {
        self.current.record.is_some()
    }

    /// Ends the story so far: what follows has a gap before it.
    pub fn end(&mut self) {
        let ended = std::mem::take(&mut self.current);
        self.ended.extend(ended.record);
    }

    /// Begins, or goes on behind what came before. The client must have all from the block with number `first` on, if it
    /// begins.
    pub fn begin(&mut self, resumes: bool, first: u64) {
        let (record, _) = self.current.record.get_or_insert((Record::default(), first));
        record.delivered.push(Delivered::Subscribed {
            heads: self.of == Of::Heads,
            logs: matches!(self.of, Of::Logs(_)),
            from: if resumes {
                Start::After(B256::ZERO, None)
            } else {
                Start::Live
            },
        });
        self.current.blocks.begin(resumes);
    }

    /// Takes an event.
    ///
    /// # Errors
    /// The contradiction.
    pub fn take(&mut self, kind: &str, data: &str) -> Result<(), String> {
        let unreadable = |error| format!("an event that cannot be read ({error}): {data}");
        if kind != self.of.name() {
            return Err(format!("event {kind} of no subscription: {data}"));
        }
        let chapter = &mut self.current;
        let delivered = match self.of {
            Of::Heads => {
                let head: HeadShape = serde_json::from_str(data).map_err(unreadable)?;
                chapter.head = Some(head.hash);
                Delivered::Head {
                    number: head.number.to(),
                    hash: head.hash,
                    parent: head.parent_hash,
                }
            }
            Of::Logs(_) => {
                let shape: LogShape = serde_json::from_str(data).map_err(unreadable)?;
                let (block, log, removed) = (shape.block(), shape.log(), shape.removed);
                if removed {
                    chapter.logs.remove(&(block.1, log.index));
                } else {
                    chapter.logs.insert((block.1, log.index));
                }
                Delivered::Log { block, log, removed }
            }
            Of::Blocks(level) => {
                let shape: BlockShape = serde_json::from_str(data).map_err(unreadable)?;
                if shape.removed && level != Level::Head {
                    return Err(format!("a final block was taken back: {data}"));
                }
                return chapter.blocks.whole(&shape);
            }
        };
        if let Some((record, _)) = &mut chapter.record {
            record.delivered.push(delivered);
        }
        Ok(())
    }

    /// Checks if the client has everything of a chain that stands still.
    pub fn has_arrived(&self, canonical: &Canonical) -> bool {
        let (Some(newest), Some((_, from))) = (canonical.blocks.last(), &self.current.record) else {
            return false;
        };
        let own = &self.current;
        match self.of {
            Of::Heads => own.head == Some(newest.hash) || newest.number < *from,
            Of::Logs(_) => {
                let due = canonical.blocks.iter().filter(|block| block.number >= *from);
                due.into_iter().all(|block| {
                    let logs = block.logs.iter().filter(|log| self.selects(log));
                    logs.into_iter().all(|log| own.logs.contains(&(block.hash, log.index)))
                })
            }
            Of::Blocks(level) => {
                let top = newest.number.saturating_sub(level.depth());
                let last = canonical.blocks.iter().rev().find(|block| block.number <= top);
                // Numbers may have holes, so that the first one need not be of a block.
                let is_before_its_first = own.blocks.list.is_empty() && last.is_none_or(|last| last.number < *from);
                is_before_its_first || own.blocks.last() == last.map(|block| block.hash)
            }
        }
    }

    /// Returns everything that contradicts the chain.
    pub fn faults(&self, canonical: &Canonical) -> Vec<String> {
        let selects = |log: &Log| self.selects(log);
        if let Of::Blocks(_) = self.of {
            let blocks = &self.current.blocks;
            let first = self.current.record.as_ref().map_or(u64::MAX, |(_, first)| *first);
            return [blocks.missing(canonical, first), blocks.faults(canonical)].concat();
        }
        let ended = self.ended.iter();
        let ended = ended.map(|(record, from)| history::check_cut(record, canonical, selects, *from));
        let current = self.current.record.iter();
        let current = current.map(|(record, from)| history::check(record, canonical, selects, *from));
        let bad = ended.chain(current).filter(|verdict| !verdict.is_clean());
        bad.map(|verdict| verdict.to_string()).collect()
    }

    fn selects(&self, log: &Log) -> bool {
        client::selects(self.of.kind(), &self.contracts, log)
    }
}
