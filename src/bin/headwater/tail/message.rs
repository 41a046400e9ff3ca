//! Messages of an endpoint: answers and notifications, one or an array of them.

use headwater::quantity::Height;
use serde::Deserialize;
use serde::de::{Deserializer as _, Error as _, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::error::{Endpoint, TailError};
use crate::text::short;

/// Code of headwater's answer if a place cannot be resumed at.
const CANNOT_RESUME: i64 = -32001;

/// Code for history that a node does not keep (EIP-4444): geth, reth, Nethermind.
const PRUNED: i64 = 4444;
/// Words of other nodes, with any code: Erigon's "old data not available due to pruning", and CometBFT's "height 5 is
/// not available, lowest height is 100", which chains of the Cosmos SDK pass on.
const PRUNED_WORDS: [&str; 2] = ["prun", "lowest height"];

/// An event of a subscription.
#[derive(Debug)]
pub(super) struct Notification {
    /// JSON of the subscription's id.
    pub(super) subscription: String,
    pub(super) result: Box<RawValue>,
}

/// An error that the endpoint answered.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct RpcError {
    #[serde(default)]
    pub(super) code: i64,
    #[serde(default)]
    message: String,
    #[serde(default)]
    data: Option<Box<RawValue>>,
}

pub(super) type Answer = Result<Box<RawValue>, RpcError>;

/// Request that an answer belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AnswerId {
    One(u64),
    /// All that are open: JSON-RPC's error with the id `null`, to a message that the endpoint could not read.
    All,
}

/// A message, or a member of an array.
#[derive(Debug)]
pub(super) enum Member {
    Answer(AnswerId, Answer),
    Event(Notification),
    /// Notice that a subscription has ended: an error instead of a result.
    Ended,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
    #[serde(default)]
    error: Option<RpcError>,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Params<'a> {
    #[serde(borrow)]
    subscription: &'a RawValue,
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
}

/// Parses a message. What is neither an answer nor an event of a subscription, such as a notification of another kind,
/// is left out.
///
/// # Errors
/// If it is not JSON, or not made of objects.
pub(super) fn parse(text: &str) -> serde_json::Result<Vec<Member>> {
    if !text.trim_start().starts_with('[') {
        let envelope: Envelope<'_> = object(serde_json::from_str(text)?)?;
        return Ok(envelope.member().into_iter().collect());
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let members = json.deserialize_seq(Members)?;
    json.end()?;
    Ok(members)
}

/// Parses an object. serde by itself would take an array for one, its members in the order of the fields.
fn object<'a, T: Deserialize<'a>>(json: &'a RawValue) -> serde_json::Result<T> {
    if !json.get().starts_with('{') {
        return Err(serde_json::Error::custom("no object"));
    }
    serde_json::from_str(json.get())
}

/// Reads an array member by member: an envelope is many times as long as the `{},` from which it is read.
struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Vec<Member>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some(json) = array.next_element::<&'de RawValue>()? {
            let envelope: Envelope<'_> = object(json).map_err(A::Error::custom)?;
            members.extend(envelope.member());
        }
        Ok(members)
    }
}

impl Envelope<'_> {
    fn member(self) -> Option<Member> {
        if let Some(params) = self.params {
            let params: Params<'_> = object(params).ok()?;
            let Some(result) = params.result else {
                return Some(Member::Ended);
            };
            return Some(Member::Event(Notification {
                subscription: params.subscription.get().to_owned(),
                result: result.to_owned(),
            }));
        }
        let id = match self.id {
            Some(id) => AnswerId::One(id.get().trim_matches('"').parse().ok()?),
            None if self.error.is_some() => AnswerId::All,
            None => return None,
        };
        let answer = match (self.error, self.result) {
            (Some(error), _) => Err(error),
            (None, Some(result)) => Ok(result.to_owned()),
            (None, None) => Ok(RawValue::NULL.to_owned()),
        };
        Some(Member::Answer(id, answer))
    }
}

impl RpcError {
    pub(super) fn text(&self) -> String {
        format!("{} ({})", short(&self.message), self.code)
    }

    /// Checks if this is a headwater's refusal to resume: its data name the oldest block from which it can
    /// (docs/resume.md).
    pub(super) fn is_about_resuming(&self) -> bool {
        #[derive(Deserialize)]
        struct Data {
            #[serde(rename = "oldestBlock")]
            _oldest: Height,
        }
        let data = self.data.as_ref().map(|data| serde_json::from_str::<Data>(data.get()));
        self.code == CANNOT_RESUME && matches!(data, Some(Ok(_)))
    }

    /// Checks if the node says that it no longer has what was asked for.
    pub(super) fn is_pruned(&self) -> bool {
        let message = self.message.to_ascii_lowercase();
        self.code == PRUNED || PRUNED_WORDS.iter().any(|words| message.contains(words))
    }

    /// Returns the error that this answer is: a limit or a node that is away pass, anything else is a refusal.
    pub(super) fn to_tail_error(&self, endpoint: &Endpoint, what: &str) -> TailError {
        let text = format!("{endpoint} refused {what}: {}", self.text());
        match self.code {
            -32005 | -32603 | -32002 => TailError::Unavailable(text),
            _ => TailError::Refused(text),
        }
    }
}

impl Notification {
    /// Returns its size in memory, in bytes.
    pub(super) fn size(&self) -> usize {
        size_of::<Self>() + self.subscription.len() + self.result.get().len()
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    #[track_caller]
    fn check(text: &str, expect: Expect) {
        let members = match parse(text) {
            Err(_) => vec!["not JSON-RPC".to_owned()],
            Ok(members) => members.into_iter().map(line).collect(),
        };
        expect.assert_eq(&members.join(", "));
    }

    fn line(member: Member) -> String {
        match member {
            Member::Answer(id, Ok(result)) => format!("{id:?} = {result}"),
            Member::Answer(id, Err(error)) => format!("{id:?} ! {}", error.text()),
            Member::Event(event) => format!("{} > {}", event.subscription, event.result),
            Member::Ended => "ended".to_owned(),
        }
    }

    #[test]
    fn every_member_of_an_array_is_read() {
        let event = |result: u8| {
            format!(r#"{{"method":"eth_subscription","params":{{"subscription":"0x1","result":{result}}}}}"#)
        };
        check(&event(1), expect![[r#""0x1" > 1"#]]);
        check(
            &format!(
                r#" [{}, {{"id":7,"result":"a"}}, {}, {{"id":"8","error":{{"code":-1,"message":"no"}}}}]"#,
                event(1),
                event(2)
            ),
            expect![[r#""0x1" > 1, One(7) = "a", "0x1" > 2, One(8) ! no (-1)"#]],
        );
        check("[]", expect![""]);
    }

    #[test]
    fn a_refusal_to_resume_names_the_oldest_block() {
        let is_refusal = |error: &str| serde_json::from_str::<RpcError>(error).unwrap().is_about_resuming();
        assert!(is_refusal(
            r#"{"code":-32001,"message":"","data":{"oldestBlock":"0x1f"}}"#
        ));
        for other in [
            r#"{"code":-32001,"message":"resource not found"}"#,
            r#"{"code":-32001,"message":"","data":null}"#,
            r#"{"code":-32001,"message":"","data":{"oldestBlock":"latest"}}"#,
            r#"{"code":-32602,"message":"","data":{"oldestBlock":"0x1f"}}"#,
        ] {
            assert!(!is_refusal(other), "{other}");
        }
    }

    #[test]
    fn what_is_neither_answers_nothing() {
        for other in [
            "{}",
            r#"{"jsonrpc":"2.0"}"#,
            r#"{"jsonrpc":"2.0","method":"hello"}"#,
            r#"{"jsonrpc":"2.0","method":"hello","params":[1]}"#,
            r#"{"jsonrpc":"2.0","method":"hello","params":{"a":1}}"#,
            r#"{"jsonrpc":"2.0","result":true}"#,
            r#"{"jsonrpc":"2.0","id":"another","result":true}"#,
        ] {
            check(other, expect![""]);
        }
        check(r#"[{},{"id":1,"result":null}]"#, expect!["One(1) = null"]);
        check(
            r#"{"id":null,"error":{"code":-32700,"message":"parse error"}}"#,
            expect!["All ! parse error (-32700)"],
        );
        check(r#"{"params":{"subscription":1,"error":{"code":1}}}"#, expect!["ended"]);
        for wrong in ["", "1", "[1]", "[[1,2]]", "[{}", "[{}] []", "{}{}"] {
            check(wrong, expect!["not JSON-RPC"]);
        }
    }
}
