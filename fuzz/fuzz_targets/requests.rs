//! A client's messages: JSON is parsed into the right kind of item, and answered with JSON under the same id.

#![no_main]

use headwater::jsonrpc::{self, Flaw, Item, MAX_DEPTH, Message, Outcome, Request, Response, id_text, is_method_name};
use headwater::rpc::SubscriptionMethod;
use headwater::subscription::Topic;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use serde_json::value::RawValue;

const MAX_BATCH: usize = 5;

fuzz_target!(|data: &[u8]| {
    let first = std::str::from_utf8(data).ok().and_then(|text| {
        let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
        values.next()?.ok()
    });
    let Ok(message) = Message::parse(data, MAX_BATCH) else {
        // Only invalid JSON is refused; serde_json's limits when reading a value do not matter here.
        assert!(first.is_none(), "{first:?}");
        return;
    };
    match (&message, &first) {
        (Message::Single(item), Some(value)) => {
            assert!(!value.is_array());
            check(item, value);
        }
        (Message::Batch(items), Some(Value::Array(values))) => {
            assert_eq!(items.len(), values.len());
            items.iter().zip(values).for_each(|(item, value)| check(item, value));
        }
        (Message::TooMany(id), Some(Value::Array(values))) => {
            assert!(values.len() > MAX_BATCH);
            assert!(serde_json::from_str::<Value>(id_text(*id)).is_ok());
        }
        (_, Some(value)) => panic!("{message:?} for {value}"),
        // Numbers out of range or nesting too deep: skipped, but not read into a value.
        (_, None) => {}
    }
    answered(&message);
});

/// Compares one item with the value that serde_json reads.
fn check(item: &Item<'_>, value: &Value) {
    match item {
        Item::Call(request) => {
            let id = request.id.expect("a call has an id");
            assert!(!id.get().starts_with(['{', '[']));
            assert!(value.is_object() && is_method_name(&request.method));
            shallow(request, value);
            understood(request);
        }
        Item::Notification(request) => {
            assert!(value.is_object() && request.id.is_none() && is_method_name(&request.method));
            shallow(request, value);
            understood(request);
        }
        Item::Flawed(request, flaw) => {
            assert!(value.is_object());
            match flaw {
                // Duplicate members count for the depth, but the value keeps only one of them.
                Flaw::TooDeep => assert!(is_method_name(&request.method)),
                Flaw::OddName => assert!(!is_method_name(&request.method)),
                Flaw::LongName => assert!(request.method.len() > jsonrpc::MAX_METHOD_NAME),
            }
        }
        Item::Response => assert!(value.is_object()),
        Item::Invalid(_) => {
            // Requests as any library writes them are not refused.
            let plain = value.as_object().is_some_and(|members| {
                members.len() == 3
                    && members.get("jsonrpc") == Some(&Value::from("2.0"))
                    && members
                        .get("method")
                        .and_then(Value::as_str)
                        .is_some_and(|method| !method.is_empty())
                    && members.get("id").is_some_and(|id| id.is_number() || id.is_string())
            });
            assert!(!plain, "{value}");
        }
    }
}

/// Asserts that a request is no deeper than the limit; the request itself is the first level.
fn shallow(request: &Request<'_>, value: &Value) {
    assert!(depth(value) <= MAX_DEPTH, "{value}");
    if let Some(params) = request.params {
        let params: Value = serde_json::from_str(params.get()).expect("no deeper than serde_json reads");
        assert!(depth(&params) < MAX_DEPTH, "{params}");
    }
}

/// Returns the nesting depth of arrays and objects. serde_json reads at most 127 levels, so the recursion is bounded.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn understood(request: &Request<'_>) {
    if let Ok(args) = request.args() {
        let expected = request
            .params
            .and_then(|params| serde_json::from_str::<Vec<&RawValue>>(params.get()).ok());
        assert_eq!(args.len(), expected.map_or(0, |expected| expected.len()));
    }
    if let Some(SubscriptionMethod::Subscribe(namespace)) = SubscriptionMethod::of(&request.method) {
        drop(Topic::parse(namespace, request));
    }
    // Also under the namespace that uses the parameters most.
    drop(Topic::parse("eth", request));
}

/// Checks that each id is returned, in JSON.
fn answered(message: &Message<'_>) {
    let items = match message {
        Message::Single(item) => std::slice::from_ref(item),
        Message::Batch(items) => items,
        Message::TooMany(_) => &[],
    };
    assert_eq!(message.holds_requests(), !items.is_empty());
    let ids = items.iter().filter_map(|item| match item {
        Item::Call(request) => Some(request.id),
        Item::Flawed(request, _) => request.id.map(Some),
        Item::Invalid(id) => Some(*id),
        Item::Notification(_) | Item::Response => None,
    });
    let ids: Vec<&str> = ids.map(id_text).collect();
    let responses: Vec<Response> = ids.iter().map(|id| Response::new(id, Outcome::TRUE)).collect();
    let Some(array) = jsonrpc::batch(&responses) else {
        assert!(ids.is_empty());
        return;
    };
    let array = array.concat();
    let array: Vec<&RawValue> = serde_json::from_slice(&array).expect("an array");
    assert_eq!(array.len(), ids.len());
    for (answer, id) in array.iter().zip(ids) {
        assert_eq!(answer.get(), format!(r#"{{"jsonrpc":"2.0","id":{id},"result":true}}"#));
    }
}
