//! The fan-out loop: reads the backplane, fans out, wakes; and has the transactions and receipts of blocks fetched, while
//! somebody wants them.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::B256;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::{Line, Registry};
use crate::backplane::{Answers, Feed};
use crate::chain::{Absent, Header, Source};

/// Events fanned out before clients are woken. What came in together leaves together, in one write for each client. So
/// many wait here, too, where a head has to wait; the backplane has a bound of its own.
const MAX_TOGETHER: usize = 64;

/// Blocks whose transactions are fetched at the same time, and as many whose receipts are: after an outage many wait, and
/// one round trip each is too slow.
const MAX_FETCHES: usize = 8;

/// How often it is looked whether those were answered for whom something came too early: as long as a new subscription is
/// held (E5), about, and only while there is anything.
const EARLY_LOOK: Duration = Duration::from_millis(10);

/// Runs until the backplane ends. `answers` is what the node in use says of subscriptions that are passed through.
pub async fn dispatch(
    mut feed: Feed,
    mut answers: watch::Receiver<Answers>,
    registry: Arc<Registry>,
    source: Arc<Source>,
) {
    let mut arrived = Vec::with_capacity(MAX_TOGETHER);
    let mut line = Line::default();
    let mut transactions = Fetches::default();
    let mut receipts = Fetches::default();
    let mut early = false;
    let mut look = tokio::time::interval(EARLY_LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let room = MAX_TOGETHER - line.len();
        let (wants_transactions, wants_receipts) = (line.of_transactions().0, line.of_receipts().0);
        tokio::select! {
            // Blocks before gossip: pending transactions may wait, and may be dropped.
            biased;
            found = transactions.first(), if wants_transactions => {
                line.transactions_came(found);
                registry.fan_out(&mut line);
            }
            found = receipts.first(), if wants_receipts => {
                line.receipts_came(found);
                registry.fan_out(&mut line);
            }
            taken = feed.chain.recv_many(&mut arrived, room), if room > 0 => {
                if taken == 0 {
                    return;
                }
                line.extend(arrived.drain(..));
                registry.fan_out(&mut line);
            }
            Ok(()) = answers.changed() => registry.answered(&answers.borrow_and_update()),
            _ = look.tick(), if early => early = registry.tell_early(),
            Some(gossip) = feed.gossip.recv() => early = registry.fan_out_gossip(gossip),
        }
        transactions.follow(line.of_transactions().1, |header| {
            let source = source.clone();
            async move { source.transactions(&header).await }
        });
        receipts.follow(line.of_receipts().1, |header| {
            let source = source.clone();
            async move { source.receipts(&header).await }
        });
        // A full feed must not keep this thread from the sessions that it wakes.
        tokio::task::yield_now().await;
    }
}

/// Fetches of blocks' contents, in the order of the blocks.
struct Fetches<T> {
    under_way: VecDeque<(B256, JoinHandle<Result<T, Absent>>)>,
}

impl<T> Default for Fetches<T> {
    fn default() -> Self {
        let under_way = VecDeque::new();
        Self { under_way }
    }
}

impl<T: Send + 'static> Fetches<T> {
    /// Fetches for the first of these, and ahead for those behind it. Others are given up.
    fn follow<'a, F>(&mut self, blocks: impl Iterator<Item = &'a Header>, fetch: impl Fn(Header) -> F)
    where
        F: Future<Output = Result<T, Absent>> + Send + 'static,
    {
        let mut blocks = blocks.take(MAX_FETCHES).peekable();
        let first = blocks.peek().map(|header| header.block.hash);
        while let Some((hash, under_way)) = self.under_way.front()
            && first != Some(*hash)
        {
            under_way.abort();
            self.under_way.pop_front();
        }
        for header in blocks {
            let hash = header.block.hash;
            if self.under_way.len() < MAX_FETCHES && self.under_way.iter().all(|(own, _)| *own != hash) {
                self.under_way.push_back((hash, tokio::spawn(fetch(header.clone()))));
            }
        }
    }

    /// What was fetched for the first block, or why it cannot be had.
    async fn first(&mut self) -> Result<T, Absent> {
        match self.under_way.front_mut() {
            Some((_, fetch)) => {
                let found = fetch.await.unwrap_or(Err(Absent::NotServed));
                self.under_way.pop_front();
                found
            }
            None => std::future::pending().await,
        }
    }
}
