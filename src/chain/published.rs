//! The published chain: recent blocks, head, branch, epoch and final block, behind one lock.
//!
//! An event of the chain passes three stages, in this order:
//!
//! 1. *Assembled*: it waits in the [`super::pipeline`]. Nothing outside of the ingest depends on it.
//! 2. *Sent*: [`super::Ingest`] notifies the pool, then sends the event to the dispatcher. Calls now go to nodes that
//!    have this head. The pool keeps hashes of its own, since `upstream` does not use `chain`, and is ahead of the
//!    published chain, since it compares the next report of a node with the heads sent before.
//! 3. *Published*: the registry applies the event by [`PublishedWriter::apply`], and queues it for clients, in one
//!    critical section under the registry's lock.
//!
//! Consequences:
//!
//! - Calls, resumes and the metric `head_number` read one state: none is ahead of another. `/status` and `/ready` show
//!   the block that was adopted last, which a reorg under way may have dropped.
//! - The published chain is never ahead of the pool: an answer that is cached for a head is from a node that has it.
//! - A client finds here every head that it was sent: `eth_blockNumber` is never below it (PROTOCOL C2).
//! - The registry owns the only [`PublishedWriter`], under its lock, and holders of that lock alone change the blocks. So
//!   a replay that has caught up joins the live tables at the very block up to which they were served, without a gap or
//!   a repetition.
//!
//! Order of locks: the registry's, this one, a client's queue. A closure that reads the chain must not read it again
//! through [`Published`]: a second read by the same thread waits behind a writer that waits for the first.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio::time::Instant;

use super::recent_blocks::RecentBlocks;
use super::{BlockRef, ChainEvent, Header, History, Loss, PublishedBlock};
use crate::telemetry::{Event, Metrics};

/// Longest wait for the first block after a start.
const FIRST_BLOCK: Duration = Duration::from_secs(10);

/// The published chain, for its readers.
#[derive(Debug)]
pub struct Published {
    state: RwLock<PublishedState>,
    /// Notifies waiting tasks of published blocks and delivered contents.
    changes: watch::Sender<()>,
    /// Newest blocks, dropped ones too, and the reorgs; for people.
    recent: Mutex<RecentBlocks>,
    /// Metric `head_number`, and the journal.
    metrics: Arc<Metrics>,
}

/// The published chain at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Newest block; `None` before the first one, and after a loss of continuity.
    pub head: Option<BlockRef>,
    /// Counter that grows whenever blocks are dropped: answers about a number may then be stale.
    pub branch: u64,
    /// Counter that grows whenever the chain starts anew, or drops a block that a node reported as final.
    pub epoch: u64,
    /// Number of the newest block that a node reported as final; `None` if there is none.
    pub final_block: Option<u64>,
    /// `true` if the head is the highest one published. `false` without a head, during a reorg and after a rewind: then
    /// only the node knows the height.
    pub is_settled: bool,
}

impl Published {
    /// Returns the published chain at this moment.
    #[must_use]
    pub fn view(&self) -> View {
        self.state.read().view()
    }

    /// Returns the block that was adopted last, even if it was dropped since, and the moment at which its header
    /// arrived.
    #[must_use]
    pub fn last_adopted(&self) -> Option<(BlockRef, Instant)> {
        self.state.read().last_adopted
    }

    /// Reads the recent blocks. [`History::head`] is the head.
    pub fn with_history<T>(&self, look: impl FnOnce(&History) -> T) -> T {
        look(&self.state.read().history)
    }

    /// Reads the newest blocks and the reorgs.
    pub fn with_recent<T>(&self, look: impl FnOnce(&RecentBlocks) -> T) -> T {
        look(&self.recent.lock())
    }

    /// Records that a node reported blocks up to `number` as final, capped at the head; ignored without a head, and below
    /// what another node reported.
    pub fn note_final(&self, number: u64) {
        self.state.write().note_final(number);
    }

    /// Checks if the chain stands at the newest published block, so that new subscriptions begin with the next one.
    #[must_use]
    pub fn is_at_its_tip(&self) -> bool {
        self.with_history(|history| {
            let tip = history.tip().map(|tip| tip.header.block);
            tip.is_some() && tip == history.head()
        })
    }

    /// Checks if a block was published since the start, or since continuity was lost.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.with_history(|history| history.tip().is_some())
    }

    /// Waits for the first block after a start, for at most 10 s.
    pub async fn begun(&self) {
        let mut changes = self.watch();
        let first = changes.wait_for(|()| self.has_begun());
        drop(tokio::time::timeout(FIRST_BLOCK, first).await);
    }

    /// Returns a receiver that is notified of published blocks and delivered contents.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Notifies the receivers of [`Self::watch`]; called after the registry's lock was released, which most of them
    /// take next.
    pub fn notify(&self) {
        self.changes.send_replace(());
    }
}

/// Writer of the published chain; there is one, which the registry has under its lock.
#[derive(Debug)]
pub struct PublishedWriter(Arc<Published>);

/// A block that was adopted on top of the chain for the first time, or in the place of others.
#[derive(Debug)]
pub struct AdoptedBlock {
    /// Its header.
    pub header: Header,
    /// Its position in the order of publication, see [`PublishedBlock::sequence`].
    pub sequence: u64,
    /// Blocks that it replaces, oldest first.
    pub dropped: Vec<PublishedBlock>,
}

impl PublishedWriter {
    /// Creates a published chain without blocks, of which `history` bounds the memory. Its head is shown by the metric
    /// `head_number`, and its reorgs enter the journal.
    #[must_use]
    pub fn new(history: History, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Published {
            state: RwLock::new(PublishedState::new(history)),
            changes: watch::Sender::new(()),
            recent: Mutex::default(),
            metrics,
        }))
    }

    /// Returns the chain for its readers.
    #[must_use]
    pub fn reader(&self) -> Arc<Published> {
        self.0.clone()
    }

    /// Reads the recent blocks, see [`Published::with_history`].
    pub fn with_history<T>(&self, look: impl FnOnce(&History) -> T) -> T {
        self.0.with_history(look)
    }

    /// Changes the logs that are kept with the recent blocks.
    pub fn change_logs<T>(&mut self, change: impl FnOnce(&mut History) -> T) -> T {
        change(&mut self.0.state.write().history)
    }

    /// Applies an event. Returns the block to deliver; `None` for a rewind, a block below the others, and a block that
    /// is adopted once more after a rewind.
    ///
    /// # Errors
    /// [`Loss`] if the next block is not connected with the published ones.
    pub fn apply(&mut self, event: ChainEvent) -> Result<Option<AdoptedBlock>, Loss> {
        let Published {
            state, recent, metrics, ..
        } = &*self.0;
        let mut state = state.write();
        let reorg = recent
            .lock()
            .note(&event, state.history.head(), Instant::now())
            .cloned();
        let lost = matches!(event, ChainEvent::ContinuityLost(_));
        let applied = state.apply(event);
        if let Some(head) = state.view().head {
            metrics.head_number.set(head.number as i64);
        }
        drop(state);
        if let Some(reorg) = reorg {
            metrics.journal.enter(Event::Reorg {
                fork: reorg.fork.number,
                depth: reorg.depth,
            });
        } else if lost {
            metrics.journal.enter(Event::ContinuityLost);
        }
        applied
    }
}

/// State of [`Published`]. No I/O, no clock.
#[derive(Debug)]
struct PublishedState {
    history: History,
    branch: u64,
    epoch: u64,
    final_block: Option<u64>,
    /// Highest number published since the chain began, or began anew.
    highest: u64,
    last_adopted: Option<(BlockRef, Instant)>,
}

impl PublishedState {
    fn new(history: History) -> Self {
        Self {
            history,
            branch: 0,
            epoch: 0,
            final_block: None,
            highest: 0,
            last_adopted: None,
        }
    }

    fn view(&self) -> View {
        let head = self.history.head();
        View {
            head,
            branch: self.branch,
            epoch: self.epoch,
            final_block: self.final_block,
            is_settled: head.is_some_and(|head| head.number >= self.highest),
        }
    }

    fn note_final(&mut self, number: u64) {
        if let Some(head) = self.history.head() {
            // Nodes differ in how soon they learn of it.
            self.final_block = self.final_block.max(Some(number.min(head.number)));
        }
    }

    fn apply(&mut self, event: ChainEvent) -> Result<Option<AdoptedBlock>, Loss> {
        match event {
            ChainEvent::Head(header) => return Ok(self.adopt(header)),
            ChainEvent::Rewind(to) => self.rewind(to)?,
            ChainEvent::Backfilled(header) => self.history.past(header),
            ChainEvent::ContinuityLost(loss) => {
                self.history.clear();
                (self.final_block, self.highest) = (None, 0);
                self.branch += 1;
                self.epoch += 1;
                return Err(loss);
            }
        }
        Ok(None)
    }

    fn adopt(&mut self, header: Header) -> Option<AdoptedBlock> {
        self.last_adopted = Some((header.block, header.seen));
        self.highest = self.highest.max(header.block.number);
        let dropped = self.history.add_head(header.clone())?;
        let sequence = self.history.tip()?.sequence;
        Some(AdoptedBlock {
            header,
            sequence,
            dropped,
        })
    }

    /// Goes back to a block. Beyond memory all blocks are forgotten; the chain does not start anew, so its height is
    /// settled only where it was before.
    fn rewind(&mut self, to: BlockRef) -> Result<(), Loss> {
        self.branch += 1;
        if self.final_block.take_if(|newest| *newest > to.number).is_some() {
            // A block reported as final was dropped: mostly on a development chain.
            self.epoch += 1;
        }
        self.history.rewind(to).map_err(|_| {
            self.history.clear();
            Loss::TooFar
        })
    }
}

#[cfg(test)]
mod tests;
