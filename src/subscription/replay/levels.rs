//! Task of the levels of finality: asks the node in use for its tags at each head while a client subscribes to them,
//! has the walks advance, and fetches the blocks that memory no longer has.

use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::B256;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;

use super::{Begun, Replays, unavailable};
use crate::chain::{Fetch, Gap, History, Page, Tag, Tagged};
use crate::delivery::ClientWriter;
use crate::jsonrpc::{ErrorObjectOwned, INVALID_PARAMS, SERVER_ERROR, error};
use crate::subscription::trail::Retry;
use crate::subscription::trails::Reached;
use crate::subscription::{Level, Start, Stream, Topic};

/// Longest wait of an answer for the place of a level.
const FIRST_PLACE: Duration = Duration::from_secs(10);

/// Wait before a node is asked again that gave no answer, or no page that leads on.
const AGAIN: Duration = Duration::from_millis(500);

/// Errors in a row, in place of a block, that mean that the chain has no such tag: a node may fail for a moment.
const REFUSALS: u32 = 3;

/// Answer of a node to the task.
enum Answer {
    Tag(Tag, Tagged),
    /// Page for a level, and the generation of memory in which it was fetched.
    Page(Level, u64, Page),
}

impl Replays {
    /// Adds a subscription that waits for a level of finality, and begins at `start`.
    ///
    /// # Errors
    /// If the level is deeper than memory, or `start` cannot be resumed from.
    pub fn trail(self: &Arc<Self>, level: Level, stream: Stream, start: Start, writer: &Arc<ClientWriter>) -> Begun {
        let deepest = self.settings.max_reorg as u64;
        if let Level::Confirmations(depth) = level
            && depth > deepest
        {
            let message = format!("confirmations: {depth} is too deep, want at most {deepest}");
            return Err(error(INVALID_PARAMS, message));
        }
        let begun = if start == Start::Live {
            let topic = Topic::Trailing(level, stream, start);
            let subscription = self
                .registry
                .subscribe(topic, writer)
                .map_err(|full| error(SERVER_ERROR, full.to_string()))?;
            let lookup = self.lookup(Some(level), &subscription, None, false, writer);
            Ok((subscription, lookup))
        } else {
            self.resume(Some(level), stream, start, writer)
        };
        self.leveled.notify_one();
        begun
    }

    pub(super) fn has_begun(&self, level: Level) -> bool {
        self.registry.reached(level) == Reached::Begun
    }

    /// Waits until the place of a level is known.
    ///
    /// # Errors
    /// If no node answers in time, or the chain has no such level.
    pub(super) async fn until_begun(&self, level: Level) -> Result<(), ErrorObjectOwned> {
        let mut published = self.published.watch();
        let reached = published.wait_for(|()| self.registry.reached(level) != Reached::Unknown);
        drop(tokio::time::timeout(FIRST_PLACE, reached).await);
        match self.registry.reached(level) {
            Reached::Begun => Ok(()),
            Reached::Unknown => Err(unavailable()),
            Reached::Absent => {
                let message = format!(
                    "the node has no {level} block: use confirmations, or have the operator set history.finality_depth"
                );
                Err(error(SERVER_ERROR, message))
            }
        }
    }

    /// Runs until the process ends.
    pub async fn follow_levels(self: Arc<Self>) {
        let mut published = self.published.watch();
        let mut answers: FuturesUnordered<BoxFuture<'static, Answer>> = FuturesUnordered::new();
        // Head at which each tag was asked for last, and the tags that are being asked for.
        let mut asked: [Option<B256>; Tag::ALL.len()] = [None; Tag::ALL.len()];
        let mut asking = [false; Tag::ALL.len()];
        loop {
            published.borrow_and_update();
            let Some(wanted) = self.registry.wanted_tags() else {
                asked = [None; Tag::ALL.len()];
                tokio::select! {
                    () = self.leveled.notified() => {}
                    Some(answer) = answers.next() => self.take(answer, &mut asked, &mut asking),
                }
                continue;
            };
            let head = self.published.with_history(|history| Some(history.head()?.hash));
            for tag in wanted {
                let (asked, asking) = (&mut asked[tag as usize], &mut asking[tag as usize]);
                if head.is_some() && *asked != head && !*asking {
                    (*asked, *asking) = (head, true);
                    answers.push(Box::pin(self.clone().ask(tag)));
                }
            }
            let work = self.registry.advance_trails();
            for (level, gap, retry) in work.gaps {
                answers.push(Box::pin(self.clone().page(level, gap, retry)));
            }
            for writer in work.paged.values() {
                self.begin(writer);
            }
            if work.again {
                tokio::task::yield_now().await;
                continue;
            }
            tokio::select! {
                changed = published.changed() => if changed.is_err() {
                    return;
                },
                () = self.leveled.notified() => self.ask_anew(&mut asked),
                Some(answer) = answers.next() => self.take(answer, &mut asked, &mut asking),
            }
        }
    }

    /// Has tags asked for once more of which the place is not known: a level may have been given up meanwhile.
    fn ask_anew(&self, asked: &mut [Option<B256>]) {
        for tag in Tag::ALL {
            if !self.has_begun(Level::Tag(tag)) {
                asked[tag as usize] = None;
            }
        }
    }

    fn take(&self, answer: Answer, asked: &mut [Option<B256>], asking: &mut [bool]) {
        match answer {
            Answer::Tag(tag, tagged) => {
                asking[tag as usize] = false;
                if tagged == Tagged::Unknown {
                    asked[tag as usize] = None;
                }
                self.registry.note_tag(tag, tagged, self.settings.finality_depth);
            }
            Answer::Page(level, generation, page) => {
                // A page of a chain that has changed may be of a branch that was left.
                let is_current = generation == self.published.with_history(History::generation);
                let page = if is_current { page } else { Page::default() };
                self.registry.trail_page(level, page);
            }
        }
    }

    async fn ask(self: Arc<Self>, tag: Tag) -> Answer {
        for _ in 0..REFUSALS {
            match self.archive.tagged(tag).await {
                Tagged::Refused => tokio::time::sleep(AGAIN).await,
                Tagged::Unknown => {
                    tokio::time::sleep(AGAIN).await;
                    return Answer::Tag(tag, Tagged::Unknown);
                }
                tagged => return Answer::Tag(tag, tagged),
            }
        }
        Answer::Tag(tag, Tagged::None)
    }

    async fn page(self: Arc<Self>, level: Level, gap: Gap, retry: Retry) -> Answer {
        if retry == Retry::Again {
            tokio::time::sleep(AGAIN).await;
            self.archive.forget();
        }
        let generation = self.published.with_history(History::generation);
        let page = self.archive.page(generation, gap, Fetch::Headers, &[]).await;
        Answer::Page(level, generation, page)
    }
}
