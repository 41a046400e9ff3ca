//! Decisions of a reload: which upstreams stay, join and leave, and when one leaves. No I/O, no clock.

use crate::upstream::{Endpoint, UpstreamId};

/// An entry of the new list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum Entry {
    /// The upstream is there already, with this id: its connections, calls and subscriptions stay as they are.
    Stays(UpstreamId),
    /// The upstream has to be connected to.
    Joins,
}

/// The difference of two lists of upstreams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::upstream) struct Plan {
    /// For each entry of the new list, in its order, where it comes from.
    pub entries: Vec<Entry>,
    /// Upstreams that the new list does not name, in the order of their priority.
    pub leave: Vec<UpstreamId>,
}

/// Compares the upstreams in use with a new list of addresses. An upstream is its address, with its credentials:
/// another address or key is another upstream. Of equal addresses the first stands for the first.
pub(in crate::upstream) fn plan<'a>(
    now: impl IntoIterator<Item = (UpstreamId, &'a Endpoint)>,
    new: impl IntoIterator<Item = &'a Endpoint>,
) -> Plan {
    let mut rest: Vec<(UpstreamId, &Endpoint)> = now.into_iter().collect();
    let entries = new.into_iter().map(|endpoint| {
        let known = rest.iter().position(|(_, own)| *own == endpoint);
        known.map_or(Entry::Joins, |at| Entry::Stays(rest.remove(at).0))
    });
    Plan {
        entries: entries.collect(),
        leave: rest.into_iter().map(|(id, _)| id).collect(),
    }
}

/// State of an upstream that is to leave, and of the others.
#[derive(Clone, Copy, Debug)]
pub(in crate::upstream) struct Outlook {
    /// `true` while the upstream itself is connected.
    pub is_connected: bool,
    /// `true` if each successor could come into use now, or there is none.
    pub successors_ready: bool,
    /// `true` if an upstream that stays and takes calls could come into use now.
    pub another_ready: bool,
    /// `true` if an upstream that stays and takes calls is connected.
    pub another_connected: bool,
    /// `true` once the wait for successors is over.
    pub is_due: bool,
}

/// Checks if an upstream leaves now. One that is connected never leaves before another can serve in its place,
/// however long that takes: a wrong address in a new configuration costs no client anything.
pub(in crate::upstream) fn leaves_now(outlook: Outlook) -> bool {
    if outlook.is_due {
        outlook.another_connected || !outlook.is_connected
    } else {
        outlook.another_ready && outlook.successors_ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lists are written as words, each an address; the id of an upstream in use is its place in the list.
    #[track_caller]
    fn check(now: &str, new: &str, entries: &str, leave: &[usize]) {
        let read = |list: &str| -> Vec<Endpoint> {
            let words = list.split_whitespace();
            words.map(|word| format!("ws://{word}").parse().unwrap()).collect()
        };
        let (old, new) = (read(now), read(new));
        let found = plan((0..).map(UpstreamId).zip(&old), &new);
        let words = found.entries.iter().map(|entry| match entry {
            Entry::Stays(id) => id.0.to_string(),
            Entry::Joins => "+".to_owned(),
        });
        assert_eq!(words.collect::<Vec<_>>().join(" "), entries, "{old:?} > {new:?}");
        assert_eq!(found.leave, leave.iter().copied().map(UpstreamId).collect::<Vec<_>>());
    }

    #[test]
    fn what_stays_keeps_its_id_in_any_place() {
        check("a b", "a b", "0 1", &[]);
        check("a b", "b a", "1 0", &[]);
        check("a", "a b", "0 +", &[]);
        check("a", "b a", "+ 0", &[]);
        check("a b c", "b", "1", &[0, 2]);
        check("a b", "c d", "+ +", &[0, 1]);
        check("", "a", "+", &[]);
    }

    #[test]
    fn another_address_port_or_key_is_another_upstream() {
        check("a:1", "a:2", "+", &[0]);
        check("a/key1", "a/key2", "+", &[0]);
        check("u:p@a", "u:q@a", "+", &[0]);
        check("a/key", "a/key", "0", &[]);
    }

    #[test]
    fn equal_addresses_are_as_many_upstreams() {
        check("a a", "a", "0", &[1]);
        check("a", "a a", "0 +", &[]);
        check("a b a", "a a b", "0 2 1", &[]);
    }

    #[test]
    fn a_connected_one_leaves_only_for_another() {
        let yes = |word: &str, outlook: &str| outlook.split_whitespace().any(|own| own == word);
        for (outlook, leaves) in [
            // Another is there already, and none joins.
            ("connected none-joins ready other", true),
            ("none-joins ready other", true),
            // It waits for those that join, for a while.
            ("connected ready other", false),
            ("connected other", false),
            ("connected ready other due", true),
            ("connected other due", true),
            // Another that lags or is on another branch is waited for, and so are the successors.
            ("connected none-joins other", false),
            ("connected none-joins other due", true),
            // Without another it stays, as long as it is connected.
            ("connected none-joins", false),
            ("connected none-joins due", false),
            ("connected due", false),
            ("due", true),
            ("", false),
        ] {
            let state = Outlook {
                is_connected: yes("connected", outlook),
                successors_ready: yes("none-joins", outlook),
                another_ready: yes("ready", outlook),
                another_connected: yes("other", outlook),
                is_due: yes("due", outlook),
            };
            assert_eq!(leaves_now(state), leaves, "{outlook}");
        }
    }
}
