//! Routing of a client's call to a node, and to another node if the first does not answer.
//!
//! ```text
//! reach (has the block)  >  methods, archive (can serve it)  >  share, back-off, load (best choice)  >  the actor
//!       none: wait a little                                       no answer: retry, elsewhere if possible
//! ```

use std::time::Duration;

use alloy_primitives::B256;
use futures_util::future::{Either, select};
use tokio::time::Instant;

use super::call::{attempted, exchange};
use super::complaint::{call_throttled, is_throttled_by_code, is_without_node, may_succeed_elsewhere};
use super::lanes::{Lane, Lanes};
use super::node::Share;
use super::pool::Pool;
use super::roster::{Member, Roster};
use super::{CallError, CallRequest, Endpoint, MinHead, Repeat, Target, UpstreamId};
use crate::jsonrpc::Outcome;
use crate::shares::Full;
use crate::telemetry::{Attempt, ReasonLabel};

/// Shortest wait before a call is hedged to a second node, however fast the first one usually is: a shorter wait
/// gains nothing.
const LEAST_HEDGE: Duration = Duration::from_millis(5);

type Answer = Result<Outcome, CallError>;

impl Pool {
    /// Sends a call to an upstream that can answer. An idempotent call that gets no answer, or an answer that another
    /// node may improve on, is retried at another upstream, or at the same when it is back; where several nodes are
    /// slow it may be hedged to two at once (`calls.hedge`). A call that was not sent to any upstream yet always
    /// moves on to another.
    ///
    /// # Errors
    /// Returns a [`CallError`] where no upstream answered; an error object of the node is an [`Outcome::Error`].
    pub async fn call(&self, ask: &CallRequest) -> Answer {
        let now = Instant::now();
        let mut until = now + self.head_wait;
        check_conduct(ask)?;
        if ask.conduct.is_alone(ask.repeat != Repeat::Read, now)
            || self
                .roster
                .load()
                .iter()
                .any(|member| member.upstream.quarantine.refuses(ask))
        {
            return Box::pin(self.call_alone(ask, None, until)).await;
        }
        let (mut not, mut again) = (None, ask.repeat == Repeat::Read);
        loop {
            let id = match self.choose(ask, not) {
                Some(id) => id,
                None => Box::pin(self.find(ask, not, until)).await?,
            };
            check_conduct(ask)?;
            let answer = self.ask_perhaps_two(ask, id).await;
            note_loss(ask, &answer);
            let reason = match &answer {
                Err(CallError::Unavailable) if Instant::now() < until => {
                    // The upstream's actor already knows that the connection is lost.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    not = Some(id);
                    continue;
                }
                Err(CallError::TooLong) => return answer,
                Err(CallError::Lost) if ask.repeat != Repeat::Read => return answer,
                // The call may be what broke the connection.
                Err(CallError::Lost) => {
                    self.count_rerouted("lost");
                    let until = Instant::now() + self.head_wait;
                    return Box::pin(self.call_alone(ask, Some(id), until)).await;
                }
                _ if !again => return answer,
                answer if call_throttled(answer).is_some() => "throttled",
                Ok(outcome) if may_succeed_elsewhere(outcome) => "elsewhere",
                _ => return answer,
            };
            // The answer stands unless there is another upstream to ask.
            if self.choose(ask, Some(id)).is_none_or(|second| second == id) {
                return answer;
            }
            again = false;
            not = Some(id);
            until = Instant::now() + self.head_wait;
            self.count_rerouted(reason);
        }
    }

    /// Sends a signed transaction again after its connection was lost, on a connection of its own.
    ///
    /// # Errors
    /// Returns a [`CallError`] like [`Self::call`].
    pub async fn send_again(&self, ask: &CallRequest) -> Answer {
        self.count_rerouted("lost");
        let until = Instant::now() + self.head_wait;
        Box::pin(self.call_alone(ask, None, until)).await
    }

    /// Sends a call on a connection of its own, preferably to another upstream than the one that lost it. Where an
    /// upstream closes that connection too, or cannot answer, a call that may be repeated goes on to the next.
    async fn call_alone(&self, ask: &CallRequest, lost: Option<UpstreamId>, until: Instant) -> Answer {
        let mut asked: Vec<UpstreamId> = Vec::new();
        let mut broke_one = false;
        let mut best: Option<Answer> = None;
        loop {
            let id = match self.find(ask, lost, until).await {
                Ok(id) if !asked.contains(&id) => id,
                Ok(_) => {
                    let others = self.eligible(ask).into_iter().filter(|other| !asked.contains(other));
                    match others.min_by_key(|other| Some(*other) == lost) {
                        Some(other) => other,
                        None => break,
                    }
                }
                Err(why) if best.is_none() => return Err(why),
                Err(_) => break,
            };
            check_conduct(ask)?;
            asked.push(id);
            let Some(upstream) = self.upstream(id) else {
                continue;
            };
            let answer = match upstream.shared.endpoint {
                // Over HTTP each call has its own connection.
                Endpoint::Http(_) => self.ask_one(ask, id).await,
                _ if upstream.quarantine.refuses(ask) => Err(CallError::Breaks),
                _ => {
                    let answer = upstream.ask_alone(ask, self.request_timeout).await;
                    broke_one |= answer == Err(CallError::Breaks);
                    answer
                }
            };
            note_loss(ask, &answer);
            let goes_on = match &answer {
                // Not sent.
                Err(CallError::Unavailable) => true,
                Err(CallError::Breaks) => ask.repeat != Repeat::Never,
                _ if ask.repeat != Repeat::Read => false,
                Ok(outcome) if may_succeed_elsewhere(outcome) => true,
                answer => call_throttled(answer).is_some(),
            };
            if !goes_on {
                best = Some(answer);
                break;
            }
            let rank = |answer: &Answer| match answer {
                Ok(_) => 0,
                Err(CallError::Unavailable) => 2,
                Err(_) => 1,
            };
            if best.as_ref().is_none_or(|best| rank(&answer) < rank(best)) {
                best = Some(answer);
            }
        }
        match best.unwrap_or(Err(CallError::Unavailable)) {
            // A call that is already known to break connections was not sent, so it is not held against the account.
            Err(CallError::Breaks) if broke_one => {
                ask.conduct.broke_a_connection(Instant::now());
                Err(CallError::Breaks)
            }
            // It was sent once, and lost.
            Err(CallError::Unavailable) if lost.is_some() => Err(CallError::Lost),
            answer => {
                if broke_one {
                    ask.conduct.isolate_calls(Instant::now());
                }
                answer
            }
        }
    }

    /// Sends a call to this upstream, regardless of the state of the others: its subject (a filter) exists there
    /// alone.
    ///
    /// # Errors
    /// Returns a [`CallError`] like [`Self::call`].
    pub async fn call_at(&self, id: UpstreamId, ask: &CallRequest) -> Answer {
        check_conduct(ask)?;
        let Some(upstream) = self.upstream(id) else {
            return Err(CallError::Unavailable);
        };
        let is_http = matches!(upstream.shared.endpoint, Endpoint::Http(_));
        let answer = if !is_http && upstream.quarantine.refuses(ask) {
            Err(CallError::Breaks)
        } else if !is_http && ask.conduct.is_alone(ask.repeat != Repeat::Read, Instant::now()) {
            let answer = upstream.ask_alone(ask, self.request_timeout).await;
            if answer == Err(CallError::Breaks) {
                ask.conduct.broke_a_connection(Instant::now());
            }
            answer
        } else {
            self.ask_one(ask, id).await
        };
        note_loss(ask, &answer);
        answer
    }

    /// Returns the upstream that a call would go to now, for state that then stays there (a filter).
    ///
    /// # Errors
    /// Returns a [`CallError`] where no upstream qualifies, even after a wait.
    pub async fn place(&self, ask: &CallRequest) -> Result<UpstreamId, CallError> {
        self.find(ask, None, Instant::now() + self.head_wait).await
    }

    /// Returns all upstreams that such a call can be sent to now.
    #[must_use]
    pub fn all_eligible(&self, ask: &CallRequest) -> Vec<UpstreamId> {
        self.eligible(ask)
    }

    /// Checks if calls about state that exists at this upstream alone can be sent there, even if it is cordoned.
    #[must_use]
    pub fn is_connected(&self, id: UpstreamId) -> bool {
        self.active.is_connected(id)
    }

    /// Waits until `until` at most for an upstream that can answer.
    async fn find(&self, ask: &CallRequest, not: Option<UpstreamId>, until: Instant) -> Result<UpstreamId, CallError> {
        if let Some(id) = self.choose(ask, not) {
            return Ok(id);
        }
        let mut moves = self.active.watch_changes();
        loop {
            // Checked after the watch began, so that no change in between is missed.
            if let Some(id) = self.choose(ask, not) {
                return Ok(id);
            }
            let moved = tokio::time::timeout_at(until, moves.changed()).await;
            if !matches!(moved, Ok(Ok(()))) {
                let anywhere = CallRequest {
                    min_head: MinHead::Any,
                    ..ask.clone()
                };
                return Err(match (self.eligible(&anywhere).is_empty(), ask.min_head) {
                    (false, MinHead::Number(number)) => CallError::Behind(number),
                    (false, MinHead::Published | MinHead::PreferAbove(_)) => {
                        CallError::Behind(self.active.published_head().unwrap_or_default().0)
                    }
                    _ => CallError::Unavailable,
                });
            }
        }
    }

    /// Checks if any node that takes calls serves a method.
    #[must_use]
    pub fn serves(&self, method: &str) -> bool {
        let roster = self.roster.load();
        let mut nodes = roster.iter().map(|member| &member.node);
        nodes.any(|node| node.calls != Share::None && node.methods.match_any(method))
    }

    /// Checks if any node is an archive.
    #[must_use]
    pub fn has_archives(&self) -> bool {
        self.roster.load().iter().any(|member| member.node.archive)
    }

    /// Returns the upstreams that have the required block and serve the method, by priority.
    fn eligible(&self, ask: &CallRequest) -> Vec<UpstreamId> {
        self.eligible_of(&self.roster.load(), ask)
    }

    fn eligible_of(&self, roster: &Roster, ask: &CallRequest) -> Vec<UpstreamId> {
        let is = |id: &UpstreamId, test: &dyn Fn(&Member) -> bool| roster.get(*id).is_some_and(test);
        let is_archive = |id: &UpstreamId| is(id, &|member| member.node.archive);
        let mut eligible = self.active.reached(ask.min_head);
        let takes_it = |Member { node, .. }: &Member| node.calls != Share::None && node.methods.match_any(&ask.method);
        eligible.retain(|id| is(id, &takes_it));
        if ask.archive && eligible.iter().any(is_archive) {
            eligible.retain(is_archive);
        }
        // While one upstream is open for calls, none waits for another to open.
        let is_open = |id: &UpstreamId| is(id, &|member| *member.upstream.shared.lanes.borrow() != Lanes::Opening);
        if eligible.len() > 1 && eligible.iter().any(is_open) {
            eligible.retain(is_open);
        }
        eligible
    }

    /// Chooses the upstream for a call, `None` where none qualifies; `not`, which failed before, only where no other
    /// is left.
    fn choose(&self, ask: &CallRequest, not: Option<UpstreamId>) -> Option<UpstreamId> {
        let roster = self.roster.load();
        let eligible = self.eligible_of(&roster, ask);
        if let [only] = eligible[..] {
            return Some(only);
        }
        let active = self.active();
        let now = Instant::now();
        let rank = |id: UpstreamId, Member { node, upstream, .. }: &Member| {
            let load = &upstream.shared.load;
            let avoided = (Some(id) == not, load.is_backing_off(now), node.calls == Share::Spare);
            match ask.target {
                Target::Active => (avoided, u8::from(Some(id) != active), 0.0),
                Target::LeastLoaded => (avoided, 0, load.cost(now)),
            }
        };
        // Equal ranks resolve to the first, which has better priority. Costs are never NaN.
        let members = eligible.into_iter().filter_map(|id| Some((id, roster.get(id)?)));
        let ranked = members.map(|(id, member)| (rank(id, member), id));
        ranked
            .min_by(|(a, _), (b, _)| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal))
            .map(|(_, id)| id)
    }

    async fn ask_one(&self, ask: &CallRequest, id: UpstreamId) -> Answer {
        let Some(upstream) = self.upstream(id) else {
            return Err(CallError::Unavailable);
        };
        let way = upstream.way(Lane::Calls, self.head_wait).await?;
        let under_way = upstream.shared.load.begin(Instant::now());
        let attempt = ask.attempt(&upstream.shared.endpoint);
        let answer = exchange(
            &way.from_clients,
            ask.method.clone(),
            ask.params.clone(),
            ask.owner,
            attempt.as_ref().and_then(Attempt::context),
            self.request_timeout,
        )
        .await;
        attempted(attempt, &answer);
        let now = Instant::now();
        match &answer {
            Ok(Outcome::Result(_)) => {
                let took = under_way.answered(now);
                if self.hedges {
                    self.usual.lock().entry(ask.class).or_default().note(took);
                }
            }
            Ok(_) | Err(CallError::Throttled(_) | CallError::TimedOut | CallError::Full(_)) => under_way.failed(now),
            Err(
                CallError::Lost
                | CallError::TooLong
                | CallError::Breaks
                | CallError::Unavailable
                | CallError::Behind(_)
                | CallError::Another,
            ) => {
                under_way.lost(now);
            }
        }
        if let Some(after) = call_throttled(&answer) {
            upstream.shared.load.throttled(now, after);
        } else if answer.as_ref().is_ok_and(is_without_node) {
            // It may have waited seconds for its node: calls of others need not.
            upstream.shared.load.throttled(now, None);
        }
        answer
    }

    /// Sends a call to this upstream, and hedges it to another one once the 95th percentile of latencies has passed.
    async fn ask_perhaps_two(&self, ask: &CallRequest, first: UpstreamId) -> Answer {
        let usual = if self.hedges && ask.repeat == Repeat::Read && ask.target == Target::LeastLoaded {
            self.usual.lock().get(ask.class).and_then(super::load::P95::get)
        } else {
            None
        };
        match usual {
            // Boxed: hedging is rare, and larger than the rest of a call.
            Some(usual) => Box::pin(self.ask_two(ask, first, usual)).await,
            None => self.ask_one(ask, first).await,
        }
    }

    async fn ask_two(&self, ask: &CallRequest, first: UpstreamId, usual: Duration) -> Answer {
        let asked = std::pin::pin!(self.ask_one(ask, first));
        let late = std::pin::pin!(tokio::time::sleep(usual.max(LEAST_HEDGE)));
        let asked = match select(asked, late).await {
            Either::Left((answer, _)) => return answer,
            Either::Right(((), asked)) => asked,
        };
        // A spare upstream is for calls that no other can take, not for hedges.
        let is_free = |second: &UpstreamId| {
            let takes_hedges = |Member { node, upstream, .. }: &Member| {
                node.calls == Share::Share && !upstream.shared.load.is_backing_off(Instant::now())
            };
            *second != first && self.roster.load().get(*second).is_some_and(takes_hedges)
        };
        let Some(second) = self.choose(ask, Some(first)).filter(is_free) else {
            return asked.await;
        };
        self.count_rerouted("hedged");
        let also_asked = std::pin::pin!(self.ask_one(ask, second));
        // The first answer counts, unless it is an error or a rate limit.
        let is_none = |answer: &Answer| answer.as_ref().is_ok_and(is_throttled_by_code) || answer.is_err();
        match select(asked, also_asked).await {
            Either::Left((answer, other)) if is_none(&answer) => other.await,
            Either::Right((answer, other)) if is_none(&answer) => other.await,
            Either::Left((answer, _)) | Either::Right((answer, _)) => answer,
        }
    }

    fn count_rerouted(&self, reason: &'static str) {
        self.metrics.rerouted.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// Records the head that is about to be published, `None` where clients have to begin anew: their calls go to
    /// upstreams that have this head.
    pub fn published(&self, head: Option<(u64, B256)>) {
        self.active.published(head);
    }

    /// Records a published block below the others.
    pub fn published_past(&self, number: u64, hash: B256) {
        self.active.published_past(number, hash);
    }
}

/// Checks that the account's calls are not refused: a call may have waited while another one broke a connection.
fn check_conduct(ask: &CallRequest) -> Result<(), CallError> {
    if !ask.conduct.has_record() {
        return Ok(());
    }
    match ask.conduct.refused_for(Instant::now()) {
        Some(_) => Err(CallError::Full(Full(
            "calls of this client close connections of the nodes",
        ))),
        None => Ok(()),
    }
}

/// Records in the account's conduct that a call got too long an answer, or that a send was lost.
fn note_loss(ask: &CallRequest, answer: &Answer) {
    match answer {
        Err(CallError::TooLong) => ask.conduct.isolate_calls(Instant::now()),
        Err(CallError::Lost) if ask.repeat == Repeat::Never => ask.conduct.isolate_changes(Instant::now()),
        _ => {}
    }
}
