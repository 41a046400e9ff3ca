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

/// Time after which a question behind calls of clients is asked on a connection of its own as well: a tenth of the
/// shortest block time that is common.
const LATE: Duration = Duration::from_millis(100);

/// Most such connections to one node at the same time.
pub(super) const PLACES: usize = 2;

impl Upstream {
    /// Asks on a connection of its own, once the answer is late. Never ends where there is nothing to overtake, or where
    /// that connection gives no result: the other way is waited for.
    pub async fn overtake(&self, method: &str, params: &str) -> Outcome {
        match self.ask_past_calls(method, params).await {
            Ok(Outcome::Result(json)) if &json[..] != b"null" => return Outcome::Result(json),
            Ok(_) => debug!(upstream = %self.shared.endpoint, method, "no result on a connection of its own"),
            Err(why) => debug!(upstream = %self.shared.endpoint, method, %why, "no connection of its own"),
        }
        std::future::pending().await
    }

    async fn ask_past_calls(&self, method: &str, params: &str) -> Result<Outcome, LinkError> {
        let _place = loop {
            sleep(LATE).await;
            let has_calls_before = *self.shared.lanes.borrow() == Lanes::Two && self.shared.load.figures().0 > 0;
            if has_calls_before && let Ok(place) = self.detours.try_acquire() {
                break place;
            }
        };
        let mut link = Alone::connect(&self.shared.endpoint, &self.shared.settings).await?;
        link.ask(method, params).await
    }
}
