//! One session, and the sessions of one account.

use std::collections::{BTreeMap, VecDeque};

use super::track::Track;
use super::{Live, SESSION_BYTES, SLOT_BYTES, SessionToken, SubscriptionKey};
use crate::chain::BlockRef;
use crate::clock::Moment;
use crate::subscription::subscriber::ClientKey;

#[derive(Debug)]
pub(super) struct Slot<P> {
    pub(super) number: u64,
    pub(super) key: SubscriptionKey,
    pub(super) state: SlotState<P>,
    /// `None` while only the client knows where it begins.
    pub(super) track: Option<Track>,
    /// Number at which it begins, for a track that starts with the first confirmed mark.
    pub(super) first: u64,
    /// Place in the last mark.
    pub(super) marked: Option<BlockRef>,
}

#[derive(Debug)]
pub(super) enum SlotState<P> {
    /// No subscription of the connection has this position yet; it was left at this moment.
    Left(Moment),
    /// A repeated subscription is being made of what was left at this moment.
    Claimed(Moment),
    /// A subscription has it; with the moment at which it had been left, if it is a repeated one.
    Live(Live<P>, Option<Moment>),
}

/// Ping on its way, and the places that its pong confirms.
#[derive(Debug)]
pub(super) struct Mark {
    pub(super) payload: u64,
    pub(super) number: u64,
    pub(super) places: Vec<(u64, BlockRef)>,
}

/// Times that a client is closed for the loss of a position, if its WebSocket stack answers no close frame.
const MAX_NOTICES: u8 = 3;

#[derive(Debug)]
pub(super) struct Session<P> {
    pub(super) client: Option<ClientKey>,
    /// Place among the sessions of the account without a connection.
    pub(super) order: u64,
    pub(super) left_at: Moment,
    pub(super) slots: Vec<Slot<P>>,
    pub(super) marks: VecDeque<Mark>,
    pub(super) next_mark: u64,
    pub(super) next_slot: u64,
    /// Connections that were closed because positions are lost, since the last one that answered the close frame.
    pub(super) notices: u8,
}

impl<P> Session<P> {
    /// Checks if the client may not know of a loss yet, and counts the close frame that is sent then.
    pub(super) fn repeats_notice(&mut self) -> bool {
        let repeats = (1..MAX_NOTICES).contains(&self.notices);
        self.notices = if repeats { self.notices + 1 } else { 0 };
        repeats
    }

    /// Records that the client is closed because positions are lost.
    pub(super) fn notify(&mut self) {
        self.notices = self.notices.max(1);
    }

    pub(super) fn bytes(&self) -> usize {
        SESSION_BYTES + self.slots.len() * SLOT_BYTES
    }
}

#[derive(Debug, Default)]
pub(super) struct Account {
    pub(super) sessions: usize,
    pub(super) bytes: usize,
    /// Bytes of sessions with a connection.
    pub(super) connected_bytes: usize,
    /// Sessions without a connection, oldest first.
    pub(super) stored: BTreeMap<u64, SessionToken>,
    /// Time at which a session was last forgotten for want of room, in seconds since 1970.
    pub(super) forgot_at: u64,
}

impl Account {
    /// Returns the number of sessions with a connection.
    pub(super) fn connected(&self) -> usize {
        self.sessions - self.stored.len()
    }
}
