//! Places that clients compete for: a bounded number, shared fairly.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use alloy_primitives::map::DefaultHashBuilder;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{Full, Owner, share};

/// Most waiters of all owners together, as a multiple of the most of one owner.
const QUEUES: usize = 4;

/// Bounded number of places. An owner has a quarter of them at most, and half of those that the others leave (at least
/// one); more only while no other owner waits and half of all stay free. Waiting owners are served in turns, the
/// requests of each in their order; in a full queue the owner with most requests loses its newest.
#[derive(Debug)]
pub struct FairPool {
    /// Name of the places, for refusals.
    what: &'static str,
    max: usize,
    max_waiting: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    taken: usize,
    waiting: usize,
    /// Number of the next waiter; never reused.
    next: u64,
    /// Nobody chooses an owner's number, so its hash need not withstand chosen ones.
    by_owner: HashMap<Owner, Own, DefaultHashBuilder>,
    /// Owners with waiters; the first one is next.
    turns: VecDeque<Owner>,
}

#[derive(Debug, Default)]
struct Own {
    taken: usize,
    waiting: VecDeque<(u64, oneshot::Sender<Place>)>,
}

/// A taken place, given back when dropped.
#[derive(Debug)]
pub struct Place {
    pool: Arc<FairPool>,
    owner: Owner,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pool.give_back(self.owner);
    }
}

/// A waiter in the queue, which it leaves when this is dropped.
struct Waiting<'a> {
    pool: &'a FairPool,
    owner: Owner,
    number: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.pool.state.lock();
        let Some(own) = state.by_owner.get_mut(&self.owner) else {
            return;
        };
        if let Some(at) = own.waiting.iter().position(|(number, _)| *number == self.number) {
            own.waiting.remove(at);
            state.waiting -= 1;
            state.tidy(self.owner);
        }
    }
}

impl FairPool {
    /// Creates a pool of `places`, with at most `max_waiting` waiters for each owner; `what` names the places in a
    /// refusal.
    #[must_use]
    pub fn new(what: &'static str, places: usize, max_waiting: usize) -> Arc<Self> {
        let max = places.max(1);
        Arc::new(Self {
            what,
            max,
            max_waiting,
            state: Mutex::default(),
        })
    }

    /// Takes a place, as soon as it is this owner's turn.
    ///
    /// # Errors
    /// [`Full`] if too many requests wait already, or if this one is removed from the queue for another owner's.
    pub async fn acquire(self: &Arc<Self>, owner: Owner) -> Result<Place, Full> {
        let (number, given) = {
            let mut state = self.state.lock();
            if self.takes_at_once(&mut state, owner) {
                let pool = self.clone();
                return Ok(Place { pool, owner });
            }
            let waits = state.by_owner.get(&owner).map_or(0, |own| own.waiting.len());
            let is_full = state.waiting >= QUEUES.saturating_mul(self.max_waiting);
            if waits >= self.max_waiting || is_full && !state.shorten_longest(waits + 1) {
                state.tidy(owner);
                return Err(Full(self.what));
            }
            let (give, given) = oneshot::channel();
            let number = state.next;
            state.next += 1;
            state.waiting += 1;
            let own = state.by_owner.entry(owner).or_default();
            own.waiting.push_back((number, give));
            if waits == 0 {
                state.turns.push_back(owner);
            }
            (number, given)
        };
        let _waiting = Waiting {
            pool: self,
            owner,
            number,
        };
        // Fails if this waiter was removed because others needed its room in the queue.
        given.await.map_err(|_| Full(self.what))
    }

    /// Takes a place if it is this owner's turn now.
    #[must_use]
    pub fn try_acquire(self: &Arc<Self>, owner: Owner) -> Option<Place> {
        let takes = self.takes_at_once(&mut self.state.lock(), owner);
        takes.then(|| Place {
            pool: self.clone(),
            owner,
        })
    }

    fn takes_at_once(&self, state: &mut State, owner: Owner) -> bool {
        let own = state.by_owner.get(&owner);
        let (taken, waits) = own.map_or((0, 0), |own| (own.taken, own.waiting.len()));
        let takes = waits == 0 && self.may_take(state, taken, state.turns.is_empty());
        if takes {
            state.take(owner);
        }
        takes
    }

    /// Returns the number of places taken, and of requests that wait for one.
    #[must_use]
    pub fn usage(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.taken, state.waiting)
    }

    /// Checks if the owner has a place.
    #[must_use]
    pub fn has_place(&self, owner: Owner) -> bool {
        let state = self.state.lock();
        state.by_owner.get(&owner).is_some_and(|own| own.taken > 0)
    }

    /// Checks if an owner with `taken` places may take one more; `alone`: no other owner waits.
    fn may_take(&self, state: &State, taken: usize, alone: bool) -> bool {
        let free = self.max - state.taken;
        let share = share(self.max, state.taken - taken).max(1);
        free > 0 && (taken < share || alone && free > self.max / 2)
    }

    fn give_back(self: &Arc<Self>, owner: Owner) {
        let mut given = Vec::new();
        {
            let mut state = self.state.lock();
            state.taken -= 1;
            if let Some(own) = state.by_owner.get_mut(&owner) {
                own.taken -= 1;
            }
            while let Some(next) = self.next(&mut state) {
                given.push(next);
            }
            state.tidy(owner);
        }
        // After the lock is released: a place whose receiver is gone is given back when it is dropped.
        for (owner, give) in given {
            let pool = self.clone();
            drop(give.send(Place { pool, owner }));
        }
    }

    /// Takes a place for the first owner in turn that may have one.
    fn next(&self, state: &mut State) -> Option<(Owner, oneshot::Sender<Place>)> {
        let alone = state.turns.len() == 1;
        let at = state.turns.iter().position(|owner| {
            let taken = state.by_owner.get(owner).map_or(0, |own| own.taken);
            self.may_take(state, taken, alone)
        })?;
        let owner = state.turns.remove(at)?;
        let own = state.by_owner.get_mut(&owner)?;
        let (_, give) = own.waiting.pop_front()?;
        if !own.waiting.is_empty() {
            state.turns.push_back(owner);
        }
        state.waiting -= 1;
        state.take(owner);
        Some((owner, give))
    }
}

impl State {
    fn take(&mut self, owner: Owner) {
        self.taken += 1;
        self.by_owner.entry(owner).or_default().taken += 1;
    }

    /// Removes the newest waiter of the longest queue, if that queue is longer than this; `false` if there is none.
    fn shorten_longest(&mut self, than: usize) -> bool {
        let waiting = |owner: &Owner| self.by_owner.get(owner).map_or(0, |own| own.waiting.len());
        let longest = self.turns.iter().copied().max_by_key(waiting);
        let Some(longest) = longest.filter(|owner| waiting(owner) > than) else {
            return false;
        };
        // The waiter waits for the other end of this sender, which is dropped.
        let own = self.by_owner.get_mut(&longest);
        let sent_away = own.and_then(|own| own.waiting.pop_back()).is_some();
        self.waiting -= usize::from(sent_away);
        sent_away
    }

    /// Forgets an owner that has no places and no waiters; an owner without waiters loses its turn.
    fn tidy(&mut self, owner: Owner) {
        let Some(own) = self.by_owner.get(&owner) else { return };
        if own.waiting.is_empty() {
            let is_over = own.taken == 0;
            self.turns.retain(|other| *other != owner);
            if is_over {
                self.by_owner.remove(&owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fmt::Write as _;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    type Acquiring = Pin<Box<dyn Future<Output = Result<Place, Full>>>>;

    /// Runs a story: `a` requests a place for owner a, `-a` gives its oldest place back, `!a` drops its oldest
    /// waiter. Each line of the outcome shows the owners of places, then the waiters.
    struct Story {
        pool: Arc<FairPool>,
        owners: BTreeMap<char, Owner>,
        queue: Vec<(char, Acquiring)>,
        places: Vec<(char, Place)>,
        refused: usize,
    }

    impl Story {
        fn new(places: usize, max_waiting: usize) -> Self {
            Self {
                pool: FairPool::new("too many", places, max_waiting),
                owners: BTreeMap::new(),
                queue: Vec::new(),
                places: Vec::new(),
                refused: 0,
            }
        }

        fn step(&mut self, word: &str) {
            let who = word.chars().last().unwrap();
            match word.chars().next().unwrap() {
                '-' => {
                    let at = self.places.iter().position(|(own, _)| *own == who);
                    drop(at.map(|at| self.places.remove(at)));
                }
                '!' => {
                    let at = self.queue.iter().position(|(own, _)| *own == who);
                    drop(at.map(|at| self.queue.remove(at)));
                }
                _ => {
                    let (pool, owner) = (self.pool.clone(), *self.owners.entry(who).or_default());
                    self.queue
                        .push((who, Box::pin(async move { pool.acquire(owner).await })));
                }
            }
            // Twice: a waiter that was removed for the newest one is polled before it.
            self.poll();
            self.poll();
        }

        fn poll(&mut self) {
            let mut cx = Context::from_waker(Waker::noop());
            for (who, mut asking) in std::mem::take(&mut self.queue) {
                match asking.as_mut().poll(&mut cx) {
                    Poll::Ready(Ok(place)) => self.places.push((who, place)),
                    Poll::Ready(Err(_)) => self.refused += 1,
                    Poll::Pending => self.queue.push((who, asking)),
                }
            }
        }

        fn show(&self) -> String {
            let have: String = self.places.iter().map(|(who, _)| who).collect();
            let wait: String = self.queue.iter().map(|(who, _)| who).collect();
            format!("{have} | {wait} | {}", self.refused)
        }
    }

    fn check(places: usize, max_waiting: usize, story: &str, expect: Expect) {
        let mut run = Story::new(places, max_waiting);
        let mut out = String::new();
        for line in story.split(';') {
            line.split_whitespace().for_each(|word| run.step(word));
            writeln!(out, "{}: {}", line.trim(), run.show()).unwrap();
        }
        expect.assert_eq(&out);
    }

    #[test]
    fn an_owner_alone_leaves_half_and_who_comes_later_has_a_quarter_at_once() {
        check(
            8,
            9,
            "a a a a a a; b b b; -a; -b; -a -a; -b -b",
            expect![[r#"
                a a a a a a: aaaa | aa | 0
                b b b: aaaabb | aab | 0
                -a: aaabb | aab | 0
                -b: aaabb | aa | 0
                -a -a: abba | a | 0
                -b -b: aaa |  | 0
            "#]],
        );
    }

    #[test]
    fn those_who_wait_are_served_in_turns_however_many_one_of_them_sends() {
        check(
            4,
            9,
            "a b c d; a a a b b c; -d; -a; -a; -b; -c -a",
            expect![[r#"
                a b c d: abcd |  | 0
                a a a b b c: abcd | aaabbc | 0
                -d: abc | aaabbc | 0
                -a: bca | aabbc | 0
                -a: bca | abbc | 0
                -b: cab | abc | 0
                -c -a: bca | b | 0
            "#]],
        );
    }

    #[test]
    fn a_long_queue_refuses_and_who_leaves_it_is_forgotten() {
        check(
            1,
            2,
            "a a a a; b b b; !a !a b; -a; -b; -b; a b b b c c c d d d e e e f; -a",
            expect![[r#"
                a a a a: a | aa | 1
                b b b: a | aabb | 2
                !a !a b: a | bb | 3
                -a: b | b | 3
                -b: b |  | 3
                -b:  |  | 3
                a b b b c c c d d d e e e f: a | bbccddef | 8
                -a: b | bccddef | 8
            "#]],
        );
        let mut run = Story::new(2, 5);
        "a b a b c !a !b !c -a -b".split(' ').for_each(|word| run.step(word));
        let state = run.pool.state.lock();
        assert!(state.by_owner.is_empty() && state.turns.is_empty() && state.taken == 0);
    }

    proptest! {
        #[test]
        fn places_are_never_more_than_there_are_nor_lost(
            places in 1_usize..9,
            words in prop::collection::vec((0_u8..3, 0_u8..4), 1..200),
        ) {
            let mut run = Story::new(places, 3);
            for (what, who) in words {
                let who = char::from(b'a' + who);
                run.step(&match what { 0 => format!("-{who}"), 1 => format!("!{who}"), _ => who.to_string() });
                prop_assert!(run.places.len() <= places);
                prop_assert_eq!(run.pool.usage(), (run.places.len(), run.queue.len()));
                // An owner with less than its share waits only if all places are taken.
                for (owner, _) in &run.queue {
                    let has = run.places.iter().filter(|(who, _)| who == owner).count();
                    let others = run.places.len() - has;
                    prop_assert!(has >= share(places, others).max(1) || run.places.len() == places);
                }
            }
            run.queue.clear();
            run.places.clear();
            let state = run.pool.state.lock();
            prop_assert!(state.by_owner.is_empty() && state.turns.is_empty());
        }
    }
}
