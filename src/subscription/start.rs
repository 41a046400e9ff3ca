//! Start of a subscription: now, or the place at which the client left off (DESIGN E9). The options are headwater's
//! own.

use alloy_primitives::{B256, U64};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::jsonrpc::{ErrorObjectOwned, INVALID_PARAMS, error};

/// Start of a subscription.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct StartOptions {
    after: Option<After>,
    from_block: Option<U64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct After {
    block_hash: B256,
    log_index: Option<U64>,
}

impl Start {
    /// Reads the argument at this place; `None` if it is not headwater's own: nodes take no argument there.
    ///
    /// # Errors
    /// If the argument names `after` or `fromBlock` but is not valid.
    pub fn parse(argument: &RawValue, place: usize) -> Option<Result<Self, ErrorObjectOwned>> {
        let text = argument.get();
        let fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).ok()?;
        if !fields.contains_key("after") && !fields.contains_key("fromBlock") {
            return None;
        }
        let refused = |why: &str| error(INVALID_PARAMS, format!("invalid argument {place}: {why}"));
        Some(match serde_json::from_str::<StartOptions>(text) {
            Err(why) => {
                let why = why.to_string();
                // The client has no use for the position in the text.
                Err(refused(why.split(" at line").next().unwrap_or(&why)))
            }
            Ok(StartOptions {
                after: Some(after),
                from_block: None,
            }) => Ok(Self::After {
                block: after.block_hash,
                log: after.log_index.map(|index| index.to()),
            }),
            Ok(StartOptions {
                after: None,
                from_block: Some(number),
            }) => Ok(Self::From(number.to())),
            Ok(StartOptions {
                after: None,
                from_block: None,
            }) => Ok(Self::Live),
            Ok(_) => Err(refused(
                "cannot specify both after and fromBlock, choose one or the other",
            )),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &str) -> Option<Result<Start, String>> {
        let raw = RawValue::from_string(options.to_owned()).expect("JSON");
        Start::parse(&raw, 2).map(|start| start.map_err(|error| error.message().to_owned()))
    }

    #[test]
    fn a_place_is_a_block_with_or_without_a_log_or_a_number() {
        let block = B256::repeat_byte(7);
        for (log, index) in [("", None), (r#","logIndex":"0x1f""#, Some(31))] {
            let options = format!(r#"{{"after":{{"blockHash":"{block}"{log}}}}}"#);
            assert_eq!(parse(&options), Some(Ok(Start::After { block, log: index })));
        }
        assert_eq!(parse(r#"{"fromBlock":"0x10"}"#), Some(Ok(Start::From(16))));
        assert_eq!(parse(r#"{"after":null,"fromBlock":"0x0"}"#), Some(Ok(Start::From(0))));
        assert_eq!(parse(r#"{"after":null}"#), Some(Ok(Start::Live)));
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
            r#"{"fromBlock":"0x1","toBlock":"0x2"}"#,
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
}
