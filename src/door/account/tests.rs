use std::net::IpAddr;

use super::*;
use crate::clock::at;
use crate::config::{Config, typed};

fn policy(edit: impl FnOnce(&mut typed::Config)) -> Arc<Policy> {
    let mut typed = typed::Config::default();
    typed.limits.max_batch = 1;
    edit(&mut typed);
    Config::check(&typed).unwrap().door
}

fn identity(ip: &str) -> Identity {
    Identity::Network(ip.parse::<IpAddr>().unwrap().into())
}

fn charge(account: &Account, methods: &[&str]) -> Result<(), Exceeded> {
    account.terms().charge(methods.iter().copied().map(Some))
}

#[test]
fn a_burst_passes_and_one_more_does_not() {
    let policy = policy(|c| (c.limits.request_burst, c.limits.requests_per_second) = (5, 1));
    let accounts = Accounts::default();
    let open = |ip| accounts.open(identity(ip), policy.anonymous.clone(), at(0)).unwrap();
    let (one, other) = (open("10.0.0.1"), open("10.0.0.2"));
    assert!(charge(&one, &["net_version"; 5]).is_ok());
    let error = ErrorObjectOwned::from(charge(&one, &["net_version"]).unwrap_err());
    assert_eq!((error.code(), error.message()), (-32005, "limit exceeded"));
    assert!(error.data().is_some_and(|data| data.get().contains("retryAfterMs")));
    assert!(
        charge(&open("10.0.0.1"), &["net_version"]).is_err(),
        "it is the same account"
    );
    assert_eq!(
        charge(&other, &["net_version"; 6]),
        Err(Exceeded { retry_after: None }),
        "above the burst"
    );
    assert!(
        charge(&other, &["debug_traceCall"]).is_ok(),
        "a heavy call takes all there is"
    );
    assert!(charge(&other, &["net_version"]).is_err());
}

#[test]
fn weights_add_up() {
    let policy = policy(|c| {
        (c.limits.request_burst, c.limits.requests_per_second) = (10, 1);
        c.methods.weights = [("eth_getLogs".to_owned(), 4), ("web3_*".to_owned(), 0)].into();
    });
    let accounts = Accounts::default();
    let account = accounts
        .open(identity("10.0.0.1"), policy.anonymous.clone(), at(0))
        .unwrap();
    assert!(charge(&account, &["eth_getLogs", "eth_getLogs", "net_version"]).is_ok());
    assert!(charge(&account, &["web3_sha3"; 50]).is_ok());
    assert!(charge(&account, &["net_version", "net_version"]).is_err());
    assert!(charge(&account, &["net_version"]).is_ok());
}

#[test]
fn places_are_counted_and_given_back() {
    let policy = policy(|c| {
        c.limits.max_connections_per_client = 2;
        c.limits.max_subscriptions_per_client = 2;
        c.limits.max_index_entries = 10;
    });
    let accounts = Accounts::default();
    let account = accounts
        .open(identity("10.0.0.1"), policy.anonymous.clone(), at(0))
        .unwrap();
    let (first, second) = (account.enter(), account.enter());
    assert!(first.is_some() && second.is_some() && account.enter().is_none() && account.enter().is_none());
    drop(first);
    assert!(account.enter().is_some());
    let large = account.reserve(9).unwrap();
    assert_eq!(account.reserve(2).unwrap_err(), Limit::IndexEntries(10));
    let small = account.reserve(1).unwrap();
    assert_eq!(account.reserve(0).unwrap_err(), Limit::Subscriptions(2));
    drop((large, small));
    assert!(account.reserve(10).is_ok());
}

#[test]
fn accounts_are_forgotten_when_their_quotas_are_full_again() {
    let policy = policy(|_| {});
    let accounts = Accounts::default();
    let held = accounts
        .open(identity("10.0.0.1"), policy.anonymous.clone(), at(0))
        .unwrap();
    drop(accounts.open(identity("10.0.0.2"), policy.anonymous.clone(), at(0)));
    accounts.forget_idle(at(1_000));
    accounts.forget_idle(at(60_999));
    assert_eq!(accounts.len(), 2);
    accounts.forget_idle(at(61_000));
    assert_eq!(accounts.len(), 1);
    drop(held);
    accounts.forget_idle(at(62_000));
    drop(accounts.open(identity("10.0.0.1"), policy.anonymous.clone(), at(0)));
    accounts.forget_idle(at(122_000));
    assert_eq!(accounts.len(), 1, "it came again in between");
    accounts.forget_idle(at(182_000));
    assert!(accounts.is_empty());
}

#[test]
fn a_full_table_forgets_whom_nobody_holds_and_then_takes_no_more() {
    let policy = policy(|_| {});
    let accounts = Accounts {
        max: 3,
        ..Accounts::default()
    };
    let open = |i: u8| accounts.open(identity(&format!("10.0.0.{i}")), policy.anonymous.clone(), at(0));
    let held: Vec<_> = (0..2).map(open).collect();
    assert!((2..100).all(|i| open(i).is_some() && accounts.len() <= 3));
    let third = open(100);
    assert!(third.is_some() && open(101).is_none() && open(0).is_some());
    drop((held, third));
    assert!(open(101).is_some() && accounts.len() == 1);
}

#[test]
fn other_terms_leave_what_was_used_of_a_quota_that_stays() {
    let old = policy(|c| (c.limits.request_burst, c.limits.requests_per_second) = (5, 1));
    let accounts = Accounts::default();
    let account = accounts
        .open(identity("10.0.0.1"), old.anonymous.clone(), at(0))
        .unwrap();
    assert!(charge(&account, &["net_version"; 5]).is_ok());
    accounts.review(&policy(|c| {
        (c.limits.request_burst, c.limits.requests_per_second) = (5, 1);
        c.limits.max_subscriptions = 7;
    }));
    assert_eq!(account.terms().rights.plan.max_subscriptions, 7);
    assert!(charge(&account, &["net_version"]).is_err());
    accounts.review(&policy(|c| {
        (c.limits.request_burst, c.limits.requests_per_second) = (9, 1)
    }));
    assert!(charge(&account, &["net_version"; 9]).is_ok());
    assert!(!account.is_revoked());
    accounts.review(&policy(|c| {
        let key = format!("hash = \"{}\"", crate::door::ApiKey::random().digest());
        c.keys.insert("alice".into(), toml::from_str(&key).unwrap());
        c.auth.required = true;
    }));
    assert!(account.is_revoked());
}
