//! Schedules the questions about one block's contents: which upstream is asked next, in which way, and when the
//! search is given up. No I/O, no clock: times count from the start of the inquiry, excluding time without a
//! connected node.

mod record;

use std::collections::HashMap;
use std::time::Duration;

pub(super) use self::record::Record;
use super::source::BadAnswer;
use crate::backoff::{CONTENTS, CONTENTS_THROTTLED};
use crate::upstream::UpstreamId;

/// "Not served" answers of an upstream after which a way is closed for this block. One is not enough: behind a load
/// balancer another node may serve it.
const NOT_SERVED: u32 = 3;

/// Connection losses after which an upstream's method is closed for this block: each loss also interrupts the
/// subscriptions and calls on that connection. The same bound counts too long answers.
const BROKEN: u32 = 3;

/// Most time added to an inquiry, in budgets: ten minutes by default. A client that is closed then learns the reason, and
/// may wait again.
const MAX_EXTENSION: u32 = 60;

/// A way to request a block's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum FetchWay {
    /// `eth_getLogs{blockHash}` (EIP-234).
    LogsByHash,
    /// `eth_getLogs{fromBlock, toBlock}`, both this block's number.
    LogsByNumber,
    /// `eth_getBlockReceipts`; the receipts contain the logs.
    ReceiptsByHash,
    /// `eth_getBlockReceipts` by number, the only form that some nodes accept.
    ReceiptsByNumber,
    /// `eth_getTransactionReceipt` for each transaction.
    EachReceipt,
    /// `eth_getBlockByHash` with whole transactions.
    BlockByHash,
    /// `eth_getBlockByNumber` with whole transactions.
    BlockByNumber,
}

impl FetchWay {
    /// Ways to a block's logs, best first.
    pub(super) const LOGS: [Self; 5] = [
        Self::LogsByHash,
        Self::LogsByNumber,
        Self::ReceiptsByHash,
        Self::ReceiptsByNumber,
        Self::EachReceipt,
    ];
    /// Ways to a block's receipts, best first.
    pub(super) const RECEIPTS: [Self; 3] = [Self::ReceiptsByHash, Self::ReceiptsByNumber, Self::EachReceipt];
    /// Ways to a block's transactions, best first.
    pub(super) const TRANSACTIONS: [Self; 2] = [Self::BlockByHash, Self::BlockByNumber];

    /// Returns the JSON-RPC method of the call.
    pub(super) fn method(self) -> &'static str {
        match self {
            Self::LogsByHash | Self::LogsByNumber => "eth_getLogs",
            Self::ReceiptsByHash | Self::ReceiptsByNumber => "eth_getBlockReceipts",
            Self::EachReceipt => "eth_getTransactionReceipt",
            Self::BlockByHash => "eth_getBlockByHash",
            Self::BlockByNumber => "eth_getBlockByNumber",
        }
    }

    /// Returns the way that this one replaces. Both get the same answer, so the replacement is used only if the node
    /// does not serve the original.
    fn stands_for(self) -> Option<Self> {
        (self == Self::ReceiptsByNumber).then_some(Self::ReceiptsByHash)
    }

    /// Checks if the node answers from its index of logs.
    pub(super) fn is_by_index(self) -> bool {
        matches!(self, Self::LogsByHash | Self::LogsByNumber)
    }

    /// Checks if the question names the block by hash: then the answer is about that block, even if it carries
    /// another hash.
    pub(super) fn is_by_hash(self) -> bool {
        matches!(self, Self::LogsByHash | Self::ReceiptsByHash | Self::BlockByHash)
    }

    /// Checks if the way takes many calls.
    fn is_long(self) -> bool {
        self == Self::EachReceipt
    }
}

/// Reason why a question failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AttemptError {
    /// The upstream was not connected.
    Unavailable,
    /// The connection was lost while the question was in flight.
    Broken,
    /// The upstream, a gateway, reached no node.
    NotNow,
    /// The answer exceeded the size limit.
    TooLong,
    /// The upstream is rate limited.
    Throttled,
    /// The upstream does not serve this way.
    NotServed,
    /// The upstream no longer has the block's contents.
    Pruned,
    /// Any other error, a timeout, or an answer that cannot be this block's.
    Other(BadAnswer),
}

impl AttemptError {
    /// Checks if there was no answer, from which nothing follows about the block.
    fn is_silence(self) -> bool {
        self == Self::Broken || self.is_no_failure()
    }

    /// Checks if nothing follows about the way either. From a lost connection something does: nodes end it over calls,
    /// too.
    pub(super) fn is_no_failure(self) -> bool {
        matches!(
            self,
            Self::Unavailable | Self::NotNow | Self::Other(BadAnswer::CallFailed)
        )
    }

    /// Returns the value of the `reason` label in the metrics.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Unavailable | Self::Broken | Self::NotNow => "call_failed",
            Self::TooLong => "too_long",
            Self::Throttled => "throttled",
            Self::NotServed => "not_served",
            Self::Pruned => "pruned",
            Self::Other(refused) => refused.label(),
        }
    }
}

/// Reason why a block's contents cannot be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// No node has the contents, or serves them within the time limit.
    NotServed,
    /// The time limit passed, and nodes rate limited the calls.
    Throttled,
    /// The time limit passed, and no node knows the block: the chain has left it.
    UnknownBlock,
    /// The time limit passed, and no node gave any answer.
    Unanswered,
}

/// [`Absent`], with pruned contents kept apart for callers to which it matters that a node had them once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    NotServed,
    Throttled,
    Pruned,
    UnknownBlock,
    Unanswered,
}

impl From<Missing> for Absent {
    fn from(missing: Missing) -> Self {
        match missing {
            Missing::Throttled => Self::Throttled,
            Missing::UnknownBlock => Self::UnknownBlock,
            Missing::Unanswered => Self::Unanswered,
            Missing::NotServed | Missing::Pruned => Self::NotServed,
        }
    }
}

/// One request for a block's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub node: UpstreamId,
    pub way: FetchWay,
    /// Time limit for the answer.
    pub within: Duration,
}

/// State of one way at one upstream, for one block.
#[derive(Debug)]
struct Path {
    node: UpstreamId,
    way: FetchWay,
    tries: u32,
    /// Time when the question in flight was asked, and the time from which it counts as late.
    asked: Option<(Duration, Duration)>,
    not_before: Duration,
    not_served: u32,
    /// `true` if the last question was sent and got no answer.
    is_silent: bool,
    /// "Not served" answers after which the path is closed.
    most_refusals: u32,
    closed: bool,
}

/// All questions about one block.
#[derive(Debug)]
pub(super) struct Inquiry {
    ways: &'static [FetchWay],
    /// Time for the answer of a node, from which other times derive.
    budget: Duration,
    /// Time at which the inquiry ends: the budget, and what was added by [`Self::extend`].
    end: Duration,
    paths: Vec<Path>,
    /// Questions that may be in flight at the same time; late ones do not count.
    width: usize,
    /// Connection losses, by upstream and method.
    broken: HashMap<(UpstreamId, &'static str), u32>,
    /// Too long answers, by upstream.
    too_long: HashMap<UpstreamId, u32>,
    throttled: bool,
    /// Upstreams that no longer have the contents.
    pruned: Vec<UpstreamId>,
    /// Upstreams whose last question got no answer.
    silent: Vec<UpstreamId>,
}

impl Inquiry {
    /// Creates the inquiry about a block with `budget` as its time limit. With `two`, two questions are in flight
    /// from the start, for chains that usually need a second answer.
    pub(super) fn new(ways: &'static [FetchWay], budget: Duration, two: bool) -> Self {
        Self {
            ways,
            budget,
            end: budget,
            paths: Vec::new(),
            width: if two { 2 } else { 1 },
            broken: HashMap::new(),
            too_long: HashMap::new(),
            throttled: false,
            pruned: Vec::new(),
            silent: Vec::new(),
        }
    }

    /// Returns the next question that is due and marks it as asked; `nodes` are listed best first. `now` counts from
    /// the start of the inquiry, `clock` is the time of `record`.
    pub(super) fn next(
        &mut self,
        now: Duration,
        nodes: &[UpstreamId],
        record: &Record,
        clock: Duration,
    ) -> Option<Question> {
        let (ways, budget, end) = (self.ways, self.budget, self.end);
        for &way in ways {
            for &node in nodes {
                if !self.paths.iter().any(|path| (path.node, path.way) == (node, way)) {
                    let offered = record.offers(node, way, clock);
                    self.paths.push(Path {
                        node,
                        way,
                        tries: 0,
                        asked: None,
                        not_before: Duration::ZERO,
                        not_served: 0,
                        is_silent: false,
                        most_refusals: if offered { NOT_SERVED } else { 1 },
                        closed: false,
                    });
                }
            }
        }
        let on_time = |path: &&Path| path.asked.is_some_and(|(_, late)| now < late);
        if self.paths.iter().filter(on_time).count() >= self.width {
            return None;
        }
        let rank = |path: &Path| nodes.iter().position(|node| *node == path.node);
        let offered = |path: &Path| path.not_served == 0 && record.offers(path.node, path.way, clock);
        let open = |path: &Path| !path.closed && rank(path).is_some() && self.is_of_use(path, now, record, clock);
        // Ways that are put off are used only if no other way is left.
        let any_offered = self.paths.iter().any(|path| open(path) && offered(path));
        let due = self.paths.iter().enumerate().filter(|(_, path)| {
            path.asked.is_none() && path.not_before <= now && open(path) && (offered(path) || !any_offered)
        });
        let way_rank = |way: FetchWay| ways.iter().position(|own| *own == way);
        let (at, _) = due.min_by_key(|(_, path)| (path.tries, way_rank(path.way), rank(path)))?;
        let path = &mut self.paths[at];
        let within = (budget / 2).min(end.saturating_sub(now));
        path.asked = Some((now, now + record.late(path.node, path.way, budget)));
        Some(Question {
            node: path.node,
            way: path.way,
            within,
        })
    }

    /// Checks if a path may succeed where those before it did not.
    fn is_of_use(&self, path: &Path, now: Duration, record: &Record, clock: Duration) -> bool {
        let dead = |way: FetchWay| {
            let mut own = self.paths.iter().filter(|own| own.node == path.node && own.way == way);
            own.any(|own| own.closed || own.not_served > 0) || !record.offers(path.node, way, clock)
        };
        if let Some(other) = path.way.stands_for() {
            return dead(other);
        }
        // Many calls are the last resort: for answers that are too long, or if no shorter way succeeds.
        !path.way.is_long()
            || self.too_long.contains_key(&path.node)
            || now >= self.budget / 4
            || self.ways.iter().all(|way| way.is_long() || dead(*way))
    }

    /// Returns the time at which to call [`Self::next`] again unless an answer arrives earlier.
    pub(super) fn wake(&self, now: Duration) -> Duration {
        let lates = self.paths.iter().filter_map(|path| path.asked.map(|(_, late)| late));
        let waits = self.paths.iter().filter(|path| path.asked.is_none() && !path.closed);
        let moments = lates.chain(waits.map(|path| path.not_before));
        let last_resort = [self.budget / 4, self.end];
        let next = moments.chain(last_resort).filter(|moment| *moment > now).min();
        next.unwrap_or(self.end)
    }

    /// Returns why the inquiry has ended, or `None` if it goes on; to be called after [`Self::next`] returned `None`.
    pub(super) fn over(&self, now: Duration, nodes: &[UpstreamId]) -> Option<Missing> {
        let of_these = || self.paths.iter().filter(|path| nodes.contains(&path.node));
        let quiet = self.paths.iter().all(|path| path.asked.is_none());
        let closed = quiet && of_these().all(|path| path.closed);
        // Pruned contents do not come back; each short way was tried.
        let asked =
            |path: &Path| path.tries > 0 || path.closed || path.way.is_long() || path.way.stands_for().is_some();
        let gone = quiet && nodes.iter().all(|node| self.pruned.contains(node)) && of_these().all(asked);
        if !closed && !gone && now < self.end {
            return None;
        }
        Some(match (self.pruned.is_empty(), self.throttled && !closed) {
            (false, _) => Missing::Pruned,
            (true, true) => Missing::Throttled,
            (true, false) if !closed && self.is_unanswered(nodes) => Missing::Unanswered,
            (true, false) => Missing::NotServed,
        })
    }

    /// Checks if none of these upstreams answers: the last question to each got no answer.
    pub(super) fn is_unanswered(&self, nodes: &[UpstreamId]) -> bool {
        nodes.iter().all(|node| self.silent.contains(node))
    }

    /// Adds time in which no node could have answered, up to [`MAX_EXTENSION`].
    pub(super) fn extend(&mut self, span: Duration) {
        self.end = (self.end + span).min(self.budget * (1 + MAX_EXTENSION));
    }

    /// Records an answer that is not believed yet: a second question may be in flight at once.
    pub(super) fn doubted(&mut self, node: UpstreamId, way: FetchWay, now: Duration) {
        self.width = 2;
        self.heard(node, false);
        self.again(node, way, now, 1);
    }

    fn heard(&mut self, node: UpstreamId, silence: bool) {
        self.silent.retain(|own| *own != node);
        if silence {
            self.silent.push(node);
        }
    }

    /// Records that a node's log index lacks a block that should have logs. A question by number would read the same
    /// index, so receipts are next.
    pub(super) fn index_is_behind(&mut self, node: UpstreamId, now: Duration) {
        let is_idle = |path: &Path| path.node == node && path.way == FetchWay::LogsByNumber && path.asked.is_none();
        if self.paths.iter().any(is_idle) {
            self.again(node, FetchWay::LogsByNumber, now, 1);
        }
    }

    /// Records that receipts are listed without logs: they are requested again after `rest`, before any other way at
    /// this upstream.
    pub(super) fn listed(&mut self, node: UpstreamId, way: FetchWay, now: Duration, rest: Duration) {
        self.width = 1;
        for path in self.paths.iter_mut().filter(|path| path.node == node) {
            let behind = if path.way == way { Duration::ZERO } else { rest / 10 };
            path.not_before = path.not_before.max(now + rest + behind);
        }
    }

    /// Records a question that failed.
    pub(super) fn failed(&mut self, node: UpstreamId, way: FetchWay, why: AttemptError, now: Duration) {
        self.heard(node, why.is_silence());
        let Some(path) = self.again(node, way, now, u32::from(why != AttemptError::Unavailable)) else {
            return;
        };
        path.is_silent = why == AttemptError::Other(BadAnswer::CallFailed);
        match why {
            AttemptError::Unavailable | AttemptError::NotNow | AttemptError::Other(_) => {}
            AttemptError::Throttled => {
                path.not_before = now + CONTENTS_THROTTLED.before(path.tries);
                self.throttled = true;
            }
            AttemptError::NotServed => {
                path.not_served += 1;
                path.closed = path.not_served >= path.most_refusals;
            }
            AttemptError::Pruned => {
                path.closed = true;
                self.pruned.push(node);
            }
            AttemptError::Broken => {
                let broken = self.broken.entry((node, way.method())).or_default();
                *broken += 1;
                if *broken >= BROKEN {
                    self.close(|path| path.node == node && path.way.method() == way.method());
                }
            }
            // A long block is too long for any single answer: request its parts next.
            AttemptError::TooLong => {
                let too_long = self.too_long.entry(node).or_default();
                *too_long += 1;
                if *too_long >= BROKEN {
                    self.close(|path| path.node == node && !path.way.is_long());
                }
                let others = self
                    .paths
                    .iter_mut()
                    .filter(|path| path.node == node && path.way != way);
                others
                    .filter(|path| !path.way.is_long())
                    .for_each(|path| path.tries += 1);
            }
        }
    }

    fn close(&mut self, which: impl Fn(&Path) -> bool) {
        let paths = self.paths.iter_mut().filter(|path| which(path));
        paths.for_each(|path| path.closed = true);
    }

    /// Ends the question in flight on a path, adds `tries` to its count and sets the back-off. `None` for an unknown
    /// path.
    fn again(&mut self, node: UpstreamId, way: FetchWay, now: Duration, tries: u32) -> Option<&mut Path> {
        let mut paths = self.paths.iter_mut();
        let path = paths.find(|path| (path.node, path.way) == (node, way))?;
        path.asked = None;
        path.is_silent = false;
        path.tries += tries;
        path.not_before = now + CONTENTS.before(path.tries.max(1));
        Some(path)
    }

    /// Returns the ways that fail at a node which answers: those in flight that are late, and at `node`, which has just
    /// answered in another way, those without an answer.
    pub(super) fn late(&self, node: UpstreamId, now: Duration) -> impl Iterator<Item = (UpstreamId, FetchWay)> {
        let late = move |path: &&Path| match path.asked {
            Some((_, late)) => late <= now,
            None => path.is_silent && path.node == node,
        };
        self.paths.iter().filter(late).map(|path| (path.node, path.way))
    }
}

#[cfg(test)]
mod tests;
