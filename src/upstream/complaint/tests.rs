use super::*;

#[test]
fn rate_limits_by_code_and_by_words() {
    for (error, by_code, throttled) in [
        (
            r#"{"code":429,"message":"Your app has exceeded its compute units"}"#,
            true,
            true,
        ),
        (r#"{"code":-32029,"message":"Too many requests"}"#, true, true),
        (
            r#"{"code":-32005,"message":"daily request count exceeded, request rate limited"}"#,
            true,
            true,
        ),
        (r#"{"code":-32005,"message":"limit exceeded"}"#, true, true),
        (
            r#"{"code":-32005,"message":"query returned more than 10000 results"}"#,
            false,
            false,
        ),
        (r#"{"code":-32005,"message":"block range is too wide"}"#, false, false),
        (r#"{"code":-32000,"message":"too many requests"}"#, false, true),
        (r#"{"code":-32601,"message":"Rate limit exceeded"}"#, false, true),
        (r#"{"code":-32603,"message":"request ratelimited"}"#, false, true),
        (r#"{"code":-32600,"message":"out of compute units"}"#, false, true),
        (r#"{"code":-32000,"message":"too many results"}"#, false, false),
        (r#"{"code":-32601,"message":"no such method"}"#, false, false),
        (r#"{"code":3,"message":"execution reverted"}"#, false, false),
        (
            r#"{"code":3,"message":"execution reverted: rate limit exceeded"}"#,
            false,
            false,
        ),
        ("5", false, false),
    ] {
        let outcome = Outcome::Error(error.into());
        assert_eq!(is_throttled_by_code(&outcome), by_code, "{error}");
        assert_eq!(is_throttled(&outcome), throttled, "{error}");
    }
    let elsewhere = |error: &str| may_succeed_elsewhere(&Outcome::Error(error.to_owned().into()));
    assert!(elsewhere(
        r#"{"code":-32601,"message":"the method x does not exist/is not available"}"#
    ));
    assert!(elsewhere(r#"{"code":-32000,"message":"missing trie node 5a (path )"}"#));
    assert!(!elsewhere(r#"{"code":3,"message":"execution reverted"}"#));
    assert!(!is_throttled(&Outcome::Result(r#"{"code":429}"#.into())));
}

/// One row for each spelling seen from a node or a host; the last column is `true` if a client's call with this
/// answer is retried at another upstream.
#[test]
fn meaning_of_an_error_for_our_own_question() {
    use Complaint::{Other, Pruned, Throttled, Unsupported};
    for (code, message, expected, elsewhere) in [
        (
            -32601,
            "the method eth_getLogs does not exist/is not available",
            Unsupported,
            true,
        ),
        (-32601, "", Unsupported, true),
        (
            -32004,
            "Method eth_getBlockReceipts is not supported",
            Unsupported,
            true,
        ),
        (-32004, "", Unsupported, true),
        (-32004, "block not available yet", Other, false),
        (-32700, "Method eth_getBlockReceipts not supported.", Unsupported, true),
        (-32700, "parse error", Unsupported, false),
        (
            -32600,
            "Unsupported method: eth_getBlockReceipts on ETH_MAINNET",
            Unsupported,
            true,
        ),
        (-32000, "method eth_getLogs is not whitelisted", Unsupported, true),
        (-32000, "eth_getBlockReceipts is not available", Unsupported, true),
        (
            -32000,
            "The method eth_getBlockReceipts doesn't exist",
            Unsupported,
            true,
        ),
        (-32000, "rpc method is disabled on this endpoint", Unsupported, true),
        (-32603, "eth_getLogs has been disabled", Unsupported, true),
        (-32603, "not implemented", Unsupported, false),
        (-32000, "filter by blockHash is not supported", Unsupported, false),
        (
            -32602,
            "unknown field `blockHash`, expected one of `fromBlock`, `toBlock`",
            Unsupported,
            false,
        ),
        (
            -32602,
            "invalid argument 0: cannot unmarshal hex number > 64 bits",
            Unsupported,
            false,
        ),
        (
            -32602,
            "query exceeds max results 20000, retry with the range 1-1",
            Other,
            false,
        ),
        (-32005, "limit exceeded", Throttled, false),
        (-32005, "query returned more than 10000 results", Other, false),
        (429, "Too many requests", Throttled, false),
        (-32601, "rate limit exceeded", Throttled, true),
        (-32000, "Too Many Requests", Throttled, false),
        (4444, "pruned history unavailable", Pruned, false),
        (-32000, "unknown block", Other, false),
        (-32000, "block does not exist", Other, false),
        (-32000, "eth_getBlockReceipts: block not found", Other, false),
        (-32000, "receipts not found", Other, false),
        (-32000, "header not found", Other, true),
        (-32000, "historical state is not available", Other, true),
        (-32000, "failed to find transaction in block", Other, false),
        (-32001, "resource not found", Other, false),
        (-32603, "internal error", Other, false),
        (3, "execution reverted", Other, false),
    ] {
        let error = serde_json::json!({"code": code, "message": message}).to_string();
        let answer = Outcome::Error(error.clone().into());
        assert_eq!(
            (complaint(&answer), may_succeed_elsewhere(&answer)),
            (expected, elsewhere),
            "{error}"
        );
    }
    for odd in [r#"{"code":-32601}"#, r#"{"code":-32601,"message":null}"#] {
        assert_eq!(complaint(&Outcome::Error(odd.into())), Unsupported, "{odd}");
    }
    for odd in [
        "5",
        "null",
        r#"{"message":"not supported"}"#,
        r#"{"code":"x","message":""}"#,
    ] {
        assert_eq!(complaint(&Outcome::Error(odd.into())), Other, "{odd}");
    }
}

/// One row for each spelling of a gateway without a node, or of a node that starts or stops: whether it is one to our own
/// question, and whether a client's call goes to another upstream and spares this one for a while.
#[test]
fn errors_that_mean_not_now_rather_than_never() {
    for (code, message, is_ours, is_clients) in [
        // Another headwater.
        (-32603, "upstream unavailable", true, true),
        (-32603, "upstream connection lost", true, true),
        (-32603, "no upstream has reached block 17 yet", true, true),
        (-32002, "request timed out", true, false),
        // proxyd, Ankr, dRPC, and others.
        (-32011, "no backend is currently healthy to serve traffic", true, true),
        (-32055, "No nodes available", true, true),
        (1, "no available upstreams to process the request", true, true),
        (19, "Temporary internal error. Please retry", true, true),
        (-32000, "503 Service Unavailable", true, false),
        (-32000, "502 Bad Gateway", true, false),
        (-32603, "504 Gateway Time-out", true, false),
        (-32601, "the method eth_getLogs is temporarily unavailable", true, false),
        (
            -32000,
            "dial tcp 10.0.0.1:8545: connect: connection refused",
            true,
            false,
        ),
        (-32000, "the node is starting up", true, false),
        (-32000, "server is shutting down", true, false),
        (-32000, "filter query timed out", true, false),
        (-32002, "resource unavailable", false, false),
        // Words of a client, in errors of whatever code.
        (3, "execution reverted: upstream unavailable", false, false),
        (-32603, "execution reverted: service unavailable", false, false),
        (-32603, "upstream unavailable: 0x", true, false),
        (-32000, "upstream unavailable", true, false),
        (-32603, "no upstream has reached block x yet", false, false),
        // Refusals, and evidence about the block.
        (
            -32601,
            "the method eth_getLogs does not exist/is not available",
            false,
            false,
        ),
        (
            -32601,
            "no available upstreams support eth_getBlockReceipts",
            false,
            false,
        ),
        (-32000, "eth_getBlockReceipts is not available", false, false),
        (4444, "pruned history unavailable", false, false),
        (-32000, "world state unavailable", false, false),
        (-32000, "block not available yet", false, false),
        (-32001, "resource not found", false, false),
        (-32005, "limit exceeded", false, false),
        (-32603, "internal error", false, false),
        (-32603, "upstream answered for another hash", false, false),
        (-32603, "the node closes its connection on this call", false, false),
    ] {
        let error = serde_json::json!({"code": code, "message": message}).to_string();
        let answer = Outcome::Error(error.clone().into());
        assert_eq!(
            (is_temporarily_unavailable(&answer), is_no_node_reached(&answer)),
            (is_ours, is_clients),
            "{error}"
        );
        assert_eq!(complaint(&answer) == Complaint::NotNow, is_ours, "{error}");
        assert!(!is_clients || may_succeed_elsewhere(&answer), "{error}");
    }
    assert!(!is_temporarily_unavailable(&Outcome::Result(
        r#"{"code":-32603,"message":"upstream unavailable"}"#.into()
    )));
}
