//! Turn of a call: its places among the calls in flight.

use std::sync::Arc;

use super::Calls;
use crate::conduct::{Conduct, Counted};
use crate::shares::{FairPool, Full, Owner, Place};

/// Most calls in flight of accounts whose answers are long: with answers of 20 MiB, 0.7 s of a link of 1 Gbit/s.
pub(super) const LONG_CALLS: usize = 4;

/// Most calls in flight beyond the windows of their accounts: slow calls of a new account do not stop its other
/// calls.
pub(super) const BEYOND_CALLS: usize = 8;

/// Most calls of one account that wait to be sent to a node: as many as it may have in flight with the default of
/// `node.max_in_flight`.
pub(super) const MAX_WAITING: usize = 1024;

/// Places of a call in flight: in its account's window, or else beyond it, and among all calls.
type Turn<'a> = (Option<Counted<'a>>, Option<Place>, Place);

impl Calls {
    /// Takes the places of a call: first one in its account's window, then one among all calls. An account whose
    /// answers were long takes one of [`LONG_CALLS`] in place of the first; if the window is full, the call takes the
    /// first place that is free in the window or among [`BEYOND_CALLS`].
    pub(super) async fn turn<'a>(&self, owner: Owner, conduct: &'a Conduct) -> Result<Turn<'a>, Full> {
        // On the heap: a wait is rare, and not a part of each call's future.
        match self.turn_at_once(owner, conduct) {
            Some(turn) => Ok(turn),
            None => Box::pin(self.later_turn(owner, conduct)).await,
        }
    }

    /// Takes the places of a call if none of them has to be waited for; accounts whose answers were long take theirs
    /// one after the other.
    fn turn_at_once<'a>(&self, owner: Owner, conduct: &'a Conduct) -> Option<Turn<'a>> {
        if conduct.gets_long_answers() {
            return None;
        }
        let counted = conduct.try_begin()?;
        Some((Some(counted), None, self.places.try_acquire(owner)?))
    }

    async fn later_turn<'a>(&self, owner: Owner, conduct: &'a Conduct) -> Result<Turn<'a>, Full> {
        let (counted, place) = if conduct.gets_long_answers() {
            (None, Some(self.place_of(&self.long, owner).await?))
        } else {
            tokio::select! {
                biased;
                counted = conduct.begin() => (Some(counted), None),
                place = self.place_of(&self.beyond, owner) => (None, Some(place?)),
            }
        };
        Ok((counted, place, self.place_of(&self.places, owner).await?))
    }

    /// Takes a place as soon as it is this account's turn.
    ///
    /// # Errors
    /// [`Full`] if too many calls wait, or if no place is free for this account within the time limit.
    async fn place_of(&self, places: &Arc<FairPool>, owner: Owner) -> Result<Place, Full> {
        let place = tokio::time::timeout(self.settings.queue_wait, places.acquire(owner)).await;
        let place = place.unwrap_or(Err(Full("too many calls under way")));
        if place.is_err() {
            self.count_refusal("calls");
        }
        place
    }
}
