//! The canonical form of a filter of transactions, read with Alchemy's grammar (PROTOCOL 3.2).
//!
//! Equal filters become equal values whatever their order, case or repetitions, so that clients with equal filters
//! share one entry of the index.

use std::collections::{HashMap, HashSet};

use alloy_primitives::Address;
use serde_json::{Map, Value};

use super::filter::{address, argument, go_type};
use super::index::{Filter, Index};
use crate::backplane::TransactionForm;
use crate::chain::Transaction;
use crate::jsonrpc::ErrorObjectOwned;

/// Most addresses of one subscription, as Alchemy documents it.
pub(super) const MAX_PARTIES: usize = 1000;

/// Sender and recipient of a transaction to match; also the key under which a filter is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Parties {
    /// Any transaction.
    Any,
    /// Transactions from this sender.
    From(Address),
    /// Transactions to this recipient; a contract creation has none.
    To(Address),
    /// Transactions from the first address to the second.
    Between(Address, Address),
}

/// Filter of a subscription to transactions, and the form in which it gets them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TransactionFilter {
    /// Alternatives: sorted, without duplicates, at least one.
    parties: Box<[Parties]>,
    /// Hash alone, or the whole transaction.
    pub form: TransactionForm,
    /// `true` if the transactions of dropped blocks are delivered as removed.
    pub removed: bool,
}

/// The options of pending transactions.
const PENDING: [&str; 3] = ["fromAddress", "toAddress", "hashesOnly"];

/// The options of mined transactions.
const MINED: [&str; 3] = ["addresses", "includeRemoved", "hashesOnly"];

impl TransactionFilter {
    /// Matches every transaction.
    #[must_use]
    pub fn all(form: TransactionForm) -> Self {
        Self::of(Vec::new(), form)
    }

    fn of(mut parties: Vec<Parties>, form: TransactionForm) -> Self {
        parties.sort_unstable();
        parties.dedup();
        if parties.is_empty() {
            parties.push(Parties::Any);
        }
        let (parties, removed) = (parties.into(), false);
        Self { parties, form, removed }
    }

    /// Reads the options of `alchemy_pendingTransactions`; `form` is the default without `hashesOnly`.
    ///
    /// # Errors
    /// `-32602` if an option is malformed or unknown, or if there are too many addresses. Unknown names are refused,
    /// since a misspelt filter that is ignored would match everything.
    pub fn pending(options: &Value, form: TransactionForm) -> Result<Self, ErrorObjectOwned> {
        let options = Options::read(options, &PENDING)?;
        let (from, to) = (options.addresses("fromAddress")?, options.addresses("toAddress")?);
        let distinct: HashSet<&Address> = from.iter().chain(&to).collect();
        at_most(distinct.len())?;
        let from = from.into_iter().map(Parties::From);
        let parties = from.chain(to.into_iter().map(Parties::To)).collect();
        Ok(Self::of(parties, options.form(form)?))
    }

    /// Checks if the value names an option of pending transactions; the values that nodes take in its place do not.
    #[must_use]
    pub fn is_pending_options(value: &Value) -> bool {
        value
            .as_object()
            .is_some_and(|fields| PENDING.iter().any(|name| fields.contains_key(*name)))
    }

    /// Reads the options of `alchemy_minedTransactions`.
    ///
    /// # Errors
    /// As [`Self::pending`].
    pub fn mined(options: &Value) -> Result<Self, ErrorObjectOwned> {
        let options = Options::read(options, &MINED)?;
        let entries = match options.get("addresses") {
            None => &[],
            Some(Value::Array(entries)) => &entries[..],
            Some(other) => return Err(mistyped("addresses", "an array", other)),
        };
        let parties = entries
            .iter()
            .enumerate()
            .map(|(i, entry)| {
                entry_parties(entry).map_err(|why| argument(format!("invalid addresses at index {i}: {why}")))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let removed = options.flag("includeRemoved")?.unwrap_or(false);
        let filter = Self {
            removed,
            ..Self::of(parties, options.form(TransactionForm::Full)?)
        };
        at_most(filter.addresses())?;
        Ok(filter)
    }

    /// Checks if the filter matches a transaction.
    #[must_use]
    pub fn matches(&self, transaction: &Transaction) -> bool {
        let mut keys = keys_of(transaction.from, transaction.to);
        keys.any(|key| self.parties.binary_search(&key).is_ok())
    }

    /// Returns the number of addresses in the filter; a pair counts as two.
    #[must_use]
    pub fn addresses(&self) -> usize {
        let named = self.parties.iter().map(|parties| match parties {
            Parties::Any => 0,
            Parties::From(_) | Parties::To(_) => 1,
            Parties::Between(..) => 2,
        });
        named.sum()
    }

    /// Returns the form to request from a node: with addresses whole transactions, since hashes alone cannot be
    /// matched.
    #[must_use]
    pub fn source(&self) -> TransactionForm {
        match *self.parties {
            [Parties::Any] => self.form,
            _ => TransactionForm::Full,
        }
    }
}

impl Filter for TransactionFilter {
    type Key = Parties;

    fn keys(&self) -> Vec<Parties> {
        self.parties.to_vec()
    }
}

/// Returns the keys of a transaction between these: a filter that matches it has one of them.
fn keys_of(from: Option<Address>, to: Option<Address>) -> impl Iterator<Item = Parties> {
    let keys = [
        Some(Parties::Any),
        from.map(Parties::From),
        to.map(Parties::To),
        from.zip(to).map(|(from, to)| Parties::Between(from, to)),
    ];
    keys.into_iter().flatten()
}

impl<S> Index<TransactionFilter, S> {
    /// Calls `each` for every filter that matches any of these transactions, with the positions of those, ascending,
    /// and the filter's subscribers.
    pub(super) fn for_each_match<'a>(
        &'a self,
        transactions: &[Transaction],
        mut each: impl FnMut(&'a TransactionFilter, &[usize], &mut dyn Iterator<Item = &'a S>),
    ) {
        let mut hits: HashMap<usize, Vec<usize>> = HashMap::new();
        for (position, transaction) in transactions.iter().enumerate() {
            for entry in self.matching_entries(transaction.from, transaction.to) {
                hits.entry(entry).or_default().push(position);
            }
        }
        for (entry, positions) in hits {
            let (filter, mut subscribers) = self.entry(entry);
            each(filter, &positions, &mut subscribers);
        }
    }

    /// Returns the entries of the filters that match a transaction between these, each once. Each key that fits is a
    /// match, so there is nothing to verify.
    pub(super) fn matching_entries(&self, from: Option<Address>, to: Option<Address>) -> Vec<usize> {
        if self.is_empty() {
            return Vec::new();
        }
        let mut entries: Vec<usize> = self.under(keys_of(from, to)).collect();
        // A filter may name both the sender and the recipient.
        entries.sort_unstable();
        entries.dedup();
        entries
    }
}

/// The members of an options object.
struct Options<'a>(Option<&'a Map<String, Value>>);

impl<'a> Options<'a> {
    fn read(value: &'a Value, names: &[&str]) -> Result<Self, ErrorObjectOwned> {
        let fields = match value {
            Value::Null => return Ok(Self(None)),
            Value::Object(fields) => fields,
            other => return Err(argument(format!("expected an object, got {}", go_type(other)))),
        };
        match fields.keys().find(|name| !names.contains(&name.as_str())) {
            Some(unknown) => Err(argument(format!(
                "unknown option {unknown:?}, expected {}",
                names.join(", ")
            ))),
            None => Ok(Self(Some(fields))),
        }
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        self.0?.get(name).filter(|value| !value.is_null())
    }

    fn flag(&self, name: &str) -> Result<Option<bool>, ErrorObjectOwned> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(mistyped(name, "a bool", other)),
        }
    }

    fn form(&self, default: TransactionForm) -> Result<TransactionForm, ErrorObjectOwned> {
        Ok(match self.flag("hashesOnly")? {
            None => default,
            Some(true) => TransactionForm::Hash,
            Some(false) => TransactionForm::Full,
        })
    }

    fn addresses(&self, name: &str) -> Result<Vec<Address>, ErrorObjectOwned> {
        match self.get(name) {
            None => Ok(Vec::new()),
            Some(Value::String(text)) => match address(text) {
                Ok(address) => Ok(vec![address]),
                Err(why) => Err(argument(format!("invalid {name}: {why}"))),
            },
            Some(Value::Array(items)) => items
                .iter()
                .enumerate()
                .map(|(i, item)| {
                    let text = item
                        .as_str()
                        .ok_or_else(|| format!("expected a string, got {}", go_type(item)));
                    text.and_then(address)
                        .map_err(|why| argument(format!("invalid {name} at index {i}: {why}")))
                })
                .collect(),
            Some(other) => Err(mistyped(name, "a string or an array", other)),
        }
    }
}

/// Reads `{"from": …, "to": …}`, of which at least one is required.
fn entry_parties(entry: &Value) -> Result<Parties, String> {
    let Value::Object(fields) = entry else {
        return Err(format!("expected an object, got {}", go_type(entry)));
    };
    if let Some(unknown) = fields.keys().find(|name| !["from", "to"].contains(&name.as_str())) {
        return Err(format!("unknown member {unknown:?}, expected from, to"));
    }
    let party = |name: &str| match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => address(text).map(Some).map_err(|why| format!("invalid {name}: {why}")),
        Some(other) => Err(format!("invalid {name}: expected a string, got {}", go_type(other))),
    };
    match (party("from")?, party("to")?) {
        (Some(from), Some(to)) => Ok(Parties::Between(from, to)),
        (Some(from), None) => Ok(Parties::From(from)),
        (None, Some(to)) => Ok(Parties::To(to)),
        (None, None) => Err("names neither from nor to".to_owned()),
    }
}

fn mistyped(name: &str, expected: &str, got: &Value) -> ErrorObjectOwned {
    argument(format!("{name}: expected {expected}, got {}", go_type(got)))
}

fn at_most(addresses: usize) -> Result<(), ErrorObjectOwned> {
    if addresses > MAX_PARTIES {
        return Err(argument(format!("exceed max addresses: {addresses} > {MAX_PARTIES}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
