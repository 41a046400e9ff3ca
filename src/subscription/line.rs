//! The chain's events on their way to the fan-out. No I/O, no clock.
//!
//! A block's transactions are not among them: they are fetched beside, while somebody wants them. The next head waits for
//! them here, so that head N, what N holds, head N+1 is the order for them too (E3).

use std::collections::VecDeque;

use crate::backplane::ChainEvent;
use crate::chain::Header;

/// Events in their order, and the block whose transactions the next head waits for.
#[derive(Debug, Default)]
pub struct Line {
    events: VecDeque<ChainEvent>,
    awaited: Option<Header>,
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

    /// The transactions of the block whose head was just taken are wanted.
    pub fn wait_for(&mut self, header: Header) {
        self.awaited = Some(header);
    }

    /// The block whose transactions are wanted.
    #[must_use]
    pub fn awaited(&self) -> Option<&Header> {
        self.awaited.as_ref()
    }

    /// Its transactions are here, or will not come.
    pub fn go_on(&mut self) {
        self.awaited = None;
    }

    /// The heads that wait.
    pub fn heads(&self) -> impl Iterator<Item = &Header> {
        self.events.iter().filter_map(|event| match event {
            ChainEvent::Head(header) => Some(header),
            _ => None,
        })
    }

    /// The next event, unless it is a head that waits. The transactions of a block that is known to be dropped are waited
    /// for no longer: no node may have them, and nobody was told of them.
    pub fn take(&mut self) -> Option<ChainEvent> {
        if let Some(awaited) = &self.awaited {
            let number = awaited.block.number;
            let drops = |event: &ChainEvent| match event {
                ChainEvent::Rewind(to) => to.number < number,
                ChainEvent::ContinuityLost(_) => true,
                _ => false,
            };
            match self.events.front()? {
                ChainEvent::Head(_) if !self.events.iter().any(drops) => return None,
                ChainEvent::Head(_) => self.awaited = None,
                event if drops(event) => self.awaited = None,
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
            bloom: Box::default(),
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

    /// Events come one by one, `!` says that the transactions are here; every head's transactions are wanted.
    #[track_caller]
    fn check(story: &str, expect: Expect) {
        let mut line = Line::default();
        let mut told = Vec::new();
        for came in story.split_whitespace() {
            match came {
                "!" => {
                    told.push(
                        line.awaited()
                            .map_or("!".to_owned(), |of| format!("t{}", of.block.number)),
                    );
                    line.go_on();
                }
                other => line.extend(std::iter::once(event(other))),
            }
            while let Some(event) = line.take() {
                told.push(word(&event));
                if let ChainEvent::Head(header) = event {
                    line.wait_for(header);
                }
            }
        }
        let waits: Vec<String> = line.heads().map(|head| head.block.number.to_string()).collect();
        expect.assert_eq(&format!("{}; waiting: {}", told.join(" "), waits.join(" ")));
    }

    #[test]
    fn the_next_head_waits_for_the_transactions_and_logs_do_not() {
        check("h1 l1 h2 l2 ! h3 ! !", expect!["h1 l1 t1 h2 l2 t2 h3 t3; waiting: "]);
        check("h1 ! l1 h2 l2", expect!["h1 t1 l1 h2 l2; waiting: "]);
        check("h1 l1 p0 h2 l2 h3", expect!["h1 l1 p0; waiting: 2 3"]);
    }

    #[test]
    fn transactions_of_dropped_blocks_are_not_waited_for() {
        check(
            "h1 l1 ! h2 l2 r1 h2 l2 !",
            expect!["h1 l1 t1 h2 l2 r1 h2 l2 t2; waiting: "],
        );
        check("h1 l1 ! h2 l2 h3 l3 r1", expect!["h1 l1 t1 h2 l2 h3 l3 r1; waiting: "]);
        check("h1 l1 h2 x h9 !", expect!["h1 l1 h2 x h9 t9; waiting: "]);
    }

    #[test]
    fn a_reorg_above_the_block_changes_nothing() {
        check("h1 l1 h2 l2 r1 h2 l2", expect!["h1 l1; waiting: 2 2"]);
        check("h1 l1 h2 l2 r1 h2 l2 !", expect!["h1 l1 t1 h2 l2 r1 h2 l2; waiting: "]);
    }
}
