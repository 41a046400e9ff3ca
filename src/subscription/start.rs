//! Options of a stream: its start (E9), its level of finality, and the parts of `blockLogs`, in one object that is
//! headwater's own.

use std::fmt;

use alloy_primitives::{B256, U64};
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::block_filter::{Include, Part};
use super::{Level, event_id};
use crate::chain::{Removal, Tag};
use crate::jsonrpc::{ErrorObjectOwned, INVALID_PARAMS, error};

/// Start of a subscription.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Start {
    /// The next event, as in every node.
    #[default]
    Live,
    /// The place behind the last event that the client has.
    After {
        /// Hash of that event's block.
        block: B256,
        /// Index of the last log that the client has; `None` if it has all of the block's.
        log: Option<u64>,
    },
    /// The block of this number.
    From(u64),
    /// The next log to take back of a branch, of which the client was sent a part of the removals.
    Within(Removal),
}

/// Options of a stream of the chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamOptions {
    /// Place at which the stream begins.
    pub start: Start,
    /// Level of finality of its blocks; `None` for a stream that follows the head.
    pub level: Option<Level>,
    /// Further parts of messages of whole blocks.
    pub include: Option<Include>,
}

/// Members of the object of options; an object with none of them is not headwater's.
const MEMBERS: [&str; 5] = ["after", "fromBlock", "finality", "confirmations", "include"];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Members {
    after: Option<After>,
    from_block: Option<U64>,
    finality: Option<Finality>,
    confirmations: Option<Depth>,
    include: Option<Vec<Part>>,
}

/// Place behind an event: its members, or its id if it came as a server-sent event.
struct After(Start);

impl<'de> Deserialize<'de> for After {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        struct Place {
            block_hash: B256,
            log_index: Option<U64>,
        }
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = After;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with blockHash, or the id of a server-sent event")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<After, E> {
                let start = event_id::parse(text);
                start
                    .map(After)
                    .ok_or_else(|| E::custom("after is not the id of a server-sent event"))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<After, A::Error> {
                let place = Place::deserialize(MapAccessDeserializer::new(map))?;
                Ok(After(Start::After {
                    block: place.block_hash,
                    log: place.log_index.map(|index| index.to()),
                }))
            }
        }
        deserializer.deserialize_any(Read)
    }
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Finality {
    Finalized,
    Safe,
}

/// Number of confirmations: a JSON number, as people write it, or a quantity, as everything else on the wire.
#[derive(Clone, Copy, Deserialize)]
#[serde(untagged, expecting = "confirmations must be a positive integer")]
enum Depth {
    Number(u64),
    Quantity(U64),
}

impl StreamOptions {
    /// Reads the argument at this place; `None` if it is not headwater's own: nodes take no argument there.
    ///
    /// # Errors
    /// If the argument has one of the members but is not valid; the error for an unknown member lists the known ones.
    pub fn parse(argument: &RawValue, place: usize) -> Option<Result<Self, ErrorObjectOwned>> {
        let text = argument.get();
        let fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).ok()?;
        if !MEMBERS.iter().any(|name| fields.contains_key(*name)) {
            return None;
        }
        let refused = |why: &str| error(INVALID_PARAMS, format!("invalid argument {place}: {why}"));
        let members = serde_json::from_str::<Members>(text).map_err(|why| {
            let why = why.to_string();
            // The client has no use for the position in the text.
            refused(why.split(" at line").next().unwrap_or(&why))
        });
        Some(members.and_then(|members| members.options().map_err(refused)))
    }

    /// Returns options with another level.
    #[must_use]
    pub fn at(self, level: Level) -> Self {
        let level = Some(level);
        Self { level, ..self }
    }
}

impl Members {
    fn options(self) -> Result<StreamOptions, &'static str> {
        let start = match (self.after, self.from_block) {
            (None, None) => Start::Live,
            (None, Some(number)) => Start::From(number.to()),
            (Some(After(start)), None) => start,
            (Some(_), Some(_)) => return Err("cannot specify both after and fromBlock, choose one or the other"),
        };
        let depth = self.confirmations.map(|depth| match depth {
            Depth::Number(depth) => depth,
            Depth::Quantity(depth) => depth.to(),
        });
        let level = match (self.finality, depth) {
            (None, None) => None,
            (Some(Finality::Finalized), None) => Some(Level::Tag(Tag::Finalized)),
            (Some(Finality::Safe), None) => Some(Level::Tag(Tag::Safe)),
            (None, Some(0)) => return Err("confirmations must be a positive integer"),
            (None, Some(depth)) => Some(Level::Confirmations(depth)),
            (Some(_), Some(_)) => {
                return Err("cannot specify both finality and confirmations, choose one or the other");
            }
        };
        let include = self.include.map(Include::from_iter);
        Ok(StreamOptions { start, level, include })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &str) -> Option<Result<StreamOptions, String>> {
        let raw = RawValue::from_string(options.to_owned()).expect("JSON");
        StreamOptions::parse(&raw, 2).map(|options| options.map_err(|error| error.message().to_owned()))
    }

    #[test]
    fn a_place_is_a_block_with_or_without_a_log_or_a_number() {
        let block = B256::repeat_byte(7);
        let at = |start| {
            Some(Ok(StreamOptions {
                start,
                ..StreamOptions::default()
            }))
        };
        for (log, index) in [("", None), (r#","logIndex":"0x1f""#, Some(31))] {
            let options = format!(r#"{{"after":{{"blockHash":"{block}"{log}}}}}"#);
            assert_eq!(parse(&options), at(Start::After { block, log: index }));
        }
        assert_eq!(parse(r#"{"fromBlock":"0x10"}"#), at(Start::From(16)));
        assert_eq!(parse(r#"{"after":null,"fromBlock":"0x0"}"#), at(Start::From(0)));
        assert_eq!(parse(r#"{"after":null}"#), at(Start::Live));
        assert_eq!(parse(r#"{"finality":null}"#), at(Start::Live));
    }

    #[test]
    fn a_level_is_a_tag_or_a_number_of_confirmations() {
        for (options, start, level) in [
            (r#"{"finality":"finalized"}"#, Start::Live, Level::Tag(Tag::Finalized)),
            (
                r#"{"finality":"safe","fromBlock":"0x1"}"#,
                Start::From(1),
                Level::Tag(Tag::Safe),
            ),
            (r#"{"confirmations":12}"#, Start::Live, Level::Confirmations(12)),
            (r#"{"confirmations":"0xc"}"#, Start::Live, Level::Confirmations(12)),
        ] {
            let level = Some(level);
            let include = None;
            assert_eq!(
                parse(options),
                Some(Ok(StreamOptions { start, level, include })),
                "{options}"
            );
        }
        let include = |options| parse(options).expect("ours").map(|options| options.include);
        let header = Include {
            header: true,
            ..Include::default()
        };
        assert_eq!(include(r#"{"include":["header","header"]}"#), Ok(Some(header)));
        assert_eq!(include(r#"{"include":[]}"#), Ok(Some(Include::default())));
        assert!(include(r#"{"include":["logs"]}"#).is_err());
        assert!(include(r#"{"include":"header"}"#).is_err());
    }

    #[test]
    fn what_is_not_ours_is_left_to_geths_grammar() {
        for other in ["{}", "true", "null", "[]", r#"{"address":"0x"}"#] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        for wrong in [
            r#"{"after":{}}"#,
            r#"{"after":{"blockHash":"0x12"}}"#,
            r#"{"after":"0x12"}"#,
            r#"{"fromBlock":"latest"}"#,
            r#"{"fromBlock":"0x10000000000000000"}"#,
            r#"{"finality":"latest"}"#,
            r#"{"finality":true}"#,
            r#"{"confirmations":0}"#,
            r#"{"confirmations":"0x0"}"#,
            r#"{"confirmations":-1}"#,
            r#"{"confirmations":1.5}"#,
            r#"{"confirmations":"twelve"}"#,
            r#"{"finality":"safe","confirmations":1}"#,
        ] {
            let error = parse(wrong).expect("ours").expect_err(wrong);
            assert!(
                error.starts_with("invalid argument 2: ") && !error.contains("line"),
                "{error}"
            );
        }
        let hash = B256::ZERO;
        let both = format!(r#"{{"after":{{"blockHash":"{hash}"}},"fromBlock":"0x1"}}"#);
        assert!(parse(&both).expect("ours").is_err());
    }

    #[test]
    fn an_unknown_member_beside_ours_is_an_error_that_lists_the_known_ones() {
        let error = parse(r#"{"fromBlock":"0x1","toBlock":"0x2"}"#)
            .expect("ours")
            .expect_err("unknown");
        assert!(error.contains("unknown field `toBlock`"), "{error}");
        assert!(
            MEMBERS.iter().all(|name| error.contains(&format!("`{name}`"))),
            "{error}"
        );
    }
}
