//! State of everything that a page shows, gathered from counters and from what others keep anyway.

use std::time::Duration;

use alloy_primitives::B256;

use super::service::OperatorService;
use super::views::{
    BlockView, BusyView, FinalityView, HeadView, QueuesView, ReorgView, Status, UpstreamState, UpstreamView,
};
use crate::delivery::Kind;
use crate::telemetry::{KindLabel, unix_millis};
use crate::upstream::UpstreamStatus;

impl OperatorService {
    /// Gathers the status.
    pub(super) fn gather(&self) -> Status {
        let parts = &self.parts;
        let (metrics, published) = (&parts.services.metrics, &parts.published);
        let (reading, latency) = self.sampler.newest();
        let queues = parts.services.clients.queue_totals();
        let late = self.late.lock().clone();
        let readiness = parts.readiness.check_head().and(late);
        let head = published.last_adopted().map(|(block, seen)| HeadView {
            number: block.number,
            hash: block.hash,
            age_ms: ms(seen.elapsed()),
        });
        let blocks = published.with_recent(|recent| {
            let blocks = recent.blocks().map(|own| BlockView {
                number: own.block.number,
                hash: own.block.hash,
                parent: own.parent,
                timestamp: own.timestamp,
                age_ms: ms(own.seen.elapsed()),
                dropped: own.dropped,
            });
            blocks.collect()
        });
        let of_kind = |kind: Kind| KindLabel { kind: kind.label() };
        let subscriptions = Kind::ALL.map(|kind| {
            let open = metrics.subscriptions.get_or_create_owned(&of_kind(kind)).get();
            (kind.label().to_owned(), u64::try_from(open).unwrap_or(0))
        });
        let deliveries = Kind::ALL.map(|kind| {
            let written = metrics.deliveries.get_or_create_owned(&of_kind(kind)).get();
            (kind.label().to_owned(), written)
        });
        let busy = queues
            .busiest
            .into_iter()
            .map(|(client, account, bytes)| BusyView { client, account, bytes });
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            at_ms: unix_millis(),
            uptime_ms: ms(self.started.elapsed()),
            ready: readiness.is_ok(),
            not_ready: readiness.err(),
            drained: parts.readiness.is_drained(),
            chain_id: parts.pool.chain_id().map(|id| id.trim_matches('"').to_owned()),
            head,
            upstreams: self.upstream_views(),
            clients: parts.services.clients.len() as u64,
            connections: metrics.connections.get(),
            accounts: parts.services.door.accounts().len() as u64,
            subscriptions: subscriptions.into(),
            log_filters: u64::try_from(metrics.filters.get()).unwrap_or(0),
            finality: self.finality_views(),
            deliveries: deliveries.into(),
            sent_bytes: metrics.bytes_out.get(),
            received_bytes: metrics.bytes_in.get(),
            saved_bytes: metrics.bytes_saved.get(),
            requests: reading.requests,
            latency,
            queues: QueuesView {
                bytes: queues.bytes as u64,
                largest: queues.largest as u64,
                slow: queues.blocked as u64,
            },
            closes: reading.closes,
            refusals: reading.refused,
            failovers: reading.failovers,
            reorgs: metrics.reorgs.get(),
            blocks,
            new_blocks: None,
            busiest: busy.collect(),
            costliest: self.costs.lock().most(),
            webhooks: parts.webhooks.status(),
        }
    }

    /// Describes the upstreams, by priority.
    pub(super) fn upstream_views(&self) -> Vec<UpstreamView> {
        let upstreams = self.parts.pool.status().into_iter().enumerate();
        upstreams
            .map(|(index, (address, status))| upstream(index, address, status))
            .collect()
    }

    /// Describes the levels of finality in use.
    fn finality_views(&self) -> Vec<FinalityView> {
        let levels = self.parts.services.registry.levels().into_iter();
        let view = levels.map(|state| FinalityView {
            level: state.level.to_string(),
            number: state.number,
            basis: state.basis.to_owned(),
            subscriptions: state.subscriptions as u64,
        });
        view.collect()
    }

    /// Describes the newest reorgs, newest first.
    pub(super) fn reorg_views(&self, count: usize) -> Vec<ReorgView> {
        self.parts.published.with_recent(|recent| {
            let newest = recent.reorgs().rev().take(count).map(|reorg| ReorgView {
                age_ms: ms(reorg.at.elapsed()),
                fork: reorg.fork.number,
                fork_hash: reorg.fork.hash,
                depth: reorg.depth,
                dropped: reorg.dropped.clone(),
                next: reorg.next.map(|next| -> B256 { next.hash }),
            });
            newest.collect()
        })
    }
}

/// Blocks that a subscriber has been sent: 64 of them, each with two hashes, are most of what a status costs.
#[derive(Debug, Default)]
pub(super) struct SentBlocks(Vec<(B256, bool)>);

impl SentBlocks {
    /// Takes the new ones out of the blocks of a status, if the others are as the subscriber knows them.
    pub(super) fn news(&mut self, blocks: &mut Vec<BlockView>) -> Option<Vec<BlockView>> {
        let now = blocks.iter().map(|block| (block.hash, block.dropped)).collect();
        let sent = std::mem::replace(&mut self.0, now);
        // The oldest may have left.
        let oldest = self.0.first()?;
        let left = sent.iter().position(|block| block == oldest)?;
        let known = sent.len() - left;
        (self.0.get(..known)? == &sent[left..]).then(|| blocks.split_off(known))
    }
}

fn upstream(index: usize, address: String, status: UpstreamStatus) -> UpstreamView {
    let state = if status.cordoned {
        UpstreamState::Cordoned
    } else if status.active {
        UpstreamState::Active
    } else if status.connected {
        UpstreamState::Standby
    } else if status.refused.is_some() {
        UpstreamState::Refused
    } else {
        UpstreamState::Down
    };
    UpstreamView {
        index,
        address,
        state,
        active: status.active,
        cordoned: status.cordoned,
        head: status.head,
        lag_ms: status.lag.map(ms),
        latency_ms: status.latency.map(|latency| latency.as_secs_f64() * 1000.0),
        calls_in_flight: status.in_flight,
        connects: status.connects,
        announcements: status.heads.map(|heads| heads.label().to_owned()),
        lanes: status.lanes.map(|lanes| lanes.label().to_owned()),
        error: status.refused.or(status.last_error),
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    /// Describes the items of a subscriber: `+` and the new blocks, or `=` and all of them. `5` is a block, `5x` one that a
    /// reorg dropped.
    fn items(states: &[&str]) -> String {
        let mut sent = SentBlocks::default();
        let mut known = Vec::new();
        let mut lines = String::new();
        for state in states {
            let full: Vec<BlockView> = state.split_whitespace().map(block).collect();
            let mut blocks = full.clone();
            let news = sent.news(&mut blocks);
            let (sign, sent) = match &news {
                Some(news) => ('+', news),
                None => ('=', &blocks),
            };
            let names: Vec<_> = sent.iter().map(|block| block.number.to_string()).collect();
            lines += &format!("{sign} {}\n", names.join(" "));
            known = match news {
                Some(news) => BlockView::after(&known, 0, news),
                None => blocks,
            };
            assert_eq!(known, full);
        }
        lines
    }

    fn block(name: &str) -> BlockView {
        let number: u64 = name.trim_end_matches('x').parse().unwrap();
        BlockView {
            number,
            hash: B256::with_last_byte(number as u8),
            parent: B256::ZERO,
            timestamp: 0,
            age_ms: 0,
            dropped: name.ends_with('x'),
        }
    }

    #[test]
    fn a_subscriber_gets_all_blocks_first_and_then_what_is_new() {
        let growing = items(&["", "1", "1 2", "1 2", "1 2 3 4"]);
        expect![[r"
            = 
            = 1
            + 2
            + 
            + 3 4
        "]]
        .assert_eq(&growing);
    }

    #[test]
    fn a_reorg_a_loss_and_a_block_that_comes_again_send_all_blocks() {
        let reorg = items(&["1 2 3", "1 2 3x", "1 2 3x 4", "1 2 3x 4x 3", "1 2 3x 4x 3 5", "", "9"]);
        expect![[r"
            = 1 2 3
            = 1 2 3
            + 4
            = 1 2 3 4 3
            + 5
            = 
            = 9
        "]]
        .assert_eq(&reorg);
    }

    #[test]
    fn the_oldest_blocks_leave() {
        let names = |range: std::ops::Range<u32>| range.map(|number| number.to_string()).collect::<Vec<_>>().join(" ");
        let moving = items(&[&names(0..64), &names(2..66), &names(100..164)]);
        let ends: Vec<_> = moving
            .lines()
            .map(|line| line.chars().take(8).collect::<String>())
            .collect();
        assert_eq!(ends, ["= 0 1 2 ", "+ 64 65", "= 100 10"]);
    }
}
