//! Subscriptions of one account, over all of its connections, as a client lists them.
//!
//! Sessions keep their own subscriptions, and the registry those of all accounts; to search either for one account would
//! take time under a lock that others need. So an account lists its own, at a pointer and two numbers each; an account
//! without subscriptions holds none.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use slab::Slab;

use super::Account;
use crate::delivery::{Kind, Recipient};

/// Subscription in the list.
#[derive(Debug)]
struct Listed {
    connection: u64,
    recipient: Arc<Recipient>,
    index_entries: u32,
    kind: Kind,
}

/// Place in a list, one above its index: in four bytes, absent or not, since each subscription keeps one.
#[derive(Clone, Copy, Debug)]
struct Place(NonZeroU32);

/// List of an account's subscriptions.
#[derive(Debug, Default)]
pub(super) struct Listing(Mutex<Slab<Listed>>);

impl Listing {
    /// Adds a subscription; returns its place, for [`Self::remove`]. `None` if the list is full, which no limit admits.
    fn add(&self, connection: u64, kind: Kind, index_entries: u32, recipient: &Arc<Recipient>) -> Option<Place> {
        let mut all = self.0.lock();
        if all.capacity() == 0 {
            // Growing starts with four, and most accounts have one.
            all.reserve_exact(1);
        }
        let entry = all.vacant_entry();
        let place = u32::try_from(entry.key() + 1)
            .ok()
            .and_then(NonZeroU32::new)
            .map(Place)?;
        entry.insert(Listed {
            connection,
            recipient: recipient.clone(),
            index_entries,
            kind,
        });
        Some(place)
    }

    /// Removes the subscription at a place.
    fn remove(&self, Place(above): Place) {
        let mut all = self.0.lock();
        all.try_remove(above.get() as usize - 1);
        if all.is_empty() {
            *all = Slab::new();
        }
    }

    /// Calls `each` for every subscription that the node has not refused, until it returns `false`.
    pub(super) fn visit(&self, mut each: impl FnMut(u64, &Recipient, Kind, u32) -> bool) {
        let all = self.0.lock();
        for (_, listed) in all.iter().filter(|(_, listed)| !listed.recipient.is_refused()) {
            if !each(listed.connection, &listed.recipient, listed.kind, listed.index_entries) {
                return;
            }
        }
    }
}

/// Subscription of an account, counted and listed until dropped.
#[derive(Debug)]
pub struct Reserved {
    account: Arc<Account>,
    index_entries: u32,
    listed: Option<Place>,
}

impl Reserved {
    pub(super) fn new(account: Arc<Account>, index_entries: u32) -> Self {
        let listed = None;
        Self {
            account,
            index_entries,
            listed,
        }
    }

    /// Lists the subscription in the account's reports.
    #[must_use]
    pub fn listed(mut self, connection: u64, kind: Kind, recipient: &Arc<Recipient>) -> Self {
        let place = self
            .account
            .listing
            .add(connection, kind, self.index_entries, recipient);
        self.listed = place;
        self
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(place) = self.listed {
            self.account.listing.remove(place);
        }
        self.account.subscriptions.fetch_sub(1, Ordering::Relaxed);
        self.account
            .index_entries
            .fetch_sub(self.index_entries as usize, Ordering::Relaxed);
    }
}
