//! A connection for one question of our own, past a connection for calls that long answers keep busy.
//!
//! Answers arrive in full, one after another: 12 answers of 20 MiB on the connection for calls delayed the logs of a block
//! by 4.9 s on loopback. On a connection of its own the question shares the link with them instead.

use std::time::Duration;

use tokio::time::sleep;
use tracing::debug;

use super::alone::Alone;
use super::lanes::Lanes;
use super::link::LinkError;
use super::pool::Upstream;
use crate::jsonrpc::Outcome;

/// Time between two looks at the connection for calls.
const LOOK: Duration = Duration::from_millis(100);

/// Bytes that arrive on the connection for calls between two looks where long answers keep it busy: 20 Mbit/s.
const BUSY: u64 = 256 << 10;

/// Most such connections to one node at the same time.
pub(super) const PLACES: usize = 2;

impl Upstream {
    /// Asks on a connection of its own, once the connection for calls is busy. Never ends where it is not, or where the own
    /// connection gives no result: the answer over the other one is waited for.
    pub async fn overtake(&self, method: &str, params: &str) -> Outcome {
        match self.ask_past_calls(method, params).await {
            Ok(Some(Outcome::Result(json))) if &json[..] != b"null" => return Outcome::Result(json),
            Ok(_) => debug!(upstream = %self.shared.endpoint, method, "no result on a connection of its own"),
            Err(why) => debug!(upstream = %self.shared.endpoint, method, %why, "no connection of its own"),
        }
        std::future::pending().await
    }

    async fn ask_past_calls(&self, method: &str, params: &str) -> Result<Option<Outcome>, LinkError> {
        let shared = &self.shared;
        let mut before = shared.call_bytes.lock().total();
        let _place = loop {
            sleep(LOOK).await;
            let now = shared.call_bytes.lock().total();
            let carried = now.saturating_sub(std::mem::replace(&mut before, now));
            // Without calls of clients it is our own answers that keep it busy.
            if *shared.lanes.borrow() == Lanes::Two
                && shared.load.figures().0 > 0
                && carried >= BUSY
                && let Ok(place) = self.detours.try_acquire()
            {
                break place;
            }
        };
        let mut link = Alone::connect(&shared.endpoint, &shared.settings).await?;
        // A balancer may lead to a node of another chain.
        if let Outcome::Result(id) = link.chain_id().await?
            && let Err(why) = shared
                .identity
                .check_chain_id(&shared.endpoint, &String::from_utf8_lossy(&id))
        {
            debug!(%why);
            return Ok(None);
        }
        link.ask(method, params).await.map(Some)
    }
}
