//! Query of `GET /events`, and the parameters of `eth_subscribe` that it stands for.

use std::borrow::Cow;

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::events::EventsRequest;
use crate::jsonrpc::{ErrorObjectOwned, INVALID_PARAMS, error};

/// Kinds: name in a query, the kind of `eth_subscribe`, and its form of filter.
const KINDS: [(&str, &str, Filter); 9] = [
    ("heads", "newHeads", Filter::None),
    ("newHeads", "newHeads", Filter::None),
    ("newFinalizedHeads", "newFinalizedHeads", Filter::None),
    ("newSafeHeads", "newSafeHeads", Filter::None),
    ("logs", "logs", Filter::Logs),
    ("blockLogs", "blockLogs", Filter::Logs),
    ("receipts", "transactionReceipts", Filter::Receipts),
    ("transactionReceipts", "transactionReceipts", Filter::Receipts),
    ("pending", "newPendingTransactions", Filter::Pending),
];

/// Parameters that a kind takes besides the options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filter {
    None,
    Logs,
    Receipts,
    Pending,
}

impl Filter {
    fn names(self) -> &'static [&'static str] {
        match self {
            Self::None => &[],
            Self::Logs => &["address", "topic0", "topic1", "topic2", "topic3"],
            Self::Receipts => &["transactionHash"],
            Self::Pending => &["fromAddress", "toAddress", "hashesOnly"],
        }
    }
}

/// Options of streams of the chain.
const OPTIONS: [&str; 5] = ["after", "fromBlock", "finality", "confirmations", "include"];

/// Parameters that the door reads.
const CREDENTIALS: &str = "key";

pub(super) fn invalid(message: impl Into<String>) -> ErrorObjectOwned {
    error(INVALID_PARAMS, message.into())
}

/// Parameters of a query, in their order.
pub(super) struct Query<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> Query<'a> {
    /// Reads the parameters, except those of the door.
    pub(super) fn read(query: &'a str) -> Self {
        let pairs = url::form_urlencoded::parse(query.as_bytes());
        let pairs = pairs.filter(|(name, _)| name != CREDENTIALS);
        Self(pairs.collect())
    }

    /// Returns the same query without a start.
    pub(super) fn live(mut self) -> Self {
        self.0.retain(|(name, _)| name != "after" && name != "fromBlock");
        self
    }

    /// Returns the only value of a parameter.
    fn one(&self, name: &str) -> Result<Option<&str>, ErrorObjectOwned> {
        let mut values = self.0.iter().filter(|(own, _)| own == name);
        let first = values.next().map(|(_, value)| &**value);
        match values.next() {
            Some(_) => Err(invalid(format!("{name} is given more than once"))),
            None => Ok(first),
        }
    }

    /// Returns all values of a parameter, those between commas too; `None` without the parameter.
    fn all(&self, name: &str) -> Option<Value> {
        let mut values = self.0.iter().filter(|(own, _)| own == name).peekable();
        values.peek()?;
        let values = values.flat_map(|(_, values)| values.split(','));
        Some(values.map(|value| Value::from(value.trim())).collect())
    }

    /// Returns the stream behind this last id, or where the query says.
    ///
    /// # Errors
    /// If there is no kind, or a parameter that the kind does not take.
    pub(super) fn request(&self, last: Option<&str>) -> Result<EventsRequest, ErrorObjectOwned> {
        let names = || KINDS.map(|(name, ..)| name).join(", ");
        let kind = self.one("kind")?;
        let kind = kind.ok_or_else(|| invalid(format!("kind is missing, want one of {}", names())))?;
        let known = KINDS.iter().find(|(name, ..)| *name == kind);
        let Some((_, kind, filter)) = known else {
            return Err(invalid(format!("kind {kind:?} is not known, want one of {}", names())));
        };
        let options: &[&str] = if *filter == Filter::Pending { &[] } else { &OPTIONS };
        for (name, _) in &self.0 {
            let name = &**name;
            if name != "kind" && !filter.names().contains(&name) && !options.contains(&name) {
                let known = [&["kind"], filter.names(), options].concat().join(", ");
                return Err(invalid(format!("parameter {name:?} is not known, want one of {known}")));
            }
        }
        let mut params = vec![Value::from(*kind)];
        match filter {
            Filter::None => {}
            Filter::Logs => params.push(self.logs()),
            Filter::Receipts => {
                let hashes = self.all("transactionHash");
                params.push(hashes.map_or(Value::Null, |hashes| json!({ "transactionHashes": hashes })));
            }
            Filter::Pending => params.push(self.pending()?),
        }
        let mut id = None;
        if !options.is_empty() {
            let (own, after) = self.options(last)?;
            id = after;
            if !own.is_empty() {
                params.push(own.into());
            }
        }
        let params = RawValue::from_string(Value::from(params).to_string());
        let params = params.map_err(|why| invalid(why.to_string()))?;
        Ok(EventsRequest { params, id })
    }

    fn logs(&self) -> Value {
        let mut filter = Map::new();
        if let Some(addresses) = self.all("address") {
            filter.insert("address".into(), addresses);
        }
        let topics = ["topic0", "topic1", "topic2", "topic3"].map(|name| self.all(name));
        let count = topics.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        if count > 0 {
            let topics = topics.into_iter().take(count);
            let topics: Value = topics.map(Option::unwrap_or_default).collect();
            filter.insert("topics".into(), topics);
        }
        filter.into()
    }

    fn pending(&self) -> Result<Value, ErrorObjectOwned> {
        let mut filter = Map::new();
        for name in ["fromAddress", "toAddress"] {
            if let Some(addresses) = self.all(name) {
                filter.insert(name.into(), addresses);
            }
        }
        match self.one("hashesOnly")? {
            None => {}
            Some("true") => drop(filter.insert("hashesOnly".into(), true.into())),
            Some("false") => drop(filter.insert("hashesOnly".into(), false.into())),
            Some(_) => return Err(invalid("hashesOnly must be true or false")),
        }
        Ok(if filter.is_empty() { Value::Null } else { filter.into() })
    }

    /// Returns the object of options, and the id that is in it. A client that reconnects by itself repeats its query: the
    /// last id overrides the start in there.
    fn options(&self, last: Option<&str>) -> Result<(Map<String, Value>, Option<String>), ErrorObjectOwned> {
        let mut options = Map::new();
        let mut id = None;
        let after = match last {
            Some(last) => Some(last),
            None => self.one("after")?,
        };
        match after {
            // A block, or a log, as in `eth_subscribe`.
            Some(place) if place.starts_with("0x") => {
                let (block, index) = place
                    .split_once(':')
                    .map_or((place, None), |(block, index)| (block, Some(index)));
                let mut after = Map::new();
                after.insert("blockHash".into(), block.into());
                if let Some(index) = index {
                    after.insert("logIndex".into(), index.into());
                }
                options.insert("after".into(), after.into());
            }
            Some(own) => {
                options.insert("after".into(), own.into());
                id = Some(own.to_owned());
            }
            None => {}
        }
        if last.is_none()
            && let Some(number) = self.one("fromBlock")?
        {
            options.insert("fromBlock".into(), number.into());
        }
        if let Some(level) = self.one("finality")? {
            options.insert("finality".into(), level.into());
        }
        if let Some(depth) = self.one("confirmations")? {
            let number = depth.parse::<u64>();
            options.insert(
                "confirmations".into(),
                number.map_or_else(|_| depth.into(), Value::from),
            );
        }
        if let Some(parts) = self.all("include") {
            options.insert("include".into(), parts);
        }
        Ok((options, id))
    }
}
