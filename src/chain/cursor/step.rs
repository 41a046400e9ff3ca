//! Next step of a stream, from its place, the history and a page of older blocks.

use std::collections::VecDeque;

use super::{AbandonedBranch, Needs, Next, Retraction};
use crate::chain::history::{History, PublishedBlock};
use crate::chain::{BlockRef, Page};

/// Returns the next step before the first block at or above this number.
pub(super) fn from_number(number: u64, history: &History, page: &Page, needs: Needs) -> Next {
    let (Some(oldest), Some(tip)) = (history.oldest(), history.tip()) else {
        return Next::Ahead;
    };
    if number > tip.number() {
        // A stream that begins above the tip must not get the tip's logs, which live subscriptions are yet to be sent.
        let waits = needs.logs() && tip.awaits_logs;
        return match number - tip.number() > 1 {
            true => Next::Ahead,
            false if waits => Next::Pending,
            false => Next::Level,
        };
    }
    if number < oldest.number() && !page.joins(number, oldest.header.block) {
        let block = page.from(number);
        let block = block.filter(|published| page.suffices(published, needs));
        return block.map_or(Next::Below(number), |published| Next::Block(published.clone()));
    }
    match history.from(number) {
        Some(published) => in_memory(published, history, page, needs),
        None => Next::Below(number),
    }
}

/// Returns the step for a canonical block in memory, with its logs if they are needed.
fn in_memory(published: &PublishedBlock, history: &History, page: &Page, needs: Needs) -> Next {
    let block = published.header.block;
    if published.awaits_logs && needs.logs() {
        // A stream may join the live one before the tip's logs are delivered.
        let is_tip = history.tip().is_some_and(|tip| tip.header.block == block);
        return if is_tip {
            Next::Level
        } else {
            Next::Awaited(block.number)
        };
    }
    if published.logs.is_some() || !needs.logs() {
        return Next::Block(published.clone());
    }
    // Memory may have only the header.
    match page.find(block).and_then(|fetched| fetched.logs.clone()) {
        Some(logs) => Next::Block(PublishedBlock {
            logs: Some(logs),
            ..published.clone()
        }),
        None => Next::Below(block.number),
    }
}

/// Returns the next step behind a block that was fully delivered.
pub(super) fn behind(block: BlockRef, history: &History, page: &Page, needs: Needs) -> Next {
    // If the chain abandoned this block and adopted it again, live subscriptions get its logs once more: a stream that
    // has them joins after that.
    let published = history
        .at(block.number)
        .filter(|published| published.header.block == block);
    if matches!(needs, Needs::Logs | Needs::Blocks) && published.is_some_and(|published| published.awaits_logs) {
        return Next::Awaited(block.number);
    }
    let next = match history.oldest() {
        // No block is in between, however far apart the numbers are.
        Some(oldest) if oldest.header.follows(block) => in_memory(oldest, history, page, needs),
        _ => from_number(block.number.saturating_add(1), history, page, needs),
    };
    match next {
        Next::Block(published) if !published.header.follows(block) => Next::Lost(block),
        Next::Awaited(number)
            if history
                .at(number)
                .is_none_or(|published| !published.header.follows(block)) =>
        {
            Next::Lost(block)
        }
        // The tip has to be this very block, or the child of this block whose logs are being fetched.
        Next::Level | Next::Pending if !level(history, block) => Next::Lost(block),
        other => other,
    }
}

/// Returns the next step of a stream behind `block` that repeats the blocks from this number on.
pub(super) fn resent(number: u64, block: BlockRef, history: &History, page: &Page, needs: Needs) -> Next {
    match from_number(number, history, page, needs) {
        // The page shows another branch.
        Next::Block(published) if published.number() >= block.number && published.header.block != block => {
            Next::Lost(block)
        }
        other => other,
    }
}

/// Returns the next step within a block of which the logs up to an index were delivered.
pub(super) fn rest_of(block: BlockRef, up_to: u64, history: &History, page: &Page, needs: Needs) -> Next {
    match from_number(block.number, history, page, needs) {
        Next::Block(published) if published.header.block != block => Next::Lost(block),
        Next::Block(published) => match published.logs {
            Some(logs) => Next::Rest(logs, up_to),
            // The page left the logs out: none matches the stream's filter.
            None => behind(block, history, page, needs),
        },
        // The tip's logs are being fetched, and only a part of them is for this stream.
        Next::Level => Next::Pending,
        other => other,
    }
}

/// Checks if the live stream continues right behind this block.
fn level(history: &History, block: BlockRef) -> bool {
    history
        .tip()
        .is_some_and(|tip| tip.header.block == block || tip.header.follows(block))
}

/// Returns the delivered logs of dropped blocks up to this one, oldest first, and these blocks with their ancestor,
/// which is canonical or not in memory.
pub(super) fn dropped_since(
    history: &History,
    block: BlockRef,
    up_to: Option<u64>,
    logs: bool,
) -> (VecDeque<Retraction>, AbandonedBranch) {
    let mut blocks = VecDeque::new();
    let mut undo = VecDeque::new();
    let (mut at, mut up_to) = (block, up_to);
    while !history.is_canonical(at) {
        let Some(published) = history.find(at.hash).filter(|_| at.number > 0) else {
            break;
        };
        match &published.logs {
            Some(logs) => undo.push_front(Retraction {
                header: published.header.clone(),
                logs: logs.clone(),
                up_to,
            }),
            // Dropped before its logs were fetched: the stream got them from elsewhere.
            None if logs => break,
            None => {}
        }
        up_to = None;
        blocks.push_front(at);
        let parent = published.header.parent;
        // The parent's number is unknown as well; a search for it goes by the hash.
        let unknown = BlockRef {
            number: at.number - 1,
            hash: parent,
        };
        at = history.find(parent).map_or(unknown, |published| published.header.block);
    }
    (undo, AbandonedBranch { blocks, ancestor: at })
}
