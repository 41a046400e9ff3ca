//! Flaws of requests that have the right form: such a request is answered with an error here, whatever its method.

use super::{ErrorObjectOwned, INVALID_PARAMS, INVALID_REQUEST, MAX_METHOD_NAME, METHOD_NOT_FOUND, error};

/// Most nesting levels of arrays and objects in one request, the request itself included. The array of a batch is not
/// counted, so that an item is treated alike in a batch and alone.
///
/// A node that takes a request for a syntax error closes its connection, which all clients share: geth does so at
/// 10,001 levels (Go `encoding/json/scanner.go`, `maxNestingDepth`; geth `rpc/json.go`, `readMessage`), nodes that
/// read with Jackson (Besu) reject 1,001 (`StreamReadConstraints`), with serde_json 128, with System.Text.Json
/// (Nethermind) 65 (`JsonReaderOptions.MaxDepth`). The limit is the least of these: no call in use has more than a
/// dozen.
pub const MAX_DEPTH: usize = 64;

/// Reason why a request is neither forwarded nor looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Nested deeper than [`MAX_DEPTH`].
    TooDeep,
    /// A method name longer than [`MAX_METHOD_NAME`].
    LongName,
    /// A method name with characters other than `A-Z a-z 0-9 _ .`: some nodes trim names, or compare them differently
    /// from the list of allowed methods.
    OddName,
}

impl Flaw {
    pub(super) fn of(text: &str, method: &str) -> Option<Self> {
        if method.len() > MAX_METHOD_NAME {
            Some(Self::LongName)
        } else if !is_method_name(method) {
            Some(Self::OddName)
        } else if is_deeper_than(text, MAX_DEPTH) {
            Some(Self::TooDeep)
        } else {
            None
        }
    }

    /// Returns the error that answers a request of this method.
    #[must_use]
    pub fn error(self, method: &str) -> ErrorObjectOwned {
        match self {
            Self::TooDeep => error(INVALID_PARAMS, format!("nested too deep: more than {MAX_DEPTH} levels")),
            Self::LongName => {
                let len = method.len();
                error(
                    INVALID_REQUEST,
                    format!("method name too long: {len} > {MAX_METHOD_NAME}"),
                )
            }
            Self::OddName => not_available(method),
        }
    }
}

/// Checks if a name is a valid method name: `[A-Za-z0-9_.]+`.
#[must_use]
pub fn is_method_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.')
}

/// Returns geth's error for a method that it does not offer; ethers 6 recognises the message (PROTOCOL J17).
#[must_use]
pub fn not_available(method: &str) -> ErrorObjectOwned {
    let message = format!("the method {method} does not exist/is not available");
    error(METHOD_NOT_FOUND, message)
}

/// Checks if a JSON value nests arrays and objects deeper than `max`, in one pass over bytes that are known to be JSON.
/// Most requests have too few brackets to need the pass.
fn is_deeper_than(json: &str, max: usize) -> bool {
    // Each level opens once. Counting takes a sixteenth of a look at each byte, and decides for nearly all requests.
    let opened = json.bytes().filter(|byte| matches!(byte, b'[' | b'{')).count();
    if opened <= max {
        return false;
    }
    let mut bytes = json.bytes();
    let mut depth = 0_usize;
    while let Some(byte) = bytes.next() {
        match byte {
            b'[' | b'{' => {
                depth += 1;
                if depth > max {
                    return true;
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            // Skip the string: its brackets are text, and an escaped quote does not end it.
            b'"' => {
                while let Some(byte) = bytes.next() {
                    match byte {
                        b'"' => break,
                        b'\\' => drop(bytes.next()),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;
    use crate::jsonrpc::{Item, Message, id_text};

    #[track_caller]
    fn check(frame: &str, expect: &str) {
        let got = match Message::parse(frame.as_bytes(), 3) {
            Err(_) => "not json".to_owned(),
            Ok(Message::Single(item)) => show(&item),
            Ok(Message::TooMany(id)) => format!("too many, first {}", id_text(id)),
            Ok(Message::Batch(items)) => items.iter().map(show).collect::<Vec<_>>().join(", "),
        };
        assert_eq!(got, expect, "{frame}");
    }

    fn show(item: &Item<'_>) -> String {
        match item {
            Item::Call(request) => format!("call {}", id_text(request.id)),
            Item::Flawed(request, flaw) => format!("{flaw:?} {}", request.id.map_or("-", RawValue::get)),
            Item::Invalid(id) => format!("invalid {}", id_text(*id)),
            Item::Notification(_) | Item::Response => format!("{item:?}"),
        }
    }

    /// Returns a value of this many levels: `open` and `close` are repeated around the innermost value.
    fn nested(open: &str, close: &str, levels: usize) -> String {
        open.repeat(levels) + "1" + &close.repeat(levels)
    }

    fn call(members: &str) -> String {
        format!(r#"{{"jsonrpc":"2.0","id":7,"method":"m",{members}}}"#)
    }

    #[test]
    fn nesting_is_bounded_wherever_it_stands() {
        let (deep, deepest) = (MAX_DEPTH, MAX_DEPTH - 1);
        let pairs = [("[", "]"), ("{\"a\":", "}"), ("[ {\"\": ", "} ]\n")];
        for (open, close) in pairs {
            let each = if open.contains('[') && open.contains('{') { 2 } else { 1 };
            for (levels, is_deep) in [
                (1, false),
                (deepest / each, false),
                (deep / each + 1, true),
                (10_001, true),
            ] {
                let value = nested(open, close, levels);
                let flaw = |text: &str| match Message::parse(text.as_bytes(), 3) {
                    Ok(Message::Single(Item::Flawed(request, Flaw::TooDeep))) => {
                        request.id.map(RawValue::get) == Some("7")
                    }
                    Ok(Message::Single(Item::Call(_))) => false,
                    other => panic!("{other:?} for {levels} of {open}"),
                };
                // In each member that a request can have, and in unknown ones. Of two equal members the last gives
                // the value, and both count for the depth.
                for member in ["params", "PARAMS", "p\\u0061rams", "extra", "result"] {
                    let text = call(&format!("\"{member}\":{value}"));
                    assert_eq!(flaw(&text), is_deep, "{levels} of {open} in {member}");
                    let text = call(&format!("\"{member}\":{value},\"{member}\":[]"));
                    assert_eq!(flaw(&text), is_deep, "{levels} of {open} in the first {member}");
                }
            }
        }
        let level = nested("[", "]", deepest);
        check(&call(&format!(r#""params":{level}"#)), "call 7");
        check(&call(&format!(r#""params":[{level}]"#)), "TooDeep 7");
        // Brackets in strings, behind escaped quotes and backslashes; and many side by side.
        let flat = [
            format!(r#""params":["{}"]"#, "[".repeat(200)),
            format!(r#""params":["\"{}\\"]"#, "{[".repeat(100)),
            format!(r#""params":["{}"]"#, r#"\\\"["#.repeat(100)),
            format!(r#""{}":1,"params":[]"#, r#"[\u0022{"#.repeat(100)),
            format!(r#""params":[{}]"#, ["[[]]"; 500].join(",")),
        ];
        for members in flat {
            match Message::parse(call(&members).as_bytes(), 3) {
                Ok(Message::Single(Item::Call(_))) => {}
                other => panic!("{other:?} for {members}"),
            }
        }
        // Brackets count again after the end of a string.
        let after = format!(r#""params":["\\",{}]"#, nested("[", "]", deepest));
        check(&call(&after), "TooDeep 7");
    }

    #[test]
    fn depth_is_counted_for_each_item_of_a_batch_and_the_array_is_none() {
        let good = call(&format!(r#""params":{}"#, nested("[", "]", MAX_DEPTH - 1)));
        let bad = call(&format!(r#""params":{}"#, nested("[", "]", MAX_DEPTH)));
        let silent = bad.replace(r#""id":7,"#, "");
        check(&format!("[{good},{bad},{silent}]"), "call 7, TooDeep 7, TooDeep -");
        check(&format!("[{bad},{bad},{bad},{bad}]"), "too many, first 7");
        // A value that is not a request is answered as invalid, however deep it is.
        for levels in [2, 10_001, 100_000] {
            check(&nested("[", "]", levels), "invalid null");
            check(&nested("{\"a\":", "}", levels), "invalid null");
            check(&"[".repeat(levels), "not json");
        }
        check(
            &format!(r#"{{"jsonrpc":"2.0","id":{},"method":"m"}}"#, nested("[", "]", 100)),
            "invalid null",
        );
    }

    #[test]
    fn names_of_methods_are_plain() {
        let of = |method: &str| {
            let method = serde_json::to_string(method).expect("json");
            let frame = format!(r#"{{"jsonrpc":"2.0","id":1,"method":{method}}}"#);
            match Message::parse(frame.as_bytes(), 1) {
                Ok(Message::Single(Item::Call(_))) => "call",
                Ok(Message::Single(Item::Flawed(_, Flaw::OddName))) => "odd",
                Ok(Message::Single(Item::Flawed(_, Flaw::LongName))) => "long",
                other => panic!("{other:?} for {method}"),
            }
        };
        for method in [
            "m",
            "eth_call",
            "rpc.discover",
            "Filecoin.ChainHead",
            "eth_signTypedData_v4",
            "_",
            "9",
            &"m".repeat(2048),
        ] {
            assert_eq!(of(method), "call", "{method}");
        }
        let odd = [
            " ",
            " eth_call",
            "eth_call ",
            "\teth_call",
            "eth_call\n",
            "eth_\0call",
            "eth_call\u{200b}",
            "\u{feff}eth_call",
            "eth\u{ff3f}call",
            "\u{0435}th_call",
            "eth-call",
            "eth/call",
            "eth_call?",
            "eth_call#",
            "eth call",
            "\"",
            "\\",
            "<b>",
            "eth_sendTrans\u{0430}ction",
            "eth_\u{17f}end",
            "é",
        ];
        for method in odd {
            assert_eq!(of(method), "odd", "{method:?}");
        }
        assert_eq!(of(&"m".repeat(2049)), "long");
        assert_eq!(of(&" ".repeat(2049)), "long");
        let error = |flaw: Flaw, method: &str| {
            let error = flaw.error(method);
            format!("{} {}", error.code(), error.message())
        };
        assert_eq!(error(Flaw::TooDeep, "m"), "-32602 nested too deep: more than 64 levels");
        assert_eq!(
            error(Flaw::OddName, " m"),
            "-32601 the method  m does not exist/is not available"
        );
        assert_eq!(
            error(Flaw::LongName, &"m".repeat(2049)),
            "-32600 method name too long: 2049 > 2048"
        );
    }
}
