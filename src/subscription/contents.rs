//! Contents of blocks on their way to subscribers: what to fetch, delivery in order, and loss.

use std::time::Duration;

use super::content_stream::ContentStream;
use super::fan_out::LogFate;
use super::flush::DirtyClients;
use super::gate::{Fronts, Position};
use super::replay_group::ReplayGroup;
use super::subscriber::{Subscriber, is_open};
use super::tables::Tables;
use super::transaction_event::Fate;
use crate::chain::{Absent, BlockRef, Content, ContentKind, FetchedContent, Header, History, MAX_FETCHES};
use crate::clock::Moment;
use crate::delivery::{CloseReason, Kind};

/// Time after the last new logs subscription during which logs of new blocks are fetched even without subscribers:
/// clients that reconnect find these logs in memory.
const LOGS_KEPT_FRESH: Duration = Duration::from_secs(600);

/// Most blocks that may await contents of one kind; above that the kind counts as not served. On all but the fastest
/// chains, fetches for a block are given up long before.
const MAX_AWAITED: usize = 4096;

/// Blocks whose contents are still to be delivered, by kind of contents.
pub(super) type Streams = [ContentStream; ContentKind::ALL.len()];

/// Time for which subscribers have waited for one kind of contents.
#[derive(Clone, Copy, Debug)]
pub struct ContentsWait {
    /// Kind of contents.
    pub kind: ContentKind,
    /// Age of the oldest undelivered block, or wait of the next block of a level; zero if there is none, or no subscriber.
    pub age: Duration,
}

/// Returns the kind of event as which these contents are delivered.
fn events_of(kind: ContentKind) -> Kind {
    match kind {
        ContentKind::Logs => Kind::Logs,
        ContentKind::Transactions => Kind::Mined,
        ContentKind::Receipts => Kind::Receipts,
    }
}

impl Tables {
    /// Records fetched contents; [`Self::deliver`] delivers them when it is their turn. Returns the kind and reason if
    /// subscribers of a level of finality were closed, for no node gives them.
    pub(super) fn fetched(&mut self, fetched: FetchedContent) -> Option<(ContentKind, Absent)> {
        let lost = self.trail_contents(&fetched).map(|why| (fetched.kind, why));
        let FetchedContent { block, kind, result } = fetched;
        if let Ok(Content::Logs(logs)) = &result {
            self.published.change_logs(|history| history.logs(logs.clone()));
        }
        if kind == ContentKind::Logs && result.is_err() {
            self.published.change_logs(|history| history.no_logs(block));
        }
        self.streams[kind as usize].fetched(block, result);
        lost
    }

    /// Delivers contents that are next in order, and the events that waited for them. Returns the kinds that no node
    /// gives, with the reason; their subscribers are closed.
    pub(super) fn deliver(&mut self, due: &mut DirtyClients, now: Moment) -> Vec<(ContentKind, Absent)> {
        self.drop_unneeded(now);
        let mut lost = Vec::new();
        while let Some(kind) = self.next_ready() {
            if let Some((sequence, content)) = self.streams[kind as usize].pop() {
                match content {
                    Ok(content) => self.contents(&content, sequence, due, now),
                    Err(why) => lost.extend(self.lose(kind, why, now)),
                }
            }
            self.release(due, now);
        }
        for kind in ContentKind::ALL {
            if self.streams[kind as usize].len() > MAX_AWAITED {
                lost.extend(self.lose(kind, Absent::NotServed, now));
                self.release(due, now);
            }
        }
        lost
    }

    /// Returns the kind to deliver next: the one with the oldest block, so that as few events as possible wait at the
    /// gate.
    fn next_ready(&self) -> Option<ContentKind> {
        self.published.with_history(|history| {
            let stands = |block: BlockRef| history.stands(block);
            let streams = ContentKind::ALL.into_iter().zip(&self.streams);
            let ready = streams.filter_map(|(kind, stream)| Some((stream.ready(stands)?, kind)));
            ready
                .min_by_key(|(sequence, kind)| (*sequence, *kind as u8))
                .map(|(_, kind)| kind)
        })
    }

    fn contents(&mut self, content: &Content, sequence: u64, due: &mut DirtyClients, now: Moment) {
        // A stream may lag behind the head; later subscriptions do not get its older blocks
        // (`History::next_sequence`).
        let takes = |subscriber: &Subscriber| {
            let recipient = &subscriber.recipient;
            recipient.was_sent(sequence) && recipient.takes(sequence)
        };
        // Contents of an empty block may have been derived without a fetch.
        let (kind, shows_service) = match content {
            Content::Logs(block) => (ContentKind::Logs, !block.logs.is_empty()),
            Content::Transactions(block) => (ContentKind::Transactions, !block.transactions.is_empty()),
            Content::Receipts(block) => (ContentKind::Receipts, !block.receipts.is_empty()),
        };
        if shows_service {
            self.refusals[kind as usize].end();
        }
        let at = Position::of(events_of(kind), sequence);
        match content {
            Content::Logs(block) => {
                let hash = block.block.hash;
                self.published.change_logs(|history| history.delivered_logs(hash));
                self.logs(block, LogFate::Adopted, at, takes, due, now);
                self.mark(Kind::Logs, hash, at, takes, due, now);
            }
            Content::Transactions(block) => {
                let delivered = self.mined(&block.transactions, Fate::Adopted, block.seen, at, takes, due, now);
                if !delivered.is_empty() {
                    self.mined_sent.insert(sequence, delivered);
                }
                let oldest = self.published.with_history(|history| Some(history.oldest()?.sequence));
                self.mined_sent = self.mined_sent.split_off(&oldest.unwrap_or(sequence));
            }
            Content::Receipts(block) => {
                self.receipts(block, at, takes, due, now);
                self.mark(Kind::Receipts, block.block.hash, at, takes, due, now);
            }
        }
    }

    /// Returns, per kind, the position of the oldest block whose contents are still to be delivered.
    pub(super) fn fronts(&self) -> Fronts {
        Fronts::new(ContentKind::ALL.map(|kind| (events_of(kind), self.streams[kind as usize].front())))
    }

    /// Checks if contents of this kind are needed of new blocks. Connections that are closing need none.
    pub(super) fn wants(&self, kind: ContentKind, now: Moment) -> bool {
        match kind {
            ContentKind::Logs => {
                self.logs.iter().any(is_open)
                    || self.replays.values().any(ReplayGroup::need_logs)
                    || self.logs_fresh_until.is_some_and(|until| now < until)
                        // Where no node answered, the next answer ends the cool-down.
                        && matches!(self.cooldown(kind, now), None | Some(Absent::Unanswered))
            }
            ContentKind::Transactions => self.mined.iter().any(is_open),
            ContentKind::Receipts => self.receipts.iter().any(is_open),
        }
    }

    /// Keeps logs of new blocks fetched for the next `LOGS_KEPT_FRESH`, even without subscribers.
    pub(super) fn keep_logs_fresh(&mut self, now: Moment) {
        self.logs_fresh_until = Some(now + LOGS_KEPT_FRESH);
    }

    pub(super) fn drop_unneeded(&mut self, now: Moment) {
        self.takes_back &= !self.logs.is_empty() || self.replays.values().any(ReplayGroup::need_logs);
        for kind in ContentKind::ALL {
            if self.streams[kind as usize].len() > 0 && !self.wants(kind, now) {
                self.forget(kind);
            }
        }
    }

    fn forget(&mut self, kind: ContentKind) {
        self.streams[kind as usize].clear();
        if kind == ContentKind::Logs {
            self.published.change_logs(History::await_no_logs);
        }
    }

    /// Handles contents that no node gives: closes all subscribers of this kind, and refuses new ones for a while,
    /// except after a block that the chain has left. Returns the kind and the reason if anyone was closed.
    fn lose(&mut self, kind: ContentKind, why: Absent, now: Moment) -> Option<(ContentKind, Absent)> {
        if why != Absent::UnknownBlock {
            self.refusals[kind as usize].begin(why, now);
        }
        self.forget(kind);
        let mut closed = 0;
        let mut close = |subscriber: &Subscriber| {
            closed += 1;
            subscriber.writer.close(CloseReason::ContinuityLost);
        };
        match kind {
            ContentKind::Logs => {
                self.logs.iter().for_each(&mut close);
                let replays = self.replays.values().filter(|members| members.need_logs());
                replays.flat_map(ReplayGroup::subscribers).for_each(close);
            }
            ContentKind::Transactions => self.mined.iter().for_each(close),
            ContentKind::Receipts => self.receipts.iter().for_each(close),
        }
        (closed > 0).then_some((kind, why))
    }

    /// Returns the reason for which subscriptions to this kind are refused now; `None` if they are accepted.
    pub(super) fn cooldown(&self, kind: ContentKind, now: Moment) -> Option<Absent> {
        self.refusals[kind as usize].now(now)
    }

    /// Returns the headers of the blocks whose contents are to be fetched now: per kind oldest first, then blocks in
    /// memory that lack logs, newest first.
    pub(super) fn needed(&self) -> Vec<(ContentKind, Header)> {
        self.published.with_history(|history| {
            let stands = |block: BlockRef| history.stands(block);
            let streams = ContentKind::ALL.into_iter().zip(&self.streams);
            let mut needed: Vec<_> = streams
                .flat_map(|(kind, stream)| stream.needed(stands).map(move |header| (kind, header.clone())))
                .collect();
            // A reorg may take back logs that resumed clients got earlier, from blocks whose logs memory lacks.
            let logs = needed.iter().filter(|(kind, _)| *kind == ContentKind::Logs).count();
            if self.takes_back && logs < MAX_FETCHES {
                let older = history.without_logs().filter(|header| stands(header.block));
                needed.extend(
                    older
                        .take(MAX_FETCHES - logs)
                        .map(|header| (ContentKind::Logs, header.clone())),
                );
            }
            let of_trails = self.trails.needed().into_iter();
            let is_new = |(kind, header): &(ContentKind, Header)| {
                let is_it = |(own, of): &(ContentKind, Header)| own == kind && of.block == header.block;
                !needed.iter().any(is_it)
            };
            let of_trails: Vec<_> = of_trails.filter(is_new).collect();
            needed.extend(of_trails);
            needed
        })
    }

    /// Returns, for each kind of contents, the time for which live subscribers and those of levels have waited.
    pub(super) fn late(&self, now: Moment) -> impl Iterator<Item = ContentsWait> {
        let subscribed = [!self.logs.is_empty(), !self.mined.is_empty(), !self.receipts.is_empty()];
        let streams = ContentKind::ALL.into_iter().zip(&self.streams);
        streams.zip(subscribed).map(move |((kind, stream), subscribed)| {
            let since = stream.awaited_since().filter(|_| subscribed);
            let age = since.map_or(Duration::ZERO, |since| now.since(since));
            let age = age.max(self.trails.waiting(kind, now));
            ContentsWait { kind, age }
        })
    }

    /// Returns the number of events that wait at the gate.
    pub(super) fn early_events(&self) -> usize {
        self.gate.len()
    }
}
