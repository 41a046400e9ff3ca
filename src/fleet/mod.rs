//! Fleet: quotas that hold for all headwaters of a tree, although each limits its own clients.
//!
//! ```text
//! ledger     sums that each member reported, and what of them is to be charged
//! report     form of a report and of its answer
//! exchange   actor: own use into the ledger, reports to the roots, their answers into the ledger
//! ```
//!
//! Each edge reports what its clients used to every root that answers; a root answers with what its own clients and
//! those of other edges used, and [`Accounts::charge_foreign`] charges that here. Without an answer each goes on with
//! its own quotas: the exchange fails open, with a line in the log and a metric.

mod exchange;
mod ledger;
mod report;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::value::RawValue;
use tracing::{info, warn};

use self::ledger::{Ledger, MemberId, PassedLine, ReportRefusal};
use self::report::{Answer, Report};
use crate::clock::{Clock, Moment};
use crate::door::{AccountSecret, Accounts, Door};
use crate::jsonrpc::{ErrorObjectOwned, INTERNAL_ERROR, INVALID_PARAMS, LIMIT_EXCEEDED, error};
use crate::telemetry::{Metrics, OutcomeLabel};

pub use self::report::FLEET_REPORT;

/// Exchanges without a report after which a member counts as silent.
const MISSED: u32 = 4;

/// Shortest time after which a member counts as silent: a machine under load is not one that has ended.
const MIN_SILENCE: Duration = Duration::from_secs(2);

/// Time after the start in which no other headwater need be reachable.
const START: Duration = Duration::from_secs(10);

/// Settings of the exchange.
#[derive(Clone, Debug)]
pub struct FleetSettings {
    /// Secret by which accounts are named.
    pub secret: AccountSecret,
    /// Interval between reports.
    pub exchange: Duration,
}

/// State of the exchange, for `/status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FleetState {
    /// Other headwaters whose reports count.
    pub members: usize,
    /// Accounts in the ledger, those of each member apart.
    pub accounts: usize,
}

/// Exchange of quotas with other headwaters.
#[derive(Debug)]
pub struct Fleet {
    own: MemberId,
    ledger: Mutex<Ledger>,
    accounts: Arc<Accounts>,
    exchange: Duration,
    clock: Clock,
    started: Moment,
    /// `Some(true)` if the log said last that others are reachable; `None` before it said anything.
    company: Mutex<Option<bool>>,
    metrics: Arc<Metrics>,
}

impl Fleet {
    /// Lets the accounts of a door be counted by other headwaters too; without settings the door stays as it is.
    #[must_use]
    pub fn join(
        settings: Option<FleetSettings>,
        door: Door,
        clock: Clock,
        metrics: &Arc<Metrics>,
    ) -> (Door, Option<Arc<Self>>) {
        let Some(FleetSettings { secret, exchange }) = settings else {
            return (door, None);
        };
        let door = door.sharing(secret);
        let fleet = Self::new(exchange, door.accounts().clone(), clock, metrics.clone());
        (door, Some(Arc::new(fleet)))
    }

    fn new(exchange: Duration, accounts: Arc<Accounts>, clock: Clock, metrics: Arc<Metrics>) -> Self {
        let (own, now) = (MemberId::random(), clock.now());
        Self {
            own,
            ledger: Mutex::new(Ledger::new(own, (exchange * MISSED).max(MIN_SILENCE), now)),
            accounts,
            exchange,
            clock,
            started: now,
            company: Mutex::default(),
            metrics,
        }
    }

    /// Returns the state.
    #[must_use]
    pub fn state(&self) -> FleetState {
        let ledger = self.ledger.lock();
        FleetState {
            members: ledger.others(),
            accounts: ledger.len(),
        }
    }

    /// Takes a report of an edge, the parameters of [`FLEET_REPORT`]; returns what others used.
    ///
    /// # Errors
    /// Error object, if the parameters are not a report, or the member reports too often.
    pub fn answer(&self, params: Option<&str>) -> Result<Box<RawValue>, ErrorObjectOwned> {
        let answer = self.take(params);
        let outcome = if answer.is_ok() { "received" } else { "refused" };
        self.count(outcome);
        answer
    }

    fn take(&self, params: Option<&str>) -> Result<Box<RawValue>, ErrorObjectOwned> {
        let report = params.and_then(|params| serde_json::from_str::<[Report; 1]>(params).ok());
        let Some([report]) = report.filter(|[report]| report.is_bounded()) else {
            return Err(error(INVALID_PARAMS, "not a report of a headwater"));
        };
        let now = self.clock.now();
        let answer = {
            let mut ledger = self.ledger.lock();
            ledger.report(report.member, now).map_err(refused)?;
            let lines = report.accounts.into_iter().map(|row| (report.member, row.into()));
            self.record(&mut ledger, lines, now);
            let since = report.seen.filter(|seen| seen.root == self.own);
            let since = since.map_or(0, |seen| seen.version);
            Answer::new(self.own, ledger.changes_for(report.member, since, report::MAX_ROWS))
        };
        let text = serde_json::to_string(&answer).ok();
        text.and_then(|text| RawValue::from_string(text).ok())
            .ok_or_else(|| error(INTERNAL_ERROR, "the answer is not JSON"))
    }

    /// Applies the answer of a root.
    fn apply(&self, answer: Answer) {
        let now = self.clock.now();
        let mut ledger = self.ledger.lock();
        for member in answer.members {
            if ledger.record_contact(member.member, now) {
                let lines = member.accounts.into_iter().map(|row| (member.member, row.into()));
                self.record(&mut ledger, lines, now);
            }
        }
    }

    /// Records lines, and charges what they say.
    fn record(&self, ledger: &mut Ledger, lines: impl Iterator<Item = (MemberId, PassedLine)>, now: Moment) {
        for (member, line) in lines {
            if let Some(charge) = ledger.record(member, line, now) {
                self.metrics
                    .fleet
                    .foreign_units
                    .inc_by(charge.units.min(u32::MAX.into()));
                self.accounts.charge_foreign(&charge, now);
            }
        }
    }

    /// Enters the use of the own accounts, and lets silent members go.
    fn turn(&self) {
        let now = self.clock.now();
        let uses = self.accounts.take_uses();
        let (others, dropped) = {
            let mut ledger = self.ledger.lock();
            for (account, used) in uses {
                ledger.record_own(account, used, now);
            }
            for freed in ledger.expire(now) {
                self.accounts.charge_foreign(&freed, now);
            }
            (ledger.others(), ledger.take_dropped())
        };
        self.metrics.fleet.dropped.inc_by(dropped);
        self.metrics
            .fleet
            .members
            .set(i64::try_from(others).unwrap_or(i64::MAX));
        self.metrics.fleet.alone.set(i64::from(others == 0));
        let mut company = self.company.lock();
        let is_early = company.is_none() && now.since(self.started) < START;
        if *company != Some(others > 0) && (others > 0 || !is_early) {
            *company = Some(others > 0);
            if others > 0 {
                info!(others, "fleet: quotas are shared with other headwaters");
            } else {
                warn!("fleet: no other headwater is reachable; quotas apply to this process alone until one is");
            }
        }
    }

    fn count(&self, outcome: &'static str) {
        let reports = &self.metrics.fleet.reports;
        reports.get_or_create(&OutcomeLabel { outcome }).inc();
    }
}

fn refused(why: ReportRefusal) -> ErrorObjectOwned {
    error(LIMIT_EXCEEDED, why.to_string())
}
