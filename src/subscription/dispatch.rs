//! The fan-out loop: reads the backplane, fans out, wakes; and has the transactions of blocks fetched, while somebody
//! wants them.

use std::collections::VecDeque;
use std::sync::Arc;

use alloy_primitives::B256;
use tokio::task::JoinHandle;

use super::{Line, Registry};
use crate::backplane::Feed;
use crate::chain::{BlockTransactions, Source};

/// Events fanned out before clients are woken. What came in together leaves together, in one write for each client. So
/// many wait here, too, where a head has to wait; the backplane has a bound of its own.
const MAX_TOGETHER: usize = 64;

/// Blocks whose transactions are fetched at the same time: after an outage many wait, and one round trip each is too slow.
const MAX_FETCHES: usize = 8;

/// Runs until the backplane ends.
pub async fn dispatch(mut feed: Feed, registry: Arc<Registry>, source: Arc<Source>) {
    let mut arrived = Vec::with_capacity(MAX_TOGETHER);
    let mut line = Line::default();
    let mut fetches = Fetches::new(source);
    loop {
        let room = MAX_TOGETHER - line.len();
        tokio::select! {
            // Blocks before gossip: pending transactions may wait, and may be dropped.
            biased;
            found = fetches.first() => registry.fan_out_transactions(found, &mut line),
            taken = feed.chain.recv_many(&mut arrived, room), if room > 0 => {
                if taken == 0 {
                    return;
                }
                line.extend(arrived.drain(..));
                registry.fan_out(&mut line);
            }
            Some(gossip) = feed.gossip.recv() => registry.fan_out_gossip(gossip),
        }
        fetches.follow(&line);
        // A full feed must not keep this thread from the sessions that it wakes.
        tokio::task::yield_now().await;
    }
}

/// Fetches of blocks' transactions, in the order of the blocks.
struct Fetches {
    source: Arc<Source>,
    under_way: VecDeque<(B256, JoinHandle<Option<BlockTransactions>>)>,
}

impl Fetches {
    fn new(source: Arc<Source>) -> Self {
        let under_way = VecDeque::new();
        Self { source, under_way }
    }

    /// Fetches for the block that is waited for, and ahead for those behind it. Others are given up.
    fn follow(&mut self, line: &Line) {
        let awaited = line.awaited();
        while let Some((hash, fetch)) = self.under_way.front()
            && awaited.is_none_or(|header| header.block.hash != *hash)
        {
            fetch.abort();
            self.under_way.pop_front();
        }
        let Some(awaited) = awaited else { return };
        for header in std::iter::once(awaited).chain(line.heads()).take(MAX_FETCHES) {
            let hash = header.block.hash;
            if self.under_way.len() < MAX_FETCHES && self.under_way.iter().all(|(own, _)| *own != hash) {
                let (source, header) = (self.source.clone(), header.clone());
                let fetch = tokio::spawn(async move { source.transactions(&header).await });
                self.under_way.push_back((hash, fetch));
            }
        }
    }

    /// What was fetched for the block that is waited for; nothing where no node has it.
    async fn first(&mut self) -> Option<BlockTransactions> {
        match self.under_way.front_mut() {
            Some((_, fetch)) => {
                let found = fetch.await.ok().flatten();
                self.under_way.pop_front();
                found
            }
            None => std::future::pending().await,
        }
    }
}
