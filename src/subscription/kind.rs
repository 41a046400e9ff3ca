//! The topics that a client can subscribe to, read with geth's grammar (PROTOCOL 1.5).

use serde_json::Value;

use super::filter::go_type;
use super::{
    BlockFilter, Level, LogFilter, ReceiptFilter, Start, Stream, StreamOptions, SubscriptionKey, TransactionFilter,
};
use crate::backplane::{Passthrough, TransactionForm};
use crate::chain::Tag;
use crate::delivery::Kind;
use crate::jsonrpc::{ErrorObjectOwned, INVALID_PARAMS, LIMIT_EXCEEDED, METHOD_NOT_FOUND, Request, error};

/// Subject of a subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Topic {
    /// Stream of the chain that follows its head, and the place where the stream begins; heads and logs, and the other
    /// streams from a place in the past.
    Chain(Stream, Start),
    /// Stream of the chain that trails its head at a level of finality, and the place where the stream begins.
    Trailing(Level, Stream, Start),
    /// `newPendingTransactions`, and the names that Alchemy and Nodit give it with a filter.
    Pending(TransactionFilter),
    /// `syncing`.
    Syncing,
    /// `alchemy_minedTransactions`, which no node offers.
    Mined(TransactionFilter),
    /// `transactionReceipts`.
    Receipts(ReceiptFilter),
    /// Kind that only the node may know, with its name.
    Passthrough(Passthrough, String),
}

impl Topic {
    /// Returns the index entries that the topic is charged: [`LogFilter::index_entries`] for logs, the addresses or
    /// transactions named by other filters, 0 without a filter.
    #[must_use]
    pub fn index_entries(&self) -> usize {
        match self {
            Self::Chain(stream, _) | Self::Trailing(_, stream, _) => stream.index_entries(),
            Self::Pending(filter) | Self::Mined(filter) => filter.addresses(),
            Self::Receipts(filter) => filter.transactions(),
            Self::Syncing | Self::Passthrough(..) => 0,
        }
    }

    /// Returns the kind of the topic's events.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Chain(stream, _) | Self::Trailing(_, stream, _) => stream.kind(),
            Self::Pending(_) => Kind::Pending,
            Self::Syncing => Kind::Syncing,
            Self::Mined(_) => Kind::Mined,
            Self::Receipts(_) => Kind::Receipts,
            Self::Passthrough(..) => Kind::Passthrough,
        }
    }

    /// Returns the key by which a session remembers this subscription; `None` for kinds without positions.
    #[must_use]
    pub fn session_key(&self) -> Option<SubscriptionKey> {
        Some(match self {
            Self::Chain(stream, start) => SubscriptionKey::of(&(None::<Level>, stream, start)),
            Self::Trailing(level, stream, start) => SubscriptionKey::of(&(Some(level), stream, start)),
            Self::Mined(filter) => SubscriptionKey::of(&("mined", filter)),
            Self::Receipts(filter) => SubscriptionKey::of(&("receipts", filter)),
            Self::Pending(_) | Self::Syncing | Self::Passthrough(..) => return None,
        })
    }

    /// Returns the stream of a topic that goes on from a position, with its level; `None` if what was sent of it cannot be
    /// taken back.
    #[must_use]
    pub fn into_resumable(self) -> Option<(Option<Level>, Stream)> {
        match self {
            Self::Chain(stream, _) => Some((None, stream)),
            Self::Trailing(level, stream, _) => Some((Some(level), stream)),
            // Of past blocks nobody remembers which transactions were delivered.
            Self::Mined(filter) => (!filter.removed).then_some((None, Stream::Mined(filter))),
            Self::Receipts(filter) => Some((None, Stream::Receipts(filter))),
            Self::Pending(_) | Self::Syncing | Self::Passthrough(..) => None,
        }
    }

    /// Returns the name used in refusals.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Passthrough(_, name) => name,
            known => known.kind().label(),
        }
    }

    /// Reads the call of a method that is a kind of its own (`<namespace>_subscribe<Kind>`); only the node knows the
    /// meaning of its parameters.
    ///
    /// # Errors
    /// If the parameters are not a list, or too long to be kept.
    pub fn of_its_own(request: &Request<'_>) -> Result<Self, ErrorObjectOwned> {
        let passed = Passthrough::new(&request.method, &request.args()?).ok_or_else(too_long)?;
        Ok(Self::Passthrough(passed, request.method.clone().into_owned()))
    }

    /// Reads the parameters of `<namespace>_subscribe`. The start of a chain stream is given in headwater's own
    /// options, behind the arguments that a node takes (E9).
    ///
    /// # Errors
    /// geth's error, word by word, if geth refuses the parameters. A kind that is not known here is not an error: the
    /// caller decides whether to pass it to the node. Two inputs that geth refuses are accepted, for no library
    /// depends on the error and reth and anvil accept them: `logs` without a filter, and the name
    /// `pendingTransactions`.
    pub fn parse(namespace: &str, request: &Request<'_>) -> Result<Self, ErrorObjectOwned> {
        if request.params.is_none() {
            return Err(error(INVALID_PARAMS, "non-array args"));
        }
        let args = request.args()?;
        let kind: String = args
            .first()
            .and_then(|first| serde_json::from_str(first.get()).ok())
            .ok_or_else(|| error(INVALID_PARAMS, "expected subscription name as first argument"))?;
        let unknown = || match Passthrough::new(&request.method, &args) {
            _ if !is_name(&kind) => Err(no_such_kind(namespace, &kind)),
            Some(passed) => Ok(Self::Passthrough(passed, kind.clone())),
            None => Err(too_long()),
        };
        if namespace != "eth" {
            return unknown();
        }
        let at_most = |n: usize| {
            let message = format!("too many arguments, want at most {n}");
            if args.len() > n {
                Err(error(INVALID_PARAMS, message))
            } else {
                Ok(())
            }
        };
        let argument = || -> Result<Value, ErrorObjectOwned> {
            let Some(raw) = args.get(1) else { return Ok(Value::Null) };
            let unreadable = |why| error(INVALID_PARAMS, format!("invalid argument 1: {why}"));
            serde_json::from_str(raw.get()).map_err(unreadable)
        };
        // The options come after all arguments that nodes know.
        let options = |place: usize| -> Result<StreamOptions, ErrorObjectOwned> {
            let own = args.get(place).filter(|_| args.len() == place + 1);
            let own = own.and_then(|last| StreamOptions::parse(last, place));
            own.unwrap_or_else(|| at_most(place).map(|()| StreamOptions::default()))
        };
        let heads_of = |tag: Tag| match options(1)? {
            StreamOptions { level: Some(_), .. } => {
                let why = format!("{kind} is finality already, leave out finality and confirmations");
                Err(error(INVALID_PARAMS, format!("invalid argument 1: {why}")))
            }
            options => Stream::Heads.with(options.at(Level::Tag(tag))),
        };
        match kind.as_str() {
            "newHeads" => Stream::Heads.with(options(1)?),
            "newFinalizedHeads" => heads_of(Tag::Finalized),
            "newSafeHeads" => heads_of(Tag::Safe),
            "syncing" => at_most(1).map(|()| Self::Syncing),
            "logs" => {
                // The filter is read before surplus arguments are reported, as in geth.
                let filter = LogFilter::parse(&argument()?)?;
                Stream::Logs(filter.into()).with(options(2)?)
            }
            "blockLogs" => {
                let logs = LogFilter::parse(&argument()?)?;
                let options = options(2)?;
                let include = options.include.unwrap_or_default();
                Stream::Blocks(BlockFilter { logs, include }).with(options)
            }
            "newPendingTransactions" | "pendingTransactions" => {
                let filter = match argument()? {
                    Value::Null | Value::Bool(false) => TransactionFilter::all(TransactionForm::Hash),
                    Value::Bool(true) => TransactionFilter::all(TransactionForm::Full),
                    // headwater's own: nodes take no such options.
                    options if TransactionFilter::is_pending_options(&options) => {
                        TransactionFilter::pending(&options, TransactionForm::Hash)?
                    }
                    other => {
                        let got = go_type(&other);
                        let why =
                            format!("invalid argument 1: json: cannot unmarshal {got} into Go value of type bool");
                        return Err(error(INVALID_PARAMS, why));
                    }
                };
                at_most(2)?;
                Ok(Self::Pending(filter))
            }
            "alchemy_pendingTransactions" | "nodit_pendingTransactions" => {
                at_most(2)?;
                let filter = TransactionFilter::pending(&argument()?, TransactionForm::Full)?;
                Ok(Self::Pending(filter))
            }
            "alchemy_minedTransactions" | "nodit_minedTransactions" => {
                let options = options(2)?;
                Stream::Mined(TransactionFilter::mined(&argument()?)?).with(options)
            }
            "transactionReceipts" => {
                // As geth: the filter is read, then surplus arguments are reported, then the hashes are counted.
                let transactions = ReceiptFilter::parse(&argument()?)?;
                let options = options(2)?;
                Stream::Receipts(ReceiptFilter::at_most(transactions)?).with(options)
            }
            "alchemy_newFullPendingTransactions" => {
                at_most(1).map(|()| Self::Pending(TransactionFilter::all(TransactionForm::Full)))
            }
            _ => unknown(),
        }
    }
}

fn too_long() -> ErrorObjectOwned {
    error(
        LIMIT_EXCEEDED,
        "limit exceeded: parameters too long for a subscription that is passed to the node",
    )
}

/// Longest name of a kind, in bytes; the names that nodes know are shorter than forty.
const MAX_NAME: usize = 64;

/// Checks if a node could know a kind of this name; other names are never sent to a node.
fn is_name(kind: &str) -> bool {
    (1..=MAX_NAME).contains(&kind.len()) && kind.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Returns geth's error for a kind that it does not offer.
#[must_use]
pub fn no_such_kind(namespace: &str, kind: &str) -> ErrorObjectOwned {
    error(
        METHOD_NOT_FOUND,
        format!("no \"{kind}\" subscription in {namespace} namespace"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jsonrpc::{Item, Message};

    fn parse(method: &str, params: &str) -> Result<Topic, String> {
        let text = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}"{params}}}"#);
        let Ok(Message::Single(Item::Call(request))) = Message::parse(text.as_bytes(), 1) else {
            panic!("{text}")
        };
        let namespace = method.split_once('_').expect("namespace").0;
        Topic::parse(namespace, &request).map_err(|error| format!("{} {}", error.code(), error.message()))
    }

    #[test]
    fn every_row_of_the_grammar() {
        let eth = |params: &str| parse("eth_subscribe", &format!(r#","params":{params}"#));
        let refused = |params: &str, words: &str| assert_eq!(eth(params), Err(words.to_owned()), "{params}");
        assert_eq!(parse("eth_subscribe", ""), Err("-32602 non-array args".into()));
        for params in ["null", "{}", "\"newHeads\""] {
            refused(params, "-32602 non-array args");
        }
        for params in ["[]", "[1]", "[null]"] {
            refused(params, "-32602 expected subscription name as first argument");
        }
        refused(r#"[""]"#, r#"-32601 no "" subscription in eth namespace"#);
        assert_eq!(eth(r#"["newHeads"]"#), Ok(Topic::Chain(Stream::Heads, Start::Live)));
        for params in [
            r#"["newHeads",{}]"#,
            r#"["newHeads",true]"#,
            r#"["newHeads",null]"#,
            r#"["syncing",1]"#,
        ] {
            refused(params, "-32602 too many arguments, want at most 1");
        }
        assert_eq!(eth(r#"["syncing"]"#), Ok(Topic::Syncing));
        let all = |form| Ok(Topic::Pending(TransactionFilter::all(form)));
        for name in ["newPendingTransactions", "pendingTransactions"] {
            for flag in [
                "",
                ",false",
                ",null",
                r#",{"hashesOnly":true}"#,
                r#",{"fromAddress":null}"#,
            ] {
                assert_eq!(eth(&format!(r#"["{name}"{flag}]"#)), all(TransactionForm::Hash));
            }
            for flag in [",true", r#",{"hashesOnly":false}"#] {
                assert_eq!(eth(&format!(r#"["{name}"{flag}]"#)), all(TransactionForm::Full));
            }
            refused(
                &format!(r#"["{name}",true,1]"#),
                "-32602 too many arguments, want at most 2",
            );
        }
        for (value, kind) in [
            ("\"true\"", "string"),
            ("{}", "object"),
            (r#"{"includeTransactions":true}"#, "object"),
            ("1", "number"),
        ] {
            refused(
                &format!(r#"["newPendingTransactions",{value}]"#),
                &format!("-32602 invalid argument 1: json: cannot unmarshal {kind} into Go value of type bool"),
            );
        }
        for params in [r#"["logs"]"#, r#"["logs",null]"#, r#"["logs",{}]"#] {
            assert_eq!(
                eth(params),
                Ok(Topic::Chain(Stream::Logs(LogFilter::default().into()), Start::Live))
            );
        }
        // Parameters nested too deeply are refused earlier (`jsonrpc::MAX_DEPTH`).
        for unreadable in ["1e999", "\"\\ud800\""] {
            let refused = eth(&format!(r#"["logs",{{"x":{unreadable}}}]"#));
            assert!(
                refused.is_err_and(|why| why.starts_with("-32602 invalid argument 1: ")),
                "never everything"
            );
        }
        refused(r#"["logs",{},{}]"#, "-32602 too many arguments, want at most 2");
    }

    #[test]
    fn pending_transactions_under_the_names_that_providers_gave_them() {
        let eth = |params: &str| parse("eth_subscribe", &format!(r#","params":{params}"#));
        let all = |form| Ok(Topic::Pending(TransactionFilter::all(form)));
        for name in ["alchemy_pendingTransactions", "nodit_pendingTransactions"] {
            for options in ["", ",null", ",{}", r#",{"hashesOnly":false}"#] {
                assert_eq!(eth(&format!(r#"["{name}"{options}]"#)), all(TransactionForm::Full));
            }
            let hashes = format!(r#"["{name}",{{"hashesOnly":true}}]"#);
            assert_eq!(eth(&hashes), all(TransactionForm::Hash));
            let filter = r#"{"fromAddress":"0x0000000000000000000000000000000000000001","toAddress":[]}"#;
            let filtered = eth(&format!(r#"["{name}",{filter}]"#));
            assert!(filtered.is_ok() && filtered != all(TransactionForm::Full));
            // The same options in place of geth's flag; without `hashesOnly` each kind delivers its own default form.
            let same = |hashes| filter.replace("{", &format!(r#"{{"hashesOnly":{hashes},"#));
            let geths = eth(&format!(r#"["newPendingTransactions",{}]"#, same(false)));
            assert_eq!(geths, filtered);
            let hashes = eth(&format!(r#"["{name}",{}]"#, same(true)));
            assert_eq!(eth(&format!(r#"["newPendingTransactions",{filter}]"#)), hashes);
            for (options, why) in [
                ("true", "-32602 invalid argument 1: expected an object, got bool"),
                ("{},{}", "-32602 too many arguments, want at most 2"),
                (
                    r#"{"toAddress":"0x"}"#,
                    "-32602 invalid argument 1: invalid toAddress: hex has invalid length 0 after decoding; expected 20 for address",
                ),
            ] {
                assert_eq!(eth(&format!(r#"["{name}",{options}]"#)), Err(why.to_owned()));
            }
        }
        let old = "alchemy_newFullPendingTransactions";
        assert_eq!(eth(&format!(r#"["{old}"]"#)), all(TransactionForm::Full));
        let more = eth(&format!(r#"["{old}",{{}}]"#));
        assert_eq!(more, Err("-32602 too many arguments, want at most 1".to_owned()));
    }

    #[test]
    fn a_name_that_is_not_known_is_for_the_node_and_what_is_no_name_is_refused() {
        for (method, kind) in [
            ("eth_subscribe", "NewHeads"),
            ("admin_subscribe", "peerEvents"),
            ("chain_subscribe", "newHeads"),
            ("eth_subscribe", &*"x".repeat(64)),
        ] {
            let topic = parse(method, &format!(r#","params":["{kind}", 1]"#));
            let Ok(Topic::Passthrough(passed, name)) = topic else {
                panic!("{topic:?}")
            };
            assert_eq!((passed.method(), &*name), (method, kind));
            assert_eq!(passed.params(), format!(r#"["{kind}",1]"#));
        }
        for kind in ["a b", "<&>", "a\"b", "é", &"x".repeat(65)] {
            let topic = parse("eth_subscribe", &format!(r#","params":[{}]"#, Value::from(kind)));
            let why = format!(r#"-32601 no "{kind}" subscription in eth namespace"#);
            assert_eq!(topic, Err(why));
        }
        let long = parse(
            "eth_subscribe",
            &format!(r#","params":["x","{}"]"#, "y".repeat(16 << 10)),
        );
        assert!(long.is_err_and(|why| why.starts_with("-32005 ")));
    }

    /// Answers recorded from geth 1.17.8.
    #[test]
    fn receipts_in_geths_words() {
        let hash = format!("\"0x{}\"", "ab".repeat(32));
        let many = |count: usize| format!("[{}]", vec![hash.as_str(); count].join(","));
        let parsed = |rest: &str| parse("eth_subscribe", &format!(r#","params":["transactionReceipts"{rest}]"#));
        let of = |hashes: &str| parsed(&format!(r#",{{"transactionHashes":{hashes}}}"#));
        let all = Ok(Topic::Receipts(ReceiptFilter::default()));
        for rest in ["", ",null", ",{}", r#",{"else":1}"#] {
            assert_eq!(parsed(rest), all);
        }
        for hashes in ["null", "[]"] {
            assert_eq!(of(hashes), all);
        }
        let one = of(&many(1));
        assert!(one.is_ok() && one != all);
        assert_eq!(of(&many(200)), one, "twice is once");
        assert_eq!(of(&format!("[{}]", hash.to_uppercase())), one);
        assert_eq!(parsed(&format!(r#",{{"TransactionHashes":{}}}"#, many(1))), one);
        let too_many = "-32000 exceed max number of transaction hashes allowed per transactionReceipts subscription";
        assert_eq!(of(&many(201)), Err(too_many.to_owned()));
        let unread = |what: &str, of: &str| {
            let field = "into Go struct field input.transactionHashes of type";
            format!("json: cannot unmarshal {what} {field} {of}")
        };
        let input = |what: &str| format!("json: cannot unmarshal {what} into Go value of type filters.input");
        let (one, list) = ("common.Hash", "[]common.Hash");
        let short = |length: usize| format!("hex string has length {length}, want 64 for common.Hash");
        for (rest, why) in [
            (",true", input("bool")),
            (",[]", input("array")),
            (r#","x""#, input("string")),
            (",1", input("number")),
            (r#",{"transactionHashes":"0xaa"}"#, unread("string", list)),
            (r#",{"transactionHashes":5}"#, unread("number", list)),
            (r#",{"transactionHashes":true}"#, unread("bool", list)),
            (r#",{"transactionHashes":{}}"#, unread("object", list)),
            (r#",{"transactionHashes":["0xaa"]}"#, short(2)),
            (r#",{"transactionHashes":["0xaa"]},1"#, short(2)),
            (r#",{"transactionHashes":["0xaa",5]}"#, short(2)),
            (r#",{"transactionHashes":[""]}"#, short(0)),
            (r#",{"transactionHashes":["0x"]}"#, short(0)),
            (r#",{"transactionHashes":[null]}"#, unread("non-string", one)),
            (r#",{"transactionHashes":[5,"0xaa"]}"#, unread("non-string", one)),
            (
                r#",{"transactionHashes":["0xabc"]}"#,
                unread("hex string of odd length", one),
            ),
            (
                r#",{"transactionHashes":["abab"]}"#,
                unread("hex string without 0x prefix", one),
            ),
            (
                &format!(r#",{{"transactionHashes":["0x{}"]}}"#, "zz".repeat(32)),
                unread("invalid hex string", one),
            ),
        ] {
            assert_eq!(parsed(rest), Err(format!("-32602 invalid argument 1: {why}")), "{rest}");
        }
        // Surplus arguments are reported before the hashes are counted.
        for rest in [",null,1", &format!(r#",{{"transactionHashes":{}}},1"#, many(201))] {
            assert_eq!(
                parsed(rest),
                Err("-32602 too many arguments, want at most 2".to_owned())
            );
        }
    }

    #[test]
    fn what_a_filter_adds_to_the_index() {
        let entries = |params: &str| {
            let topic = parse("eth_subscribe", &format!(r#","params":{params}"#)).expect("a topic");
            topic.index_entries()
        };
        let [a, b] = [1, 2].map(|byte| format!("\"{}\"", alloy_primitives::Address::repeat_byte(byte)));
        assert_eq!(entries(r#"["newHeads"]"#), 0);
        assert_eq!(entries(r#"["logs",{}]"#), 1);
        assert_eq!(entries(&format!(r#"["logs",{{"address":[{a},{b}]}}]"#)), 2);
        assert_eq!(entries(r#"["alchemy_pendingTransactions"]"#), 0);
        let pending = format!(r#"["alchemy_pendingTransactions",{{"fromAddress":[{a},{b}],"toAddress":{a}}}]"#);
        assert_eq!(entries(&pending), 3);
        let mined = format!(r#"["alchemy_minedTransactions",{{"addresses":[{{"from":{a},"to":{b}}},{{"to":{a}}}]}}]"#);
        assert_eq!(entries(&mined), 3);
        assert_eq!(entries(r#"["transactionReceipts"]"#), 0);
        let [c, d] = [1, 2].map(|byte| format!("\"{}\"", alloy_primitives::B256::repeat_byte(byte)));
        let receipts = format!(r#"["transactionReceipts",{{"transactionHashes":[{c},{d},{c}]}}]"#);
        assert_eq!(entries(&receipts), 2);
    }

    #[test]
    fn mined_transactions_under_the_names_that_providers_gave_them() {
        let eth = |params: &str| parse("eth_subscribe", &format!(r#","params":{params}"#));
        for name in ["alchemy_minedTransactions", "nodit_minedTransactions"] {
            for options in ["", ",null", ",{}", r#",{"addresses":[],"includeRemoved":false}"#] {
                let all = Topic::Mined(TransactionFilter::all(TransactionForm::Full));
                assert_eq!(eth(&format!(r#"["{name}"{options}]"#)), Ok(all));
            }
            for (options, why) in [
                ("[]", "-32602 invalid argument 1: expected an object, got array"),
                ("{},{}", "-32602 too many arguments, want at most 2"),
                (
                    r#"{"addresses":[{}]}"#,
                    "-32602 invalid argument 1: invalid addresses at index 0: names neither from nor to",
                ),
            ] {
                assert_eq!(eth(&format!(r#"["{name}",{options}]"#)), Err(why.to_owned()));
            }
        }
    }
}
