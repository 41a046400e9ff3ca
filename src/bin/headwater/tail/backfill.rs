//! Following any node: its heads wake a walk along the blocks, whose contents are fetched by hash. Live blocks, a reorg
//! and the blocks that were missed are the same to it, so none of them is left out or printed twice.

use std::convert::Infallible;
use std::io::Write;

use super::connection::Connection;
use super::error::{Stop, TailError};
use super::event::{Event, Header};
use super::follow::Follower;
use super::walk::{MAX_HOLE, Verdict, Walk};
use super::window::{Contents, TooDeep, Window};

/// Depth below the head from which on blocks are read by ranges, if the node names no finalized block above it.
const SETTLED_DEPTH: u64 = 128;

/// Blocks in the first range, and in the largest. Providers limit both blocks and logs; a refused range is halved.
const FIRST_RANGE: u64 = 1_000;
const LARGEST_RANGE: u64 = 10_000;

impl<W: Write> Follower<W> {
    /// Follows any node until the connection breaks or all is printed.
    ///
    /// # Errors
    /// The reason to leave the connection, which is never left without one.
    pub(super) async fn backfilled(&mut self, mut node: Connection) -> Result<Infallible, Stop> {
        // Before the walk, so that no head is announced in between.
        let heads = node.subscribe_one("newHeads").await?;
        let pending = match self.plan.pending {
            true => Some(node.subscribe_one("newPendingTransactions").await?),
            false => None,
        };
        self.subscribed(&node);
        self.catch_up(&mut node).await?;
        loop {
            let event = node.next().await?;
            if event.subscription != heads {
                if pending.as_ref() == Some(&event.subscription) {
                    self.pending(&node, &event)?;
                }
                continue;
            }
            // An announcement that is no header (another hash, members missing) still says that there is a new block.
            match serde_json::from_str::<Header>(event.result.get()) {
                Ok(header) if self.window.contains(header.hash) => {}
                Ok(header) => self.walk(&mut node, header.number).await?,
                Err(_) => {
                    let head = node.latest().await?;
                    self.walk(&mut node, head.number).await?;
                }
            }
        }
    }

    /// Prints what is between the window and the node's head.
    ///
    /// # Errors
    /// If a block or a range cannot be read or printed; [`Stop::Done`] after the last block that is wanted.
    pub(super) async fn catch_up(&mut self, node: &mut Connection) -> Result<(), Stop> {
        self.complete_tip(node).await?;
        self.after()?;
        loop {
            let head = node.latest().await?.number;
            let is_far = head.saturating_sub(self.next()) >= 2 * SETTLED_DEPTH;
            if self.plan.logs_alone().is_none() || !is_far || !self.is_on_the_tip(node).await? {
                return self.walk(node, head).await;
            }
            self.ranges(node, head).await?;
        }
    }

    /// Checks if the newest block of the window is on the node's chain.
    async fn is_on_the_tip(&self, node: &mut Connection) -> Result<bool, Stop> {
        match self.window.tip() {
            None => Ok(true),
            Some((number, hash)) => Ok(node.block(number).await?.is_some_and(|block| block.hash == hash)),
        }
    }

    /// Returns the number of the next block that is printed.
    fn next(&self) -> u64 {
        self.window.next_after(self.window.len()).max(self.window.start())
    }

    /// Fetches the logs of the newest block if some of them may be missing.
    ///
    /// # Errors
    /// If the block or its logs cannot be read or printed.
    pub(super) async fn complete_tip(&mut self, node: &mut Connection) -> Result<(), Stop> {
        let (Some(tip), Some(filter)) = (self.window.incomplete(), &self.plan.logs) else {
            self.window.complete();
            return Ok(());
        };
        let number = self.window.tip().map_or(0, |(number, _)| number);
        match node.block(number).await? {
            Some(block) if block.hash == tip => {}
            // The walk takes back what was printed of it.
            Some(_) => {
                self.window.complete();
                return Ok(());
            }
            // It is behind: what is missing would be missing for good.
            None => return Err(node.interrupted(&format!("does not have block {number} yet")).into()),
        }
        for log in node.logs_of(tip, filter).await? {
            if let Ok(Some(event)) = self.window.take(log) {
                self.printer.print(event, false)?;
            }
        }
        self.window.complete();
        Ok(())
    }

    /// Prints the logs of settled blocks range by range, up to a depth that reorgs do not reach.
    async fn ranges(&mut self, node: &mut Connection, head: u64) -> Result<(), Stop> {
        let finalized = node.tagged("finalized").await?.map_or(0, |header| header.number);
        let settled = head.saturating_sub(SETTLED_DEPTH).max(finalized.min(head));
        let last = self.plan.until.map_or(settled, |until| until.min(settled));
        let (mut next, mut width) = (self.next(), FIRST_RANGE);
        while next <= last {
            let to = last.min(next.saturating_add(width - 1));
            let Some(filter) = self.plan.logs_alone() else {
                return Ok(());
            };
            let logs = match node.logs_between(next, to, filter).await? {
                Ok(logs) => logs,
                Err(error) if error.is_pruned() => {
                    return Err(node.pruned(&format!("the logs of block {next}"), &error).into());
                }
                Err(_) if width > 1 => {
                    width /= 2;
                    continue;
                }
                Err(error) => {
                    return Err(error
                        .to_tail_error(node.endpoint(), &format!("the logs of block {next}"))
                        .into());
                }
            };
            for log in logs {
                if !(next..=to).contains(&log.block_number) {
                    let text = format!(
                        "{} sent a log of block {} as one of {next} to {to}",
                        node.endpoint(),
                        log.block_number
                    );
                    return Err(TailError::Garbled(text).into());
                }
                self.printer.print(&Event::Log(log), false)?;
            }
            next = to + 1;
            width = (width * 2).min(LARGEST_RANGE);
            // From here on, should the connection break.
            self.window = Window::new(next, None);
        }
        if self.plan.until.is_some_and(|until| until < next) {
            return Err(Stop::Done);
        }
        // There may be no block of this number; then the next one is taken without a look at its parent.
        if let Some(anchor) = node.block(last).await? {
            self.window = Window::after(&anchor);
        }
        Ok(())
    }

    /// Walks to the head of this number, or as far as there are blocks.
    ///
    /// # Errors
    /// If a block cannot be read or printed, a reorg is too deep, or the node does not keep the blocks; [`Stop::Done`]
    /// after the last block that is wanted.
    pub(super) async fn walk(&mut self, node: &mut Connection, goal: u64) -> Result<(), Stop> {
        let mut walk = Walk::new(&self.window, goal);
        loop {
            let answer = node.block(walk.question()).await?;
            match walk.answered(&self.window, answer) {
                Verdict::Ask => {}
                Verdict::Done => return Ok(()),
                Verdict::Gap => return self.gap(node, walk.question()).await,
                Verdict::TooDeep => return Err(TooDeep.into()),
                Verdict::Contradiction => return Err(node.interrupted("contradicts itself about its blocks").into()),
                Verdict::Adopt { keep, header } => {
                    self.adopt(node, keep, &header).await?;
                    if goal <= header.number {
                        return Ok(());
                    }
                    walk = Walk::onward(&self.window, goal);
                }
            }
        }
    }

    /// Ends a walk below its goal, at this number. Near the head, the announcement was of a block that never came, or a
    /// balancer asks a node that is behind: the next announcement wakes another walk. Far below it, the blocks do not
    /// come: the node does not keep them.
    async fn gap(&self, node: &mut Connection, number: u64) -> Result<(), Stop> {
        let head = node.latest().await?.number;
        if head.saturating_sub(number) < SETTLED_DEPTH {
            return Ok(());
        }
        Err(TailError::Refused(format!(
            "{} has no block {number}, nor the {MAX_HOLE} before it, and its head is {head}; give a later --from, or ask an archive node",
            node.endpoint(),
        ))
        .into())
    }

    /// Prints a block after the first `keep` of the window.
    async fn adopt(&mut self, node: &mut Connection, keep: usize, header: &Header) -> Result<(), Stop> {
        self.before(header)?;
        let mut events = Vec::new();
        if self.wants(header) {
            // Before anything is printed: if the block is gone, nothing was said of it.
            if let Some(filter) = &self.plan.logs {
                let logs = node.logs_of(header.hash, filter).await?;
                events.extend(logs.into_iter().map(Event::Log));
            }
            events = self.head_and_receipts(node, header, events).await?;
        }
        let removed = self.window.keep(keep);
        self.print_block(&removed, header, events, Contents::Complete)?;
        self.after()
    }
}
