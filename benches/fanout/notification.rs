//! The envelope of a notification, in the bytes that all servers write.

use crate::chain::mix;

/// Bytes after the result.
pub const END: &str = "}}";

/// Returns the bytes before the result; all subscription ids give the same length.
pub fn prefix(id: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","method":"eth_subscription","params":{{"subscription":"{id}","result":"#)
}

/// Returns an id of 34 characters. The first digit is never zero: clients may parse the id as a number.
pub fn subscription_id(number: u64) -> String {
    format!("0x{:016x}{:016x}", mix(number) | 1 << 63, mix(!number))
}
