//! Effects of chain events on subscriptions: heads are delivered, and logs and transactions of dropped blocks are
//! taken back.

use tokio::time::Instant;

use super::contents::Streams;
use super::event_id::Branch;
use super::fan_out::LogFate;
use super::flush::{DirtyClients, is_answered};
use super::gate::Position;
use super::replay_group::ReplayGroup;
use super::subscriber::Subscriber;
use super::tables::Tables;
use super::transaction_event::Fate;
use crate::backplane::ChainEvent;
use crate::chain::{AdoptedBlock, BlockRef, ContentKind, Loss, PublishedBlock};
use crate::clock::Moment;
use crate::delivery::{CloseReason, Kind};

impl Tables {
    /// Applies a chain event. A head may be only begun: [`Self::next_heads`] delivers it.
    ///
    /// # Errors
    /// [`Loss`] if continuity is lost: all clients with subscriptions to heads, logs, mined transactions or receipts
    /// are closed.
    pub(super) fn chain(&mut self, event: ChainEvent, due: &mut DirtyClients, now: Moment) -> Result<(), Loss> {
        match self.published.apply(event) {
            Ok(Some(adopted)) => self.adopted(&adopted, due, now),
            Ok(None) => {}
            Err(loss) => {
                self.lose_continuity();
                return Err(loss);
            }
        }
        Ok(())
    }

    fn adopted(&mut self, block: &AdoptedBlock, due: &mut DirtyClients, now: Moment) {
        let AdoptedBlock {
            header,
            sequence,
            dropped,
        } = block;
        let sequence = *sequence;
        self.break_trails(dropped, due, now);
        self.take_back(dropped, sequence, due, now);
        if !self.heads.is_empty() {
            let batch = self.one_of_block(Kind::Heads, &header.json, header.seen, header.block.hash);
            let fronts = self.fronts();
            let at = Position::of(Kind::Heads, sequence);
            // Clients get removals and the head in one write, and a head that some have to wait for in one step.
            if dropped.is_empty() && fronts.is_open(at) {
                self.begin_heads(batch);
            } else {
                let answered = self.heads.iter().filter(is_answered);
                self.gate.send(at, &fronts, answered, &batch, due, now);
            }
        }
        self.drop_unneeded(now);
        for kind in ContentKind::ALL {
            if self.wants(kind, now) {
                if kind == ContentKind::Logs {
                    let hash = header.block.hash;
                    self.published.change_logs(|history| history.await_logs(hash));
                }
                self.streams[kind as usize].push(header.clone(), sequence, now);
            }
        }
    }

    /// Takes back logs and transactions that were delivered from dropped blocks, oldest block first. Receipts are
    /// never taken back (PROTOCOL R5).
    ///
    /// Contents that were not delivered before the reorg are discarded. A connection that was sent events of a
    /// dropped block had been sent everything before them (E3), so older contents do not delay its removals.
    fn take_back(&mut self, dropped: &[PublishedBlock], sequence: u64, due: &mut DirtyClients, now: Moment) {
        let logs = &self.streams[ContentKind::Logs as usize];
        let delivered: Vec<bool> = dropped.iter().map(|own| !logs.contains(own.sequence)).collect();
        let undelivered = self.gate.drop_blocks(dropped);
        for stream in &mut self.streams {
            stream.remove(dropped);
        }
        self.release(due, now);
        let at = Position::removals(sequence);
        let Some(branch) = self.branch_of(dropped, &delivered) else {
            return;
        };
        for (own, delivered) in dropped.iter().zip(delivered) {
            let was_sent = |subscriber: &Subscriber| {
                let recipient = &subscriber.recipient;
                recipient.was_sent(own.sequence) && !undelivered.contains(&(recipient.id(), own.sequence))
            };
            match &own.logs {
                Some(block) if delivered => self.logs(block, LogFate::Removed(branch), at, was_sent, due, now),
                // The logs of this block are not in memory: a resumed client that has some from before cannot be sent
                // their removals.
                None if delivered => {
                    let resumed = |subscriber: &&Subscriber| subscriber.recipient.is_resumed() && was_sent(subscriber);
                    for subscriber in self.logs.iter().filter(resumed) {
                        subscriber.writer.close(CloseReason::ContinuityLost);
                    }
                }
                _ => {}
            }
            if let Some(transactions) = self.mined_sent.remove(&own.sequence) {
                self.mined(&transactions, Fate::Removed, Instant::now(), at, was_sent, due, now);
            }
        }
        self.mark(Kind::Logs, branch.ancestor.hash, at, |_| true, due, now);
    }

    /// Returns the branch that a reorg takes back, as far as its logs were delivered; `None` if no block was dropped.
    fn branch_of(&self, dropped: &[PublishedBlock], delivered: &[bool]) -> Option<Branch> {
        let oldest = dropped.first()?;
        let last = delivered.iter().rposition(|delivered| *delivered).unwrap_or(0);
        let parent = oldest.header.parent;
        let known = self
            .published
            .with_history(|history| Some(history.find(parent)?.header.block));
        let ancestor = known.unwrap_or(BlockRef {
            number: oldest.number().saturating_sub(1),
            hash: parent,
        });
        let tip = (dropped.get(last).unwrap_or(oldest).header.block.hash, None);
        Some(Branch { ancestor, tip })
    }

    fn lose_continuity(&mut self) {
        self.mined_sent.clear();
        self.streams = Streams::default();
        self.gate.clear();
        self.trails.lose_continuity();
        let replayed = self.replays.values().flat_map(ReplayGroup::subscribers);
        let contents = self.mined.iter().chain(self.receipts.iter());
        for subscriber in self
            .heads
            .iter()
            .chain(self.logs.iter())
            .chain(replayed)
            .chain(contents)
        {
            subscriber.writer.close(CloseReason::ContinuityLost);
        }
    }
}
