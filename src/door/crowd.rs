//! Connections by origin, and the choice of the one to displace when there is no room for another.
//!
//! The victim is the connection idle for longest, of the client with most connections, in the network with most
//! connections: a client with many idle connections loses them one by one to clients with few.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::Network;
use crate::clock::{AtomicMoment, Moment};

/// Network of an address, a /24 of IPv4 or /48 of IPv6: the range that one party most easily gets addresses from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Neighbourhood(u64, bool);

impl From<IpAddr> for Neighbourhood {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self((u32::from(address) >> 8).into(), false),
            IpAddr::V6(address) => Self((u128::from(address) >> 80) as u64, true),
        }
    }
}

/// Set of connections that share a limit.
#[derive(Clone, Debug, Default)]
pub struct Crowd(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    total: usize,
    next: u64,
    members: HashMap<u64, Member>,
    by_network: HashMap<Neighbourhood, Group>,
}

#[derive(Debug)]
struct Member {
    address: IpAddr,
    activity: Arc<Activity>,
}

#[derive(Debug, Default)]
struct Group {
    total: usize,
    by_client: HashMap<Network, BTreeSet<u64>>,
}

type Leave = Box<dyn FnOnce() + Send>;

/// Activity of one connection, by which the one to displace is chosen.
#[derive(Default)]
pub struct Activity {
    used_at: AtomicMoment,
    in_use: AtomicBool,
    leave: Mutex<Option<Leave>>,
}

impl fmt::Debug for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Activity")
            .field("used_at", &self.used_at)
            .field("in_use", &self.in_use)
            .finish_non_exhaustive()
    }
}

impl Activity {
    /// Records a request.
    pub fn used(&self, now: Moment) {
        self.used_at.store(Some(now));
    }

    /// Records if the connection has subscriptions or an unanswered request; such a connection is displaced last.
    pub fn set_in_use(&self, in_use: bool) {
        self.in_use.store(in_use, Ordering::Relaxed);
    }

    /// Sets the action that ends the connection when it is displaced; an earlier action is replaced.
    pub fn on_leave(&self, leave: impl FnOnce() + Send + 'static) {
        *self.leave.lock() = Some(Box::new(leave));
    }

    fn leave(&self) {
        let leave = self.leave.lock().take();
        if let Some(leave) = leave {
            leave();
        }
    }
}

/// Entry of a connection in a crowd, until dropped.
#[derive(Debug)]
pub struct Seat {
    crowd: Crowd,
    number: u64,
    activity: Arc<Activity>,
}

impl Seat {
    /// Returns the connection's activity.
    #[must_use]
    pub fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }

    /// Moves the connection to the client address that a trusted proxy named.
    pub fn is_of(&self, address: IpAddr) {
        let mut state = self.crowd.0.lock();
        let before = state.members.get(&self.number).map(|member| member.address);
        if before.is_some_and(|before| before != address) {
            state.remove(self.number);
            state.add(self.number, address, self.activity.clone());
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.crowd.0.lock().remove(self.number);
    }
}

impl Crowd {
    /// Adds a connection from this address.
    #[must_use]
    pub fn enter(&self, address: IpAddr, now: Moment) -> Seat {
        let activity = Arc::new(Activity::default());
        activity.used(now);
        let mut state = self.0.lock();
        let number = state.next;
        state.next += 1;
        state.add(number, address, activity.clone());
        drop(state);
        Seat {
            crowd: self.clone(),
            number,
            activity,
        }
    }

    /// Returns the number of all connections, and of those of the client at this address.
    #[must_use]
    pub fn count(&self, address: IpAddr) -> (usize, usize) {
        let state = self.0.lock();
        (state.total, state.own(address))
    }

    /// Displaces a connection to make room for one from this address. Returns `false` if neither another network nor,
    /// in the same network, another client has more connections than the newcomer's would have.
    #[must_use]
    pub fn displace(&self, address: IpAddr) -> bool {
        let gone = {
            let mut state = self.0.lock();
            let fewer = |state: &State| {
                let group = state.by_network.get(&address.into());
                (group.map_or(0, |group| group.total) + 1, state.own(address) + 1)
            };
            let (of_network, own) = fewer(&state);
            let largest = state
                .by_network
                .iter()
                .max_by_key(|(name, group)| (group.total, **name));
            let Some((name, group)) = largest else { return false };
            let is_same = *name == Neighbourhood::from(address);
            let client = group.by_client.iter().max_by_key(|(name, all)| (all.len(), **name));
            let Some((client, has)) = client.map(|(client, all)| (*client, all.len())) else {
                return false;
            };
            if if is_same { has <= own } else { group.total <= of_network } {
                return false;
            }
            let name = *name;
            state.take_idlest(name, client)
        };
        gone.inspect(|gone| gone.leave()).is_some()
    }

    /// Displaces the idlest connection of the largest client, whatever address needs the place; `false` if there is
    /// none.
    #[must_use]
    pub fn displace_any(&self) -> bool {
        let gone = {
            let mut state = self.0.lock();
            let largest = state
                .by_network
                .iter()
                .max_by_key(|(name, group)| (group.total, **name));
            let largest = largest.and_then(|(name, group)| {
                let client = group.by_client.iter().max_by_key(|(name, all)| (all.len(), **name));
                client.map(|(client, _)| (*name, *client))
            });
            largest.and_then(|(name, client)| state.take_idlest(name, client))
        };
        gone.inspect(|gone| gone.leave()).is_some()
    }

    /// Releases memory that is no longer needed after a peak.
    pub fn shrink(&self) {
        let mut state = self.0.lock();
        state.members.shrink_to_fit();
        state.by_network.shrink_to_fit();
    }
}

impl State {
    fn own(&self, address: IpAddr) -> usize {
        let group = self.by_network.get(&address.into());
        group
            .and_then(|group| group.by_client.get(&address.into()))
            .map_or(0, BTreeSet::len)
    }

    fn add(&mut self, number: u64, address: IpAddr, activity: Arc<Activity>) {
        self.total += 1;
        self.members.insert(number, Member { address, activity });
        let group = self.by_network.entry(address.into()).or_default();
        group.total += 1;
        group.by_client.entry(address.into()).or_default().insert(number);
    }

    fn remove(&mut self, number: u64) -> Option<Arc<Activity>> {
        let Member { address, activity } = self.members.remove(&number)?;
        self.total -= 1;
        let (name, client) = (Neighbourhood::from(address), Network::from(address));
        if let Some(group) = self.by_network.get_mut(&name) {
            group.total -= 1;
            if let Some(own) = group.by_client.get_mut(&client) {
                own.remove(&number);
                if own.is_empty() {
                    group.by_client.remove(&client);
                }
            }
            if group.total == 0 {
                self.by_network.remove(&name);
            }
        }
        Some(activity)
    }

    /// Removes the idlest connection of a client from the counts at once, although its close takes a moment.
    fn take_idlest(&mut self, name: Neighbourhood, client: Network) -> Option<Arc<Activity>> {
        let own = self.by_network.get(&name)?.by_client.get(&client)?;
        let idle = |number: &&u64| {
            let activity = &self.members[*number].activity;
            let in_use = activity.in_use.load(Ordering::Relaxed);
            (in_use, activity.used_at.load(), **number)
        };
        let number = *own.iter().min_by_key(idle)?;
        self.remove(number)
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use expect_test::{Expect, expect};

    use super::*;
    use crate::clock::at;

    /// Runs a story: `a.1@5` enters from 10.0.97.1 at 5, `a.1@5+` is in use, `?b.1` displaces for 10.0.98.1, `!`
    /// displaces any. The outcome lists the displaced connections.
    fn check(story: &str, expect: Expect) {
        let crowd = Crowd::default();
        let address = |name: &str| {
            let (network, host) = name.split_once('.').unwrap();
            IpAddr::from([10, 0, network.as_bytes()[0], host.parse().unwrap()])
        };
        let (mut seats, mut out) = (Vec::new(), String::new());
        let gone: Arc<Mutex<Vec<String>>> = Arc::default();
        for word in story.split_whitespace() {
            let found = if let Some(name) = word.strip_prefix('?') {
                crowd.displace(address(name))
            } else if word == "!" {
                crowd.displace_any()
            } else {
                let (name, used) = word.split_once('@').unwrap();
                let entered = at(used.trim_end_matches('+').parse().unwrap());
                let seat = crowd.enter(address(name), entered);
                seat.activity().set_in_use(used.ends_with('+'));
                let (gone, name) = (gone.clone(), word.to_owned());
                seat.activity().on_leave(move || gone.lock().push(name));
                seats.push(seat);
                continue;
            };
            writeln!(out, "{word}: {found} {}", gone.lock().drain(..).collect::<String>()).unwrap();
        }
        drop(seats);
        assert!(crowd.0.lock().by_network.is_empty() && crowd.0.lock().total == 0);
        expect.assert_eq(&out);
    }

    #[test]
    fn the_idlest_of_the_largest_gives_way_and_nobody_to_one_that_has_as_many() {
        check(
            "a.1@5 a.1@3+ a.1@7 a.2@1 b.1@1 ?b.1 ?b.1 ?c.1 ?c.1 ?c.1",
            expect![[r#"
                ?b.1: true a.1@5
                ?b.1: true a.1@7
                ?c.1: true a.2@1
                ?c.1: false 
                ?c.1: false 
            "#]],
        );
    }

    #[test]
    fn within_a_network_the_address_that_has_most_gives_way() {
        check(
            "a.1@1 a.1@2 a.1@3 a.2@1 ?a.2 ?a.3 ?a.1 ! ! !",
            expect![[r#"
                ?a.2: true a.1@1
                ?a.3: true a.1@2
                ?a.1: false 
                !: true a.2@1
                !: true a.1@3
                !: false 
            "#]],
        );
    }

    #[test]
    fn a_proxy_says_later_for_whom_it_came() {
        let crowd = Crowd::default();
        let (proxy, one, other) = ([10, 0, 0, 1].into(), [1, 1, 1, 1].into(), [2, 2, 2, 2].into());
        let seats = [1, 2, 3].map(|now| crowd.enter(proxy, at(now)));
        seats.iter().for_each(|seat| seat.is_of(one));
        assert_eq!((crowd.count(proxy), crowd.count(one)), ((3, 0), (3, 3)));
        assert!(crowd.displace(other) && !crowd.displace(one));
        assert_eq!(crowd.count(one), (2, 2));
    }
}
