//! Connections that have not sent a request yet.
//!
//! They cost a socket and a buffer and say nothing about who they are, so their number is bounded, and no network may have
//! more than a quarter of the places: one that sends its headers byte by byte shuts nobody out.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Network;

/// Which part of all places one network may have.
pub(super) const SHARE: usize = 4;

/// All of them.
#[derive(Debug, Default)]
pub struct Handshakes(Arc<Mutex<Open>>);

#[derive(Debug, Default)]
struct Open {
    total: usize,
    by_network: HashMap<Network, usize>,
}

/// One of them, until dropped.
#[derive(Debug)]
pub struct Handshake {
    all: Arc<Mutex<Open>>,
    network: Network,
}

impl Handshakes {
    /// A place among `max`, of which a network may have one part in `share`.
    pub(super) fn begin(&self, network: Network, max: usize, share: usize) -> Option<Handshake> {
        let mut open = self.0.lock();
        let own = open.by_network.get(&network).copied().unwrap_or_default();
        if open.total >= max || own >= max.div_ceil(share) {
            return None;
        }
        open.total += 1;
        open.by_network.insert(network, own + 1);
        Some(Handshake {
            all: self.0.clone(),
            network,
        })
    }

    pub(super) fn shrink(&self) {
        self.0.lock().by_network.shrink_to_fit();
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut open = self.all.lock();
        open.total -= 1;
        if let Some(own) = open.by_network.get_mut(&self.network) {
            *own -= 1;
            if *own == 0 {
                open.by_network.remove(&self.network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn one_network_takes_its_share_and_all_together_the_rest() {
        let all = Handshakes::default();
        let begin = |ip: u8| all.begin(IpAddr::from([10, 0, 0, ip]).into(), 8, SHARE);
        let mut held: Vec<_> = (0..2).map(|_| begin(1).unwrap()).collect();
        assert!(begin(1).is_none());
        held.extend((2..5).flat_map(|ip| [begin(ip).unwrap(), begin(ip).unwrap()]));
        assert!(begin(6).is_none(), "all are taken");
        held.remove(0);
        assert!(begin(6).is_some());
        assert!(
            all.begin(IpAddr::from([10, 0, 0, 1]).into(), 8, 1).is_some(),
            "a proxy may have all"
        );
        held.clear();
        assert!(all.0.lock().by_network.is_empty() && all.0.lock().total == 0);
    }
}
