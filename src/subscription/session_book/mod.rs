//! Sessions: how far each subscription of a client that gave a token has certainly received its stream. No I/O, no
//! clock, no chain: the caller brings places and times.
//!
//! A connection of a session is sent a *mark* behind the events of a block: a ping whose payload only the client knows
//! that received it. Its pong confirms the places that were reached when the mark was sent. When the connection ends,
//! the places stay for a while, and a repeated subscription goes on from there ([`Delivered`]).
//!
//! Bounds: sessions, and bytes, each in total and with a share for each account ([`share`](crate::shares::share)); marks that are not confirmed,
//! per session. A session without a connection makes room, the oldest of its account first: when its client returns, it is
//! closed once with 1012, as after a restart. An account that has more than another makes no room for itself there.

mod key;
mod room;
mod saved;
mod session;
mod token;
mod track;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

pub use self::key::{SessionKey, SessionLimits, SubscriptionKey};
pub use self::saved::SavedSessions;
use self::session::{Account, Mark, Session, Slot, SlotState};
pub use self::token::SessionToken;
pub(super) use self::track::Standing;
use self::track::Track;
use super::subscriber::ClientKey;
use crate::chain::{BlockRef, Delivered, SentExtent};
use crate::clock::Moment;
use crate::delivery::{Recipient, SubscriptionId};

/// Most marks of one connection that are on their way: with more, the next block's mark confirms for these too.
const MAX_MARKS: usize = 8;

/// Approximate memory of a session without subscriptions, its marks included, in bytes.
const SESSION_BYTES: usize = 1_024;

/// Approximate memory of a subscription, with its places in all marks and the branches that it may have left, in bytes.
const SLOT_BYTES: usize = 1_536;

/// Result of opening a session.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Opened {
    /// Connection of the same session, which this one takes the place of.
    pub displaced: Option<ClientKey>,
    /// `true` if the session's positions are lost: the client is closed once with the reason before it is served live.
    pub is_lost: bool,
}

/// No room for a session or its positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoRoom;

/// Position found for a repeated subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    slot: u64,
    /// Stream as far as it was delivered; `None` if the position is lost.
    pub delivered: Option<Delivered>,
}

/// Subscription that is live in the session's connection.
#[derive(Clone, Debug)]
pub(super) struct Live<P> {
    pub recipient: Arc<Recipient>,
    /// Place in the tables.
    pub place: P,
}

/// Sizes of the book.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionTotals {
    /// Sessions, those without a connection included.
    pub sessions: usize,
    /// Remembered subscriptions.
    pub positions: usize,
    /// Approximate memory, in bytes.
    pub bytes: usize,
}

/// All sessions. `P` is a place in the tables of subscriptions.
#[derive(Debug)]
pub(super) struct SessionBook<P> {
    limits: SessionLimits,
    sessions: HashMap<SessionKey, Session<P>>,
    accounts: HashMap<Arc<str>, Account>,
    connected: HashMap<ClientKey, SessionKey>,
    bytes: usize,
    /// Bytes of sessions with a connection.
    connected_bytes: usize,
    next_order: u64,
    /// Start of this process, in seconds since 1970: tokens made before may be of sessions of an earlier one.
    started: u64,
}

impl<P: Copy> SessionBook<P> {
    /// Creates an empty book of a process that started at this time, in seconds since 1970.
    pub(super) fn new(limits: SessionLimits, started: u64) -> Self {
        Self {
            limits,
            started,
            sessions: HashMap::new(),
            accounts: HashMap::new(),
            connected: HashMap::new(),
            bytes: 0,
            connected_bytes: 0,
            next_order: 0,
        }
    }

    pub(super) fn limits(&self) -> SessionLimits {
        self.limits
    }

    pub(super) fn totals(&self) -> SessionTotals {
        SessionTotals {
            sessions: self.sessions.len(),
            positions: (self.bytes - self.sessions.len() * SESSION_BYTES) / SLOT_BYTES,
            bytes: self.bytes,
        }
    }

    // ---- connections

    /// Opens a session for a connection; `unix` is the time in seconds since 1970.
    pub(super) fn open(
        &mut self,
        key: SessionKey,
        client: ClientKey,
        now: Moment,
        unix: u64,
    ) -> Result<Opened, NoRoom> {
        // The others expire with the next sweep.
        let keep = self.limits.keep;
        let is_over = |own: &Session<P>| own.client.is_none() && now.since(own.left_at) >= keep;
        if self.sessions.get(&key).is_some_and(is_over) {
            self.remove(&key);
        }
        if let Some(session) = self.sessions.get(&key) {
            let displaced = session.client;
            if let Some(displaced) = displaced {
                self.close(displaced, now, true);
            }
            let is_lost = self.sessions.get_mut(&key).is_some_and(Session::repeats_notice);
            self.connect(key, client);
            return Ok(Opened { displaced, is_lost });
        }
        self.make_room(&key, SESSION_BYTES, 1, unix)?;
        let forgot_at = self.accounts.get(&key.account).map_or(0, |account| account.forgot_at);
        let may_be_known = key.token.made() < self.started || key.token.made() <= forgot_at;
        let is_lost = may_be_known || !key.token.is_fresh(unix);
        self.insert(key.clone(), now, Vec::new());
        if is_lost && let Some(session) = self.sessions.get_mut(&key) {
            session.notify();
        }
        self.connect(key, client);
        let displaced = None;
        Ok(Opened { displaced, is_lost })
    }

    /// Returns the connection of a session.
    pub(super) fn client_of(&self, key: &SessionKey) -> Option<ClientKey> {
        self.sessions.get(key)?.client
    }

    fn insert(&mut self, key: SessionKey, now: Moment, slots: Vec<Slot<P>>) {
        let session = Session {
            client: None,
            order: self.next_order,
            left_at: now,
            next_slot: slots.len() as u64,
            slots,
            marks: VecDeque::new(),
            next_mark: 0,
            notices: 0,
        };
        self.next_order += 1;
        let account = self.accounts.entry(key.account.clone()).or_default();
        account.sessions += 1;
        account.bytes += session.bytes();
        account.stored.insert(session.order, key.token.clone());
        self.bytes += session.bytes();
        self.sessions.insert(key, session);
    }

    fn connect(&mut self, key: SessionKey, client: ClientKey) {
        if let Some(session) = self.sessions.get_mut(&key) {
            session.client = Some(client);
            self.connected_bytes += session.bytes();
            if let Some(account) = self.accounts.get_mut(&key.account) {
                account.stored.remove(&session.order);
                account.connected_bytes += session.bytes();
            }
            self.connected.insert(client, key);
        }
    }

    /// Records that a connection has ended; its positions stay, unless `keeps` is `false`: the close reason said that
    /// events are lost.
    pub(super) fn close(&mut self, client: ClientKey, now: Moment, keeps: bool) {
        let Some(key) = self.connected.remove(&client) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(&key) else {
            return;
        };
        let before = session.bytes();
        if !keeps {
            session.notify();
        }
        session.client = None;
        session.marks.clear();
        for slot in &mut session.slots {
            slot.marked = None;
            slot.track.iter_mut().for_each(Track::leave);
            match &slot.state {
                SlotState::Left(_) => {}
                SlotState::Claimed(at) => slot.state = SlotState::Left(*at),
                SlotState::Live(live, left_at) => {
                    let has_begun = live.recipient.is_answered() && !live.recipient.is_refused();
                    // A new subscription without an answer is none that its client could miss.
                    slot.track.take_if(|_| !has_begun && left_at.is_none());
                    slot.state = SlotState::Left(left_at.filter(|_| !has_begun).unwrap_or(now));
                }
            }
        }
        session.slots.retain(|slot| keeps && slot.track.is_some());
        let freed = before - session.bytes();
        session.order = self.next_order;
        session.left_at = now;
        self.next_order += 1;
        let account = self.accounts.entry(key.account).or_default();
        account.stored.insert(session.order, key.token);
        account.bytes -= freed;
        account.connected_bytes -= before;
        self.bytes -= freed;
        self.connected_bytes -= before;
    }

    /// Like [`Self::close`] after a close frame which says that positions are lost, and which the client has answered: it
    /// certainly knows, and is not closed again.
    pub(super) fn close_noticed(&mut self, client: ClientKey, now: Moment, keeps: bool) {
        let key = self.connected.get(&client).cloned();
        self.close(client, now, keeps);
        if let Some(session) = key.and_then(|key| self.sessions.get_mut(&key)) {
            session.notices = 0;
        }
    }

    fn session(&mut self, client: ClientKey) -> Option<&mut Session<P>> {
        self.sessions.get_mut(self.connected.get(&client)?)
    }

    // ---- subscriptions

    /// Takes the first position of an equal subscription that no subscription of this connection has taken yet; `None` if
    /// there is none. It includes what all equal ones were sent: some libraries make a subscription twice after a
    /// reconnect, use the one that was answered last, and repeat one of them later.
    pub(super) fn claim(&mut self, client: ClientKey, key: SubscriptionKey, now: Moment) -> Option<Claim> {
        let keep = self.limits.keep;
        let session = self.session(client)?;
        let is_kept = |slot: &Slot<P>| match slot.state {
            SlotState::Left(at) => now.since(at) < keep,
            SlotState::Claimed(_) | SlotState::Live(..) => true,
        };
        let equal = session.slots.iter().filter(|slot| slot.key == key && is_kept(slot));
        let own = equal.clone().find(|slot| matches!(slot.state, SlotState::Left(_)))?;
        let number = own.number;
        let mut track = own.track.clone()?;
        let others = equal.filter(|slot| slot.number != number);
        others
            .filter_map(|slot| slot.track.as_ref())
            .for_each(|other| track.include(other));
        let slot = session.slots.iter_mut().find(|slot| slot.number == number)?;
        if let SlotState::Left(at) = slot.state {
            slot.state = SlotState::Claimed(at);
        }
        let delivered = track.delivered();
        slot.track = Some(track);
        Some(Claim {
            slot: number,
            delivered,
        })
    }

    /// Checks that there is room for one more subscription.
    pub(super) fn admit(&mut self, client: ClientKey, unix: u64) -> Result<(), NoRoom> {
        match self.connected.get(&client).cloned() {
            Some(key) => self.make_room(&key, SLOT_BYTES, 0, unix),
            None => Ok(()),
        }
    }

    /// Follows a subscription: a repeated one by its claim, which keeps its position, or a new one, which begins at
    /// `begins` or, while that is not known, with the first note.
    pub(super) fn follow(
        &mut self,
        client: ClientKey,
        key: SubscriptionKey,
        claim: Option<&Claim>,
        live: Live<P>,
        begins: Option<(u64, Option<BlockRef>)>,
    ) {
        let Some(session) = self.session(client) else { return };
        let claimed = claim.map(|claim| claim.slot);
        if let Some(slot) = session.slots.iter_mut().find(|slot| Some(slot.number) == claimed) {
            let left_at = match slot.state {
                SlotState::Claimed(at) | SlotState::Left(at) => Some(at),
                SlotState::Live(..) => None,
            };
            slot.state = SlotState::Live(live, left_at);
            return;
        }
        let number = session.next_slot;
        session.next_slot += 1;
        session.slots.push(Slot {
            number,
            key,
            state: SlotState::Live(live, None),
            first: 0,
            track: begins.map(|(first, at)| Track::begin(first, at)),
            marked: begins.and_then(|(_, at)| at),
        });
        self.charge(client);
    }

    fn charge(&mut self, client: ClientKey) {
        if let Some(key) = self.connected.get(&client)
            && let Some(account) = self.accounts.get_mut(&key.account)
        {
            account.bytes += SLOT_BYTES;
            account.connected_bytes += SLOT_BYTES;
            self.bytes += SLOT_BYTES;
            self.connected_bytes += SLOT_BYTES;
        }
    }

    /// Forgets a subscription that its client has ended, or whose loss was sent as the close reason.
    pub(super) fn forget(&mut self, client: ClientKey, id: SubscriptionId) {
        self.drop_slot(
            client,
            |slot| matches!(&slot.state, SlotState::Live(live, _) if live.recipient.id() == id),
        );
    }

    /// Forgets a claimed position, which is lost: its client is closed for it.
    pub(super) fn forget_claim(&mut self, client: ClientKey, claim: &Claim) {
        if let Some(session) = self.session(client) {
            session.notify();
        }
        self.drop_slot(client, |slot| slot.number == claim.slot);
    }

    fn drop_slot(&mut self, client: ClientKey, is_it: impl Fn(&Slot<P>) -> bool) {
        let Some(session) = self.session(client) else { return };
        let Some(at) = session.slots.iter().position(is_it) else {
            return;
        };
        session.slots.remove(at);
        if let Some(key) = self.connected.get(&client)
            && let Some(account) = self.accounts.get_mut(&key.account)
        {
            account.bytes -= SLOT_BYTES;
            account.connected_bytes -= SLOT_BYTES;
            self.bytes -= SLOT_BYTES;
            self.connected_bytes -= SLOT_BYTES;
        }
    }

    // ---- positions

    /// Records how far the connection's subscriptions were sent by now. Returns the payload of a mark to be sent behind
    /// all of it; `None` if nothing has moved, or too many marks are on their way. `extent_of` gives the extent of a
    /// subscription and the number at which it began, if that is known; `None` within a block.
    pub(super) fn note(
        &mut self,
        client: ClientKey,
        extent_of: impl Fn(&Live<P>) -> Option<(SentExtent, Option<u64>)>,
        standing: impl Fn(BlockRef) -> Standing,
        payload: impl FnOnce() -> u64,
    ) -> Option<u64> {
        let session = self.session(client)?;
        let number = session.next_mark;
        let may_mark = session.marks.len() < MAX_MARKS;
        let mut places = Vec::new();
        for slot in &mut session.slots {
            let SlotState::Live(live, _) = &slot.state else {
                continue;
            };
            if !live.recipient.is_answered() {
                continue;
            }
            let Some((extent, first)) = extent_of(live) else {
                if let Some(track) = &mut slot.track {
                    track.may_be_taken_back(&standing);
                }
                continue;
            };
            if extent.current() == Some(None) {
                slot.track.get_or_insert_with(|| Track::begin(first.unwrap_or(0), None));
            }
            // A subscription that was there before the first block, or before its level had a place, has no other beginning.
            if let Some(block) = extent.current().flatten() {
                let first = first.filter(|first| *first > 0).unwrap_or(block.number);
                slot.track.get_or_insert_with(|| Track::begin(first, None));
            }
            match &mut slot.track {
                Some(track) => track.sent(extent, first, &standing, number),
                None => slot.first = first.unwrap_or(0),
            }
            if let Some(block) = extent
                .current()
                .flatten()
                .filter(|block| may_mark && slot.marked != Some(*block))
            {
                slot.marked = Some(block);
                places.push((slot.number, block));
            }
        }
        if places.is_empty() {
            return None;
        }
        let payload = payload();
        session.next_mark += 1;
        session.marks.push_back(Mark {
            payload,
            number,
            places,
        });
        Some(payload)
    }

    /// Takes the newest mark back, which could not be sent.
    pub(super) fn unmark(&mut self, client: ClientKey) {
        let Some(session) = self.session(client) else { return };
        let Some(mark) = session.marks.pop_back() else { return };
        for slot in &mut session.slots {
            let is_in = mark.places.binary_search_by_key(&slot.number, |(number, _)| *number);
            slot.marked = slot.marked.filter(|_| is_in.is_err());
        }
    }

    /// Sets the place at which a subscription begins whose block had to be found first.
    pub(super) fn begin(&mut self, client: ClientKey, id: SubscriptionId, first: u64, at: Option<BlockRef>) {
        let Some(session) = self.session(client) else { return };
        let is_it = |slot: &&mut Slot<P>| matches!(&slot.state, SlotState::Live(live, _) if live.recipient.id() == id);
        if let Some(slot) = session.slots.iter_mut().find(is_it) {
            slot.track.get_or_insert_with(|| Track::begin(first, at));
        }
    }

    /// Records a removal down to the block of number `from` with which a repeated subscription begins.
    pub(super) fn take_back(&mut self, client: ClientKey, id: SubscriptionId, from: u64) {
        let Some(session) = self.session(client) else { return };
        let is_it = |slot: &&mut Slot<P>| matches!(&slot.state, SlotState::Live(live, _) if live.recipient.id() == id);
        if let Some(track) = session
            .slots
            .iter_mut()
            .find(is_it)
            .and_then(|slot| slot.track.as_mut())
        {
            track.take_back(from, None);
        }
    }

    /// Takes a pong; returns `false` if it answers no mark that is on its way. A client that invents payloads confirms
    /// nothing; one that answers a mark before it has read what precedes it can lose those events.
    pub(super) fn confirm(&mut self, client: ClientKey, payload: u64) -> bool {
        let Some(session) = self.session(client) else {
            return false;
        };
        let Some(at) = session.marks.iter().position(|mark| mark.payload == payload) else {
            return false;
        };
        let Session { marks, slots, .. } = session;
        for mark in marks.drain(..=at) {
            for slot in slots.iter_mut() {
                // Both are in the order of their numbers.
                let place = mark.places.binary_search_by_key(&slot.number, |(number, _)| *number);
                let up_to = place.ok().and_then(|at| mark.places.get(at)).map(|(_, block)| *block);
                match &mut slot.track {
                    Some(track) => track.confirm(mark.number, up_to),
                    None => slot.track = up_to.map(|block| Track::begin(slot.first, Some(block))),
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests;
