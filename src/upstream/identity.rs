//! Which chain the upstreams are on: its id and its genesis, as the first that was reached told them, or as was set.

use std::num::NonZeroU64;
use std::sync::OnceLock;

use alloy_primitives::B256;
use bytes::Bytes;
use parking_lot::Mutex;

use super::{Endpoint, place_of};

/// Shared by all actors. Chains that were forked from each other have one id; only the genesis tells a development chain
/// from one that was started anew.
#[derive(Debug)]
pub(super) struct Identity {
    /// With one upstream there is nobody whom it could contradict but its own past.
    alone: bool,
    /// Set, not told.
    fixed: bool,
    chain_id: OnceLock<String>,
    genesis: Mutex<Option<B256>>,
}

/// What a genesis block means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Genesis {
    /// It is the one that was known, or the first.
    Same,
    /// The only upstream has another one than before.
    Replaced,
    /// The node did not tell its own.
    Untold,
}

impl Identity {
    /// Where the chain's id is set, no upstream has a say in it.
    pub fn new(upstreams: usize, chain_id: Option<NonZeroU64>) -> Self {
        Self {
            alone: upstreams == 1,
            fixed: chain_id.is_some(),
            chain_id: chain_id.map_or_else(OnceLock::new, |id| OnceLock::from(format!("\"{id:#x}\""))),
            genesis: Mutex::default(),
        }
    }

    /// As JSON, once it is known.
    pub fn chain_id(&self) -> Option<&str> {
        self.chain_id.get().map(String::as_str)
    }

    /// # Errors
    /// The line that refuses it.
    pub fn check_chain_id(&self, endpoint: &Endpoint, chain_id: &str) -> Result<(), String> {
        let expected = self.chain_id.get_or_init(|| chain_id.to_owned());
        if expected == chain_id {
            return Ok(());
        }
        Err(if self.fixed {
            format!("{endpoint} is on chain {chain_id}, and node.chain_id is {expected}: check upstreams")
        } else if self.alone {
            format!("{endpoint} is on chain {chain_id} now, but it was on {expected}: check upstreams, or start anew")
        } else {
            format!("{endpoint} is on chain {chain_id}, but the others are on {expected}: check upstreams")
        })
    }

    /// `block` is the answer for block 0.
    ///
    /// # Errors
    /// The line that refuses it.
    pub fn check_genesis(&self, endpoint: &Endpoint, block: &Bytes) -> Result<Genesis, String> {
        let Ok(told) = place_of(block).map(|told| told.hash) else {
            return Ok(Genesis::Untold);
        };
        let mut known = self.genesis.lock();
        match *known {
            Some(expected) if expected == told => Ok(Genesis::Same),
            Some(expected) if !self.alone => Err(format!(
                "{endpoint} is on another chain than the others: its genesis is {told}, theirs {expected}: check upstreams"
            )),
            before => {
                *known = Some(told);
                Ok(before.map_or(Genesis::Same, |_| Genesis::Replaced))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(byte: u8) -> Bytes {
        let (hash, parent) = (B256::repeat_byte(byte), B256::ZERO);
        format!(r#"{{"hash":"{hash}","parentHash":"{parent}","number":"0x0"}}"#).into()
    }

    #[test]
    fn a_chain_that_is_set_is_not_the_first_ones_to_choose() {
        let endpoint: Endpoint = "ws://node:1".parse().unwrap();
        for upstreams in [1, 2] {
            let identity = Identity::new(upstreams, NonZeroU64::new(1));
            let refused = identity.check_chain_id(&endpoint, "\"0x2\"").unwrap_err();
            assert!(refused.contains(r#"node.chain_id is "0x1""#), "{refused}");
            assert_eq!(identity.check_chain_id(&endpoint, "\"0x1\""), Ok(()));
        }
    }

    #[test]
    fn another_chain_is_refused_by_name_and_one_node_alone_may_start_anew() {
        let endpoint: Endpoint = "ws://node:1".parse().unwrap();
        for (upstreams, alone) in [(1, true), (2, false)] {
            let identity = Identity::new(upstreams, None);
            assert_eq!(identity.check_chain_id(&endpoint, "\"0x1\""), Ok(()));
            assert_eq!(identity.check_chain_id(&endpoint, "\"0x1\""), Ok(()));
            let refused = identity.check_chain_id(&endpoint, "\"0x2\"").unwrap_err();
            assert!(refused.contains("ws://node:1") && refused.contains("0x1"), "{refused}");
            let check = |block: Bytes| identity.check_genesis(&endpoint, &block);
            assert_eq!(check("null".into()), Ok(Genesis::Untold));
            assert_eq!(check(block(1)), Ok(Genesis::Same));
            assert_eq!(check(block(1)), Ok(Genesis::Same));
            match check(block(2)) {
                Ok(genesis) => assert!(alone && genesis == Genesis::Replaced),
                Err(refused) => assert!(
                    !alone && refused.contains("ws://node:1 is on another chain"),
                    "{refused}"
                ),
            }
            assert_eq!(check(block(2)).is_ok(), alone);
        }
    }
}
