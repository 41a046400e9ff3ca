use super::*;

#[track_caller]
fn check(frame: &str, expect: &str) {
    let got = match Message::parse(frame.as_bytes(), 3) {
        Err(_) => "not json".to_owned(),
        Ok(Message::Single(item)) => show(&item),
        Ok(Message::TooMany(id)) => format!("too many, first {}", id_text(id)),
        Ok(Message::Batch(items)) => format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(" ")),
    };
    assert_eq!(got, expect, "{frame}");
}

fn show(item: &Item<'_>) -> String {
    match item {
        Item::Call(r) => format!(
            "call {} {}{}",
            id_text(r.id),
            r.method,
            r.params.map_or("", RawValue::get)
        ),
        Item::Notification(r) => format!("notification {}", r.method),
        Item::Response => "response".to_owned(),
        Item::Invalid(id) => format!("invalid {}", id_text(*id)),
        Item::Flawed(r, flaw) => format!("{flaw:?} {}", r.id.map_or("-", RawValue::get)),
    }
}

#[test]
fn envelope_is_read_as_geth_reads_it() {
    // PROTOCOL 1.3, row by row.
    check(" {\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"m\"}\n", "call 1 m");
    check(r#"{"jsonrpc":"2.0","id":1,"method":"m"} trailing"#, "call 1 m");
    check("hello", "not json");
    check("", "not json");
    check(r#"{"jsonrpc":"2.0","id":1"#, "not json");
    for scalar in ["null", "5", "\"x\"", "true", "{}"] {
        check(scalar, "invalid null");
    }
    check(r#"{"id":7,"method":"m"}"#, "invalid 7");
    check(r#"{"jsonrpc":"1.0","id":7,"method":"m"}"#, "invalid 7");
    check(r#"{"jsonrpc":"2.0","id":7}"#, "invalid 7");
    check(r#"{"jsonrpc":"2.0","id":7,"method":5}"#, "invalid 7");
    check(r#"{"jsonrpc":"2.0","method":"m"}"#, "notification m");
    check(r#"{"jsonrpc":"2.0","id":null,"method":"m"}"#, "call null m");
    for id in [
        "0",
        "\"\"",
        "-1",
        "1.50",
        "1e3",
        "123456789012345678901234567890",
        "true",
        r#""a\u0041\"""#,
    ] {
        check(
            &format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"m"}}"#),
            &format!("call {id} m"),
        );
    }
    check(r#"{"jsonrpc":"2.0","id":{},"method":"m"}"#, "invalid null");
    check(r#"{"jsonrpc":"2.0","id":[1],"method":"m"}"#, "invalid null");
    check(r#"{"jsonrpc":"2.0","id":7,"result":1}"#, "response");
    check(r#"{"jsonrpc":"2.0","id":7,"result":null}"#, "response");
    check(r#"{"jsonrpc":"2.0","id":7,"error":{}}"#, "response");
    check(r#"{"jsonrpc":"2.0","id":7,"error":null}"#, "response");
    check(r#"{"jsonrpc":"2.0","id":7,"method":"","result":1}"#, "response");
    check(r#"{"jsonrpc":"2.0","id":7,"method":5,"result":1}"#, "invalid 7");
    check(r#"{"jsonrpc":"2.0","id":7,"params":[],"result":1}"#, "invalid 7");
    check(
        r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"a","method":"b"}"#,
        "call 2 b",
    );
    check(r#"{"jsonrpc":"2.0","ID":1,"METHOD":"m"}"#, "call 1 m");
    check(
        r#"{"jsonrpc":"2.0","id":1,"method":"m","params":[1,"x"],"more":{}}"#,
        r#"call 1 m[1,"x"]"#,
    );
    check(r#"{"jsonrpc":"2.0","id":1,"method":"m","params":null}"#, "call 1 m");
    check(r#"{"jsonrpc":"2.0","id":1,"method":"\u006d"}"#, "call 1 m");
    check(r#"{"jsonrpc":"2.\u0030","id":1,"method":"m"}"#, "call 1 m");
    check("[]", "[]");
    check("[1,2,3]", "[invalid null invalid null invalid null]");
    check(r#"[1,{"jsonrpc":"2.0","id":9,"method":"m"},3,4]"#, "too many, first 9");
    check(
        r#"[{"jsonrpc":"2.0","id":1,"method":"m"},5,{"jsonrpc":"2.0","method":"n"}]"#,
        "[call 1 m invalid null notification n]",
    );
}

#[test]
fn answers_keep_id_and_payload_verbatim() {
    let response = Response::new("1.50", Outcome::Result(Bytes::from_static(b"{\"a\": 1}")));
    let text = response.parts().concat();
    assert_eq!(text, br#"{"jsonrpc":"2.0","id":1.50,"result":{"a": 1}}"#);
    assert_eq!(text.len(), response.length());
    let long = Response::new("\"x\"", Outcome::Result(vec![b'1'; 1025].into())).shortened();
    let too_large = br#"{"jsonrpc":"2.0","id":"x","error":{"code":-32003,"message":"response too large"}}"#;
    assert_eq!(long.parts().concat(), too_large);
    assert_eq!(response.clone().shortened().parts(), response.parts());
    let failed = Response::new("null", error(-32005, "limit exceeded").into());
    let array = batch(&[response, failed]).expect("two answers");
    assert_eq!(
        String::from_utf8(array.concat()).expect("json"),
        r#"[{"jsonrpc":"2.0","id":1.50,"result":{"a": 1}},{"jsonrpc":"2.0","id":null,"error":{"code":-32005,"message":"limit exceeded"}}]"#
    );
    assert!(batch(&[]).is_none());
}

#[test]
fn our_own_words_are_escaped_as_geth_escapes_them() {
    let check = |message: &str, expect: &str| {
        let Outcome::Error(json) = error(-1, message).into() else {
            unreachable!("an error")
        };
        assert_eq!(json, format!(r#"{{"code":-1,"message":"{expect}"}}"#));
    };
    check("2049 > 2048", r"2049 \u003e 2048");
    check("<a>&\u{2028}\u{2029}é", r"\u003ca\u003e\u0026\u2028\u2029é");
    check("\\ \"", r#"\\ \""#);
}
