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
            busiest: busy.collect(),
            costliest: self.costs.lock().most(),
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
