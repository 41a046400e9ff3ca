//! Identity of the chain: its id and genesis, as configured, or as reported by the first upstream that is reached.

use std::num::NonZeroU64;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use alloy_primitives::B256;
use bytes::Bytes;
use parking_lot::Mutex;

use super::{Complaint, Endpoint, complaint, place_of};
use crate::jsonrpc::Outcome;
use crate::quantity::Quantity;

/// Identity of the chain, shared by all actors. Forks of a chain share its id, and so do a development chain and its
/// restart; only the genesis distinguishes these.
#[derive(Debug)]
pub(super) struct ChainIdentity {
    /// `true` with a single upstream, which can contradict only its own past.
    alone: AtomicBool,
    /// `true` if the chain id is configured, not reported by a node.
    fixed: bool,
    chain_id: OnceLock<String>,
    genesis: Mutex<Option<B256>>,
}

/// Fallback for a node that does not serve `eth_chainId` (EIP-695): the network id stands for the chain id.
pub(super) const NETWORK_ID: &str = "net_version";

/// Checks if an answer to `eth_chainId` contains no id, so that [`NETWORK_ID`] must be requested.
pub(super) fn has_no_chain_id(answer: &Outcome) -> bool {
    match answer {
        Outcome::Result(json) => &**json == b"null",
        Outcome::Error(_) => complaint(answer) == Complaint::Unsupported,
    }
}

/// Result of the check of a node's block 0.
#[derive(Debug)]
pub(super) enum Genesis {
    /// The known genesis, the first one, or none: an answer with a number other than 0 proves nothing (ethermint
    /// takes height 0 for "latest", Kava begins at 1).
    Same,
    /// Another genesis; the node's blocks decide.
    Other(Doubt),
}

/// Check of the chain of a node with another genesis than the known one.
///
/// A node that has a published block is on the same chain, whatever its block 0: anvil writes another genesis when it
/// starts from a dumped state, with all other blocks unchanged.
#[derive(Debug)]
pub(super) struct Doubt {
    genesis: B256,
    /// Hashes of published blocks still to be requested from the node, the next one last.
    blocks: Vec<B256>,
    found: Option<B256>,
}

impl Doubt {
    pub(super) fn new(genesis: B256, published: impl DoubleEndedIterator<Item = B256>) -> Self {
        Self {
            genesis,
            blocks: published.rev().collect(),
            found: None,
        }
    }

    /// Returns method and parameters of the next request; `None` if decided.
    pub(super) fn question(&self) -> Option<(&'static str, String)> {
        let next = self.blocks.last().filter(|_| self.found.is_none())?;
        Some(("eth_getBlockByHash", format!(r#"["{next}",false]"#)))
    }

    /// Records the answer to [`Self::question`]. A node that does not know the block answers `null` or an error.
    pub(super) fn answered(&mut self, answer: &Outcome) {
        let asked = self.blocks.pop();
        if let Outcome::Result(block) = answer {
            self.found = asked.filter(|asked| place_of(block).is_ok_and(|place| place.hash == *asked));
        }
    }

    pub(super) fn genesis(&self) -> B256 {
        self.genesis
    }

    /// Returns the published block that the node has, if one was found.
    pub(super) fn found(&self) -> Option<B256> {
        self.found
    }
}

impl ChainIdentity {
    /// Creates the identity for several upstreams. A configured chain id binds all of them; otherwise the first one
    /// reported does.
    pub(super) fn new(chain_id: Option<NonZeroU64>) -> Self {
        Self {
            alone: AtomicBool::new(false),
            fixed: chain_id.is_some(),
            chain_id: chain_id.map_or_else(OnceLock::new, |id| OnceLock::from(format!("\"{id:#x}\""))),
            genesis: Mutex::default(),
        }
    }

    /// Records if there is a single upstream.
    pub(super) fn set_alone(&self, alone: bool) {
        self.alone.store(alone, Ordering::Relaxed);
    }

    fn is_alone(&self) -> bool {
        self.alone.load(Ordering::Relaxed)
    }

    /// Returns the chain id as JSON, once it is known.
    pub(super) fn chain_id(&self) -> Option<&str> {
        self.chain_id.get().map(String::as_str)
    }

    /// Checks a node's chain id, in JSON; returns it as geth writes it.
    ///
    /// # Errors
    /// A message that names the node, if the id is not a number or not that of the known chain.
    pub(super) fn check_chain_id(&self, endpoint: &Endpoint, chain_id: &str) -> Result<String, String> {
        let Some(chain_id) = normal(chain_id) else {
            return Err(format!(
                "{endpoint} reports a chain id that is not a valid number: {chain_id}"
            ));
        };
        let expected = self.chain_id.get_or_init(|| chain_id.clone());
        if *expected == chain_id {
            return Ok(chain_id);
        }
        Err(if self.fixed {
            format!("{endpoint} is on chain {chain_id}, and node.chain_id is {expected}: check upstreams")
        } else if self.is_alone() {
            format!(
                "{endpoint} is on chain {chain_id} now, but it was on {expected}: check upstreams, or restart headwater"
            )
        } else {
            format!("{endpoint} is on chain {chain_id}, but the others are on {expected}: check upstreams")
        })
    }

    /// Returns the hash of block 0 if it differs from the known genesis. The first one reported becomes the known
    /// one.
    pub(super) fn other_genesis(&self, block: &Bytes) -> Option<B256> {
        let reported = place_of(block).ok().filter(|place| place.number == 0)?.hash;
        let mut known = self.genesis.lock();
        let expected = *known.get_or_insert(reported);
        (expected != reported).then_some(reported)
    }

    /// Records that a node with another genesis is on the same chain. With several upstreams the known genesis
    /// remains, as it still holds for the others.
    pub(super) fn same_chain(&self, genesis: B256) {
        if self.is_alone() {
            *self.genesis.lock() = Some(genesis);
        }
    }

    /// Records that a node is on another chain. A single upstream is accepted: its chain was begun anew.
    ///
    /// # Errors
    /// A message that names the node, if there are several upstreams.
    pub(super) fn other_chain(&self, endpoint: &Endpoint, genesis: B256) -> Result<(), String> {
        let mut known = self.genesis.lock();
        match *known {
            Some(expected) if !self.is_alone() => Err(format!(
                "{endpoint} is on another chain than the others: its genesis is {genesis}, theirs {expected}: check upstreams"
            )),
            _ => {
                *known = Some(genesis);
                Ok(())
            }
        }
    }
}

/// Returns the same text for all spellings of a chain id, of up to 256 bits; `None` if it is not a number.
fn normal(chain_id: &str) -> Option<String> {
    if let Some(number) = Quantity::parse(chain_id) {
        return Some(format!("\"{number:#x}\""));
    }
    let text: String = serde_json::from_str(chain_id).ok()?;
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"))?;
    let digits = digits.trim_start_matches('0').to_ascii_lowercase();
    let is_number = digits.len() <= 64 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_number.then(|| format!("\"0x{digits}\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(upstreams: usize, chain_id: Option<NonZeroU64>) -> ChainIdentity {
        let identity = ChainIdentity::new(chain_id);
        identity.set_alone(upstreams == 1);
        identity
    }

    fn block(byte: u8) -> Bytes {
        let (hash, parent) = (B256::repeat_byte(byte), B256::ZERO);
        format!(r#"{{"hash":"{hash}","parentHash":"{parent}","number":"0x0"}}"#).into()
    }

    #[test]
    fn a_chain_id_is_a_value() {
        let endpoint: Endpoint = "ws://node:1".parse().unwrap();
        let identity = of(1, None);
        for id in [r#""0x539""#, r#""0x0539""#, r#""0X539""#, r#""1337""#, "1337", "1337.0"] {
            assert_eq!(identity.check_chain_id(&endpoint, id), Ok(r#""0x539""#.into()), "{id}");
        }
        for id in [r#""0x53a""#, "1338", "null", r#""x""#, r#""0x""#, "[]", "-1"] {
            assert!(identity.check_chain_id(&endpoint, id).is_err(), "{id}");
        }
        assert_eq!(identity.chain_id(), Some(r#""0x539""#));
        let long = format!("0x00{}", "F".repeat(64));
        let identity = of(1, None);
        let expect = format!("\"0x{}\"", "f".repeat(64));
        assert_eq!(identity.check_chain_id(&endpoint, &format!("\"{long}\"")), Ok(expect));
    }

    #[test]
    fn a_network_id_is_asked_for_where_no_chain_id_is_served() {
        let error = |json: &'static str| Outcome::Error(json.into());
        for (answer, expect) in [
            (Outcome::Result("null".into()), true),
            (Outcome::Result(r#""0x1""#.into()), false),
            (Outcome::Result(r#""""#.into()), false),
            (
                error(r#"{"code":-32601,"message":"the method eth_chainId does not exist"}"#),
                true,
            ),
            (error(r#"{"code":-32000,"message":"method not supported"}"#), true),
            (error(r#"{"code":-32601,"message":"rate limit exceeded"}"#), false),
            (error(r#"{"code":-32603,"message":"internal error"}"#), false),
            (error("5"), false),
        ] {
            assert_eq!(has_no_chain_id(&answer), expect, "{answer:?}");
        }
    }

    #[test]
    fn block_zero_is_no_genesis_unless_its_number_is_zero() {
        let identity = of(2, None);
        let at = |number: &str, byte: u8| -> Bytes {
            let hash = B256::repeat_byte(byte);
            format!(r#"{{"hash":"{hash}","parentHash":"{hash}","number":{number}}}"#).into()
        };
        for block in [
            at("\"0x5\"", 1),
            at("\"0x1\"", 2),
            at("null", 3),
            "null".into(),
            "5".into(),
        ] {
            assert_eq!(identity.other_genesis(&block), None);
        }
        assert_eq!(identity.other_genesis(&at("\"0x0\"", 4)), None, "the first");
        assert_eq!(identity.other_genesis(&at("0", 4)), None);
        assert_eq!(identity.other_genesis(&at("\"0x00\"", 5)), Some(B256::repeat_byte(5)));
        assert_eq!(identity.other_genesis(&at("\"0x6\"", 6)), None);
    }

    #[test]
    fn one_published_block_settles_the_doubt() {
        let hash = B256::with_last_byte;
        let published = || [3, 2, 1].map(hash).into_iter();
        let block = |byte: u8| {
            let (hash, number) = (hash(byte), byte);
            Outcome::Result(format!(r#"{{"hash":"{hash}","parentHash":"{hash}","number":{number}}}"#).into())
        };
        let null = || Outcome::Result("null".into());
        let error = || Outcome::Error(r#"{"code":-32000,"message":"unknown block"}"#.into());
        for (answers, found) in [
            (vec![], None),
            (vec![block(3)], Some(3)),
            (vec![null(), error(), block(1)], Some(1)),
            (vec![null(), error(), null()], None),
            // An answer about another block does not count.
            (vec![block(1), block(1), block(2)], None),
        ] {
            let mut doubt = Doubt::new(hash(9), published().take(answers.len()));
            for (answer, asked) in answers.iter().zip(published()) {
                let (method, params) = doubt.question().expect("undecided");
                assert_eq!(
                    (method, params),
                    ("eth_getBlockByHash", format!(r#"["{asked}",false]"#))
                );
                doubt.answered(answer);
            }
            assert!(doubt.question().is_none());
            assert_eq!(doubt.found(), found.map(hash), "{answers:?}");
        }
    }

    #[test]
    fn a_chain_that_is_set_is_not_the_first_ones_to_choose() {
        let endpoint: Endpoint = "ws://node:1".parse().unwrap();
        for upstreams in [1, 2] {
            let identity = of(upstreams, NonZeroU64::new(1));
            let refused = identity.check_chain_id(&endpoint, "\"0x2\"").unwrap_err();
            assert!(refused.contains(r#"node.chain_id is "0x1""#), "{refused}");
            assert!(identity.check_chain_id(&endpoint, "\"0x1\"").is_ok());
        }
    }

    #[test]
    fn another_chain_is_refused_by_name_and_one_node_alone_may_start_anew() {
        let endpoint: Endpoint = "ws://node:1".parse().unwrap();
        for (upstreams, alone) in [(1, true), (2, false)] {
            let identity = of(upstreams, None);
            assert!(identity.check_chain_id(&endpoint, "\"0x1\"").is_ok());
            assert!(identity.check_chain_id(&endpoint, "\"0x1\"").is_ok());
            let refused = identity.check_chain_id(&endpoint, "\"0x2\"").unwrap_err();
            assert!(refused.contains("ws://node:1") && refused.contains("0x1"), "{refused}");
            assert_eq!(identity.other_genesis(&"null".into()), None);
            assert_eq!(identity.other_genesis(&block(1)), None);
            let other = identity.other_genesis(&block(2)).expect("another");
            match identity.other_chain(&endpoint, other) {
                Ok(()) => assert!(alone),
                Err(refused) => assert!(
                    !alone && refused.contains("ws://node:1 is on another chain"),
                    "{refused}"
                ),
            }
            assert_eq!(identity.other_genesis(&block(2)).is_none(), alone);
            let other = B256::repeat_byte(3);
            identity.same_chain(other);
            assert_eq!(identity.other_genesis(&block(3)).is_none(), alone);
        }
    }
}
