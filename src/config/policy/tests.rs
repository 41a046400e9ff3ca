use std::num::NonZeroU32;

use super::*;
use crate::door::{ApiKey, Identity, Verdict};

fn key(name: &str, edit: impl FnOnce(&mut typed::Key)) -> (typed::Config, Digest) {
    let digest = ApiKey::random().digest();
    let mut own = typed::Key {
        hash: digest.to_string(),
        plan: None,
        edge: false,
        methods: None,
        subscriptions: None,
        origins: None,
        addresses: None,
    };
    edit(&mut own);
    let mut typed = typed::Config::default();
    typed.keys.insert(name.to_owned(), own);
    (typed, digest)
}

#[track_caller]
fn refused(typed: &typed::Config, message: &str) {
    assert_eq!(check(typed).expect_err("refused").to_string(), message);
}

#[test]
fn a_plan_is_the_limits_but_for_what_it_says() {
    let (mut typed, digest) = key("alice", |key| key.plan = Some("partner".into()));
    let partner = typed::Plan {
        requests_per_second: Some(7),
        ..typed::Plan::default()
    };
    typed.plans.insert("partner".into(), partner);
    let policy = check(&typed).expect("good");
    let rights = policy.rights(&Identity::Key(digest)).expect("alice's");
    assert_eq!(rights.plan.requests_per_second, NonZeroU32::new(7).expect("7"));
    assert_eq!(rights.plan.max_batch, policy.anonymous.plan.max_batch);
    assert!(rights.methods.allow("eth_call") && !rights.methods.allow("debug_traceCall"));
    assert!(policy.rights(&Identity::Key(Digest::of("hw_other"))).is_none());
}

#[test]
fn another_headwater_is_limited_by_what_memory_bounds_alone() {
    let (typed, digest) = key("edges", |key| key.edge = true);
    let policy = check(&typed).expect("good");
    let plan = policy.rights(&Identity::Key(digest)).expect("the edges'").plan.clone();
    assert_eq!(&*plan.name, "edge");
    assert!(plan.requests_per_second > policy.anonymous.plan.requests_per_second);
    assert_eq!(
        plan.max_message_bytes,
        policy.anonymous.plan.max_message_bytes + ENVELOPE
    );
    assert_eq!(plan.max_queue_bytes, Some(64 << 20));
    let (mut typed, _) = key("edges", |key| (key.edge, key.plan) = (true, Some("partner".into())));
    typed.plans.insert("partner".into(), typed::Plan::default());
    refused(
        &typed,
        "keys.edges.plan: has no effect with edge = true: the edge limits its own clients; remove one of both",
    );
}

#[test]
fn a_keys_methods_stand_in_place_of_everybodys() {
    let (typed, digest) = key("ops", |key| key.methods = Some(vec!["debug_*".into()]));
    let rights = check(&typed)
        .expect("good")
        .rights(&Identity::Key(digest))
        .expect("ops's");
    assert!(rights.methods.allow("debug_traceCall") && !rights.methods.allow("eth_call"));
    assert!(!rights.methods.allow("debug_setHead") && !rights.methods.allow("unheard_of"));
}

/// The example of a key in the README.
#[test]
fn a_pattern_in_a_keys_methods_does_not_open_the_nodes_wallet() {
    let (typed, digest) = key("tracer", |key| {
        key.methods = Some(vec!["eth_*".into(), "debug_subscribe".into()]);
    });
    let policy = check(&typed).expect("good");
    let rights = policy.rights(&Identity::Key(digest)).expect("the tracer's");
    assert!(rights.methods.allow("eth_call") && rights.methods.allow("debug_subscribe"));
    for method in [
        "eth_sendTransaction",
        "eth_sign",
        "eth_resend",
        "debug_traceCall",
        "evm_mine",
    ] {
        assert_eq!(rights.methods.verdict(method), Verdict::Refuse, "{method}");
    }
}

/// An earlier version's configuration, as `default-config` printed it.
#[test]
fn the_lists_of_before_open_nothing_that_acts() {
    let mut typed = typed::Config::default();
    typed.methods.allowed = vec!["*".into()];
    for denied in [
        vec![],
        vec![
            "admin_*",
            "debug_*",
            "personal_*",
            "eth_sendTransaction",
            "eth_sign",
            "eth_signTypedData*",
        ],
    ] {
        typed.methods.denied = denied.into_iter().map(str::to_owned).collect();
        let policy = check(&typed).expect("good");
        let methods = &policy.anonymous.methods;
        assert!(methods.allow("eth_call") && methods.allow("unheard_of"));
        for method in [
            "eth_sendTransaction",
            "eth_sign",
            "eth_resend",
            "admin_peers",
            "testing_commitBlockV1",
        ] {
            assert!(!methods.allow(method), "{method}");
        }
    }
}

#[test]
fn behind_a_proxy_nothing_is_for_development() {
    let verdict = |edit: &dyn Fn(&mut typed::Config)| {
        let mut typed = typed::Config::default();
        edit(&mut typed);
        check(&typed).expect("good").anonymous.methods.verdict("evm_mine")
    };
    assert_eq!(verdict(&|_| {}), Verdict::InDevelopment);
    assert_eq!(verdict(&|c| c.methods.development = Development::Off), Verdict::Refuse);
    assert_eq!(verdict(&|c| c.server.proxy_protocol = true), Verdict::Refuse);
    assert_eq!(
        verdict(&|c| c.server.trusted_proxies = vec!["127.0.0.1".into()]),
        Verdict::Refuse
    );
}

/// Compares docs/methods.md line by line: method, served or refused, and the setting that opens a refused one.
#[test]
fn the_documented_methods_are_served_as_documented() {
    let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/methods.md"));
    let everybodys = check(&typed::Config::default())
        .expect("good")
        .anonymous
        .methods
        .clone();
    let mut seen = std::collections::BTreeSet::new();
    let (_, text) = text.split_once("## Every method of geth").expect("the table");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    for row in rows {
        let cells: Vec<&str> = row.split('|').map(|cell| cell.trim().trim_end_matches('`')).collect();
        let [method, verdict, opened, reason, ""] = cells[..] else {
            panic!("{row}: not a row of method, verdict, opened by, reason");
        };
        assert!(seen.insert(method), "{method} stands twice");
        assert!(!reason.is_empty(), "{method} has no reason");
        let is_served = match method.split_once('_') {
            Some((_, "subscribe")) => everybodys.allow_subscription(method),
            // Unsubscribing is never refused, and never forwarded as a call.
            Some((_, "unsubscribe")) => true,
            _ => everybodys.allow(method),
        };
        assert_eq!(is_served, verdict == "served", "{method} is documented as {verdict}");
        let all = Methods {
            allowed: Patterns::all(),
            ..Methods::default()
        };
        let by = match (is_served, all.allow(method)) {
            (true, _) => "",
            (false, true) => "pattern",
            (false, false) => "full name",
        };
        assert_eq!(by, opened, "{method}");
    }
    for namespace in [
        "eth", "net", "web3", "txpool", "rpc", "debug", "admin", "miner", "engine", "testing", "dev",
    ] {
        assert!(
            seen.iter().any(|method| method.starts_with(&format!("{namespace}_"))),
            "{namespace}"
        );
    }
    assert!(seen.len() > 180, "{} rows", seen.len());
}

#[test]
fn what_makes_no_sense_names_its_key() {
    let with = |edit: &dyn Fn(&mut typed::Config)| {
        let mut typed = typed::Config::default();
        edit(&mut typed);
        typed
    };
    refused(
        &with(&|c| c.plans = [("default".into(), typed::Plan::default())].into()),
        "plans.default: is the plan of [limits]: set its limits there, or choose another name",
    );
    refused(
        &with(&|c| {
            let plan = typed::Plan {
                request_burst: Some(10),
                ..typed::Plan::default()
            };
            c.plans.insert("small".into(), plan);
        }),
        "plans.small.max_batch: is 1000, above plans.small.request_burst (10): such a batch would \
         always be refused",
    );
    refused(
        &key("alice", |key| key.hash = "hw_secret".into()).0,
        "keys.alice.hash: is not a valid key hash: use sha256: and 64 hex digits, as printed by `headwater key`",
    );
    refused(
        &key("alice", |key| key.plan = Some("gold".into())).0,
        "keys.alice.plan: \"gold\" is not a valid plan: use one of default",
    );
    refused(
        &key("alice", |key| key.subscriptions = Some(vec!["heads".into()])).0,
        "keys.alice.subscriptions: \"heads\" is not a valid kind of subscription: use newHeads, logs, newPendingTransactions, syncing, minedTransactions, transactionReceipts or passthrough (kinds that only the node knows)",
    );
    refused(
        &with(&|c| c.server.trusted_proxies = vec!["10.0.0.0/33".into()]),
        "server.trusted_proxies: \"10.0.0.0/33\" is not a valid network: use CIDR, as in 10.0.0.0/8 or fd00::/8",
    );
    refused(
        &with(&|c| c.methods.denied = vec!["*_sign".into()]),
        "methods.denied: \"*_sign\" is not a valid pattern: use a method's name, or a prefix followed by *, \
         as in debug_*",
    );
    refused(
        &with(&|c| c.auth.required = true),
        "auth.required: is true, but no keys or tokens are configured: add a key with `headwater key`, or set \
         auth.jwt_secret_file or auth.jwks_file",
    );
    refused(
        &with(&|c| c.limits.egress_bytes_per_second = bytesize::ByteSize(5)),
        "limits.egress_bytes_per_second: is 5, must be at least 1024",
    );
}
