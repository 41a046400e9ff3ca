//! Connections that have not sent a request yet.
//!
//! Such connections cost a socket and a buffer and have no identity yet, so their number is bounded, and one address
//! gets at most a quarter of the places. When all places are taken, the oldest connection of the network with most
//! connections is displaced: a client that sends its headers byte by byte does not shut others out, and a client that
//! sends its request at once has left this list before its turn comes.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Activity, Crowd, Seat};
use crate::clock::Moment;

/// Divisor of one address's share of all places: a quarter.
pub(super) const SHARE: usize = 4;

/// All connections without a request.
#[derive(Debug, Default)]
pub struct Handshakes(Crowd);

/// Place of a connection without a request, until dropped.
#[derive(Debug)]
pub struct Handshake(Seat);

impl Handshake {
    /// Returns the activity of the connection.
    #[must_use]
    pub fn activity(&self) -> &Arc<Activity> {
        self.0.activity()
    }
}

impl Handshakes {
    /// Takes one of `max` places, of which one address may have one part in `share`; `None` if the address has its
    /// part.
    pub(super) fn begin(&self, address: IpAddr, max: usize, share: usize, now: Moment) -> Option<Handshake> {
        let (total, own) = self.0.count(address);
        // The oldest connection is displaced even if no client has more connections than the newcomer would.
        let has_room = || total < max || self.0.displace(address) || self.0.displace_any();
        (own < max.div_ceil(share) && has_room()).then(|| Handshake(self.0.enter(address, now)))
    }

    pub(super) fn shrink(&self) {
        self.0.shrink();
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;
    use crate::clock::at;

    #[test]
    fn newcomers_find_a_place_however_many_are_silent() {
        let (all, gone) = (Handshakes::default(), Arc::new(Mutex::new(Vec::new())));
        let begin = |ip: [u8; 4], share, now| {
            let begun = all.begin(IpAddr::from(ip), 8, share, at(now))?;
            let gone = gone.clone();
            begun.activity().on_leave(move || gone.lock().push((ip, now)));
            Some(begun)
        };
        let gone = || std::mem::take(&mut *gone.lock());
        let mut held: Vec<_> = (1..=2).map(|now| begin([10, 0, 0, 1], SHARE, now).unwrap()).collect();
        assert!(begin([10, 0, 0, 1], SHARE, 3).is_none(), "a quarter");
        for ip in 2..5 {
            held.extend((4..6).map(|now| begin([10, 0, 0, ip], SHARE, now).unwrap()));
        }
        assert!(gone().is_empty());
        held.push(begin([10, 9, 0, 1], SHARE, 6).unwrap());
        assert_eq!(gone().len(), 1, "a network that has fewer");
        held.push(begin([10, 0, 0, 9], SHARE, 7).unwrap());
        assert_eq!(gone().len(), 1, "an address that has fewer");
        held.extend((8..16).map(|now| begin([10, 0, 1, 1], 1, now).unwrap()));
        assert_eq!(all.0.count([10, 0, 1, 1].into()).0, 8, "a proxy may have all");
        drop(held);
        assert_eq!(all.0.count([10, 0, 1, 1].into()).0, 0);
    }

    #[test]
    fn where_each_has_one_somebody_goes_all_the_same() {
        let all = Handshakes::default();
        let begin = |ip: u8| all.begin(IpAddr::from([10, ip, 0, 1]), 4, SHARE, at(1));
        let held: Vec<_> = (0..9).map(|ip| begin(ip).unwrap()).collect();
        assert_eq!(all.0.count([10, 0, 0, 1].into()).0, 4);
        drop(held);
        assert_eq!(all.0.count([10, 0, 0, 1].into()).0, 0);
    }
}
