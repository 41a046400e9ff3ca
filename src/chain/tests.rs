//! Property tests of the chain's I/O-free half: heads of three upstreams in any order, with gaps, repetitions, forks
//! and lies; answers that are late, wrong or missing; streams that resume anywhere. The published events, replayed,
//! are the chain.

mod op;
mod tree;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::B256;
use proptest::prelude::*;
use proptest::sample::Index;

use self::op::{Manner, Op, op};
use self::tree::{Name, Tree, names, skipped};
use super::pipeline::{FetchRequest, FetchResult, Pipeline};
use super::source::BadAnswer;
use super::{
    AbandonedBranch, BlockLogs, BlockRef, ChainEvent, Cursor, Header, History, HistorySettings, Located, Needs, Next,
    Page, PublishedBlock, Retraction, Verify,
};
use crate::telemetry::Metrics;

/// A resumed stream.
#[derive(Debug)]
struct Stream {
    cursor: Cursor,
    /// All logs that its client has.
    held: Vec<Name>,
    /// The client's branch, for a stream of heads.
    walk: Option<Vec<B256>>,
    page: Page,
}

impl Stream {
    fn next(&mut self, history: &History) -> Next {
        let needs = match self.walk {
            Some(_) => Needs::Headers,
            None => Needs::Logs,
        };
        self.cursor.next(history, &self.page, needs)
    }
}

struct World {
    tree: Tree,
    pipeline: Pipeline,
    asks: Vec<FetchRequest>,
    /// Head of the node in use; its canonical chain ends here.
    head: B256,
    history: History,
    /// Logs of a subscriber that was connected from the start, and the number of the first block delivered to it.
    live: Vec<Name>,
    live_from: Option<u64>,
    /// Blocks whose logs are not delivered to this subscriber yet, oldest first, and whether they were fetched.
    awaited: VecDeque<(BlockRef, bool)>,
    /// Heads delivered to this subscriber and not replaced.
    received: Vec<BlockRef>,
    streams: Vec<Stream>,
}

impl World {
    fn new(tree: Tree, blocks: usize) -> Self {
        let settings = HistorySettings {
            blocks,
            max_replay: 40,
            verify: Verify::Bloom,
            rewind_delay: Duration::ZERO,
            max_parent_bytes: usize::MAX,
            max_bytes: usize::MAX,
        };
        let head = tree.0[0].0.block.hash;
        Self {
            tree,
            pipeline: Pipeline::new(settings, Arc::new(Metrics::new().0)),
            asks: Vec::new(),
            head,
            history: History::new(blocks),
            live: Vec::new(),
            live_from: None,
            awaited: VecDeque::new(),
            received: Vec::new(),
            streams: Vec::new(),
        }
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Tell(0, block) => {
                let header = self.tree.pick(block).clone();
                self.head = header.block.hash;
                self.pipeline.announced(header);
            }
            Op::Tell(_, block) => {
                self.pipeline.announced_by_standby(self.tree.pick(block).clone());
            }
            Op::Switch => self.pipeline.in_use(),
            Op::Answer(ask, manner, other) => {
                if !self.asks.is_empty() {
                    let ask = self.asks.swap_remove(ask.index(self.asks.len()));
                    let answer = self.answer(ask, *manner, other);
                    self.pipeline.fetched(answer);
                }
            }
            Op::Logs(block) => {
                if !self.awaited.is_empty() {
                    self.fetched_logs(block.index(self.awaited.len()));
                }
            }
            Op::Publish(count) => (0..*count).for_each(|_| {
                self.publish();
            }),
            Op::Resume(block, log) => {
                let header = self.tree.pick(block);
                let mut held = self.tree.logs(header.block.hash, 0);
                if let Some(log) = log {
                    held.retain(|(hash, index)| *hash != header.block.hash || index <= log);
                }
                self.streams.push(Stream {
                    cursor: Cursor::behind(header.block, *log),
                    held,
                    walk: None,
                    page: Page::default(),
                });
            }
            Op::ResumeHeads(block) => {
                let block = self.tree.pick(block).block;
                let walk = self.tree.path(block.hash);
                self.streams.push(Stream {
                    cursor: Cursor::behind(block, None),
                    held: Vec::new(),
                    walk: Some(walk.iter().map(|(header, _)| header.block.hash).collect()),
                    page: Page::default(),
                });
            }
            Op::Step(stream, steps) => {
                if !self.streams.is_empty() {
                    let at = stream.index(self.streams.len());
                    for _ in 0..*steps {
                        self.step(at);
                    }
                }
            }
        }
        self.asks.extend(self.pipeline.asks());
    }

    fn canonical_at(&self, number: u64) -> Option<Header> {
        let path = self.tree.path(self.head);
        let at = |(header, _): &&&(Header, Arc<BlockLogs>)| header.block.number == number;
        path.iter().find(at).map(|(header, _)| header.clone())
    }

    /// Returns the first block at or above this number on the node's chain.
    fn canonical_from(&self, number: u64) -> Option<Header> {
        let path = self.tree.path(self.head);
        let at = |(header, _): &&&(Header, Arc<BlockLogs>)| header.block.number >= number;
        path.iter().find(at).map(|(header, _)| header.clone())
    }

    fn answer(&self, ask: FetchRequest, manner: Manner, other: &Index) -> FetchResult {
        let lie = || self.tree.pick(other).clone();
        let by_hash = |hash| self.tree.by_hash(hash).map(|(header, _)| header.clone());
        match (ask, manner) {
            (FetchRequest::Parent(hash, ahead, tries), manner) => {
                // An answer by hash is checked; by number a node may answer any block.
                let found = match manner {
                    Manner::Right => Ok(by_hash(hash)),
                    Manner::Nothing => Err(BadAnswer::CallFailed),
                    Manner::Wrong => Ok(None),
                };
                let below = ahead.filter_map(|number| match manner {
                    Manner::Right => self.canonical_at(number),
                    Manner::Nothing => None,
                    Manner::Wrong => Some(lie()),
                });
                FetchResult::Parent(hash, found, below.collect(), tries + 1)
            }
            (FetchRequest::Numbered(block, numbers, tries), manner) => {
                let found = match manner {
                    Manner::Right => Ok(numbers.filter_map(|number| self.canonical_at(number)).collect()),
                    Manner::Nothing => Err(BadAnswer::CallFailed),
                    Manner::Wrong => Ok(vec![lie()]),
                };
                FetchResult::Numbered(block, found, tries + 1)
            }
            (FetchRequest::TipBehind(block), Manner::Right) => FetchResult::TipBehind(block, by_hash(self.head)),
            (FetchRequest::TipBehind(block), Manner::Wrong) => FetchResult::TipBehind(block, Some(lie())),
            (FetchRequest::TipBehind(block), Manner::Nothing) => FetchResult::TipBehind(block, None),
            (FetchRequest::Settled(round), Manner::Right) => FetchResult::Settled(round, by_hash(self.head)),
            (FetchRequest::Settled(round), Manner::Wrong) => FetchResult::Settled(round, Some(lie())),
            (FetchRequest::Settled(round), Manner::Nothing) => FetchResult::Settled(round, None),
            (FetchRequest::Stone(number, tries), Manner::Right) => {
                FetchResult::Stone(number, Ok(self.canonical_from(number)), tries + 1)
            }
            (FetchRequest::Stone(number, tries), _) => FetchResult::Stone(number, Ok(None), tries + 1),
            (FetchRequest::Backfill(hash), Manner::Right) => FetchResult::Backfill(hash, by_hash(hash)),
            (FetchRequest::Backfill(hash), _) => FetchResult::Backfill(hash, None),
        }
    }

    /// Handles fetched logs of a block, and delivers the blocks that are next in order.
    fn fetched_logs(&mut self, at: usize) {
        let (block, fetched) = &mut self.awaited[at];
        *fetched = true;
        let logs = self.tree.by_hash(block.hash).expect("it is in the tree").1.clone();
        self.history.logs(logs);
        self.deliver();
    }

    fn deliver(&mut self) {
        while let Some((block, _)) = self
            .awaited
            .pop_front_if(|(block, fetched)| *fetched && self.history.stands(*block))
        {
            self.history.delivered_logs(block.hash);
            let (_, logs) = self.tree.by_hash(block.hash).expect("it is in the tree");
            self.live.extend(names(logs));
        }
    }

    /// Publishes the next event and checks it against those before; `false` if there is none.
    fn publish(&mut self) -> bool {
        if !self.pipeline.has_ready_event() {
            return false;
        }
        let Some(event) = self.pipeline.next_event() else {
            return true;
        };
        match event {
            ChainEvent::Head(header) => {
                let tip = self.history.tip().map(|tip| tip.header.block.hash);
                let (block, parent) = (header.block, header.parent);
                let Some(dropped) = self.history.add_head(header) else {
                    let filled_in = self.live_from.is_some_and(|from| block.number < from);
                    assert!(
                        filled_in || self.received.contains(&block),
                        "what is not sent again was sent before"
                    );
                    self.deliver();
                    return true;
                };
                let tip = dropped.first().map_or(tip, |own| Some(own.header.parent));
                if let Some(tip) = tip {
                    assert_eq!(tip, parent, "E1: a head grows on the one before");
                }
                for own in &dropped {
                    let at = self.received.iter().rposition(|received| *received == own.header.block);
                    at.map(|at| self.received.remove(at));
                }
                assert!(!self.received.contains(&block), "no head comes twice");
                self.received.push(block);
                // Blocks below the first delivered one were backfilled and never delivered; awaited ones are not
                // delivered yet.
                let first = self.live_from.unwrap_or_default();
                let were_told = dropped.iter().filter(|own| {
                    own.header.block.number >= first && self.awaited.iter().all(|(block, _)| *block != own.header.block)
                });
                let gone: Vec<Name> = were_told
                    .filter_map(|own| own.logs.as_deref())
                    .flat_map(names)
                    .collect();
                assert!(
                    self.live.ends_with(&gone),
                    "E2: what is taken back was received, oldest first"
                );
                self.live.truncate(self.live.len() - gone.len());
                self.awaited
                    .retain(|(block, _)| dropped.iter().all(|own| own.header.block != *block));
                self.history.await_logs(block.hash);
                self.awaited.push_back((block, false));
                let from = self.live_from.unwrap_or(block.number);
                self.live_from = Some(from.min(block.number));
                self.deliver();
            }
            ChainEvent::Rewind(to) => self
                .history
                .rewind(to)
                .expect("the chain goes back to what was published"),
            ChainEvent::Backfilled(header) => self.history.past(header),
            ChainEvent::ContinuityLost(_) => {
                self.history.clear();
                self.live.clear();
                self.received.clear();
                self.awaited.clear();
                self.live_from = None;
            }
        }
        true
    }

    /// Advances a stream by one step; `false` if it is level or has to wait.
    fn step(&mut self, at: usize) -> bool {
        let mut stream = self.streams.swap_remove(at);
        let next = stream.next(&self.history);
        let mut found = true;
        match &next {
            Next::Retraction(Retraction { logs, up_to, .. }) => {
                let gone = names(logs)
                    .into_iter()
                    .filter(|(_, index)| up_to.is_none_or(|up_to| *index <= up_to));
                for name in gone {
                    let at = stream.held.iter().position(|own| *own == name);
                    stream.held.remove(at.expect("what is taken back is held"));
                }
            }
            Next::Rest(logs, up_to) => stream
                .held
                .extend(names(logs).into_iter().filter(|(_, index)| index > up_to)),
            Next::Block(own) if stream.walk.is_some() => {
                let walk = stream.walk.as_mut().expect("it was looked at");
                let (hash, parent) = (own.header.block.hash, own.header.parent);
                assert!(!walk.contains(&hash), "no head comes twice");
                let ancestor = walk.iter().position(|received| *received == parent);
                walk.truncate(ancestor.expect("E1: a head grows on one that was received") + 1);
                walk.push(hash);
            }
            Next::Block(own) => {
                let logs = own.logs.as_deref().expect("a stream of logs needs them");
                stream.held.extend(names(logs));
            }
            Next::Level | Next::Pending | Next::Awaited(_) | Next::Ahead => {}
            Next::Below(number) => {
                let path = self.tree.path(self.head);
                let blocks = path
                    .iter()
                    .filter(|(header, _)| header.block.number >= *number)
                    .take(7)
                    .map(|(header, logs)| PublishedBlock {
                        header: header.clone(),
                        logs: Some(logs.clone()),
                        awaits_logs: false,
                        lacks_logs: false,
                        sequence: 0,
                    });
                stream.page = Page::new(*number, blocks.collect());
                self.history.fill(&stream.page);
            }
            Next::Lost(block) => {
                let main = self.tree.path(self.head);
                let branch = self.tree.path(block.hash);
                let shared = branch
                    .iter()
                    .zip(&main)
                    .take_while(|(a, b)| a.0.block == b.0.block)
                    .count();
                let undo = branch[shared..].iter().map(|(header, logs)| Retraction {
                    header: header.clone(),
                    logs: logs.clone(),
                    up_to: stream.cursor.last_log_of(*block).filter(|_| header.block == *block),
                });
                let undo: VecDeque<Retraction> = undo.collect();
                stream.page = Page::default();
                let left = AbandonedBranch {
                    blocks: branch[shared..].iter().map(|(header, _)| header.block).collect(),
                    ancestor: branch[shared - 1].0.block,
                };
                found = stream
                    .cursor
                    .found(&self.history, *block, Located { undo, left }, stream.walk.is_none());
            }
        }
        stream.cursor.record_sent(&next);
        let moved = found && !matches!(next, Next::Level | Next::Pending | Next::Awaited(_) | Next::Ahead);
        self.streams.push(stream);
        let last = self.streams.len() - 1;
        self.streams.swap(at, last);
        moved
    }

    /// Fixes the node in use on one head, answers every question and publishes everything.
    fn settle(&mut self, last: &Index) {
        let head = self.tree.pick(last).clone();
        self.head = head.block.hash;
        for round in 0..400 {
            // A node that stands still is seen again by a probe or a poll.
            if round % 40 == 0 {
                self.pipeline.announced(head.clone());
            }
            self.asks.extend(self.pipeline.asks());
            for ask in std::mem::take(&mut self.asks) {
                let answer = self.answer(ask, Manner::Right, last);
                self.pipeline.fetched(answer);
                self.asks.extend(self.pipeline.asks());
            }
            while self.publish() {}
            for at in (0..self.awaited.len()).rev() {
                self.fetched_logs(at);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_upstreams_do_every_stream_ends_with_the_chain(
        blocks in prop::collection::vec((0usize..12, skipped(), 0u64..3), 4..90),
        limit in 3usize..40,
        ops in prop::collection::vec(op(), 1..160),
        head in any::<Index>(),
    ) {
        let mut world = World::new(Tree::grow(&blocks), limit);
        for op in &ops {
            world.apply(op);
        }
        world.settle(&head);
        let tip = world.history.tip().expect("something was published").clone();
        // The chain may have gone back before the logs of the last blocks arrived.
        let awaited = world.awaited.front().and_then(|(block, _)| world.tree.by_hash(block.hash));
        let received = awaited.map_or(tip.header.block.hash, |(first, _)| first.parent);
        let head = world.history.head().expect("as the tip");
        prop_assert_eq!(head.hash, world.head);
        prop_assert!(world.history.is_canonical(head));
        prop_assert_eq!(&world.live, &world.tree.logs(received, world.live_from.unwrap_or_default()));
        for at in 0..world.streams.len() {
            // Streams after blocks that this chain has not reached wait forever, as they must.
            for _ in 0..400 {
                if !world.step(at) {
                    break;
                }
            }
            let stream = &mut world.streams[at];
            if let Next::Level = stream.next(&world.history) {
                if let Some(walk) = &stream.walk {
                    prop_assert_eq!(walk.last(), Some(&tip.header.block.hash));
                    continue;
                }
                prop_assert_eq!(&stream.held, &world.tree.logs(received, 0));
            }
        }
    }
}
