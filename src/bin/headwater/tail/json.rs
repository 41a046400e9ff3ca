//! `--json`: the shape of each line, which docs/tail.md lists. Members are added, never renamed or taken away.

use alloy_primitives::{Address, B256, Bytes, U256};
use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

use super::abi::{Argument, Decoded, Events};
use super::event::Event;
use super::value::Json;
use crate::text::escape_json;

#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "lowercase", rename_all_fields = "camelCase")]
enum Line<'a> {
    Head {
        removed: bool,
        number: u64,
        hash: B256,
        parent_hash: B256,
        timestamp: Option<u64>,
        gas_used: Option<u64>,
        gas_limit: Option<u64>,
        base_fee_per_gas: Option<Decimal>,
    },
    Log {
        removed: bool,
        block_number: u64,
        block_hash: B256,
        transaction_hash: B256,
        transaction_index: u64,
        log_index: u64,
        address: Address,
        topics: &'a [B256],
        data: &'a Bytes,
        event: Option<&'a str>,
        args: Option<Arguments<'a>>,
    },
    Receipt {
        removed: bool,
        block_number: u64,
        block_hash: B256,
        transaction_hash: B256,
        transaction_index: u64,
        /// `true` for success.
        status: Option<bool>,
        from: Address,
        to: Option<Address>,
        contract_address: Option<Address>,
        gas_used: u64,
        effective_gas_price: Option<Decimal>,
        logs: usize,
    },
    Pending {
        hash: B256,
    },
}

/// A number as a decimal string: wei exceed what most readers of JSON represent.
struct Decimal(U256);

impl Serialize for Decimal {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&self.0)
    }
}

/// Arguments by name; by position, from 0, where there is no name or it is taken.
struct Arguments<'a>(Vec<(&'a str, Argument)>);

impl Serialize for Arguments<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Hash {
            hash: B256,
        }
        let mut map = to.serialize_map(Some(self.0.len()))?;
        for (at, (name, argument)) in self.0.iter().enumerate() {
            if name.is_empty() || self.0[..at].iter().any(|(earlier, _)| earlier == name) {
                map.serialize_key(&at.to_string())?;
            } else {
                map.serialize_key(name)?;
            }
            match argument {
                Argument::Value(value) => map.serialize_value(&Json(value))?,
                Argument::Hash(hash) => map.serialize_value(&Hash { hash: *hash })?,
            }
        }
        map.end()
    }
}

/// Returns an event as one line of JSON, without characters that a terminal would act on.
pub(super) fn line(event: &Event, removed: bool, events: &Events) -> String {
    let line = match event {
        Event::Head(head) => Line::Head {
            removed,
            number: head.number,
            hash: head.hash,
            parent_hash: head.parent_hash,
            timestamp: head.timestamp,
            gas_used: head.gas_used,
            gas_limit: head.gas_limit,
            base_fee_per_gas: head.base_fee_per_gas.map(Decimal),
        },
        Event::Log(log) => {
            let decoded = events.decode(log);
            let (event, args) = match decoded {
                Some(Decoded {
                    signature, arguments, ..
                }) => (Some(signature), Some(Arguments(arguments))),
                None => (None, None),
            };
            Line::Log {
                removed,
                block_number: log.block_number,
                block_hash: log.block_hash,
                transaction_hash: log.transaction_hash,
                transaction_index: log.transaction_index,
                log_index: log.log_index,
                address: log.address,
                topics: &log.topics,
                data: &log.data,
                event,
                args,
            }
        }
        Event::Receipt(receipt) => Line::Receipt {
            removed,
            block_number: receipt.block_number,
            block_hash: receipt.block_hash,
            transaction_hash: receipt.transaction_hash,
            transaction_index: receipt.transaction_index,
            status: receipt.status,
            from: receipt.from,
            to: receipt.to,
            contract_address: receipt.contract_address,
            gas_used: receipt.gas_used,
            effective_gas_price: receipt.effective_gas_price.map(Decimal),
            logs: receipt.logs,
        },
        Event::Pending(hash) => Line::Pending { hash: *hash },
    };
    escape_json(serde_json::to_string(&line).expect("every key is a string"))
}
