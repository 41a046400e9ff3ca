//! Published state of the chain, from which calls are answered.

use parking_lot::Mutex;
use tokio::time::Instant;

use super::recent_blocks::{RecentBlocks, Reorg};
use super::{BlockRef, ChainEvent};

/// Published state of the chain, for answering calls about it.
#[derive(Debug, Default)]
pub struct Tip {
    extent: Mutex<Extent>,
    recent: Mutex<RecentBlocks>,
}

/// State of [`Tip`].
#[derive(Clone, Copy, Debug, Default)]
struct Extent {
    view: View,
    /// Highest number published since the chain began, or began anew.
    highest: u64,
    /// Block that was adopted last, even if it was dropped since, and the moment at which its header arrived.
    arrived: Option<(BlockRef, Instant)>,
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

impl Tip {
    /// Returns the block that was adopted last, even if it was dropped since, and the moment at which its header
    /// arrived.
    #[must_use]
    pub fn get(&self) -> Option<(BlockRef, Instant)> {
        self.extent.lock().arrived
    }

    /// Returns the published chain at this moment.
    #[must_use]
    pub fn view(&self) -> View {
        self.extent.lock().view
    }

    /// Records that a node reported blocks up to `number` as final, capped at the published head; ignored without a
    /// head.
    pub fn note_final(&self, number: u64) {
        let view = &mut self.extent.lock().view;
        view.final_block = view.head.map(|head| number.min(head.number));
    }

    /// Reads the newest blocks and reorgs.
    pub fn with_recent<T>(&self, look: impl FnOnce(&RecentBlocks) -> T) -> T {
        look(&self.recent.lock())
    }

    /// Records an event that is about to be published; returns the reorg if it is one.
    pub(super) fn note(&self, event: &ChainEvent) -> Option<Reorg> {
        let head = self.view().head;
        self.note_view(event);
        self.recent.lock().note(event, head, Instant::now()).cloned()
    }

    fn note_view(&self, event: &ChainEvent) {
        let mut extent = self.extent.lock();
        let Extent { view, highest, arrived } = &mut *extent;
        match event {
            ChainEvent::Head(header) => {
                view.head = Some(header.block);
                *arrived = Some((header.block, header.seen));
                *highest = (*highest).max(header.block.number);
            }
            ChainEvent::Rewind(to) => {
                view.head = Some(*to);
                view.branch += 1;
                if view.final_block.is_some_and(|newest| newest > to.number) {
                    // A block reported as final was dropped: mostly on a development chain.
                    view.final_block = None;
                    view.epoch += 1;
                }
            }
            ChainEvent::ContinuityLost(_) => {
                (view.head, view.final_block, *highest) = (None, None, 0);
                view.branch += 1;
                view.epoch += 1;
            }
            ChainEvent::Past(_) => {}
        }
        view.is_settled = view.head.is_some_and(|head| head.number >= *highest);
    }
}
