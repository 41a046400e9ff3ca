//! Property: whatever the chain does, and wherever connections are cut, what a client has applied is the chain.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use tokio::time::Instant;

use super::*;
use crate::backplane::ChainEvent;
use crate::chain::{BlockLogs, Cursor, Header, Needs, Next, Page, Published, PublishedWriter};
use crate::telemetry::Metrics;

const OVERLAP: u64 = 1;

/// Step of a story.
#[derive(Clone, Debug)]
enum Act {
    /// The chain drops so many blocks, and grows by so many.
    Grow(u64, u64),
    /// The chain returns to a branch that it left, if there is one.
    Return(prop::sample::Index),
    /// The app writes so many steps of the stream.
    Write(usize),
    /// The client's stack takes so many messages, and answers pings.
    Take(usize),
    /// The connection ends; the client loses what its library had of the last block, if so.
    Cut(bool),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (0u64..4, 1u64..4).prop_map(|(drop, grow)| Act::Grow(drop, grow)),
        1 => any::<prop::sample::Index>().prop_map(Act::Return),
        4 => (1usize..6).prop_map(Act::Write),
        4 => (1usize..8).prop_map(Act::Take),
        1 => any::<bool>().prop_map(Act::Cut),
    ]
}

/// Message on its way.
#[derive(Debug)]
enum Sent {
    Adopt(BlockRef),
    Remove(BlockRef),
    Mark(u64),
}

struct World {
    writer: PublishedWriter,
    published: Arc<Published>,
    chain: Vec<BlockRef>,
    /// Chains that were left.
    left: Vec<Vec<BlockRef>>,
    made: u64,
    book: SessionBook<()>,
    client: ClientKey,
    live: Live<()>,
    cursor: Cursor,
    wire: VecDeque<Sent>,
    /// Blocks that the application has applied, with the connection that brought each last.
    applied: BTreeMap<(u64, B256), ClientKey>,
    needs: Needs,
    first: u64,
    /// Events that the stack has taken since the connection began; the library may not have handed them out yet.
    buffer: Vec<Sent>,
}

impl World {
    fn new(needs: Needs) -> Self {
        let metrics = Arc::new(Metrics::new().0);
        let writer = PublishedWriter::new(crate::chain::History::new(64), metrics);
        let published = writer.reader();
        let mut book = SessionBook::new(limits(), 0);
        book.open(key("a", "t"), 1, at(1), NOW).expect("room");
        let mut world = Self {
            writer,
            published,
            chain: Vec::new(),
            left: Vec::new(),
            made: 0,
            book,
            client: 1,
            live: live(true),
            cursor: Cursor::from(4),
            wire: VecDeque::new(),
            applied: BTreeMap::new(),
            needs,
            first: 4,
            buffer: Vec::new(),
        };
        world.grow(0, 3);
        let begins = Some((4, world.chain.last().copied()));
        world.cursor = Cursor::behind(world.chain[2], None).began_at(4);
        world
            .book
            .follow(1, SubscriptionKey::of(&'a'), None, world.live.clone(), begins);
        world
    }

    fn grow(&mut self, drop: u64, grow: u64) {
        let drop = drop.min((self.chain.len() as u64).saturating_sub(1));
        if drop > 0 {
            self.left.push(self.chain.clone());
            self.rewind(self.chain.len() - drop as usize);
        }
        for _ in 0..grow {
            self.made += 1;
            let number = self.chain.len() as u64 + 1;
            let hash = B256::from(alloy_primitives::U256::from(self.made));
            self.adopt(BlockRef { number, hash });
        }
    }

    /// Returns to a chain that was left, if there is any.
    fn switch(&mut self, which: prop::sample::Index) {
        if self.left.is_empty() {
            return;
        }
        let to = self.left.swap_remove(which.index(self.left.len()));
        let common = to
            .iter()
            .zip(&self.chain)
            .take_while(|(one, other)| one == other)
            .count();
        if common < self.chain.len() {
            self.left.push(self.chain.clone());
            self.rewind(common);
        }
        to.into_iter().skip(common).for_each(|block| self.adopt(block));
    }

    fn rewind(&mut self, len: usize) {
        self.chain.truncate(len);
        let fork = *self.chain.last().expect("genesis stays");
        self.writer.apply(ChainEvent::Rewind(fork)).expect("in memory");
        self.first = self.first.min(fork.number + 1);
    }

    fn adopt(&mut self, block: BlockRef) {
        let header = Header {
            block,
            parent: self.chain.last().map_or(B256::ZERO, |parent| parent.hash),
            bloom: None,
            timestamp: 0,
            json: Bytes::new(),
            seen: Instant::now(),
        };
        self.writer.apply(ChainEvent::Head(header)).expect("continuous");
        let logs = Arc::new(BlockLogs::empty(block, Instant::now()));
        self.writer.change_logs(|history| history.logs(logs));
        self.chain.push(block);
    }

    /// Writes so many steps of the stream in one turn, which is noted once; `false` if there is none.
    fn write(&mut self, steps: usize) -> bool {
        let written = (0..steps).take_while(|_| self.step()).count();
        if written > 0 {
            self.note();
        }
        written > 0
    }

    fn step(&mut self) -> bool {
        let Self {
            cursor,
            published,
            needs,
            ..
        } = self;
        let next = published.with_history(|history| cursor.next(history, &Page::default(), *needs));
        match &next {
            Next::Block(own) => self.wire.push_back(Sent::Adopt(own.header.block)),
            Next::Retraction(own) => self.wire.push_back(Sent::Remove(own.header.block)),
            // In memory nothing is lost; a branch is looked for until the chain has grown over it.
            _ => return false,
        }
        self.cursor.record_sent(&next);
        true
    }

    fn note(&mut self) {
        let Self {
            book,
            cursor,
            published,
            client,
            wire,
            ..
        } = self;
        let extent = |_: &Live<()>| Some((cursor.sent_extent()?, Some(cursor.first())));
        let standing = |block: BlockRef| {
            published.with_history(|history| match history.is_canonical(block) {
                true => Standing::Canonical,
                false => history
                    .fork_of(block)
                    .map_or(Standing::Unknown, |fork| Standing::Dropped(fork.number)),
            })
        };
        wire.extend(book.note(*client, extent, standing, rand::random).map(Sent::Mark));
    }

    fn take(&mut self) -> bool {
        match self.wire.pop_front() {
            Some(Sent::Mark(mark)) => drop(self.book.confirm(self.client, mark)),
            Some(message) => self.buffer.push(message),
            None => return false,
        }
        true
    }

    /// Hands out what the library has, up to the last block or with it.
    fn hand_out(&mut self, but_the_last: bool) {
        if but_the_last && matches!(self.buffer.last(), Some(Sent::Adopt(_))) {
            self.buffer.pop();
        }
        for message in self.buffer.drain(..) {
            match message {
                Sent::Adopt(block) => drop(self.applied.insert((block.number, block.hash), self.client)),
                Sent::Remove(block) => drop(self.applied.remove(&(block.number, block.hash))),
                Sent::Mark(_) => {}
            }
        }
    }

    fn cut(&mut self, drops: bool) {
        // One block is what the overlap makes up for.
        self.hand_out(drops);
        self.wire.clear();
        self.book.close(self.client, at(2), true);
        self.client += 1;
        self.book.open(key("a", "t"), self.client, at(2), NOW).expect("room");
        let own = SubscriptionKey::of(&'a');
        let claim = self.book.claim(self.client, own, at(2)).expect("a position");
        let delivered = claim.delivered.clone().expect("not lost");
        self.live = live(true);
        let logs = self.needs != Needs::Headers;
        let places = self.published.with_history(|history| {
            let places = delivered
                .blocks()
                .map(|block| Delivered::in_memory(history, block, logs));
            places.collect::<Option<Vec<_>>>().expect("in memory")
        });
        self.cursor = delivered.resume(places, OVERLAP);
        self.book
            .follow(self.client, own, Some(&claim), self.live.clone(), None);
        if let Some(SentExtent::TakingBack { from }) = self.cursor.sent_extent() {
            self.book.take_back(self.client, self.live.recipient.id(), from);
        }
    }
}

fn play(needs: Needs, acts: Vec<Act>) -> Result<(), TestCaseError> {
    let mut world = World::new(needs);
    for act in acts {
        match act {
            Act::Grow(drop, grow) => world.grow(drop, grow),
            Act::Return(which) => world.switch(which),
            Act::Write(steps) => drop(world.write(steps)),
            Act::Take(messages) => drop((0..messages).take_while(|_| world.take()).count()),
            Act::Cut(drops) => world.cut(drops),
        }
    }
    // The chain goes on above every branch, so nobody waits for one.
    world.grow(0, 8);
    while world.write(8) {}
    while world.take() {}
    world.hand_out(false);
    let mut applied: Vec<(u64, B256)> = world.applied.keys().copied().collect();
    let first = world.first;
    if needs == Needs::Headers {
        // Heads are never taken back.
        applied.retain(|(number, hash)| {
            world.chain.contains(&BlockRef {
                number: *number,
                hash: *hash,
            })
        });
    }
    applied.retain(|(number, _)| *number >= 4 || world.chain.iter().any(|own| own.number == *number));
    let expected: Vec<(u64, B256)> = world.chain.iter().map(|own| (own.number, own.hash)).collect();
    let missing: Vec<_> = expected
        .iter()
        .filter(|(number, _)| *number >= first.max(4))
        .filter(|own| !applied.contains(own))
        .collect();
    prop_assert!(missing.is_empty(), "missing {missing:?}");
    let stale: Vec<_> = applied.iter().filter(|own| !expected.contains(own)).collect();
    prop_assert!(stale.is_empty(), "not taken back {stale:?}");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_024))]

    #[test]
    fn a_stream_that_is_cut_anywhere_has_no_hole(acts in prop::collection::vec(act(), 0..48)) {
        for needs in [Needs::Logs, Needs::Blocks, Needs::Headers] {
            play(needs, acts.clone())?;
        }
    }
}
