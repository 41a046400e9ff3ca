//! Subscriptions of server-sent events, in the registry.

use std::sync::Arc;

use super::{Registry, Subscription, UnconfirmedSubscription};
use crate::delivery::Recipient;
use crate::subscription::tables::IndexSlot;
use crate::subscription::{Level, Start, event_id};

/// Handle of a subscription whose start is sent to the client.
#[derive(Clone, Debug)]
pub struct Begins {
    recipient: Arc<Recipient>,
    asked: UnconfirmedSubscription,
    live: Option<Arc<str>>,
}

impl Subscription {
    /// Returns the handle that [`Registry::start_id`] takes.
    #[must_use]
    pub fn begins(&self) -> Begins {
        Begins {
            recipient: self.recipient.clone(),
            asked: self.unconfirmed(),
            live: self.start.clone(),
        }
    }
}

impl Registry {
    /// Returns the id of the position at which an event stream begins, before any of its events is sent; `None` if the
    /// client knows it, or the kind cannot be resumed.
    #[must_use]
    pub fn start_id(&self, begins: &Begins) -> Option<Arc<str>> {
        if begins.live.is_some() {
            return begins.live.clone();
        }
        let mut tables = self.tables.lock();
        match begins.asked.place {
            IndexSlot::Resumed(_, key) => {
                let cursor = tables.replays.get_mut(&key)?.cursor(begins.asked.id)?;
                event_id::of(Start::From(cursor.as_ref()?.is_before()?))
            }
            IndexSlot::Trail(_, level) => {
                let first = begins.recipient.since();
                let behind = tables.published.with_history(|history| {
                    let before = history.at(first.checked_sub(1)?)?;
                    Some(before.header.block.hash)
                });
                match behind {
                    _ if first == u64::MAX => None,
                    // A reorg may drop the block before.
                    Some(block) if level == Level::Head => Some(event_id::behind(block)),
                    _ => event_id::of(Start::From(first)),
                }
            }
            _ => None,
        }
    }
}
