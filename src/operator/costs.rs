//! Accounts that use the most: sums of the last interval between two collections of usage.

use std::cmp::Reverse;
use std::collections::HashMap;

use super::views::CostlyView;
use crate::door::UsageSums;

/// Accounts that are named.
const NAMED: usize = 8;

/// Most accounts whose sums are compared.
const MAX_ACCOUNTS: usize = 10_000;

/// Sums of the present interval, and the accounts that used the most in the one before.
#[derive(Debug, Default)]
pub(super) struct Costs {
    sums: HashMap<String, UsageSums>,
    most: Vec<CostlyView>,
}

impl Costs {
    /// Adds collected usage to the present interval.
    pub(super) fn add(&mut self, usage: &HashMap<String, UsageSums>) {
        for (account, sums) in usage {
            if self.sums.len() < MAX_ACCOUNTS || self.sums.contains_key(account) {
                *self.sums.entry(account.clone()).or_default() += *sums;
            }
        }
    }

    /// Begins the next interval.
    pub(super) fn turn(&mut self) {
        let mut all: Vec<(String, UsageSums)> = self.sums.drain().collect();
        all.sort_unstable_by_key(|(account, sums)| (Reverse((sums.bytes, sums.requests)), account.clone()));
        let named = all.into_iter().take(NAMED).map(|(account, sums)| CostlyView {
            account,
            requests: sums.requests,
            refusals: sums.refusals,
            notifications: sums.notifications,
            bytes: sums.bytes,
        });
        self.most = named.collect();
    }

    /// Returns the accounts that used the most, most first.
    pub(super) fn most(&self) -> Vec<CostlyView> {
        self.most.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accounts_with_the_most_bytes_come_first() {
        let used = |account: String, bytes: u64| {
            let sums = UsageSums {
                bytes,
                requests: 1,
                ..UsageSums::default()
            };
            HashMap::from([(account, sums)])
        };
        let mut costs = Costs::default();
        for number in 0..20 {
            costs.add(&used(format!("key {number}"), number));
        }
        costs.add(&used("key 3".to_owned(), 100));
        assert!(costs.most().is_empty());
        costs.turn();
        let most = costs.most();
        let first: Vec<_> = most
            .iter()
            .map(|cost| (&*cost.account, cost.bytes, cost.requests))
            .collect();
        assert_eq!(
            (first.len(), &first[..2]),
            (8, &[("key 3", 103, 2), ("key 19", 19, 1)][..])
        );
        costs.turn();
        assert!(costs.most().is_empty());
        for number in 0..2 * MAX_ACCOUNTS {
            costs.add(&used(format!("token {number}"), 1));
        }
        assert_eq!(costs.sums.len(), MAX_ACCOUNTS);
    }
}
