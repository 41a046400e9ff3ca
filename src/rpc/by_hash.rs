//! Answers about blocks and transactions that a call names by hash, checked against the hash before they are cached
//! or shared.

use std::sync::atomic::{AtomicBool, Ordering};

use alloy_primitives::B256;
use bytes::Bytes;
use serde_json::value::RawValue;

use super::params::{self, BlockName};
use crate::chain::{Verify, receipts};

/// Check of answers against hashes.
#[derive(Debug)]
pub(super) struct ByHash {
    verify: Verify,
    /// `true` once a header matched its recomputed hash: from then on each header must. On some chains none does.
    hashes_hold: AtomicBool,
}

/// Hash that an answer must be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    hash: B256,
    shape: AnswerShape,
}

/// Place of the hash in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AnswerShape {
    /// A block or header: in `hash`, which is computed from the whole header.
    Header,
    /// An object: in this member.
    Member(&'static str),
    /// A list: in the `blockHash` of each of its objects.
    List,
}

impl Expected {
    /// Returns the check of a call's answer; `None` if the call names no hash, or its answer does not repeat the
    /// hash.
    #[must_use]
    pub(super) fn of(method: &str, params: &str) -> Option<Self> {
        let shape = match method {
            "eth_getBlockByHash" | "eth_getHeaderByHash" => AnswerShape::Header,
            "eth_getTransactionByHash" => AnswerShape::Member("hash"),
            "eth_getTransactionReceipt" => AnswerShape::Member("transactionHash"),
            "eth_getTransactionByBlockHashAndIndex" => AnswerShape::Member("blockHash"),
            "eth_getBlockReceipts" | "eth_getLogs" => AnswerShape::List,
            _ => return None,
        };
        let args = params::args(params)?;
        let first = args.first()?;
        if method == "eth_getLogs" {
            let hash = params::member(first.get().as_bytes(), "blockHash").and_then(read)?;
            return Some(Self { hash, shape });
        }
        match BlockName::parse(first)? {
            BlockName::Hash(hash) | BlockName::Canonical(hash) => Some(Self { hash, shape }),
            _ => None,
        }
    }
}

impl ByHash {
    /// Creates the check; with [`Verify::Receipts`] the hashes of headers are recomputed.
    #[must_use]
    pub(super) fn new(verify: Verify) -> Self {
        Self {
            verify,
            hashes_hold: AtomicBool::new(false),
        }
    }

    /// Checks if an answer is about the expected hash; `null` always passes.
    pub(super) fn fits(&self, expected: Expected, json: &Bytes) -> bool {
        let Expected { hash, shape } = expected;
        if json.trim_ascii() == b"null" {
            return true;
        }
        let names = |member| params::member(json, member).and_then(read) == Some(hash);
        match shape {
            AnswerShape::Header => names("hash") && self.is_its_hash(json),
            AnswerShape::Member(member) => names(member),
            AnswerShape::List => params::block_hashes(json).all(|own| own == Some(hash)),
        }
    }

    fn is_its_hash(&self, json: &[u8]) -> bool {
        if self.verify != Verify::Receipts {
            return true;
        }
        let holds = receipts::verify_hash(json).is_ok();
        if holds {
            self.hashes_hold.store(true, Ordering::Relaxed);
        }
        holds || !self.hashes_hold.load(Ordering::Relaxed)
    }
}

fn read(raw: &RawValue) -> Option<B256> {
    serde_json::from_str(raw.get()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(byte: u8) -> String {
        format!("0x{}", format!("{byte:02x}").repeat(32))
    }

    #[test]
    fn an_answer_is_about_what_was_asked_for() {
        let (a, b) = (hash(0xaa), hash(0xbb));
        let own = |member: &str| format!(r#"{{"x":[1],"{member}":"{a}"}}"#);
        let other = |member: &str| format!(r#"{{"x":"{a}","{member}":"{b}"}}"#);
        let by_object = format!(r#"[{{"blockHash":"{a}"}}]"#);
        let of_address = format!(
            r#"[{{"address":"0x{}","topics":[],"blockHash":"{a}"}}]"#,
            "11".repeat(20)
        );
        let by_hash = format!(r#"["{a}",false]"#);
        let logs = |first: &str, last: &str| {
            format!(r#"[{{"blockHash":"{first}","data":"\"blockHash\":1"}},{{ "blockHash" : "{last}"}}]"#)
        };
        let check = ByHash::new(Verify::Bloom);
        for (method, params, answer, fits) in [
            ("eth_getBlockByHash", &by_hash, own("hash"), true),
            (
                "eth_getBlockByHash",
                &by_hash,
                own("hash").to_uppercase().replace("HASH", "hash").replace("0X", "0x"),
                true,
            ),
            ("eth_getBlockByHash", &by_hash, other("hash"), false),
            ("eth_getBlockByHash", &by_hash, own("parentHash"), false),
            ("eth_getBlockByHash", &by_hash, "null".into(), true),
            ("eth_getBlockByHash", &by_hash, "7".into(), false),
            ("eth_getBlockByHash", &by_hash, "[]".into(), false),
            ("eth_getHeaderByHash", &by_hash, other("hash"), false),
            ("eth_getTransactionByHash", &by_hash, own("hash"), true),
            ("eth_getTransactionByHash", &by_hash, other("hash"), false),
            ("eth_getTransactionReceipt", &by_hash, own("transactionHash"), true),
            ("eth_getTransactionReceipt", &by_hash, other("transactionHash"), false),
            (
                "eth_getTransactionByBlockHashAndIndex",
                &by_hash,
                other("blockHash"),
                false,
            ),
            ("eth_getBlockReceipts", &by_hash, logs(&a, &a), true),
            ("eth_getBlockReceipts", &by_hash, logs(&a, &b), false),
            ("eth_getBlockReceipts", &by_object, logs(&b, &a), false),
            ("eth_getLogs", &by_object, logs(&a, &a), true),
            ("eth_getLogs", &by_object, logs(&a, &b), false),
            ("eth_getLogs", &of_address, logs(&a, &b), false),
            ("eth_getLogs", &by_object, logs(&a, "0x12"), false),
            ("eth_getLogs", &by_object, "[]".into(), true),
        ] {
            let expected = Expected::of(method, params).expect(method);
            assert_eq!(
                check.fits(expected, &Bytes::from(answer.clone())),
                fits,
                "{method} {answer}"
            );
        }
        for (method, params) in [
            ("eth_getBlockByNumber", r#"["0x1",false]"#),
            ("eth_getBlockReceipts", r#"["latest"]"#),
            ("eth_getLogs", r#"[{"fromBlock":"0x1"}]"#),
            ("eth_getBlockByHash", "[]"),
            ("eth_getBlockByHash", "{"),
            ("eth_getBlockTransactionCountByHash", &by_hash),
        ] {
            assert_eq!(Expected::of(method, params), None, "{method} {params}");
        }
    }
}
