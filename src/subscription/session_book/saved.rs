//! Positions over a graceful restart, as JSON.

use std::collections::VecDeque;

use alloy_primitives::B256;
use serde::{Deserialize, Serialize};

use super::track::TakenBack;
use super::{Session, SessionBook, SessionKey, SessionToken, Slot, SlotState, SubscriptionKey, Track};
use crate::chain::BlockRef;
use crate::clock::Moment;

/// All positions of a process that ends. Another version of headwater ignores them: it may read the same parameters
/// as another canonical subscription.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedSessions {
    version: String,
    /// Time of the end, in seconds since 1970.
    saved_at: u64,
    sessions: Vec<SavedSession>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedSession {
    account: String,
    token: String,
    /// Seconds since its connection ended.
    age: u64,
    positions: VecDeque<SavedPosition>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedPosition {
    subscription: B256,
    first: u64,
    received: Option<(u64, B256)>,
    sent: Option<(u64, B256)>,
    left: Vec<(u64, B256)>,
    taken_back: Option<u64>,
}

impl SavedSessions {
    fn version() -> String {
        env!("CARGO_PKG_VERSION").to_owned()
    }
}

fn pair(block: BlockRef) -> (u64, B256) {
    (block.number, block.hash)
}

fn block((number, hash): (u64, B256)) -> BlockRef {
    BlockRef { number, hash }
}

impl<P: Copy> SessionBook<P> {
    /// Returns the positions of all sessions whose connections have ended; `unix` is the time in seconds since 1970.
    pub(in crate::subscription) fn save(&self, now: Moment, unix: u64) -> SavedSessions {
        let position = |slot: &Slot<P>| {
            let track = slot.track.as_ref()?;
            Some(SavedPosition {
                subscription: slot.key.0,
                first: track.first,
                received: track.received.map(pair),
                sent: track.sent.map(pair),
                left: track.left.iter().map(|(_, block)| pair(*block)).collect(),
                taken_back: track.taken_back.map(|own| own.from),
            })
        };
        // A client that has to be closed for a lost position is closed as one that is not known.
        let is_lost = |slot: &Slot<P>| slot.track.as_ref().is_some_and(|track| track.is_lost);
        let is_whole = |own: &Session<P>| own.notices == 0 && !own.slots.iter().any(is_lost);
        let stored = self.sessions.iter();
        let stored = stored.filter(|(_, session)| session.client.is_none() && is_whole(session));
        let sessions = stored.map(|(key, session)| SavedSession {
            account: key.account.to_string(),
            token: key.token.as_str().to_owned(),
            age: now.since(session.left_at).as_secs(),
            positions: session.slots.iter().filter_map(position).collect(),
        });
        SavedSessions {
            version: SavedSessions::version(),
            saved_at: unix,
            sessions: sessions.collect(),
        }
    }

    /// Adds the positions of an earlier process, as far as they are not too old and there is room; returns their number.
    pub(in crate::subscription) fn restore(&mut self, saved: SavedSessions, now: Moment, unix: u64) -> usize {
        if saved.version != SavedSessions::version() {
            return 0;
        }
        let mut restored = 0;
        let since = unix.saturating_sub(saved.saved_at);
        for session in saved.sessions {
            let Some(token) = SessionToken::parse(&session.token) else {
                continue;
            };
            let account = session.account.into();
            let key = SessionKey { account, token };
            let too_old = session.age.saturating_add(since) >= self.limits.keep.as_secs().max(1);
            let bytes = super::SESSION_BYTES + session.positions.len() * super::SLOT_BYTES;
            if too_old || self.sessions.contains_key(&key) || self.make_room(&key, bytes, 1, unix).is_err() {
                continue;
            }
            let slot = |(number, position): (usize, SavedPosition)| Slot {
                number: number as u64,
                key: SubscriptionKey(position.subscription),
                // The clock of this process has just begun: the time before is not counted.
                state: SlotState::Left(now),
                track: Some(Track {
                    first: position.first,
                    received: position.received.map(block),
                    sent: position.sent.map(block),
                    left: position.left.into_iter().map(|own| (None, block(own))).collect(),
                    taken_back: position.taken_back.map(|from| TakenBack { from, mark: None }),
                    is_lost: false,
                }),
                first: 0,
                marked: None,
            };
            restored += session.positions.len();
            let slots = session.positions.into_iter().enumerate().map(slot).collect();
            self.insert(key, now, slots);
        }
        restored
    }
}
