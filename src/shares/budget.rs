//! Memory used for clients, in bytes: a bounded sum, with a share for each owner.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Full, Owner, PART, share};

/// Callback that makes a holder release its bytes; called without any lock of the budget.
pub type Evict = Arc<dyn Fn() + Send + Sync>;

/// Bounded sum of bytes. Two or more charges of an owner share a quarter of it, and half of the bytes that the others
/// leave; a single charge may take three quarters of the rest. The only charge of all may exceed the sum and is then
/// counted as three quarters: an answer of the longest length allowed must be possible. If a charge does not fit, the
/// longest evictable charge is evicted: of the same owner if it would exceed a quarter of the whole, else of an owner
/// that uses more.
#[derive(Debug)]
pub struct Budget {
    /// Name of what is charged, for refusals.
    what: &'static str,
    max: usize,
    /// Share of an owner while there is no other, in bytes.
    share: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    used: usize,
    next: u64,
    by_owner: HashMap<Owner, Own>,
}

#[derive(Debug, Default)]
struct Own {
    used: usize,
    charges: HashMap<u64, Held>,
}

#[derive(Default)]
struct Held {
    bytes: usize,
    evict: Option<Evict>,
    is_evicted: bool,
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes)
    }
}

/// Bytes charged for one object; released when dropped.
#[derive(Debug)]
pub struct Charge {
    budget: Arc<Budget>,
    owner: Owner,
    number: u64,
}

impl Budget {
    /// Creates a budget of `max` bytes; `what` names their use in a refusal.
    #[must_use]
    pub fn new(what: &'static str, max: usize) -> Arc<Self> {
        Arc::new(Self {
            what,
            max,
            share: share(max, 0),
            state: Mutex::default(),
        })
    }

    /// Bytes charged at present.
    #[must_use]
    pub fn used(&self) -> usize {
        self.state.lock().used
    }

    /// Opens an empty charge for this owner; [`Charge::resize`] sets its bytes.
    #[must_use]
    pub fn open(self: &Arc<Self>, owner: Owner) -> Charge {
        self.open_as(owner, None)
    }

    /// Opens an empty charge whose bytes can be evicted for others.
    #[must_use]
    pub fn open_evictable(self: &Arc<Self>, owner: Owner, evict: Evict) -> Charge {
        self.open_as(owner, Some(evict))
    }

    fn open_as(self: &Arc<Self>, owner: Owner, evict: Option<Evict>) -> Charge {
        let mut state = self.state.lock();
        let number = state.next;
        state.next += 1;
        let held = Held {
            evict,
            ..Held::default()
        };
        state.by_owner.entry(owner).or_default().charges.insert(number, held);
        let budget = self.clone();
        Charge { budget, owner, number }
    }

    /// Opens a charge of this many bytes.
    ///
    /// # Errors
    /// [`Full`] if the bytes do not fit and no charge can be evicted for them.
    pub fn charge(self: &Arc<Self>, owner: Owner, bytes: usize) -> Result<Charge, Full> {
        let mut charge = self.open(owner);
        charge.resize(bytes)?;
        Ok(charge)
    }
}

impl Charge {
    /// Sets the bytes of the charge, and evicts others where that is needed.
    ///
    /// # Errors
    /// [`Full`]: the charge keeps its bytes, or was itself evicted.
    pub fn resize(&mut self, bytes: usize) -> Result<(), Full> {
        let mut evicted = Vec::new();
        let resized = self
            .budget
            .state
            .lock()
            .resize(&self.budget, self.owner, self.number, bytes, &mut evicted);
        evicted.iter().for_each(|evict| evict());
        resized.map_err(|()| Full(self.budget.what))
    }

    /// Sets the bytes of the charge unconditionally, for memory that is in use already.
    pub fn set_unchecked(&mut self, bytes: usize) {
        self.budget.state.lock().set(self.owner, self.number, bytes);
    }

    /// Makes the charge unevictable: its bytes are being processed from here on.
    pub fn keep(&mut self) {
        let mut state = self.budget.state.lock();
        let own = state.by_owner.get_mut(&self.owner);
        if let Some(held) = own.and_then(|own| own.charges.get_mut(&self.number)) {
            held.evict = None;
        }
    }

    /// Bytes of this charge.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let state = self.budget.state.lock();
        let own = state.by_owner.get(&self.owner);
        own.and_then(|own| own.charges.get(&self.number))
            .map_or(0, |held| held.bytes)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let mut state = self.budget.state.lock();
        state.set(self.owner, self.number, 0);
        if let Some(own) = state.by_owner.get_mut(&self.owner) {
            own.charges.remove(&self.number);
            if own.charges.is_empty() {
                state.by_owner.remove(&self.owner);
            }
        }
    }
}

/// Limit that a charge would exceed.
enum Lacks {
    Share,
    Total,
}

impl State {
    fn set(&mut self, owner: Owner, number: u64, bytes: usize) {
        let Some(own) = self.by_owner.get_mut(&owner) else {
            return;
        };
        let Some(held) = own.charges.get_mut(&number) else {
            return;
        };
        let before = std::mem::replace(&mut held.bytes, bytes);
        own.used = own.used - before + bytes;
        self.used = self.used - before + bytes;
    }

    fn resize(
        &mut self,
        budget: &Budget,
        owner: Owner,
        number: u64,
        bytes: usize,
        evicted: &mut Vec<Evict>,
    ) -> Result<(), ()> {
        loop {
            let own = self.by_owner.get(&owner).ok_or(())?;
            let held = own.charges.get(&number).ok_or(())?;
            if held.is_evicted {
                return Err(());
            }
            let before = held.bytes;
            let (mine, all) = (own.used - before, self.used - before);
            if bytes <= before || all == 0 {
                break;
            }
            let (others, would_have) = (all - mine, mine.saturating_add(bytes));
            let share = match mine {
                0 => {
                    let left = budget.max.saturating_sub(others);
                    left - left / PART
                }
                _ => share(budget.max, others),
            };
            if would_have <= share {
                break;
            }
            let lacks = if would_have > budget.share {
                Lacks::Share
            } else {
                Lacks::Total
            };
            evicted.push(self.give_up(&lacks, owner, would_have, bytes).ok_or(())?);
        }
        // A charge that is alone may be of any length, and other owners still find room.
        self.set(owner, number, bytes.min(budget.max - budget.share));
        Ok(())
    }

    /// Evicts the longest charge that can go: of the same owner, where it is longer than the request; else of the owner
    /// that has most, where that is more than the requesting owner would have.
    fn give_up(&mut self, lacks: &Lacks, owner: Owner, would_have: usize, bytes: usize) -> Option<Evict> {
        let candidates = self.by_owner.iter().filter(|(other, own)| match lacks {
            Lacks::Share => **other == owner,
            Lacks::Total => own.used > would_have,
        });
        let above = match lacks {
            Lacks::Share => bytes,
            Lacks::Total => 0,
        };
        let can_go = candidates.flat_map(|(other, own)| {
            let held = own.charges.iter();
            let held = held.filter(|(_, held)| held.evict.is_some() && held.bytes > above);
            held.map(|(number, held)| (own.used, held.bytes, *other, *number))
        });
        let (_, _, victim, number) = can_go.max()?;
        let held = self.by_owner.get_mut(&victim)?.charges.get_mut(&number)?;
        held.is_evicted = true;
        let evict = held.evict.take();
        self.set(victim, number, 0);
        evict
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fmt::Write as _;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    /// Runs a story over a budget of 100: `a1=20` sets the charge 1 of owner a to 20 bytes, `a1=0` drops it. Charges
    /// with a digit below 5 can be evicted. A refusal is shown as `no`, an evicted charge by its name.
    fn check(story: &str, expect: Expect) {
        let budget = Budget::new("bytes", 100);
        let mut owners: BTreeMap<char, Owner> = BTreeMap::new();
        let mut things: BTreeMap<String, Charge> = BTreeMap::new();
        let gone: Arc<Mutex<Vec<String>>> = Arc::default();
        let mut out = String::new();
        for word in story.split_whitespace() {
            let (name, bytes) = word.split_once('=').unwrap();
            let owner = *owners.entry(name.chars().next().unwrap()).or_default();
            let bytes: usize = bytes.parse().unwrap();
            let verdict = if bytes == 0 {
                things.remove(name);
                "yes"
            } else {
                let thing = things.entry(name.to_owned()).or_insert_with(|| {
                    let (own, gone) = (name.to_owned(), gone.clone());
                    if name.ends_with(['1', '2', '3', '4']) {
                        budget.open_evictable(owner, Arc::new(move || gone.lock().push(own.clone())))
                    } else {
                        budget.open(owner)
                    }
                });
                if thing.resize(bytes).is_ok() { "yes" } else { "no" }
            };
            let gone: Vec<_> = gone.lock().drain(..).collect();
            writeln!(out, "{word} {verdict} {} {}", budget.used(), gone.join(" ")).unwrap();
        }
        drop(things);
        assert_eq!(budget.used(), 0);
        assert!(budget.state.lock().by_owner.is_empty());
        expect.assert_eq(&out);
    }

    #[test]
    fn a_quarter_for_each_and_one_long_thing_leaves_a_quarter_of_the_rest() {
        check(
            "a8=80 a8=300 a9=1 b8=20 b8=19 b9=1 c8=6 c8=5 d8=1 a8=0 a8=25 a9=1 e8=39 e8=38",
            expect![[r#"
                a8=80 yes 75 
                a8=300 yes 75 
                a9=1 no 75 
                b8=20 no 75 
                b8=19 yes 94 
                b9=1 no 94 
                c8=6 no 94 
                c8=5 yes 99 
                d8=1 yes 100 
                a8=0 yes 25 
                a8=25 yes 50 
                a9=1 no 50 
                e8=39 no 50 
                e8=38 yes 88 
            "#]],
        );
    }

    #[test]
    fn the_longest_goes_first_and_what_cannot_be_given_up_stays() {
        check(
            "a1=10 a2=12 a3=9 a3=15 b9=25 c9=25 d9=25 e1=5 e2=4 f9=2 e1=1",
            expect![[r#"
                a1=10 yes 10 
                a2=12 yes 22 
                a3=9 yes 19 a2
                a3=15 yes 25 
                b9=25 yes 50 
                c9=25 yes 75 
                d9=25 no 75 
                e1=5 yes 80 
                e2=4 yes 84 
                f9=2 yes 86 
                e1=1 yes 82 
            "#]],
        );
        check(
            "a1=10 a2=15 b1=25 c1=20 d1=20 e1=12 e1=20",
            expect![[r#"
                a1=10 yes 10 
                a2=15 yes 25 
                b1=25 yes 50 
                c1=20 yes 70 
                d1=20 yes 90 
                e1=12 yes 77 b1
                e1=20 yes 85 
            "#]],
        );
    }

    proptest! {
        #[test]
        fn the_sum_is_bounded_and_nothing_is_lost(
            steps in prop::collection::vec((0_u8..4, 0_u8..4, 0_usize..60, any::<bool>()), 1..300),
        ) {
            let budget = Budget::new("bytes", 100);
            let owners: Vec<Owner> = (0..4).map(|_| Owner::default()).collect();
            let mut things: BTreeMap<(u8, u8), Charge> = BTreeMap::new();
            let evictions = Arc::new(AtomicUsize::new(0));
            for (owner, thing, bytes, goes) in steps {
                if goes {
                    things.remove(&(owner, thing));
                    continue;
                }
                let counted = evictions.clone();
                let charge = things.entry((owner, thing)).or_insert_with(|| {
                    let evict: Evict = Arc::new(move || {
                        counted.fetch_add(1, Ordering::Relaxed);
                    });
                    budget.open_evictable(owners[usize::from(owner)], evict)
                });
                let before = charge.bytes();
                if charge.resize(bytes).is_err() {
                    prop_assert_eq!(charge.bytes(), before);
                }
                prop_assert_eq!(budget.used(), things.values().map(Charge::bytes).sum::<usize>());
                prop_assert!(budget.used() <= 100);
            }
            drop(things);
            prop_assert_eq!(budget.used(), 0);
            prop_assert!(budget.state.lock().by_owner.is_empty());
        }
    }
}
