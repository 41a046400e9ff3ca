//! Separate connections for calls that may have broken a shared one.
//!
//! Any call in flight on a connection that breaks may be the cause, so each that can be repeated is sent once more,
//! on a connection of its own. A call that breaks this one as well (a read: twice) while the node stays up is the
//! cause: it is remembered and refused for a while. No other call is marked.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, warn};

use super::alone::Alone;
use super::call::exchange;
use super::pool::Upstream;
use super::{Ask, CallError, Repeat};
use crate::conduct::CONSEQUENCE;
use crate::jsonrpc::Outcome;
use crate::shares::{FairPool, Owner};

/// Most such connections to one node at the same time, for accounts without a consequence.
const PLACES: usize = 4;

/// The same, for accounts whose calls, or sends, must all be sent alone: they do not delay the others.
const PLACES_OF_SUSPECTS: usize = 2;

/// Most calls of one account that wait for such a connection: all calls in flight may be lost with a shared one, and
/// their number is bounded already.
const MAX_WAITING: usize = 4096;

/// Most calls remembered; the oldest is forgotten first.
const REMEMBERED: usize = 1024;

/// The quarantine of one node.
#[derive(Debug)]
pub(super) struct Quarantine {
    places: Arc<FairPool>,
    places_of_suspects: Arc<FairPool>,
    /// Connections whose last call was answered, kept for the waiting calls: one call at a time, but not a handshake
    /// for each.
    spare: Mutex<Vec<Alone>>,
    breaking: Mutex<Breaking>,
}

/// Calls that broke a connection of their own, with the time: by a hash whose seed is new in each process.
#[derive(Debug, Default)]
struct Breaking {
    since: HashMap<u64, Instant>,
    newest: Option<Instant>,
    hasher: RandomState,
}

impl Breaking {
    fn key(&self, ask: &Ask) -> u64 {
        // Normalized: calls that differ in white space or in the order of members are the same.
        let params: Option<serde_json::Value> = serde_json::from_str(&ask.params).ok();
        let params = params.map_or_else(|| ask.params.clone(), |params| params.to_string());
        self.hasher.hash_one((&ask.method, params))
    }

    fn remember(&mut self, ask: &Ask, now: Instant) {
        self.since.retain(|_, since| now < *since + CONSEQUENCE);
        if self.since.len() >= REMEMBERED
            && let Some(oldest) = self.since.iter().min_by_key(|(_, since)| **since).map(|(key, _)| *key)
        {
            self.since.remove(&oldest);
        }
        self.since.insert(self.key(ask), now);
        self.newest = Some(now);
    }

    fn includes(&mut self, ask: &Ask, now: Instant) -> bool {
        if self.since.is_empty() {
            return false;
        }
        if self.newest.is_none_or(|newest| now >= newest + CONSEQUENCE) {
            self.since.clear();
            return false;
        }
        let since = self.since.get(&self.key(ask));
        since.is_some_and(|since| now < *since + CONSEQUENCE)
    }
}

impl Default for Quarantine {
    fn default() -> Self {
        Self {
            places: FairPool::new("too many calls on a connection of their own", PLACES, MAX_WAITING),
            places_of_suspects: FairPool::new(
                "too many calls on a connection of their own",
                PLACES_OF_SUSPECTS,
                MAX_WAITING,
            ),
            spare: Mutex::default(),
            breaking: Mutex::default(),
        }
    }
}

impl Quarantine {
    /// Checks if this call is known to break the node's connections, and is refused.
    pub fn refuses(&self, ask: &Ask) -> bool {
        self.breaking.lock().includes(ask, Instant::now())
    }

    fn places(&self, ask: &Ask) -> &Arc<FairPool> {
        match ask.conduct.has_consequence(Instant::now()) {
            true => &self.places_of_suspects,
            false => &self.places,
        }
    }

    /// Keeps a connection for waiting calls; closes all spare ones where no call waits.
    fn give_back(&self, link: Alone) {
        let waits = |places: &FairPool| places.usage().1 > 0;
        let mut spare = self.spare.lock();
        if waits(&self.places) || waits(&self.places_of_suspects) {
            spare.truncate(PLACES + PLACES_OF_SUSPECTS - 1);
            spare.push(link);
        } else {
            spare.clear();
        }
    }
}

impl Upstream {
    /// Sends a call on a connection of its own.
    ///
    /// # Errors
    /// Returns [`CallError::Breaks`] where the call ends such connections while the node stays up;
    /// [`CallError::TooLong`] where the answer is longer than is accepted; [`CallError::Full`] where too many calls
    /// wait; [`CallError::TimedOut`] where there is no answer within `time_limit`; [`CallError::Unavailable`] where the
    /// connection led to a node of another chain; [`CallError::Lost`] where the node cannot be reached, or the
    /// connection ended for another reason.
    pub async fn ask_alone(&self, ask: &Ask, time_limit: Duration) -> Result<Outcome, CallError> {
        let until = Instant::now() + time_limit;
        let asking = async {
            let places = self.quarantine.places(ask);
            let _place = places.acquire(ask.owner).await.map_err(CallError::Full)?;
            if ask.repeat == Repeat::Read {
                let spare = self.quarantine.spare.lock().pop();
                if let Some(mut link) = spare {
                    match link.ask(&ask.method, &ask.params).await {
                        Ok(outcome) => {
                            self.quarantine.give_back(link);
                            return Ok(outcome);
                        }
                        Err(why) if why.is_too_big() => return Err(CallError::TooLong),
                        // The spare connection may have ended before this call.
                        Err(_) => {}
                    }
                }
            }
            let attempts = if ask.repeat == Repeat::Read { 2 } else { 1 };
            for attempt in 1..=attempts {
                match self.attempt(ask).await {
                    Err(CallError::Breaks) if attempt < attempts => {}
                    other => return other,
                }
            }
            Err(CallError::Lost)
        };
        let answer = timeout_at(until, asking).await.unwrap_or(Err(CallError::TimedOut));
        if answer == Err(CallError::Breaks) {
            warn!(
                "upstream {}: it closes the connection on a call of {}; the call is refused for {CONSEQUENCE:?}",
                self.shared.endpoint, ask.method
            );
            self.quarantine.breaking.lock().remember(ask, Instant::now());
        }
        answer
    }

    async fn attempt(&self, ask: &Ask) -> Result<Outcome, CallError> {
        let shared = &self.shared;
        let stream = *shared.stream.borrow();
        let mut link = match Alone::connect(&shared.endpoint, &shared.settings).await {
            Ok(link) => link,
            Err(why) => {
                debug!(upstream = %shared.endpoint, %why, "no connection for a call that is asked alone");
                return Err(CallError::Lost);
            }
        };
        // A balancer may route to a node of another chain; and a node that is shutting down closes before the call is
        // sent.
        match link.chain_id().await {
            Ok(Outcome::Result(id)) => {
                let id = String::from_utf8_lossy(&id);
                shared
                    .identity
                    .check_chain_id(&shared.endpoint, &id)
                    .map_err(|_| CallError::Unavailable)?;
            }
            Ok(Outcome::Error(_)) => {}
            Err(_) => return Err(CallError::Lost),
        }
        match link.ask(&ask.method, &ask.params).await {
            Ok(outcome) => {
                self.quarantine.give_back(link);
                Ok(outcome)
            }
            Err(why) if why.is_too_big() => Err(CallError::TooLong),
            Err(_) => {
                // A node that restarts breaks every connection.
                let alive = exchange(
                    &self.stream.ours,
                    "eth_chainId".into(),
                    String::new(),
                    Owner::OURS,
                    shared.settings.silence_timeout,
                );
                let goes_on = alive.await.is_ok() && stream.is_some() && *shared.stream.borrow() == stream;
                Err(if goes_on { CallError::Breaks } else { CallError::Lost })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::{MinHead, Repeat, Target};

    fn ask(method: &str, params: &str) -> Ask {
        Ask {
            method: method.into(),
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
        let mut breaking = Breaking::default();
        let now = Instant::now();
        breaking.remember(&ask("eth_call", r#"[{"to":"0x1","data":"0x"},"latest"]"#), now);
        for (method, params, expect) in [
            ("eth_call", r#"[{"to":"0x1","data":"0x"},"latest"]"#, true),
            ("eth_call", "[ {\"data\":\"0x\",\n\"to\":\"0x1\"}, \"latest\" ]", true),
            ("eth_call", r#"[{"to":"0x2","data":"0x"},"latest"]"#, false),
            ("eth_estimateGas", r#"[{"to":"0x1","data":"0x"},"latest"]"#, false),
            ("eth_call", "", false),
            ("eth_call", "[", false),
        ] {
            assert_eq!(
                breaking.includes(&ask(method, params), now),
                expect,
                "{method} {params}"
            );
        }
        let known = ask("eth_call", r#"[{"to":"0x1","data":"0x"},"latest"]"#);
        assert!(breaking.includes(&known, now + CONSEQUENCE - Duration::from_secs(1)));
        assert!(!breaking.includes(&known, now + CONSEQUENCE));
    }

    #[test]
    fn only_so_many_are_remembered() {
        let mut breaking = Breaking::default();
        let now = Instant::now();
        for number in 0..REMEMBERED as u64 + 10 {
            breaking.remember(
                &ask("eth_call", &format!("[{number}]")),
                now + Duration::from_micros(number),
            );
        }
        assert_eq!(breaking.since.len(), REMEMBERED);
        assert!(!breaking.includes(&ask("eth_call", "[9]"), now) && breaking.includes(&ask("eth_call", "[10]"), now));
    }
}
