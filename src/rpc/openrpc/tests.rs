use std::collections::BTreeSet;

use serde_json::value::RawValue;

use super::kinds::NAMED;
use super::methods::OWN;
use super::*;
use crate::jsonrpc::{Item, Message};
use crate::rpc::method::TABLE;
use crate::subscription::Topic;

/// Returns the document of a client with these rights.
fn of(calls: impl Fn(&str) -> bool, kinds: impl Fn(Kind) -> bool, further: &[&str]) -> Value {
    let offer = Offer {
        calls: &calls,
        kinds: &kinds,
        weight: &|method| if method == "eth_getLogs" { 10 } else { 1 },
        further,
    };
    serde_json::from_str(&document(&offer)).unwrap()
}

fn all() -> Value {
    of(|_| true, |_| true, &[])
}

fn methods(document: &Value) -> Vec<&str> {
    let methods = document["methods"].as_array().unwrap();
    methods.iter().map(|method| method["name"].as_str().unwrap()).collect()
}

fn find<'a>(document: &'a Value, method: &str) -> Option<&'a Value> {
    let mut methods = document["methods"].as_array().unwrap().iter();
    methods.find(|own| own["name"] == method)
}

/// Returns the methods that the documentation lists as served by default.
fn documented() -> BTreeSet<&'static str> {
    let rows = include_str!("../../../docs/methods.md").lines();
    let served = rows.filter_map(|row| row.strip_prefix("| `")?.split_once("` | served |"));
    // Unsubscribing is always allowed, but by default nothing of other namespaces can be subscribed to.
    let is_own = |name: &&str| !name.ends_with("_unsubscribe") || *name == "eth_unsubscribe";
    served.map(|(name, _)| name).filter(is_own).collect()
}

#[test]
fn the_document_has_each_method_that_is_known_and_no_other() {
    let known: BTreeSet<&str> = TABLE
        .iter()
        .map(|(name, _)| *name)
        .chain(documented())
        .chain(OWN)
        .collect();
    let document = all();
    let described: BTreeSet<&str> = methods(&document).into_iter().collect();
    assert_eq!(described.len(), methods(&document).len(), "names are unique");
    assert_eq!(described, known);
    let read: Vec<_> = METHODS
        .iter()
        .filter_map(|(text, summary)| method(text, summary))
        .collect();
    assert_eq!(read.len(), METHODS.len(), "each signature can be read");
    assert!(METHODS.is_sorted() && SCHEMAS.is_sorted_by_key(|own| own.name));
}

#[test]
fn each_reference_resolves_and_each_schema_is_needed() {
    let document = all();
    let mut named = BTreeSet::new();
    collect_names(&document, &mut named);
    let schemas = document["components"]["schemas"].as_object().unwrap();
    assert_eq!(named.iter().collect::<Vec<_>>(), schemas.keys().collect::<Vec<_>>());
    assert_eq!(schemas.len(), SCHEMAS.len());
    for error in find(&document, SUBSCRIBE).unwrap()["errors"].as_array().unwrap() {
        let place = error["$ref"].as_str().unwrap().trim_start_matches('#');
        assert!(document.pointer(place).is_some(), "{place}");
    }
    // A field that cannot be read would be left out.
    for own in SCHEMAS {
        let texts = match own.form {
            schemas::Form::Object(text) => vec![text],
            schemas::Form::Described(members) | schemas::Form::Options(members) => {
                members.iter().map(|(text, _)| *text).collect()
            }
            _ => continue,
        };
        for text in texts {
            assert!(grammar::fields(text).is_some(), "{}: {text}", own.name);
        }
    }
}

#[test]
fn optional_parameters_come_last() {
    let document = all();
    for method in document["methods"].as_array().unwrap() {
        let params = method["params"].as_array().unwrap();
        let optional: Vec<_> = params.iter().map(|param| param["required"] == false).collect();
        assert!(optional.is_sorted(), "{}", method["name"]);
        let names: BTreeSet<_> = params.iter().map(|param| param["name"].as_str().unwrap()).collect();
        assert_eq!(names.len(), params.len(), "{}", method["name"]);
    }
}

#[test]
fn a_method_that_is_denied_is_absent_with_what_only_it_needs() {
    let document = of(|method| method != "eth_getProof", |_| true, &[]);
    assert!(find(&document, "eth_getProof").is_none());
    assert!(document["components"]["schemas"]["AccountProof"].is_null());
    assert!(!document.to_string().contains("eth_getProof"));
    let few = of(|method| method == "eth_getBalance", |_| true, &["x_y"]);
    assert_eq!(methods(&few), ["eth_getBalance"]);
    let schemas = few["components"]["schemas"].as_object().unwrap();
    let expect = [
        "Address",
        "BlockId",
        "BlockReference",
        "BlockTag",
        "BlockTagOrNumber",
        "Hash",
        "Uint",
    ];
    assert_eq!(schemas.keys().collect::<Vec<_>>(), expect);
    let none = of(|_| false, |_| true, &[]);
    assert_eq!(
        (&none["methods"], &none["components"]["schemas"]),
        (&json!([]), &json!({}))
    );
}

#[test]
fn a_kind_that_is_denied_is_absent() {
    for denied in Kind::ALL {
        let document = of(|_| true, |kind| kind != denied, &[]);
        let subscribe = find(&document, SUBSCRIBE).unwrap().to_string();
        for named in NAMED.iter().filter(|named| named.kind == denied) {
            assert!(!subscribe.contains(&format!("\"{}\"", named.name)), "{}", named.name);
        }
        let passes = subscribe.contains("only the node knows");
        assert_eq!(passes, denied != Kind::Passthrough);
        for described in ["LogFilter", "StreamOptions"].iter().filter(|_| denied != Kind::Logs) {
            assert!(subscribe.contains(described), "{described}");
        }
    }
    let heads = of(|_| true, |kind| kind == Kind::Heads, &[]);
    let subscribe = find(&heads, SUBSCRIBE).unwrap();
    assert_eq!(
        subscribe["params"][0]["schema"],
        json!({ "type": "string", "enum": ["newHeads", "newFinalizedHeads", "newSafeHeads"] })
    );
    let options = &subscribe["params"][1]["schema"]["anyOf"];
    assert_eq!(options[0]["$ref"], "#/components/schemas/StreamOptions");
    assert_eq!(options[1]["$ref"], "#/components/schemas/StartOptions");
    assert_eq!(subscribe["params"].as_array().unwrap().len(), 2);
    for gone in ["LogFilter", "MinedOptions", "PendingOptions", "ReceiptFilter"] {
        assert!(heads["components"]["schemas"][gone].is_null(), "{gone}");
    }
    let syncing = of(|_| true, |kind| kind == Kind::Syncing, &[]);
    assert_eq!(
        find(&syncing, SUBSCRIBE).unwrap()["params"].as_array().unwrap().len(),
        1
    );
    let none = of(|_| true, |_| false, &[]);
    assert!(find(&none, SUBSCRIBE).is_none());
}

/// Reads the parameters of `eth_subscribe`.
fn topic(params: &Value) -> Topic {
    let text = json!({ "jsonrpc": "2.0", "id": 1, "method": SUBSCRIBE, "params": params }).to_string();
    let Ok(Message::Single(Item::Call(request))) = Message::parse(text.as_bytes(), 1) else {
        panic!("{text}")
    };
    Topic::parse("eth", &request).unwrap_or_else(|why| panic!("{text}: {why}"))
}

#[test]
fn kinds_are_those_that_are_read() {
    // The arms of the match over names, which no value can list.
    let source = include_str!("../../subscription/kind.rs");
    let (_, arms) = source.split_once("match kind.as_str() {").unwrap();
    let (arms, _) = arms.split_once("_ => unknown()").unwrap();
    let arms = arms.lines().map(str::trim).filter(|line| line.starts_with('"'));
    let names = arms
        .filter_map(|line| line.split_once(" => "))
        .flat_map(|(names, _)| names.split(" | "));
    let read: BTreeSet<&str> = names.map(|name| name.trim_matches('"')).collect();
    assert_eq!(read, NAMED.iter().map(|named| named.name).collect());
    for named in NAMED {
        assert_eq!(topic(&json!([named.name])).kind(), named.kind, "{}", named.name);
    }
}

#[test]
fn examples_are_accepted() {
    let document = all();
    let examples = find(&document, SUBSCRIBE).unwrap()["examples"].as_array().unwrap();
    assert_eq!(
        examples.len(),
        NAMED.iter().filter(|named| !named.example.is_empty()).count()
    );
    for example in examples {
        let values: Value = example["params"]
            .as_array()
            .unwrap()
            .iter()
            .map(|param| param["value"].clone())
            .collect();
        assert!(!matches!(topic(&values), Topic::Passthrough(..)), "{values}");
    }
}

/// Returns the names that a schema lists.
fn members(document: &Value, schema: &str) -> Vec<String> {
    let schema = &document["components"]["schemas"][schema]["properties"];
    schema.as_object().unwrap().keys().cloned().collect()
}

#[test]
fn the_stream_options_are_those_that_are_read() {
    use crate::subscription::StreamOptions;
    let document = all();
    let expect = ["after", "confirmations", "finality", "fromBlock", "include"];
    assert_eq!(members(&document, "StreamOptions"), expect);
    assert_eq!(members(&document, "StartOptions"), ["after", "fromBlock"]);
    assert_eq!(members(&document, "After"), ["blockHash", "logIndex"]);
    let hash = alloy_primitives::B256::ZERO;
    for options in [
        json!({ "after": { "blockHash": hash, "logIndex": "0x0" } }),
        json!({ "fromBlock": "0x0" }),
        json!({ "finality": "safe" }),
        json!({ "confirmations": 12 }),
        json!({ "confirmations": "0xc" }),
    ] {
        let raw = RawValue::from_string(options.to_string()).unwrap();
        assert!(StreamOptions::parse(&raw, 2).unwrap().is_ok(), "{options}");
    }
}

#[test]
fn further_methods_are_named_and_known_ones_are_not_described_twice() {
    let further = ["mine_hello", "eth_call", "eth_subscribe", "mine_hello", "secret_x"];
    let document = of(|method| method != "secret_x", |_| true, &further);
    let own = find(&document, "mine_hello").unwrap();
    assert_eq!((&own["params"], &own["result"]["schema"]), (&json!([]), &json!(true)));
    assert_eq!(methods(&document).len(), methods(&all()).len() + 1);
}

#[test]
fn costs_are_the_clients() {
    let document = all();
    let weight = |method| find(&document, method).unwrap()["x-weight"].as_u64();
    assert_eq!(
        (weight("eth_getLogs"), weight("eth_call"), weight(SUBSCRIBE)),
        (Some(10), Some(1), Some(1))
    );
    let by = |method| find(&document, method).unwrap()["x-answered-by"].as_str().unwrap();
    for (method, expect) in [
        ("eth_chainId", "headwater"),
        ("eth_unsubscribe", "headwater"),
        ("headwater_accountUsage", "headwater"),
        ("rpc.discover", "headwater"),
        ("eth_getLogs", "cache"),
        ("eth_getBalance", "cache"),
        ("eth_sendRawTransaction", "node"),
        ("txpool_content", "node"),
    ] {
        assert_eq!(by(method), expect, "{method}");
    }
}

#[test]
fn the_document_is_short() {
    let document = all();
    assert!(
        (20_000..=120_000).contains(&document.to_string().len()),
        "{}",
        document.to_string().len()
    );
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    let order = ["openrpc", "info", "methods", "components"];
    let offer = Offer {
        calls: &|_| true,
        kinds: &|_| true,
        weight: &|_| 1,
        further: &[],
    };
    let text = super::document(&offer);
    let places: Vec<_> = order
        .iter()
        .map(|name| text.find(&format!("\"{name}\":")).unwrap())
        .collect();
    assert!(places.is_sorted());
}
