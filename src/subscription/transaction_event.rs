//! Events of a transaction: hash alone or whole, pending or with the fate of its block.

use crate::backplane::TransactionForm;
use crate::chain::Transaction;

/// Values made from one transaction, one for each form in use.
#[derive(Debug)]
pub(super) struct PerForm<T> {
    hash: Option<T>,
    full: Option<T>,
}

impl<T> Default for PerForm<T> {
    fn default() -> Self {
        Self { hash: None, full: None }
    }
}

impl<T> PerForm<T> {
    /// Returns the value of this form; `make` builds it the first time.
    pub(super) fn get(&mut self, form: TransactionForm, make: impl FnOnce() -> T) -> &T {
        let made = match form {
            TransactionForm::Hash => &mut self.hash,
            TransactionForm::Full => &mut self.full,
        };
        made.get_or_insert_with(make)
    }
}

/// Returns a pending transaction's hash as JSON, as in `newPendingTransactions`.
pub(super) fn hash_json(transaction: &Transaction) -> Vec<u8> {
    format!("\"{}\"", transaction.hash).into_bytes()
}

/// Fate of a transaction's block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Adopted,
    Removed,
}

impl Fate {
    /// Returns the event's JSON, with the members that Alchemy documents.
    pub(super) fn json(self, transaction: &Transaction, form: TransactionForm) -> Vec<u8> {
        let head: &[u8] = match self {
            Self::Adopted => br#"{"removed":false,"transaction":"#,
            Self::Removed => br#"{"removed":true,"transaction":"#,
        };
        match form {
            TransactionForm::Full => [head, transaction.json(), b"}"].concat(),
            TransactionForm::Hash => [head, br#"{"hash":"#, &hash_json(transaction), b"}}"].concat(),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloy_primitives::B256;

    use super::*;

    #[test]
    fn whole_transactions_are_the_nodes_own_bytes() {
        let hash = B256::repeat_byte(7);
        let node_json = format!(r#"{{ "hash": "{hash}", "from":null}}"#);
        let transaction = Transaction::parse(node_json.clone().into()).expect("a transaction");
        let json = |fate: Fate, form| String::from_utf8(fate.json(&transaction, form)).expect("UTF-8");
        for (fate, removed) in [(Fate::Adopted, false), (Fate::Removed, true)] {
            assert_eq!(
                json(fate, TransactionForm::Full),
                format!(r#"{{"removed":{removed},"transaction":{node_json}}}"#)
            );
            assert_eq!(
                json(fate, TransactionForm::Hash),
                format!(r#"{{"removed":{removed},"transaction":{{"hash":"{hash}"}}}}"#)
            );
        }
    }
}
