//! A place in the chain from which a stream of events goes on: what comes next, whatever the chain did meanwhile. No I/O,
//! no clock.

use std::collections::VecDeque;
use std::sync::Arc;

use super::history::{History, Published};
use super::{BlockLogs, BlockRef, Located, Page};

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
    /// The next block is the first canonical one at or above this number.
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

/// Parts of blocks that a stream needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Headers alone.
    Headers,
    /// Headers and logs. A bloom does not tell that there are none (issue 11: Polygon, HyperEVM).
    Logs,
    /// The same, and the page was fetched for this stream's filter too: what it leaves out is not for the stream. In memory
    /// blocks have all their logs, for they may be dropped and what was told of them taken back.
    MatchingLogs,
}

impl Needs {
    fn logs(self) -> bool {
        self != Self::Headers
    }
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
    /// Nothing before the logs of the block of this number are delivered to live subscriptions.
    Awaited(u64),
    /// Nothing yet: the chain has not come so far.
    Ahead,
    /// The first block at or above this number, which is older than memory, or its logs, which memory has not: see
    /// [`History::gap`].
    Below(u64),
    /// The stream stands behind a block that memory does not know, or behind a dropped branch that grew from one.
    Lost(BlockRef),
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

    /// Begins with the first block at or above this number.
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

    /// Checks if memory lacks logs of dropped blocks on the way from this block to the canonical chain. Their removal cannot
    /// be sent unless a node still has them.
    #[must_use]
    pub fn lacks_logs(history: &History, block: BlockRef) -> bool {
        let (_, left) = dropped_since(history, block, None, true);
        history.find(left.ancestor.hash).is_some() && !history.is_canonical(left.ancestor)
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
    pub fn next(&mut self, history: &History, page: &Page, needs: Needs) -> Next {
        let logs = needs.logs();
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
                At::Before(number) => return from_number(*number, history, page, needs),
                &mut At::Behind(block, up_to) => {
                    let known = history.is_canonical(block) || page.find(block).is_some();
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

/// The first block at or above this number.
fn from_number(number: u64, history: &History, page: &Page, needs: Needs) -> Next {
    let (Some(oldest), Some(tip)) = (history.oldest(), history.tip()) else {
        return Next::Ahead;
    };
    if number > tip.number() {
        // Logs of the tip that are on their way are not for a stream that begins behind it.
        let waits = needs.logs() && tip.awaits_logs;
        return match number - tip.number() > 1 {
            true => Next::Ahead,
            false if waits => Next::Pending,
            false => Next::Level,
        };
    }
    if number < oldest.number() && !page.joins(number, oldest.header.block) {
        let block = page.from(number);
        let block = block.filter(|own| page.suffices(own, needs));
        return block.map_or(Next::Below(number), |own| Next::Block(own.clone()));
    }
    match history.from(number) {
        Some(own) => in_memory(own, history, page, needs),
        None => Next::Below(number),
    }
}

/// A canonical block that is in memory, with its logs where they are needed.
fn in_memory(own: &Published, history: &History, page: &Page, needs: Needs) -> Next {
    let block = own.header.block;
    if own.awaits_logs && needs.logs() {
        // Of the tip, a stream may join before they are delivered.
        let is_tip = history.tip().is_some_and(|tip| tip.header.block == block);
        return if is_tip {
            Next::Level
        } else {
            Next::Awaited(block.number)
        };
    }
    if own.logs.is_some() || !needs.logs() {
        return Next::Block(own.clone());
    }
    // Memory may have the header alone.
    match page.find(block).and_then(|fetched| fetched.logs.clone()) {
        Some(logs) => Next::Block(Published {
            logs: Some(logs),
            ..own.clone()
        }),
        None => Next::Below(block.number),
    }
}

/// The next after a block of which everything was told.
fn behind(block: BlockRef, history: &History, page: &Page, needs: Needs) -> Next {
    // The chain left this block and came back to it: its logs are delivered to live subscriptions once more, so a stream that
    // has them joins behind them.
    let own = history.at(block.number).filter(|own| own.header.block == block);
    if needs == Needs::Logs && own.is_some_and(|own| own.awaits_logs) {
        return Next::Awaited(block.number);
    }
    let next = match history.oldest() {
        // Nothing lies between, however far apart their numbers are.
        Some(oldest) if oldest.header.follows(block) => in_memory(oldest, history, page, needs),
        _ => from_number(block.number.saturating_add(1), history, page, needs),
    };
    match next {
        Next::Block(own) if !own.header.follows(block) => Next::Lost(block),
        Next::Awaited(number) if history.at(number).is_none_or(|own| !own.header.follows(block)) => Next::Lost(block),
        // The tip: it has to be this very block, or the parent of the one whose logs are on their way.
        Next::Level | Next::Pending if !level(history, block) => Next::Lost(block),
        other => other,
    }
}

/// The rest of a block of which logs were told up to an index.
fn rest_of(block: BlockRef, up_to: u64, history: &History, page: &Page, needs: Needs) -> Next {
    match from_number(block.number, history, page, needs) {
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
        .is_some_and(|tip| tip.header.block == block || tip.header.follows(block))
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
        let parent = own.header.parent;
        // The number of one that memory does not know is not known either; whoever is asked for it looks at the hash.
        let unknown = BlockRef {
            number: at.number - 1,
            hash: parent,
        };
        at = history.find(parent).map_or(unknown, |own| own.header.block);
    }
    (undo, Left { blocks, ancestor: at })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use alloy_primitives::{B256, Bloom};
    use bytes::Bytes;
    use expect_test::{Expect, expect};

    use super::super::{Gap, Header};
    use super::*;

    fn block(number: u64) -> BlockRef {
        let hash = B256::from(alloy_primitives::U256::from(number + 1000));
        BlockRef { number, hash }
    }

    /// `2 5- 8~`: blocks 2, 5 and 8, each the parent of the next, 5 without its logs, 8 with logs that are still to be
    /// delivered to live subscriptions; they grow on block 1.
    fn chain(numbers: &str) -> VecDeque<Published> {
        let mut parent = block(1).hash;
        let grow = |word: &str| {
            let block = block(word.trim_end_matches(['-', '~']).parse().expect("a number"));
            let header = Header {
                block,
                parent: std::mem::replace(&mut parent, block.hash),
                bloom: Some(Box::new(Bloom::repeat_byte(1))),
                timestamp: 0,
                json: Bytes::new(),
                seen: Instant::now(),
            };
            let logs = (!word.ends_with(['-', '~'])).then(|| Arc::new(BlockLogs::empty(block, header.seen)));
            Published {
                header,
                logs,
                awaits_logs: word.ends_with('~'),
                lacks_logs: false,
                sequence: 0,
            }
        };
        numbers.split_whitespace().map(grow).collect()
    }

    /// The blocks of `all` that are in memory; the others below are on the page that is fetched when it is asked for.
    #[track_caller]
    fn check(all: &str, in_memory: usize, mut cursor: Cursor, logs: bool, expect: Expect) {
        let all = chain(all);
        let mut history = History::new(100);
        for own in all.iter().skip(all.len() - in_memory) {
            history.head(own.header.clone());
            if let Some(logs) = &own.logs {
                history.logs(logs.clone());
            }
            if own.awaits_logs {
                history.await_logs(own.header.block.hash);
            }
        }
        let needs = || match logs {
            true => Needs::Logs,
            false => Needs::Headers,
        };
        let (mut page, mut out) = (Page::default(), Vec::new());
        for _ in 0..20 {
            let next = cursor.next(&history, &page, needs());
            out.push(match &next {
                Next::Block(own) => own.number().to_string(),
                Next::Rest(logs, up_to) => format!("{} after {up_to}", logs.block.number),
                Next::Below(number) => {
                    let joined = history.oldest().map(|own| own.header.block.hash);
                    match history.gap(*number) {
                        Some(Gap::Below(first, above)) => {
                            let below = |own: &&Published| (first..above.block.number).contains(&own.number());
                            page = Page::new(first, all.iter().filter(below).cloned().collect());
                            page = joined.map_or(page.clone(), |next| page.joined(next));
                            format!("[below {number}]")
                        }
                        Some(Gap::Logs(headers)) => {
                            let numbers: Vec<String> = headers.iter().map(|own| own.block.number.to_string()).collect();
                            let fetched = headers.into_iter().map(|header| Published {
                                logs: Some(Arc::new(BlockLogs::empty(header.block, header.seen))),
                                header,
                                awaits_logs: false,
                                lacks_logs: false,
                                sequence: 0,
                            });
                            page = Page::new(*number, fetched.collect());
                            format!("[logs of {}]", numbers.join(" "))
                        }
                        None => "[nothing]".to_owned(),
                    }
                }
                other => format!("{other:?}").to_lowercase(),
            });
            if !matches!(next, Next::Block(_) | Next::Rest(..) | Next::Below(_)) {
                break;
            }
            cursor.told(&next);
        }
        expect.assert_eq(&out.join(" "));
    }

    #[test]
    fn a_stream_begins_with_the_first_block_there_is() {
        for number in 6..=9 {
            check("2 5 9 12", 4, Cursor::from(number), true, expect!["9 12 level"]);
        }
        check(
            "2 5 9 12",
            4,
            Cursor::from(0),
            true,
            expect!["[below 0] 2 5 9 12 level"],
        );
        check("2 5 9 12", 4, Cursor::from(13), true, expect!["level"]);
        check("2 5 9 12", 4, Cursor::from(14), true, expect!["ahead"]);
        check("2 5 9 12~", 4, Cursor::from(10), true, expect!["level"]);
        check("2 5 9 12-", 4, Cursor::from(10), true, expect!["[logs of 12] 12 level"]);
        check("2 5 9~ 12~", 4, Cursor::from(4), true, expect!["5 awaited(9)"]);
        check("2 5 9 12~", 4, Cursor::from(10), false, expect!["12 level"]);
        check("2 5 9 12-", 4, Cursor::from(13), true, expect!["level"]);
        check("2 5 9 12~", 4, Cursor::from(13), true, expect!["pending"]);
    }

    #[test]
    fn a_stream_goes_on_with_the_child_whatever_its_number() {
        check(
            "2 5 9 12",
            4,
            Cursor::behind(block(5), None),
            true,
            expect!["9 12 level"],
        );
        check(
            "2 5 9 12",
            4,
            Cursor::behind(block(5), Some(3)),
            true,
            expect!["5 after 3 9 12 level"],
        );
        check("2 5 9 12", 4, Cursor::behind(block(12), None), true, expect!["level"]);
        // The oldest in memory is its child: nothing has to be fetched.
        check(
            "2 5 9 12",
            2,
            Cursor::behind(block(5), None),
            true,
            expect!["9 12 level"],
        );
        check("2 5 9 12~", 2, Cursor::behind(block(9), None), true, expect!["level"]);
        check("2 5 9 12~", 1, Cursor::behind(block(9), None), true, expect!["level"]);
    }

    #[test]
    fn what_is_older_than_memory_joins_it_across_a_hole() {
        check(
            "2 5 9 12",
            2,
            Cursor::from(0),
            true,
            expect!["[below 0] 2 5 9 12 level"],
        );
        check("2 5 9 12", 2, Cursor::from(6), true, expect!["[below 6] 9 12 level"]);
        check(
            "2 5 9 12",
            2,
            Cursor::behind(block(2), None),
            false,
            expect!["[below 3] 5 9 12 level"],
        );
        check(
            "2 5 9 12",
            2,
            Cursor::behind(block(2), Some(0)),
            true,
            expect!["[below 2] 2 after 0 5 9 12 level"],
        );
    }

    #[test]
    fn logs_that_memory_has_not_are_fetched() {
        check(
            "2 5- 9- 12",
            4,
            Cursor::from(2),
            true,
            expect!["2 [logs of 5 9] 5 9 12 level"],
        );
        check("2 5- 9- 12", 4, Cursor::from(2), false, expect!["2 5 9 12 level"]);
        check(
            "2- 5 9- 12",
            3,
            Cursor::behind(block(5), Some(1)),
            true,
            expect!["5 after 1 [logs of 9] 9 12 level"],
        );
        check(
            "2- 5- 9- 12~",
            4,
            Cursor::behind(block(5), Some(1)),
            true,
            expect!["[logs of 5 9] 5 after 1 9 level"],
        );
        check(
            "2- 5- 9- 12~",
            4,
            Cursor::behind(block(9), None),
            true,
            expect!["level"],
        );
    }

    #[test]
    fn what_a_page_leaves_out_is_not_for_the_filters_it_was_fetched_for() {
        let all = chain("2- 5 9- 12- 20");
        let mut history = History::new(100);
        history.head(all[3].header.clone());
        history.head(all[4].header.clone());
        let above = all[3].header.block.hash;
        let fetched = Page::new(2, all.iter().take(3).cloned().collect()).joined(above);
        let sifted = fetched.clone().sifted();
        for (page, needs, at, expect) in [
            (&fetched, Needs::Headers, 2, expect!["2"]),
            (&fetched, Needs::Logs, 2, expect!["below(2)"]),
            (&fetched, Needs::MatchingLogs, 2, expect!["below(2)"]),
            (&sifted, Needs::MatchingLogs, 2, expect!["2"]),
            // Another filter came meanwhile.
            (&sifted, Needs::Logs, 2, expect!["below(2)"]),
            (&sifted, Needs::Logs, 3, expect!["5"]),
            (&sifted, Needs::MatchingLogs, 3, expect!["5"]),
            (&sifted, Needs::MatchingLogs, 6, expect!["9"]),
            // In memory.
            (&sifted, Needs::MatchingLogs, 10, expect!["below(12)"]),
        ] {
            let next = Cursor::from(at).next(&history, page, needs);
            expect.assert_eq(&match next {
                Next::Block(own) => own.number().to_string(),
                other => format!("{other:?}").to_lowercase(),
            });
        }
        // Nothing after the log that was told is for the stream.
        let next = Cursor::behind(block(2), Some(1)).next(&history, &sifted, Needs::MatchingLogs);
        assert!(matches!(next, Next::Block(own) if own.number() == 5));
    }
}
