use serde_json::json;

use super::*;

#[track_caller]
fn refused(filter: &Value, message: &str) {
    let error = LogFilter::parse(filter).expect_err("refused");
    let full = format!("{} {}", error.code(), error.message());
    let expect = if message.starts_with('-') {
        message.to_owned()
    } else {
        format!("-32602 {message}")
    };
    assert_eq!(full, expect, "{filter}");
}

#[test]
fn wrong_filters_get_geths_words() {
    let (a, t) = (Address::repeat_byte(1), B256::repeat_byte(2));
    refused(
        &json!(true),
        "invalid argument 1: json: cannot unmarshal bool into Go value of type filters.input",
    );
    refused(
        &json!([]),
        "invalid argument 1: json: cannot unmarshal array into Go value of type filters.input",
    );
    refused(
        &json!("x"),
        "invalid argument 1: json: cannot unmarshal string into Go value of type filters.input",
    );
    refused(
        &json!({"address": [null]}),
        "invalid argument 1: non-string address at index 0",
    );
    refused(&json!({"address": 5}), "invalid argument 1: invalid addresses in query");
    refused(
        &json!({"address": {}}),
        "invalid argument 1: invalid addresses in query",
    );
    for (wrong, why) in [
        ("", "empty hex string"),
        ("0x", "hex has invalid length 0 after decoding; expected 20 for address"),
        ("0x123", "hex string of odd length"),
        ("zz", "hex string without 0x prefix"),
        ("0xzz", "invalid hex string"),
        ("0xz", "invalid hex string"),
        (
            "0x1234",
            "hex has invalid length 2 after decoding; expected 20 for address",
        ),
    ] {
        refused(
            &json!({"address": wrong}),
            &format!("invalid argument 1: invalid address: {why}"),
        );
        refused(
            &json!({"address": [a, wrong]}),
            &format!("invalid argument 1: invalid address at index 1: {why}"),
        );
    }
    let topic = "invalid argument 1: hex has invalid length 1 after decoding; expected 32 for topic";
    refused(&json!({"topics": ["0x01"]}), topic);
    refused(&json!({"topics": [[t, "0x01"]]}), topic);
    for wrong in [json!([[[t]]]), json!([5]), json!([{}])] {
        refused(&json!({"topics": wrong}), "invalid argument 1: invalid topic(s)");
    }
    let words =
        "invalid argument 1: json: cannot unmarshal string into Go struct field input.topics of type []interface {}";
    refused(&json!({"topics": "0x"}), words);
    refused(
        &json!({"topics": [null, null, null, null, null]}),
        "invalid argument 1: exceed max topics",
    );
    refused(
        &json!({"topics": [5, null, null, null, null]}),
        "invalid argument 1: exceed max topics",
    );
    refused(
        &json!({"topics": [vec![t; 1001]]}),
        "invalid argument 1: exceed max topics",
    );
    refused(
        &json!({"address": vec![a; 1001]}),
        "-32000 exceed max addresses or topics per search position",
    );
    for (from, to) in [
        (json!("0x5"), json!("0x4")),
        (json!(null), json!("0x4")),
        (json!("latest"), json!("0x4")),
    ] {
        refused(&json!({"fromBlock": from, "toBlock": to}), "invalid block range params");
    }
    refused(&json!({"fromBlock": "safe"}), "invalid block range params");
    refused(&json!({"toBlock": "earliest"}), "invalid block range params");
    refused(&json!({"fromBlock": "pending"}), "pending logs are not supported");
    for (wrong, why) in [
        (json!(256), "hex string without 0x prefix"),
        (json!("256"), "hex string without 0x prefix"),
        (json!(""), "empty hex string"),
        (json!("0x"), "hex string \"0x\""),
        (json!("0x0100"), "hex number with leading zero digits"),
        (json!(" 0x1 "), "hex string without 0x prefix"),
    ] {
        refused(&json!({"fromBlock": wrong}), &format!("invalid argument 1: {why}"));
    }
    let both = "invalid argument 1: cannot specify both BlockHash and FromBlock/ToBlock, choose one or the other";
    refused(&json!({"blockHash": t, "fromBlock": "0x1"}), both);
    refused(
        &json!({"blockHash": "0x12"}),
        "invalid argument 1: hex string has length 2, want 64 for common.Hash",
    );
    for (wrong, why) in [
        (json!(5), "non-string"),
        (json!("aa"), "hex string without 0x prefix"),
        (json!("0xaaa"), "hex string of odd length"),
        (json!(format!("0x{}", "z".repeat(64))), "invalid hex string"),
    ] {
        refused(
            &json!({"blockHash": wrong}),
            &format!(
                "invalid argument 1: json: cannot unmarshal {why} into Go struct field input.blockHash of type common.Hash"
            ),
        );
    }
    refused(
        &json!({"blockHash": ""}),
        "invalid argument 1: hex string has length 0, want 64 for common.Hash",
    );
}

#[test]
fn fields_are_known_in_any_case() {
    refused(&json!({"ADDRESS": 5}), "invalid argument 1: invalid addresses in query");
    refused(&json!({"fromblock": "pending"}), "pending logs are not supported");
    let a = Address::repeat_byte(1);
    for (one, other) in [
        (json!({"Address": a}), json!({"address": a})),
        (json!({"Address": 5, "address": a}), json!({"address": a})),
        (json!({"TOPICS": [null]}), json!({"topics": [null]})),
    ] {
        assert_eq!(LogFilter::parse(&one), LogFilter::parse(&other), "{one}");
    }
}

#[test]
fn what_means_the_same_is_the_same() {
    let [a, b] = [1, 2].map(Address::repeat_byte);
    let [t, u] = [1, 2].map(B256::repeat_byte);
    let same = |x: Value, y: Value| assert_eq!(LogFilter::parse(&x).expect("x"), LogFilter::parse(&y).expect("y"));
    same(
        json!(null),
        json!({"address": [], "topics": [], "fromBlock": "0x0", "toBlock": "latest", "foo": 1}),
    );
    same(json!(null), json!({"blockHash": t}));
    same(json!(null), json!({"fromBlock": "earliest"}));
    same(
        json!({"address": a}),
        json!({"address": [a.to_string().to_uppercase().replace("0X", "0x"), a]}),
    );
    same(json!({"address": [a, b]}), json!({"address": [b, a, b]}));
    same(json!({"topics": [[t, u]]}), json!({"topics": [[u, t, u]]}));
    same(json!({"topics": [t, null]}), json!({"topics": [[t], []]}));
    same(json!({"topics": [null]}), json!({"topics": [[t, null, "bad"]]}));
    let differ = |x: Value, y: Value| assert_ne!(LogFilter::parse(&x).expect("x"), LogFilter::parse(&y).expect("y"));
    differ(json!({"topics": [t]}), json!({"topics": [t, null]}));
    differ(json!({"fromBlock": "0x5"}), json!({"fromBlock": "0x6"}));
}
