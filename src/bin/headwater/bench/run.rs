//! All clients of a run and their counts.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use anyhow::Result;
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::client::{Client, Given, Subscription};
use super::stream::{Kind, Receipt, Stream};

/// Maximum number of faults that are described in words; all are counted.
const MAX_DESCRIBED: usize = 10;

/// Upper bound of the histograms; longer times are recorded as this.
const LONGEST: Duration = Duration::from_secs(600);

pub struct Run {
    clients: Vec<Client>,
    streams: Vec<Stream>,
    /// The parameters of each stream's `eth_subscribe`.
    params: Vec<Value>,
    pub subscribed: usize,
    /// Number of closed clients by reason.
    pub closed: BTreeMap<String, usize>,
    /// `true` during the measurement window: from all clients connected to the end.
    pub counting: bool,
    pub counts: Counts,
}

/// Counts of the measurement window.
pub struct Counts {
    pub deliveries: u64,
    pub bytes: u64,
    /// Nanoseconds after the first client's receipt, for every delivery but the first.
    pub spread: Histogram<u64>,
    /// The same for each event's last delivery.
    pub last: Histogram<u64>,
}

/// Faults found by comparing the clients.
#[derive(Debug, Default)]
pub struct Faults {
    pub lost: u64,
    pub doubled: u64,
    pub disordered: u64,
    /// Descriptions of the first faults.
    pub first: Vec<String>,
}

pub fn histogram() -> Histogram<u64> {
    let longest = u64::try_from(LONGEST.as_nanos()).unwrap_or(u64::MAX);
    Histogram::new_with_bounds(1, longest, 3).expect("three digits and this range are allowed")
}

impl Run {
    /// Creates a run. Each client subscribes to all kinds; the filters of logs are distributed in turn. With
    /// `compress`, the clients offer permessage-deflate.
    pub fn new(clients: usize, kinds: &[Kind], filters: &[Value], compress: bool) -> Self {
        let mut run = Self {
            clients: Vec::with_capacity(clients),
            streams: Vec::new(),
            params: Vec::new(),
            subscribed: 0,
            closed: BTreeMap::new(),
            counting: false,
            counts: Counts {
                deliveries: 0,
                bytes: 0,
                spread: histogram(),
                last: histogram(),
            },
        };
        let mut streams_of = vec![Vec::new(); clients];
        for kind in kinds {
            let params: Vec<Value> = match kind {
                Kind::Heads => vec![json!(["newHeads"])],
                Kind::Logs => filters.iter().map(|filter| json!(["logs", filter])).collect(),
            };
            for (turn, params_of_one) in params.iter().enumerate() {
                let members = (turn..clients).step_by(params.len());
                run.streams.push(Stream::new(*kind, members.len()));
                run.params.push(params_of_one.clone());
                members.for_each(|client| streams_of[client].push(run.streams.len() - 1));
            }
        }
        run.clients = streams_of
            .into_iter()
            .map(|streams| Client::new(streams.into_iter(), compress))
            .collect();
        run
    }

    /// Returns the `eth_subscribe` requests of a client.
    pub fn subscribe_calls(&self, number: usize) -> Vec<String> {
        let subscriptions = self.clients[number].subscriptions.iter().enumerate();
        let call = |(id, subscription): (usize, &Subscription)| {
            let params = &self.params[subscription.stream];
            json!({"jsonrpc": "2.0", "id": id, "method": "eth_subscribe", "params": params}).to_string()
        };
        subscriptions.map(call).collect()
    }

    pub fn subscribed(&self, number: usize) -> bool {
        let mut subscriptions = self.clients[number].subscriptions.iter();
        subscriptions.all(|subscription| subscription.given.is_some())
    }

    /// Processes the bytes of one read; returns the bytes to send back.
    pub fn received(&mut self, number: usize, bytes: &[u8]) -> Result<Vec<u8>> {
        let (counts, counting) = (&mut self.counts, self.counting);
        if counting {
            counts.bytes += bytes.len() as u64;
        }
        self.clients[number].received(bytes, &mut self.streams, |receipt| {
            if !counting {
                return;
            }
            counts.deliveries += 1;
            let nanos = |late: Duration| u64::try_from(late.as_nanos()).unwrap_or(u64::MAX);
            match receipt {
                Receipt::First => {}
                Receipt::Later(late) => counts.spread.saturating_record(nanos(late)),
                Receipt::Last(late) => {
                    counts.spread.saturating_record(nanos(late));
                    counts.last.saturating_record(nanos(late));
                }
            }
        })
    }

    /// Returns the current number of events of each stream.
    pub fn mark(&self) -> Vec<usize> {
        self.streams.iter().map(Stream::len).collect()
    }

    /// Checks if all clients that are still connected have all events up to the mark.
    pub fn complete(&self, end: &[usize], gone: &HashSet<usize>) -> bool {
        let complete = |subscription: &Subscription| {
            let given = subscription.given.as_ref();
            given.is_none_or(|given| given.feed.complete(end[subscription.stream]))
        };
        let mut clients = self.clients.iter().enumerate();
        clients.all(|(number, client)| gone.contains(&number) || client.subscriptions.iter().all(complete))
    }

    /// Returns the `eth_subscribe` parameters of each stream.
    pub fn subscriptions(&self) -> Vec<String> {
        self.params.iter().map(Value::to_string).collect()
    }

    /// Checks every client against the others. Each must have the events between the marks, except closed clients,
    /// which are counted separately.
    pub fn faults(&self, window: &[usize], end: &[usize], gone: &HashSet<usize>) -> Faults {
        let mut faults = Faults::default();
        for (number, client) in self.clients.iter().enumerate() {
            for Subscription { stream: at, given } in &client.subscriptions {
                let Some(Given { feed, .. }) = given else { continue };
                let stream = &self.streams[*at];
                faults.doubled += feed.doubled;
                faults.disordered += feed.disordered;
                let mut fault = feed.fault.clone();
                if !gone.contains(&number) {
                    faults.lost += stream.lost(feed, window[*at], end[*at]);
                    fault = fault.or_else(|| stream.first_lost(feed, window[*at], end[*at]));
                }
                if let Some(fault) = fault.filter(|_| faults.first.len() < MAX_DESCRIBED) {
                    faults.first.push(format!("client {number}: {fault}"));
                }
            }
        }
        faults
    }
}
