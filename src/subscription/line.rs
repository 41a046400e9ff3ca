//! The chain's events on their way to the fan-out. No I/O, no clock.
//!
//! A block's transactions and receipts are not among them: they are fetched beside, while somebody wants them. They follow
//! the block's logs, and the next head waits for them here, so that head N, what N holds, head N+1 is the order for them
//! too (E3; PROTOCOL O4).

use std::collections::VecDeque;

use crate::backplane::ChainEvent;
use crate::chain::{Absent, BlockReceipts, BlockTransactions, Header};

/// Events in their order, and the block whose contents the next head waits for.
#[derive(Debug, Default)]
pub struct Line {
    events: VecDeque<ChainEvent>,
    awaited: Option<Awaited>,
}

/// Which contents of blocks somebody wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wants {
    /// Their transactions.
    pub transactions: bool,
    /// Their receipts.
    pub receipts: bool,
}

/// What is fetched of a block beside its logs.
#[derive(Debug, PartialEq, Eq)]
pub enum Content<T> {
    /// Nobody wants it, or nobody any more.
    Unwanted,
    /// It is under way.
    Awaited,
    /// It came.
    Here(T),
    /// It cannot be had.
    Missing(Absent),
}

/// All that was wanted of a block.
#[derive(Debug)]
pub struct Contents {
    /// The block.
    pub header: Header,
    /// Its transactions.
    pub transactions: Content<BlockTransactions>,
    /// Its receipts.
    pub receipts: Content<BlockReceipts>,
}

#[derive(Debug)]
struct Awaited {
    contents: Contents,
    /// Its logs were taken.
    logs: bool,
}

impl Wants {
    fn any(self) -> bool {
        self.transactions || self.receipts
    }
}

impl<T> Content<T> {
    fn new(wanted: bool) -> Self {
        if wanted { Self::Awaited } else { Self::Unwanted }
    }

    fn is_awaited(&self) -> bool {
        matches!(self, Self::Awaited)
    }

    fn came(&mut self, found: Result<T, Absent>) {
        if self.is_awaited() {
            *self = found.map_or_else(Self::Missing, Self::Here);
        }
    }

    fn keep(&mut self, wanted: bool) {
        if !wanted {
            *self = Self::Unwanted;
        }
    }
}

impl Line {
    /// Adds what came.
    pub fn extend(&mut self, events: impl Iterator<Item = ChainEvent>) {
        self.events.extend(events);
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// These contents of the block whose head was just taken are wanted; none is nothing to wait for.
    pub fn wait_for(&mut self, header: &Header, wants: Wants) {
        let contents = || Contents {
            header: header.clone(),
            transactions: Content::new(wants.transactions),
            receipts: Content::new(wants.receipts),
        };
        self.awaited = wants.any().then(|| Awaited {
            contents: contents(),
            logs: false,
        });
    }

    /// What nobody wants any more is not waited for.
    pub fn keep(&mut self, wants: Wants) {
        if !wants.any() {
            self.awaited = None;
        }
        if let Some(Awaited { contents, .. }) = &mut self.awaited {
            contents.transactions.keep(wants.transactions);
            contents.receipts.keep(wants.receipts);
        }
    }

    /// The transactions of the block that is waited for, or that they will not come.
    pub fn transactions_came(&mut self, found: Result<BlockTransactions, Absent>) {
        if let Some(Awaited { contents, .. }) = &mut self.awaited {
            contents.transactions.came(found);
        }
    }

    /// As [`Self::transactions_came`], for its receipts.
    pub fn receipts_came(&mut self, found: Result<BlockReceipts, Absent>) {
        if let Some(Awaited { contents, .. }) = &mut self.awaited {
            contents.receipts.came(found);
        }
    }

    /// Everything that is wanted of the block that was waited for, once its logs were taken.
    pub fn complete(&mut self) -> Option<Contents> {
        let complete = |Awaited { contents, logs }: &mut Awaited| {
            *logs && !contents.transactions.is_awaited() && !contents.receipts.is_awaited()
        };
        self.awaited.take_if(complete).map(|awaited| awaited.contents)
    }

    /// Whether the next to come are the transactions of the block that is waited for, and those whose transactions are
    /// wanted, in their order.
    pub fn of_transactions(&self) -> (bool, impl Iterator<Item = &Header>) {
        self.of(|contents| match &contents.transactions {
            Content::Unwanted => None,
            other => Some(other.is_awaited()),
        })
    }

    /// As [`Self::of_transactions`], for receipts.
    pub fn of_receipts(&self) -> (bool, impl Iterator<Item = &Header>) {
        self.of(|contents| match &contents.receipts {
            Content::Unwanted => None,
            other => Some(other.is_awaited()),
        })
    }

    /// `None` where it is unwanted, else whether it is under way.
    fn of(&self, content: impl Fn(&Contents) -> Option<bool>) -> (bool, impl Iterator<Item = &Header>) {
        let wanted = self.awaited.as_ref().map(|awaited| &awaited.contents);
        let wanted = wanted.and_then(|contents| Some((content(contents)?, &contents.header)));
        let is_awaited = wanted.is_some_and(|(is_awaited, _)| is_awaited);
        let awaited = wanted.filter(|_| is_awaited).map(|(_, header)| header);
        let behind = wanted.is_some().then(|| self.heads()).into_iter().flatten();
        (is_awaited, awaited.into_iter().chain(behind))
    }

    /// The heads that wait.
    fn heads(&self) -> impl Iterator<Item = &Header> {
        self.events.iter().filter_map(|event| match event {
            ChainEvent::Head(header) => Some(header),
            _ => None,
        })
    }

    /// The next event, unless it is a head that waits. The contents of a block that is known to be dropped are waited for
    /// no longer: no node may have them, and nobody was told of them.
    pub fn take(&mut self) -> Option<ChainEvent> {
        if let Some(Awaited { contents, logs }) = &mut self.awaited {
            let block = contents.header.block;
            let drops = |event: &ChainEvent| match event {
                ChainEvent::Rewind(to) => to.number < block.number,
                ChainEvent::ContinuityLost(_) => true,
                _ => false,
            };
            match self.events.front()? {
                ChainEvent::Head(_) if !self.events.iter().any(drops) => return None,
                ChainEvent::Head(_) => self.awaited = None,
                event if drops(event) => self.awaited = None,
                ChainEvent::Logs(own) if own.block == block => *logs = true,
                _ => {}
            }
        }
        self.events.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use alloy_primitives::B256;
    use bytes::Bytes;
    use expect_test::{Expect, expect};

    use super::*;
    use crate::chain::{BlockLogs, BlockRef, Loss};

    fn header(number: u64) -> Header {
        Header {
            block: BlockRef {
                number,
                hash: B256::with_last_byte(number as u8),
            },
            parent: B256::ZERO,
            bloom: Some(Box::default()),
            timestamp: 0,
            json: Bytes::new(),
            seen: Instant::now(),
        }
    }

    fn event(word: &str) -> ChainEvent {
        let (what, number) = word.split_at(1);
        let header = header(number.parse().unwrap_or(0));
        match what {
            "h" => ChainEvent::Head(header),
            "l" => ChainEvent::Logs(Arc::new(BlockLogs::empty(header.block, header.seen))),
            "r" => ChainEvent::Rewind(header.block),
            "p" => {
                let logs = BlockLogs::empty(header.block, header.seen);
                ChainEvent::Past(header, Arc::new(logs))
            }
            _ => ChainEvent::ContinuityLost(Loss::TooFar),
        }
    }

    fn word(event: &ChainEvent) -> String {
        match event {
            ChainEvent::Head(header) => format!("h{}", header.block.number),
            ChainEvent::Logs(logs) => format!("l{}", logs.block.number),
            ChainEvent::Rewind(to) => format!("r{}", to.number),
            ChainEvent::Past(header, _) => format!("p{}", header.block.number),
            ChainEvent::ContinuityLost(_) => "x".to_owned(),
        }
    }

    /// Events come one by one; `!` says that the transactions of the block that is waited for are here, `?` that they will
    /// not come; `$` is of receipts. Of every block that is wanted which stands first: `t` or `c` (receipts) or both; a word
    /// like `=t` says that from now on less is wanted.
    #[track_caller]
    fn check(story: &str, expect: Expect) {
        let mut line = Line::default();
        let mut told = Vec::new();
        let (first, story) = story.split_once(": ").expect("what is wanted");
        let wanted = |of: &str| Wants {
            transactions: of.contains('t'),
            receipts: of.contains('c'),
        };
        let mut wants = wanted(first);
        for came in story.split_whitespace() {
            let awaited = line.awaited.as_ref().map(|awaited| awaited.contents.header.clone());
            match came {
                "!" => line.transactions_came(awaited.ok_or(Absent::NotServed).map(|own| BlockTransactions {
                    block: own.block,
                    transactions: Vec::new(),
                    seen: own.seen,
                })),
                "$" => line.receipts_came(awaited.ok_or(Absent::NotServed).map(|own| BlockReceipts {
                    block: own.block,
                    receipts: Vec::new(),
                    seen: own.seen,
                })),
                "?" => line.transactions_came(Err(Absent::NotServed)),
                less if less.starts_with('=') => {
                    wants = wanted(less);
                    line.keep(wants);
                }
                other => line.extend(std::iter::once(event(other))),
            }
            loop {
                if let Some(contents) = line.complete() {
                    let number = contents.header.block.number;
                    match contents.transactions {
                        Content::Here(_) => told.push(format!("t{number}")),
                        Content::Missing(_) => told.push(format!("t{number}?")),
                        Content::Unwanted | Content::Awaited => {}
                    }
                    if matches!(contents.receipts, Content::Here(_)) {
                        told.push(format!("c{number}"));
                    }
                }
                let Some(event) = line.take() else { break };
                told.push(word(&event));
                if let ChainEvent::Head(header) = event {
                    line.wait_for(&header, wants);
                }
            }
        }
        let waits: Vec<String> = line.heads().map(|head| head.block.number.to_string()).collect();
        expect.assert_eq(&format!("{}; waiting: {}", told.join(" "), waits.join(" ")));
    }

    #[test]
    fn the_next_head_waits_for_the_contents_and_logs_do_not() {
        check("t: h1 l1 h2 l2 ! h3 ! !", expect!["h1 l1 t1 h2 l2 t2 h3; waiting: "]);
        check("t: h1 l1 p0 h2 l2 h3", expect!["h1 l1 p0; waiting: 2 3"]);
        check("c: h1 l1 h2 l2 $ $", expect!["h1 l1 c1 h2 l2 c2; waiting: "]);
        check("-: h1 l1 h2 l2", expect!["h1 l1 h2 l2; waiting: "]);
    }

    #[test]
    fn what_came_before_the_logs_waits_for_them() {
        check("t: h1 ! l1 h2 l2", expect!["h1 l1 t1 h2 l2; waiting: "]);
        check("tc: h1 $ ! l1 h2", expect!["h1 l1 t1 c1 h2; waiting: "]);
    }

    #[test]
    fn transactions_come_before_receipts_and_the_next_head_behind_both() {
        check("tc: h1 $ l1 h2 l2 !", expect!["h1 l1 t1 c1 h2 l2; waiting: "]);
        check("tc: h1 ! l1 h2 l2", expect!["h1 l1; waiting: 2"]);
        check("tc: h1 l1 ? h2 $ l2", expect!["h1 l1 t1? c1 h2 l2; waiting: "]);
    }

    #[test]
    fn what_nobody_wants_any_more_is_not_waited_for() {
        check("tc: h1 l1 ! h2 l2 =t", expect!["h1 l1 t1 h2 l2; waiting: "]);
        check("tc: h1 l1 h2 l2 =-", expect!["h1 l1 h2 l2; waiting: "]);
        check("c: h1 =- l1 h2 l2", expect!["h1 l1 h2 l2; waiting: "]);
    }

    #[test]
    fn contents_of_dropped_blocks_are_not_waited_for() {
        check(
            "t: h1 l1 ! h2 l2 r1 h2 l2 !",
            expect!["h1 l1 t1 h2 l2 r1 h2 l2 t2; waiting: "],
        );
        check(
            "c: h1 l1 $ h2 l2 h3 l3 r1",
            expect!["h1 l1 c1 h2 l2 h3 l3 r1; waiting: "],
        );
        check("t: h1 l1 h2 x h9 ! l9", expect!["h1 l1 h2 x h9 l9 t9; waiting: "]);
    }

    #[test]
    fn a_reorg_above_the_block_changes_nothing() {
        check("t: h1 l1 h2 l2 r1 h2 l2", expect!["h1 l1; waiting: 2 2"]);
        check(
            "c: h1 l1 h2 l2 r1 h2 l2 $",
            expect!["h1 l1 c1 h2 l2 r1 h2 l2; waiting: "],
        );
    }
}
