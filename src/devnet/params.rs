//! The positional parameters of a call.

use alloy_primitives::{Address, B256, Bytes, U256};
use serde_json::{Value, value::RawValue};

use super::rpc::RpcError;

/// A call's positional parameters. Absent and `null` parameters are the same.
#[derive(Debug, Default)]
pub(super) struct Params(Vec<Value>);

impl Params {
    /// Parses `params`; absent and `null` mean no parameters.
    pub(super) fn parse(raw: Option<&RawValue>) -> Result<Self, RpcError> {
        match raw.map(|raw| serde_json::from_str(raw.get())) {
            None | Some(Ok(Value::Null)) => Ok(Self::default()),
            Some(Ok(Value::Array(values))) => Ok(Self(values)),
            Some(_) => Err(RpcError::new(-32602, "non-array args")),
        }
    }

    pub(super) fn limit(&self, most: usize) -> Result<(), RpcError> {
        if self.0.len() > most {
            return Err(RpcError::new(
                -32602,
                format!("too many arguments, want at most {most}"),
            ));
        }
        Ok(())
    }

    pub(super) fn get(&self, index: usize) -> Option<&Value> {
        self.0.get(index).filter(|value| !value.is_null())
    }

    pub(super) fn required(&self, index: usize) -> Result<&Value, RpcError> {
        let missing = || RpcError::new(-32602, format!("missing value for required argument {index}"));
        self.get(index).ok_or_else(missing)
    }

    pub(super) fn flag(&self, index: usize) -> Result<bool, RpcError> {
        match self.get(index) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => {
                let what = match other {
                    Value::Number(_) => "number",
                    Value::String(_) => "string",
                    Value::Array(_) => "array",
                    _ => "object",
                };
                let message = format!("json: cannot unmarshal {what} into Go value of type bool");
                Err(RpcError::invalid_argument(index, &message))
            }
        }
    }

    pub(super) fn hash(&self, index: usize) -> Result<B256, RpcError> {
        let bytes = self.bytes(index)?;
        B256::try_from(&bytes[..]).map_err(|_| {
            let message = format!("hex string has length {}, want 64 for common.Hash", bytes.len() * 2);
            RpcError::invalid_argument(index, &message)
        })
    }

    pub(super) fn address(&self, index: usize) -> Result<Address, RpcError> {
        let bytes = self.bytes(index)?;
        Address::try_from(&bytes[..]).map_err(|_| {
            let message = format!("hex string has length {}, want 40 for common.Address", bytes.len() * 2);
            RpcError::invalid_argument(index, &message)
        })
    }

    pub(super) fn bytes(&self, index: usize) -> Result<Bytes, RpcError> {
        let text = self.required(index)?.as_str();
        let text = text.ok_or_else(|| RpcError::invalid_argument(index, "json: cannot unmarshal non-string"))?;
        hex_bytes(text).map_err(|error| RpcError::invalid_argument(index, &error))
    }

    /// Returns a number, written as JSON number or hex string: people type the control methods. `None` if absent.
    pub(super) fn number(&self, index: usize) -> Result<Option<u64>, RpcError> {
        let invalid = || RpcError::invalid_argument(index, "expected a number");
        match self.get(index) {
            None => Ok(None),
            Some(Value::Number(number)) => number.as_u64().map(Some).ok_or_else(invalid),
            Some(Value::String(text)) => parse_quantity(text).map(Some).map_err(|_| invalid()),
            Some(_) => Err(invalid()),
        }
    }

    /// Returns a block named by number, tag or (EIP-1898) an object; the latest if absent.
    pub(super) fn block(&self, index: usize) -> Result<BlockTag, RpcError> {
        let Some(value) = self.get(index) else {
            return Ok(BlockTag::Latest);
        };
        BlockTag::parse(value).map_err(|error| RpcError::invalid_argument(index, &error))
    }
}

/// A canonical block named by number or tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlockTag {
    Number(u64),
    Earliest,
    Latest,
    Pending,
    Safe,
    Finalized,
}

impl BlockTag {
    pub(super) fn parse(value: &Value) -> Result<Self, String> {
        match value {
            Value::String(text) => match text.as_str() {
                "earliest" => Ok(Self::Earliest),
                "latest" => Ok(Self::Latest),
                "pending" => Ok(Self::Pending),
                "safe" => Ok(Self::Safe),
                "finalized" => Ok(Self::Finalized),
                number => parse_quantity(number).map(Self::Number),
            },
            Value::Object(object) => object.get("blockNumber").map_or(Ok(Self::Latest), Self::parse),
            _ => Err("hex string without 0x prefix".to_owned()),
        }
    }
}

/// Parses a number in geth's strict notation.
pub(super) fn parse_quantity(text: &str) -> Result<u64, String> {
    if text.is_empty() {
        return Err("empty hex string".to_owned());
    }
    let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) else {
        return Err("hex string without 0x prefix".to_owned());
    };
    match digits {
        "" => Err("hex string \"0x\"".to_owned()),
        "0" => Ok(0),
        _ if digits.starts_with('0') => Err("hex number with leading zero digits".to_owned()),
        _ if digits.starts_with('+') => Err("invalid hex string".to_owned()),
        _ => u64::from_str_radix(digits, 16).map_err(|_| "invalid hex string".to_owned()),
    }
}

/// Parses bytes in geth's notation, with the required prefix.
pub(super) fn hex_bytes(text: &str) -> Result<Bytes, String> {
    if text.is_empty() {
        return Err("empty hex string".to_owned());
    }
    let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) else {
        return Err("hex string without 0x prefix".to_owned());
    };
    if digits.len() % 2 == 1 {
        return Err("hex string of odd length".to_owned());
    }
    alloy_primitives::hex::decode(digits)
        .map(Bytes::from)
        .map_err(|_| "invalid hex string".to_owned())
}

/// Converts a number to a 32-byte word.
pub(super) fn word(value: U256) -> B256 {
    B256::from(value.to_be_bytes::<32>())
}
