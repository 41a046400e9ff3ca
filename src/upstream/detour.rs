//! A separate connection for one request of our own, while long answers keep the connection for calls busy.
//!
//! Answers arrive in full, one after another: 12 answers of 20 MiB on the connection for calls delayed the logs of a
//! block by 4.9 s on loopback. On a separate connection the request shares the link with them instead.

use std::time::Duration;

use tokio::time::sleep;
use tracing::debug;

use super::dedicated_connection::DedicatedConnection;
use super::lanes::Lanes;
use super::link::LinkError;
use super::roster::Upstream;
use crate::jsonrpc::Outcome;

/// Interval at which the traffic of the connection for calls is checked.
const LOOK: Duration = Duration::from_millis(100);

/// Bytes per [`LOOK`] from which the connection for calls counts as busy with long answers: 20 Mbit/s.
const BUSY: u64 = 256 << 10;

/// Most such connections to one node at the same time.
pub(super) const PLACES: usize = 2;

impl Upstream {
    /// Sends a request on a separate connection, once the connection for calls is busy. Never returns if that does
    /// not happen, or if the separate connection yields no result: the caller also waits for the answer over the
    /// connection for calls.
    pub(super) async fn overtake(&self, method: &str, params: &str) -> Outcome {
        match self.ask_past_calls(method, params).await {
            Ok(Some(Outcome::Result(json))) if &json[..] != b"null" => return Outcome::Result(json),
            Ok(_) => debug!(upstream = %self.shared.endpoint, method, "no result on a separate connection"),
            Err(why) => debug!(upstream = %self.shared.endpoint, method, %why, "cannot open a separate connection"),
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
            // Without clients' calls in flight, our own answers keep it busy.
            if *shared.lanes.borrow() == Lanes::Two
                && shared.load.figures().0 > 0
                && carried >= BUSY
                && let Ok(place) = self.detours.try_acquire()
            {
                break place;
            }
        };
        let mut link = DedicatedConnection::connect(&shared.endpoint, &shared.settings).await?;
        // A load balancer may lead to a node of another chain.
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
