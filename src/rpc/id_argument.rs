//! The one parameter of a method that takes an id: a filter's or a subscription's.

use serde_json::Value;
use serde_json::value::RawValue;

use crate::delivery::SubscriptionId;
use crate::jsonrpc::{ErrorObjectOwned, INVALID_PARAMS, error};

/// Reads an id by geth's grammar of `rpc.ID` (PROTOCOL 1.7); `None` for a text that headwater cannot have
/// assigned.
///
/// # Errors
/// The error of geth, if the id is missing, is not a string, or has other arguments after it.
pub fn id_argument(args: &[&RawValue]) -> Result<Option<SubscriptionId>, ErrorObjectOwned> {
    let missing = || error(INVALID_PARAMS, "missing value for required argument 0");
    let first = args.first().ok_or_else(missing)?;
    let kind = match serde_json::from_str(first.get()) {
        Ok(Value::Null) => return Err(missing()),
        // The same order as geth: arguments are parsed before they are counted.
        Ok(Value::String(_)) | Err(_) if args.len() > 1 => {
            return Err(error(INVALID_PARAMS, "too many arguments, want at most 1"));
        }
        Ok(Value::String(id)) => return Ok(SubscriptionId::parse(&id)),
        Err(_) => return Ok(None),
        Ok(Value::Bool(_)) => "bool",
        Ok(Value::Number(_)) => "number",
        Ok(Value::Array(_)) => "array",
        Ok(Value::Object(_)) => "object",
    };
    Err(error(
        INVALID_PARAMS,
        format!("invalid argument 0: json: cannot unmarshal {kind} into Go value of type rpc.ID"),
    ))
}
