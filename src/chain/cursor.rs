//! A place in the chain from which a stream of events goes on: what comes next, whatever the chain did meanwhile. No I/O,
//! no clock.

use std::collections::VecDeque;
use std::sync::Arc;

use alloy_primitives::Bloom;

use super::history::{History, Published};
use super::{BlockLogs, BlockRef, Header, Located};

/// How far a stream was told, and what it was never told of.
#[derive(Clone, Debug)]
pub struct Cursor {
    /// Nothing below this block was told, so nothing below it is taken back.
    first: u64,
    at: At,
    /// Told, above where it stands, oldest first: a stream of heads has nothing to take back, so where the chain comes the
    /// same way again there is nothing to tell.
    again: VecDeque<BlockRef>,
}

#[derive(Clone, Debug)]
enum At {
    /// The next block is the canonical one of this number.
    Before(u64),
    /// This block was told: all of it, or its logs up to this index.
    Behind(BlockRef, Option<u64>),
    /// These are to be taken back, oldest first; then the stream stands behind the ancestor.
    Undoing(VecDeque<Undo>, Left),
}

/// A branch that was left, as far as a stream was told of it.
#[derive(Clone, Debug)]
pub struct Left {
    /// Its blocks, oldest first.
    pub blocks: VecDeque<BlockRef>,
    /// The block from which it grew.
    pub ancestor: BlockRef,
}

/// Logs that were told and are no longer true.
#[derive(Clone, Debug)]
pub struct Undo {
    /// The dropped block's.
    pub logs: Arc<BlockLogs>,
    /// Only those up to this index were told.
    pub up_to: Option<u64>,
}

/// What a stream is made of.
#[derive(Clone, Copy)]
pub enum Needs<'a> {
    /// Headers alone.
    Headers,
    /// Logs, unless this says that a block with such a bloom has none for the stream.
    Logs(&'a (dyn Fn(&Bloom) -> bool + Sync)),
}

/// What comes next in a stream.
#[derive(Clone, Debug)]
pub enum Next {
    /// Logs are taken back.
    Undo(Undo),
    /// The logs of a block after this index.
    Rest(Arc<BlockLogs>, u64),
    /// A whole block.
    Block(Published),
    /// Nothing: what is published from now on is for this stream.
    Level,
    /// Nothing before the chain goes on, or the tip's logs are there.
    Pending,
    /// Nothing yet: the chain has not come so far.
    Ahead,
    /// The block of this number, which is older than memory.
    Below(u64),
    /// The stream stands behind a block that memory does not know, or behind a dropped branch that grew from one.
    Lost(BlockRef),
}

/// Blocks older than memory, fetched from a node: each the parent of the next, as far as the node told the truth.
pub type Page = VecDeque<Published>;

fn in_page(page: &Page, number: u64) -> Option<&Published> {
    let first = page.front()?.header.block.number;
    page.get(usize::try_from(number.checked_sub(first)?).ok()?)
}

impl Cursor {
    /// Goes on behind this block, of which all logs were told or those up to an index.
    #[must_use]
    pub fn behind(block: BlockRef, up_to: Option<u64>) -> Self {
        Self {
            first: 0,
            at: At::Behind(block, up_to),
            again: VecDeque::new(),
        }
    }

    /// Begins with the block of this number.
    #[must_use]
    pub fn from(number: u64) -> Self {
        Self {
            first: number,
            at: At::Before(number),
            again: VecDeque::new(),
        }
    }

    /// Takes back what was told of a branch that was left, oldest first, and goes on behind its ancestor.
    pub fn retrace(&mut self, undo: impl IntoIterator<Item = Undo>, mut left: Left) {
        let first = self.first;
        let undo = undo.into_iter().filter(|undo| undo.logs.block.number >= first);
        left.blocks.retain(|block| block.number >= first);
        self.at = At::Undoing(undo.collect(), left);
    }

    /// The first block that it told, 0 for all.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.first
    }

    /// How much of this block was told, where the stream stands behind it.
    #[must_use]
    pub fn told_of(&self, asked: BlockRef) -> Option<u64> {
        match self.at {
            At::Behind(block, up_to) if block == asked => up_to,
            _ => None,
        }
    }

    /// The block that memory did not know was found; `false` where that leads no further: it is canonical, and memory has
    /// not come to see it yet.
    pub fn found(&mut self, history: &History, asked: BlockRef, located: Located, logs: bool) -> bool {
        let At::Behind(block, up_to) = self.at else { return true };
        if block == asked && located.left.ancestor == asked {
            return false;
        }
        let Located { mut undo, mut left } = located;
        if block != asked {
            let (newer, since) = dropped_since(history, block, up_to, logs);
            if since.ancestor != asked {
                // The chain went on meanwhile: another look tells.
                return true;
            }
            undo.extend(newer);
            left.blocks.extend(since.blocks);
        }
        self.retrace(undo, left);
        true
    }

    /// What comes next; it stays next until [`Self::told`].
    pub fn next(&mut self, history: &History, page: &Page, needs: Needs<'_>) -> Next {
        let logs = needs.any();
        loop {
            match &mut self.at {
                At::Undoing(undo, left) => match undo.front() {
                    Some(undo) if logs => return Next::Undo(undo.clone()),
                    _ => {
                        for block in left.blocks.drain(..).rev().filter(|_| !logs) {
                            self.again.push_front(block);
                        }
                        self.at = At::Behind(left.ancestor, None);
                    }
                },
                At::Before(number) => return at_number(*number, history, page, needs),
                &mut At::Behind(block, up_to) => {
                    let known = history.is_canonical(block)
                        || in_page(page, block.number).is_some_and(|own| own.header.block == block);
                    if !known {
                        let (undo, left) = dropped_since(history, block, up_to, logs);
                        if history.is_canonical(left.ancestor) {
                            self.retrace(undo, left);
                            continue;
                        }
                        if left.ancestor != block {
                            // Removals come oldest first, so those of the branch's older part have to be found before.
                            return Next::Lost(left.ancestor);
                        }
                    }
                    match history.tip() {
                        None => return Next::Ahead,
                        // The chain may yet come to it, or have left it.
                        Some(tip) if tip.header.block.number < block.number => return Next::Lost(block),
                        Some(_) => {}
                    }
                    let next = match up_to.filter(|_| logs) {
                        Some(up_to) => rest_of(block, up_to, history, page, needs),
                        None => behind(block, history, page, needs),
                    };
                    match (&next, self.again.front()) {
                        (Next::Block(own), Some(told)) if own.header.block == *told => {
                            self.at = At::Behind(*told, None);
                            self.again.pop_front();
                        }
                        // Those that are live are told whatever comes: it waits for what takes the place of these.
                        (Next::Level, Some(_)) => return Next::Pending,
                        _ => return next,
                    }
                }
            }
        }
    }

    /// What was next is told.
    pub fn told(&mut self, next: &Next) {
        match (next, &mut self.at) {
            (Next::Undo(_), At::Undoing(undo, _)) => drop(undo.pop_front()),
            (Next::Rest(logs, _), _) => self.at = At::Behind(logs.block, None),
            (Next::Block(own), _) => {
                self.at = At::Behind(own.header.block, None);
                self.again.clear();
            }
            _ => {}
        }
    }
}

impl Needs<'_> {
    /// Whether any logs are needed.
    #[must_use]
    pub fn any(&self) -> bool {
        matches!(self, Self::Logs(_))
    }

    /// Whether a block's logs are needed. An unknown or empty bloom tells nothing: there are chains that leave it so.
    #[must_use]
    pub fn logs_of(&self, header: &Header) -> bool {
        match self {
            Self::Headers => false,
            Self::Logs(may_match) => header.telling_bloom().is_none_or(may_match),
        }
    }
}

/// The block of this number.
fn at_number(number: u64, history: &History, page: &Page, needs: Needs<'_>) -> Next {
    let logs = needs.any();
    let (Some(oldest), Some(tip)) = (history.oldest(), history.tip()) else {
        return Next::Ahead;
    };
    let newest = tip.header.block.number;
    if number > newest {
        // Logs of the tip that are on their way are not for a stream that begins behind it.
        let waits = logs && tip.logs.is_none();
        return match number > newest + 1 {
            true => Next::Ahead,
            false if waits => Next::Pending,
            false => Next::Level,
        };
    }
    let block = if number < oldest.header.block.number {
        in_page(page, number).filter(|own| own.logs.is_some() || !needs.logs_of(&own.header))
    } else {
        history.at(number)
    };
    match block {
        // The tip, for of every other block in memory they are there.
        Some(own) if own.logs.is_none() && logs && number == newest => Next::Level,
        Some(own) => Next::Block(own.clone()),
        None => Next::Below(number),
    }
}

/// What follows a block of which everything was told.
fn behind(block: BlockRef, history: &History, page: &Page, needs: Needs<'_>) -> Next {
    match at_number(block.number + 1, history, page, needs) {
        Next::Block(own) if own.header.parent != block.hash => Next::Lost(block),
        // The tip: it has to be this very block, or the parent of the one whose logs are on their way.
        Next::Level | Next::Pending if !level(history, block) => Next::Lost(block),
        other => other,
    }
}

/// What follows in a block of which logs were told up to an index.
fn rest_of(block: BlockRef, up_to: u64, history: &History, page: &Page, needs: Needs<'_>) -> Next {
    match at_number(block.number, history, page, needs) {
        Next::Block(own) if own.header.block != block => Next::Lost(block),
        Next::Block(own) => match own.logs {
            Some(logs) => Next::Rest(logs, up_to),
            // None that the stream wants.
            None => behind(block, history, page, needs),
        },
        // Its logs are on their way, and not all of them are for this stream.
        Next::Level => Next::Pending,
        other => other,
    }
}

/// Whether what is published from now on follows this block.
fn level(history: &History, block: BlockRef) -> bool {
    history
        .tip()
        .is_some_and(|tip| tip.header.block == block || tip.header.parent == block.hash)
}

/// What was told of dropped blocks up to this one, oldest first, and these blocks; they grew from one that is canonical, or
/// that memory does not know.
fn dropped_since(history: &History, block: BlockRef, up_to: Option<u64>, logs: bool) -> (VecDeque<Undo>, Left) {
    let mut blocks = VecDeque::new();
    let mut undo = VecDeque::new();
    let (mut at, mut up_to) = (block, up_to);
    while !history.is_canonical(at) {
        let Some(own) = history.find(at.hash).filter(|_| at.number > 0) else {
            break;
        };
        match &own.logs {
            Some(logs) => undo.push_front(Undo {
                logs: logs.clone(),
                up_to,
            }),
            // It was dropped before its logs were there: the stream has them from elsewhere.
            None if logs => break,
            None => {}
        }
        up_to = None;
        blocks.push_front(at);
        at = BlockRef {
            number: at.number - 1,
            hash: own.header.parent,
        };
    }
    (undo, Left { blocks, ancestor: at })
}
