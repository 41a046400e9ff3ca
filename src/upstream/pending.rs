//! Pending transactions in either form in which a node announces them, and the fetching of whole ones where a node
//! announces hashes only.

use std::collections::VecDeque;

use alloy_primitives::B256;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::shared::UpstreamShared;
use super::{BestEffortEvent, TransactionForm};
use crate::jsonrpc::Outcome;

/// Most hashes whose transactions wait to be fetched; further ones are dropped and counted (E8).
const MAX_WAITING: usize = 256;

/// Most transactions fetched at the same time.
pub(super) const MAX_UNDER_WAY: usize = 16;

/// A pending transaction in the form in which a node announces it. Geth before 1.11 and Frontier announce hashes
/// only, even where the flag for whole transactions is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Announced {
    Hash(Bytes),
    /// Whole transaction, and its hash where that can be read.
    WholeTransaction(Bytes, Option<Bytes>),
}

/// Forms in which a transaction is passed on to clients.
#[derive(Clone, Copy, Debug)]
pub(super) struct Forms {
    pub hashes: bool,
    pub whole: bool,
}

impl Announced {
    /// Reads one event: a transaction, or a list of transactions. `None` for an item that is not a transaction.
    pub(super) fn read_all(json: &Bytes) -> Vec<Option<Self>> {
        let list: Option<Vec<&RawValue>> = json
            .starts_with(b"[")
            .then(|| serde_json::from_slice(json).ok())
            .flatten();
        match list {
            Some(list) => list
                .into_iter()
                .map(|one| Self::read(&json.slice_ref(one.get().as_bytes())))
                .collect(),
            None => vec![Self::read(json)],
        }
    }

    /// Reads a transaction; `None` where `json` is neither a string nor an object.
    pub(super) fn read(json: &Bytes) -> Option<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct WholeTransaction<'a> {
            #[serde(borrow)]
            hash: Option<&'a RawValue>,
            #[serde(borrow)]
            transaction_hash: Option<&'a RawValue>,
            #[serde(borrow)]
            tx_hash: Option<&'a RawValue>,
        }
        match json.first()? {
            b'"' => Some(Self::Hash(json.clone())),
            b'{' => {
                let hash = serde_json::from_slice::<WholeTransaction<'_>>(json).ok();
                let hash = hash.and_then(|whole| whole.hash.or(whole.transaction_hash).or(whole.tx_hash));
                let hash = hash.map(|hash| json.slice_ref(hash.get().as_bytes()));
                Some(Self::WholeTransaction(
                    json.clone(),
                    hash.filter(|hash| hash.starts_with(b"\"")),
                ))
            }
            _ => None,
        }
    }
}

impl UpstreamShared {
    /// Passes on a pending transaction. Returns its hash where the whole transaction is needed and has to be fetched.
    pub(super) fn announced(&self, transaction: Announced, forms: Forms, seen: Instant) -> Option<Bytes> {
        let pass = |form, json| self.best_effort(BestEffortEvent::Pending { form, json, seen });
        match transaction {
            Announced::Hash(hash) => {
                let fetched = forms.whole && serde_json::from_slice::<B256>(&hash).is_ok();
                if forms.whole && !fetched {
                    self.count_dropped(1);
                }
                if forms.hashes {
                    pass(TransactionForm::Hash, hash.clone());
                }
                fetched.then_some(hash)
            }
            Announced::WholeTransaction(json, hash) => {
                if forms.hashes {
                    match hash {
                        Some(hash) => pass(TransactionForm::Hash, hash),
                        None => self.count_dropped(1),
                    }
                }
                if forms.whole {
                    pass(TransactionForm::Full, json);
                }
                None
            }
        }
    }

    /// Passes on the answer to [`fetch`]; nothing where the node does not have the transaction any more.
    ///
    /// # Errors
    /// Returns the node's error object, if the node answered with an error; the transaction is counted as dropped.
    pub(super) fn fetched(&self, answer: Outcome, seen: Instant) -> Result<(), Bytes> {
        let form = TransactionForm::Full;
        match answer {
            Outcome::Result(json) if json.starts_with(b"{") => {
                self.best_effort(BestEffortEvent::Pending { form, json, seen })
            }
            Outcome::Result(_) => {}
            Outcome::Error(error) => {
                self.count_dropped(1);
                return Err(error);
            }
        }
        Ok(())
    }
}

/// Returns method and parameters of the call that fetches the whole transaction.
pub(super) fn fetch(hash: &Bytes) -> (&'static str, String) {
    (
        "eth_getTransactionByHash",
        format!("[{}]", String::from_utf8_lossy(hash)),
    )
}

/// Whole transactions to be fetched, oldest first: hash, and time of the announcement.
#[derive(Debug, Default)]
pub(super) struct Fetches {
    waiting: VecDeque<(Bytes, Instant)>,
    under_way: usize,
}

impl Fetches {
    /// Adds a transaction. Returns the number of transactions dropped for lack of room: 0 or 1.
    pub(super) fn push(&mut self, hash: &Bytes, seen: Instant) -> usize {
        if self.waiting.len() == MAX_WAITING {
            return 1;
        }
        // A copy, so that a waiting hash does not keep the whole message in memory.
        self.waiting.push_back((Bytes::copy_from_slice(hash), seen));
        0
    }

    /// Takes the next transaction, which counts as in flight until [`Self::done`]; `None` while enough are in flight.
    pub(super) fn begin(&mut self) -> Option<(Bytes, Instant)> {
        if self.under_way >= MAX_UNDER_WAY {
            return None;
        }
        let next = self.waiting.pop_front()?;
        self.under_way += 1;
        Some(next)
    }

    /// Records the end of a fetch.
    pub(super) fn done(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }

    /// Takes the transactions that wait.
    pub(super) fn take_waiting(&mut self) -> VecDeque<(Bytes, Instant)> {
        std::mem::take(&mut self.waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_known_by_its_shape() {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        for (json, expect) in [
            (r#""0xab""#, r#"hash "0xab""#),
            (r#"{"hash":"0xab","from":"0x1"}"#, r#"whole "0xab""#),
            (r#"{ "from":{"hash":"0xcd"}, "hash" : "0xab" }"#, r#"whole "0xab""#),
            (r#"{"hash":5}"#, "whole"),
            (r#"{"transactionHash":"0xab"}"#, r#"whole "0xab""#),
            (r#"{"txHash":"0xab","hash":null}"#, r#"whole "0xab""#),
            (r#"{"transactionHash":"0xcd","hash":"0xab"}"#, r#"whole "0xab""#),
            (r#"{"from":"0x1"}"#, "whole"),
            ("null", "none"),
            ("[]", "none"),
            ("7", "none"),
            ("", "none"),
        ] {
            let read = Announced::read(&Bytes::from(json));
            let shown = match read {
                Some(Announced::Hash(hash)) => format!("hash {}", text(&hash)),
                Some(Announced::WholeTransaction(whole, hash)) => {
                    assert_eq!(whole, json);
                    format!("whole {}", hash.as_ref().map_or_else(String::new, text))
                }
                None => "none".to_owned(),
            };
            assert_eq!(shown.trim_end(), expect, "{json}");
        }
    }

    #[test]
    fn an_event_may_hold_a_list_of_transactions() {
        for (json, expect) in [
            (r#""0xab""#, "hash"),
            ("[]", ""),
            (r#"["0xab"]"#, "hash"),
            (r#"[ "0xab", {"hash":"0xcd"},null, ["0xef"] ]"#, "hash whole none none"),
            ("[", "none"),
            ("null", "none"),
        ] {
            let read = Announced::read_all(&Bytes::from(json));
            let shown: Vec<&str> = read
                .iter()
                .map(|one| match one {
                    Some(Announced::Hash(_)) => "hash",
                    Some(Announced::WholeTransaction(..)) => "whole",
                    None => "none",
                })
                .collect();
            assert_eq!(shown.join(" "), expect, "{json}");
        }
    }

    #[test]
    fn as_many_wait_and_are_under_way_as_the_limits_say() {
        let (mut fetches, now) = (Fetches::default(), Instant::now());
        let hash = |n: usize| Bytes::from(n.to_string());
        let lost: usize = (0..MAX_WAITING + 3).map(|n| fetches.push(&hash(n), now)).sum();
        assert_eq!(lost, 3);
        for n in 0..MAX_UNDER_WAY {
            assert_eq!(fetches.begin(), Some((hash(n), now)));
        }
        assert_eq!(fetches.begin(), None);
        fetches.done();
        assert_eq!(fetches.begin(), Some((hash(MAX_UNDER_WAY), now)));
        assert_eq!(fetches.take_waiting().len(), MAX_WAITING - MAX_UNDER_WAY - 1);
        fetches.done();
        assert_eq!(fetches.begin(), None);
    }
}
