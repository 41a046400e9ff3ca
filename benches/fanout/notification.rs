//! The envelope of a notification, in the bytes that all the servers write.

use crate::chain::mix;

/// What follows the result.
pub const END: &str = "}}";

/// What precedes the result. As long for one subscription as for another.
pub fn prefix(id: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","method":"eth_subscription","params":{{"subscription":"{id}","result":"#)
}

/// 34 characters for every number. The first digit is never zero: clients may parse the id as a number.
pub fn subscription_id(number: u64) -> String {
    format!("0x{:016x}{:016x}", mix(number) | 1 << 63, mix(!number))
}
