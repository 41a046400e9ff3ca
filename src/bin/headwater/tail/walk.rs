//! The way from what was printed to the head of a node, asked block by block: the order of questions and what the answers
//! mean, without I/O.
//!
//! ```text
//! goal above the tip       Next: the block after those that are kept
//!                            its parent is the last of them > adopt
//!                            another parent                 > Check, in doubt
//!                            no such block                  > done at the goal; below it, the next number, or
//!                                                             a gap after too many of them
//! goal not above the tip   Check: the last kept block, by its number
//!                            the same hash                  > Next; done if nothing was dropped below the tip
//!                            another hash                   > keep one less, and adopt or Check again
//!                            no such block                  > done: the node has not replaced it yet; in doubt, or
//!                                                             below a dropped one, as another hash
//! ```
//!
//! An announcement is only a reason to ask: announced headers are not the block's own on some chains, and old ones wait in
//! the queue while the walk is ahead of them.

use alloy_primitives::B256;

use super::event::Header;
use super::window::Window;

/// Most numbers without a block in a row. Filecoin has had fewer than ten; an announcement can claim any height.
pub(super) const MAX_HOLE: u64 = 16;

/// A walk up to the next block to adopt.
#[derive(Debug)]
pub(super) struct Walk {
    /// Number of blocks of the window that are believed to be on the node's chain.
    keep: usize,
    /// A kept block turned out to be replaced.
    has_dropped: bool,
    /// The number that is asked for.
    number: u64,
    step: Step,
    /// The number of the head, up to which a missing block is a number without one.
    goal: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Next,
    /// The block that is asked for should be the last that is kept. It is in doubt if the block above it has another
    /// parent.
    Check {
        is_in_doubt: bool,
    },
}

/// Meaning of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The next question follows.
    Ask,
    /// Next block, after so many blocks of the window; the others were dropped.
    Adopt { keep: usize, header: Box<Header> },
    /// The node has no more blocks.
    Done,
    /// The numbers up to the one that was asked for have no block, more than a chain leaves out, and the goal is above
    /// them: nobody has reached the goal yet, or the node does not keep blocks so old.
    Gap,
    /// Two answers contradict each other: the chain has changed in between, or several nodes answer.
    Contradiction,
    /// The reorg is deeper than the window.
    TooDeep,
}

impl Walk {
    /// Begins a walk to the head, whose number is `goal`.
    pub(super) fn new(window: &Window, goal: u64) -> Self {
        let mut walk = Self::onward(window, goal);
        if window.tip().is_some_and(|(tip, _)| goal <= tip) {
            // Below the window nothing can be compared; its oldest block can.
            walk.keep = window.up_to(goal).max(1);
            walk.check(window, false);
        }
        walk
    }

    /// Returns the number of the block to ask for.
    pub(super) fn question(&self) -> u64 {
        self.number
    }

    /// Goes on after a block was adopted: the tip needs no check.
    pub(super) fn onward(window: &Window, goal: u64) -> Self {
        Self {
            keep: window.len(),
            has_dropped: false,
            number: window.next_after(window.len()),
            step: Step::Next,
            goal,
        }
    }

    fn next(&mut self, window: &Window) {
        (self.step, self.number) = (Step::Next, window.next_after(self.keep));
    }

    fn check(&mut self, window: &Window, is_in_doubt: bool) {
        if let Some((number, _)) = self.last(window) {
            (self.step, self.number) = (Step::Check { is_in_doubt }, number);
        }
    }

    /// Returns number and hash of the last block that is kept.
    fn last(&self, window: &Window) -> Option<(u64, B256)> {
        self.keep.checked_sub(1).and_then(|last| window.block(last))
    }

    /// Takes the answer: the block of the number that was asked for, `None` if there is none.
    pub(super) fn answered(&mut self, window: &Window, answer: Option<Header>) -> Verdict {
        let Some(header) = answer else {
            return self.missing(window);
        };
        let Some((_, hash)) = self.last(window) else {
            return self.first(window, header);
        };
        match self.step {
            Step::Next if hash == header.parent_hash => return self.adopt(window, header),
            Step::Next => self.check(window, true),
            Step::Check { is_in_doubt: true } if hash == header.hash => return Verdict::Contradiction,
            // An old announcement: the walk was past it already.
            Step::Check { .. } if hash == header.hash && self.keep < window.len() && !self.has_dropped => {
                return Verdict::Done;
            }
            Step::Check { .. } if hash == header.hash => self.next(window),
            Step::Check { .. } => {
                self.keep -= 1;
                self.has_dropped = true;
                match self.last(window) {
                    None => return self.first(window, header),
                    Some((_, parent)) if parent == header.parent_hash => return self.adopt(window, header),
                    Some(_) => self.check(window, false),
                }
            }
        }
        Verdict::Ask
    }

    fn adopt(&self, window: &Window, header: Header) -> Verdict {
        // It was taken for missing.
        if window.block(self.keep).is_some_and(|(_, hash)| hash == header.hash) {
            return Verdict::Contradiction;
        }
        Verdict::Adopt {
            keep: self.keep,
            header: Box::new(header),
        }
    }

    /// No block of the window is left: the chain is printed again from the first number that is wanted.
    fn first(&mut self, window: &Window, header: Header) -> Verdict {
        if window.is_trimmed() {
            return Verdict::TooDeep;
        }
        if header.number >= window.start() {
            return self.adopt(window, header);
        }
        self.next(window);
        Verdict::Ask
    }

    /// Takes a missing block. Some chains have numbers without one: below the announced head, the next number is asked
    /// for, and a kept block can be replaced by none.
    fn missing(&mut self, window: &Window) -> Verdict {
        match self.step {
            Step::Next if self.number < self.goal => {
                if self.number >= window.next_after(self.keep) + MAX_HOLE {
                    return Verdict::Gap;
                }
                self.number += 1;
            }
            Step::Check { is_in_doubt } if is_in_doubt || self.has_dropped => {
                self.keep = self.keep.saturating_sub(1);
                self.has_dropped = true;
                match self.last(window) {
                    Some(_) => self.check(window, false),
                    None if window.is_trimmed() => return Verdict::TooDeep,
                    None => self.next(window),
                }
            }
            _ => return Verdict::Done,
        }
        Verdict::Ask
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::tail::window::Contents;
    use crate::tail::window::tests::{header, name};

    /// Walks from a window to a node's chain. Returns the questions and what comes of them: `5?` asks for a block, `-5a`
    /// is dropped, `+5b` is adopted.
    fn walk(window: &mut Window, node: &str, goal: u64) -> String {
        let chain: Vec<Header> = node.split_whitespace().map(header).collect();
        let mut story = Vec::new();
        let mut walk = Walk::new(window, goal);
        loop {
            assert!(story.len() < 100, "{story:?}");
            let number = walk.question();
            story.push(format!("{number}?"));
            let answer = chain.iter().find(|block| block.number == number).cloned();
            match walk.answered(window, answer) {
                Verdict::Ask => {}
                Verdict::Adopt { keep, header } => {
                    for index in keep..window.len() {
                        story.push(format!("-{}", name(window.block(index).unwrap().1)));
                    }
                    drop(window.keep(keep));
                    story.push(format!("+{}", name(header.hash)));
                    window.adopt(&header, Vec::new(), Contents::Complete);
                    if goal <= header.number {
                        return story.join(" ");
                    }
                    walk = Walk::onward(window, goal);
                }
                verdict => {
                    story.push(format!("{verdict:?}").to_lowercase());
                    return story.join(" ");
                }
            }
        }
    }

    /// Checks a walk from these blocks, the first of which is the anchor and is not printed.
    #[track_caller]
    fn check(printed: &str, node: &str, goal: u64, expect: Expect) {
        let mut blocks = printed.split_whitespace().map(header);
        let anchor = blocks.next().unwrap();
        let mut window = Window::new(anchor.number + 1, Some(&anchor));
        for block in blocks {
            window.adopt(&block, Vec::new(), Contents::Complete);
        }
        expect.assert_eq(&walk(&mut window, node, goal));
    }

    #[test]
    fn new_blocks_are_adopted_one_by_one() {
        check("1a", "1a 2a", 2, expect!["2? +2a"]);
        check("1a 2a", "1a 2a 3a 4a 5a", 5, expect!["3? +3a 4? +4a 5? +5a"]);
        // After a reconnect, the head may be the same.
        check("1a 2a", "1a 2a", 2, expect!["2? 3? done"]);
    }

    #[test]
    fn a_replaced_branch_is_dropped_when_its_replacement_is_there() {
        check("1a 2a 3a", "1a 2a 3b<2a 4b", 4, expect!["4? 3? -3a +3b 4? +4b"]);
        check(
            "1a 2a 3a 4a",
            "1a 2b<1a 3b 4b 5b",
            5,
            expect!["5? 4? 3? 2? -2a -3a -4a +2b 3? +3b 4? +4b 5? +5b"],
        );
        // At the same height, at a lower one, and while the node has no other block there.
        check("1a 2a 3a", "1a 2a 3b<2a", 3, expect!["3? -3a +3b"]);
        check("1a 2a 3a 4a", "1a 2b<1a 3b", 3, expect!["3? 2? -2a -3a -4a +2b 3? +3b"]);
        check("1a 2a 3a", "1a 2a", 2, expect!["2? done"]);
        check("1a 2a 3a", "1a 2b<1a 3b", 3, expect!["3? 2? -2a -3a +2b 3? +3b"]);
    }

    #[test]
    fn old_announcements_and_contradictions_change_nothing() {
        check("1a 2b 3b<2b", "1a 2b 3b<2b", 2, expect!["2? done"]);
        // The block above the tip has another parent, and yet the tip is there: two nodes answer.
        check("1a 2a", "1a 2a 3b", 3, expect!["3? 2? contradiction"]);
    }

    #[test]
    fn below_the_window_the_chain_is_printed_from_the_start_again() {
        check("1a 2a", "1b 2b 3b", 3, expect!["3? 2? 1? 2? -1a -2a +2b 3? +3b"]);
        check("5a", "4b 5b", 5, expect!["5? 6? done"]);
        let mut window = Window::after(&header("5a"));
        expect!["6? 5? toodeep"].assert_eq(&walk(&mut window, "5b 6b", 6));
        let mut window = Window::new(0, None);
        expect!["0? +0a 1? +1a"].assert_eq(&walk(&mut window, "0a 1a", 1));
    }

    #[test]
    fn pruned_blocks_are_a_gap() {
        check(
            "0a",
            "0a 900a",
            900,
            expect!["1? 2? 3? 4? 5? 6? 7? 8? 9? 10? 11? 12? 13? 14? 15? 16? 17? gap"],
        );
        let mut window = Window::new(0, None);
        expect!["0? 1? 2? 3? 4? 5? 6? 7? 8? 9? 10? 11? 12? 13? 14? 15? 16? gap"].assert_eq(&walk(
            &mut window,
            "900a",
            900,
        ));
    }

    #[test]
    fn numbers_without_a_block_are_passed_over() {
        // An announcement that no block follows.
        check(
            "1a 2a",
            "1a 2a",
            u64::MAX,
            expect!["3? 4? 5? 6? 7? 8? 9? 10? 11? 12? 13? 14? 15? 16? 17? 18? 19? gap"],
        );
        check("1a 2a", "1a 2a 5a<2a", 5, expect!["3? 4? 5? +5a"]);
        check(
            "1a 3a<1a",
            "1a 2b<1a 3b 4b",
            4,
            expect!["4? 3? 1? 2? -3a +2b 3? +3b 4? +4b"],
        );
        check(
            "1a 3a<1a",
            "1a 2b<1a 4b<2b",
            4,
            expect!["4? 3? 1? 2? -3a +2b 3? 4? +4b"],
        );
        check(
            "1a 3a<1a 5a<3a",
            "1a 2b<1a 4b<2b 6b<4b",
            6,
            expect!["6? 5? 3? 1? 2? -3a -5a +2b 3? 4? +4b 5? 6? +6b"],
        );
        // A node that is behind the one that answered before.
        check(
            "1a 2a 3a",
            "1a 2a 5a",
            5,
            expect!["4? 5? 3? 2? 3? 4? 5? 2? contradiction"],
        );
    }
}
