//! Metrics of the exchange of quotas between headwaters.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::OutcomeLabel;

/// Metrics of the exchange of quotas; all 0 if quotas are not shared.
#[derive(Debug, Default)]
pub struct FleetMetrics {
    /// Other headwaters whose reports count.
    pub members: Gauge,
    /// 1 if quotas are to be shared and no other headwater is reachable.
    pub alone: Gauge,
    /// Reports, by outcome.
    pub reports: Family<OutcomeLabel, Counter>,
    /// Units of requests that were used at other headwaters.
    pub foreign_units: Counter,
    /// Accounts of reports for which the ledger had no room.
    pub dropped: Counter,
}

impl FleetMetrics {
    pub(super) fn add_to(&self, r: &mut Registry) {
        r.register(
            "fleet_members",
            "Other headwaters that share quotas with this one",
            self.members.clone(),
        );
        r.register(
            "fleet_alone",
            "1 if quotas are to be shared (fleet.secret_file) and no other headwater is reachable: they apply to this process alone",
            self.alone.clone(),
        );
        r.register(
            "fleet_reports",
            "Reports of use: answered or failed (to a root), received or refused (from an edge)",
            self.reports.clone(),
        );
        r.register(
            "fleet_foreign_units",
            "Units of requests that clients used at other headwaters, as reported",
            self.foreign_units.clone(),
        );
        r.register(
            "fleet_dropped_accounts",
            "Accounts in reports for which there was no room",
            self.dropped.clone(),
        );
    }
}
