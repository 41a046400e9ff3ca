//! Separate connections for calls that may have broken a shared one.
//!
//! Any call in flight on a connection that breaks may be the cause, so each that can be repeated is sent again, alone on
//! a connection. A call that breaks such connections while the node stays up, twice if it can be repeated and the time
//! suffices, is the cause: it is remembered and refused for a while, and so are all calls of its account. No other account is marked.
//!
//! Accounts under a milder consequence, whose changes or calls are all sent alone ([`Solitude`]), have connections of
//! their own here, so that they do not delay a call that was lost.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, warn};

use super::call::{attempted, exchange};
use super::call_lane::knows_head;
use super::dedicated_connection::DedicatedConnection;
use super::link::LinkError;
use super::roster::Upstream;
use super::{CallError, CallRequest, MinHead, Repeat};
use crate::conduct::CONSEQUENCE;
use crate::jsonrpc::Outcome;
use crate::shares::{FairPool, Owner};

/// Most such connections to one node at the same time, for each [`Solitude`]: accounts without a consequence, those
/// whose changes are sent alone, and those whose calls are all sent alone. None of these delays the others.
const PLACES: [usize; 3] = [4, 2, 2];

/// Most calls of one account that wait for such a connection: all calls in flight may be lost with a shared one, and
/// their number is bounded already.
const MAX_WAITING: usize = 4096;

/// Most calls remembered; the oldest is forgotten first.
const REMEMBERED: usize = 1024;

/// Idle time after which a connection that is kept for waiting calls is no longer used.
const MAX_SPARE_IDLE: Duration = Duration::from_secs(1);

/// The quarantine of one node.
#[derive(Debug)]
pub(super) struct Quarantine {
    places: [Arc<FairPool>; 3],
    /// Connections whose last call was answered, kept for the waiting calls: one call at a time, but not a handshake
    /// for each.
    spare: Mutex<Vec<Spare>>,
    breaking: Mutex<Breaking>,
    /// Its seed is new in each process.
    hasher: RandomState,
}

#[derive(Debug)]
struct Spare {
    link: DedicatedConnection,
    /// The stream's connection at the time.
    stream: Option<u64>,
    idle_since: Instant,
}

/// Hashes of calls that broke a connection of their own, by method, with the time.
#[derive(Debug, Default)]
struct Breaking(HashMap<String, HashMap<u64, Instant>>);

impl Breaking {
    fn remember(&mut self, method: &str, key: u64, now: Instant) {
        if self.0.values().map(HashMap::len).sum::<usize>() >= REMEMBERED {
            let oldest = self.0.values().flat_map(HashMap::values).min().copied();
            self.forget(|since| Some(since) == oldest);
        }
        self.0.entry(method.to_owned()).or_default().insert(key, now);
    }

    fn forget(&mut self, is_over: impl Fn(Instant) -> bool) {
        self.0.retain(|_, calls| {
            calls.retain(|_, since| !is_over(*since));
            !calls.is_empty()
        });
    }

    /// Checks if a call of this method is remembered; forgets calls whose time is over.
    fn has(&mut self, method: &str, now: Instant) -> bool {
        if self.0.contains_key(method) {
            self.forget(|since| now >= since + CONSEQUENCE);
        }
        self.0.contains_key(method)
    }

    fn includes(&self, method: &str, key: u64, now: Instant) -> bool {
        let since = self.0.get(method).and_then(|calls| calls.get(&key));
        since.is_some_and(|since| now < *since + CONSEQUENCE)
    }
}

impl Default for Quarantine {
    fn default() -> Self {
        Self {
            places: PLACES
                .map(|places| FairPool::new("too many calls on a connection of their own", places, MAX_WAITING)),
            spare: Mutex::default(),
            breaking: Mutex::default(),
            hasher: RandomState::new(),
        }
    }
}

impl Quarantine {
    /// Checks if this call is known to break the node's connections.
    pub(super) fn refuses(&self, ask: &CallRequest) -> bool {
        // Nearly always no call is remembered, and else none of this method; then the parameters, which may be long, are
        // not read. They are never read under the lock.
        let now = {
            let mut breaking = self.breaking.lock();
            if breaking.0.is_empty() {
                return false;
            }
            let now = Instant::now();
            if !breaking.has(&ask.method, now) {
                return false;
            }
            now
        };
        let key = self.key(ask);
        self.breaking.lock().includes(&ask.method, key, now)
    }

    fn key(&self, ask: &CallRequest) -> u64 {
        // Normalized: calls that differ in white space or in the order of members are the same.
        let params: Option<serde_json::Value> = serde_json::from_str(&ask.params).ok();
        let params = params.map_or_else(|| ask.params.as_ref().to_owned(), |params| params.to_string());
        self.hasher.hash_one(params)
    }

    fn remember(&self, ask: &CallRequest) {
        let key = self.key(ask);
        self.breaking.lock().remember(&ask.method, key, Instant::now());
    }

    /// Takes a connection that was opened while the stream's connection had this number.
    fn take_spare(&self, stream: Option<u64>) -> Option<DedicatedConnection> {
        let now = Instant::now();
        let mut spare = self.spare.lock();
        spare.retain(|spare| spare.stream == stream && now < spare.idle_since + MAX_SPARE_IDLE);
        spare.pop().map(|spare| spare.link)
    }

    /// Keeps a connection for the calls that wait, and closes all if none does.
    fn give_back(&self, link: DedicatedConnection, stream: Option<u64>) {
        let waits = self.places.iter().any(|places| places.usage().1 > 0);
        let mut spare = self.spare.lock();
        if !waits {
            spare.clear();
        } else if spare.len() < PLACES.iter().sum() {
            let idle_since = Instant::now();
            spare.push(Spare {
                link,
                stream,
                idle_since,
            });
        }
    }
}

impl Upstream {
    /// Sends a call on a connection of its own. The call waits up to `time_limit` for a place, and then has half of
    /// `time_limit`, so that calls which hold all places do not use up the time of those that wait.
    ///
    /// # Errors
    /// - [`CallError::Breaks`] if the call ended such connections while the node stayed up;
    /// - [`CallError::TooLong`] if the answer exceeds the limit;
    /// - [`CallError::Unavailable`] if no connection can be made to a node of the chain that has the newest head, where
    ///   the call depends on the head: the call was not sent;
    /// - [`CallError::Lost`] if the connection ended for another reason;
    /// - [`CallError::TimedOut`] if there was no place or no answer within the time limit;
    /// - [`CallError::Full`] if too many calls wait.
    pub(super) async fn ask_alone(&self, ask: &CallRequest, time_limit: Duration) -> Result<Outcome, CallError> {
        let solitude = ask.conduct.solitude(Instant::now());
        let places = &self.quarantine.places[solitude as usize];
        let Ok(place) = timeout(time_limit, places.acquire(ask.owner)).await else {
            if places.has_place(ask.owner) {
                // The account's other calls hold its places; this one may be what broke the connection.
                ask.conduct.isolate_calls(Instant::now());
            }
            return Err(CallError::TimedOut);
        };
        let _place = place.map_err(CallError::Full)?;
        let attempt = ask.attempt(&self.shared.endpoint);
        let answer = self.ask_with_place(ask, Instant::now() + time_limit / 2).await;
        attempted(attempt, &answer);
        match answer {
            Err(CallError::Breaks) => {
                warn!(
                    "upstream {}: the node closes the connection on a call of {}; headwater does not repeat \
                 this call there for {CONSEQUENCE:?}",
                    self.shared.endpoint, ask.method
                );
                self.quarantine.remember(ask);
            }
            // A call that ends the connection only after the time limit is never seen to break it.
            Err(CallError::TimedOut) => ask.conduct.isolate_calls(Instant::now()),
            _ => {}
        }
        answer
    }

    async fn ask_with_place(&self, ask: &CallRequest, until: Instant) -> Result<Outcome, CallError> {
        if ask.repeat != Repeat::Never {
            let stream = *self.shared.stream.borrow();
            let spare = self.quarantine.take_spare(stream);
            if let Some(mut link) = spare {
                let asking = async {
                    if ask.min_head != MinHead::Any && !knows_head(&self.shared, &mut link).await? {
                        return Err(LinkError::Closed);
                    }
                    link.ask(&ask.method, &ask.params).await
                };
                match timeout_at(until, asking).await {
                    Ok(Ok(outcome)) => {
                        self.quarantine.give_back(link, stream);
                        return Ok(outcome);
                    }
                    Ok(Err(why)) if why.is_too_big() => return Err(CallError::TooLong),
                    // It may have ended before this call.
                    Ok(Err(_)) => {}
                    Err(_) => return Err(CallError::TimedOut),
                }
            }
        }
        let attempts = if ask.repeat == Repeat::Never { 1 } else { 2 };
        let mut broke = false;
        for _ in 0..attempts {
            match timeout_at(until, self.attempt(ask)).await {
                Ok(Err(CallError::Breaks)) => broke = true,
                Ok(other) => return other,
                Err(_) if broke => break,
                Err(_) => return Err(CallError::TimedOut),
            }
        }
        Err(CallError::Breaks)
    }

    async fn attempt(&self, ask: &CallRequest) -> Result<Outcome, CallError> {
        let shared = &self.shared;
        let stream = *shared.stream.borrow();
        let opening = timeout(shared.settings.connect_timeout, self.open_for(ask));
        let mut link = opening.await.unwrap_or(Err(CallError::Unavailable))?;
        match link.ask(&ask.method, &ask.params).await {
            Ok(outcome) => {
                self.quarantine.give_back(link, stream);
                Ok(outcome)
            }
            Err(why) if why.is_too_big() => Err(CallError::TooLong),
            Err(_) => {
                // A node that restarts breaks every connection.
                let alive = exchange(
                    &self.stream.internal,
                    "eth_chainId".into(),
                    "".into(),
                    Owner::OURS,
                    None,
                    shared.settings.silence_timeout,
                );
                let stays_up = alive.await.is_ok() && stream.is_some() && *shared.stream.borrow() == stream;
                Err(if stays_up { CallError::Breaks } else { CallError::Lost })
            }
        }
    }

    /// Connects. A balancer may lead to a node of another chain, or to one that lags; and a node that is shutting down
    /// closes before the call is sent.
    async fn open_for(&self, ask: &CallRequest) -> Result<DedicatedConnection, CallError> {
        let shared = &self.shared;
        let unavailable = |why: &dyn std::fmt::Display| {
            debug!(upstream = %shared.endpoint, %why, "cannot open a connection for an isolated call");
            CallError::Unavailable
        };
        let mut link = DedicatedConnection::connect(&shared.endpoint, &shared.settings)
            .await
            .map_err(|why| unavailable(&why))?;
        if let Outcome::Result(id) = link.chain_id().await.map_err(|why| unavailable(&why))? {
            let id = String::from_utf8_lossy(&id);
            let checked = shared.identity.check_chain_id(&shared.endpoint, &id);
            checked.map_err(|why| unavailable(&why))?;
        }
        if ask.min_head != MinHead::Any && !knows_head(shared, &mut link).await.map_err(|why| unavailable(&why))? {
            return Err(unavailable(&"the node at its other end does not know the newest head"));
        }
        Ok(link)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::{MinHead, Repeat, Target};

    fn ask(method: &str, params: &str) -> CallRequest {
        CallRequest {
            record: None,
            method: method.to_owned().into(),
            params: params.into(),
            class: "other",
            min_head: MinHead::Any,
            target: Target::LeastLoaded,
            repeat: Repeat::Read,
            archive: false,
            conduct: Default::default(),
            owner: Owner::OURS,
        }
    }

    #[test]
    fn a_call_is_remembered_whatever_its_spelling() {
        let quarantine = Quarantine::default();
        quarantine.remember(&ask("eth_call", r#"[{"to":"0x1","data":"0x"},"latest"]"#));
        for (method, params, expect) in [
            ("eth_call", r#"[{"to":"0x1","data":"0x"},"latest"]"#, true),
            ("eth_call", "[ {\"data\":\"0x\",\n\"to\":\"0x1\"}, \"latest\" ]", true),
            ("eth_call", r#"[{"to":"0x2","data":"0x"},"latest"]"#, false),
            ("eth_estimateGas", r#"[{"to":"0x1","data":"0x"},"latest"]"#, false),
            ("eth_call", "", false),
            ("eth_call", "[", false),
        ] {
            assert_eq!(quarantine.refuses(&ask(method, params)), expect, "{method} {params}");
        }
    }

    #[test]
    fn a_call_is_remembered_for_a_while() {
        let mut breaking = Breaking::default();
        let now = Instant::now();
        breaking.remember("eth_call", 1, now);
        assert!(breaking.includes("eth_call", 1, now + CONSEQUENCE - Duration::from_secs(1)));
        assert!(!breaking.includes("eth_call", 1, now + CONSEQUENCE));
        assert!(breaking.has("eth_call", now) && !breaking.has("eth_estimateGas", now));
        assert!(!breaking.includes("eth_call", 2, now) && !breaking.includes("eth_estimateGas", 1, now));
        // Then parameters of this method's calls are not read any more.
        assert!(!breaking.has("eth_call", now + CONSEQUENCE) && breaking.0.is_empty());
    }

    #[test]
    fn only_so_many_are_remembered() {
        let mut breaking = Breaking::default();
        let now = Instant::now();
        let method = |number: u64| {
            if number.is_multiple_of(2) {
                "eth_call"
            } else {
                "eth_estimateGas"
            }
        };
        for number in 0..REMEMBERED as u64 + 10 {
            breaking.remember(method(number), number, now + Duration::from_micros(number));
        }
        let all: usize = breaking.0.values().map(HashMap::len).sum();
        assert_eq!(all, REMEMBERED);
        assert!(!breaking.includes(method(9), 9, now) && breaking.includes(method(10), 10, now));
    }
}
