//! Positions of sessions, in the registry: where each subscription stands, and the marks that are sent behind it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Registry, Subscription};
use crate::chain::{BlockRef, Cursor, History, PublishedBlock, SentExtent};
use crate::clock::Moment;
use crate::delivery::{ClientWriter, CloseReason, Kind, Recipient, SubscriptionId};
use crate::subscription::flush::DirtyClients;
use crate::subscription::gate::Position;
use crate::subscription::replay_group::GroupKey;
use crate::subscription::session_book::{
    Claim, Live, SavedSessions, SessionBook, SessionKey, SessionLimits, SessionTotals, Standing, SubscriptionKey,
};
use crate::subscription::subscriber::ClientKey;
use crate::subscription::tables::{IndexSlot, Tables};

/// The book, and the connections of its sessions. Its lock is taken after that of the tables.
#[derive(Debug)]
pub(super) struct Sessions {
    book: SessionBook<IndexSlot>,
    writers: HashMap<ClientKey, Arc<ClientWriter>>,
}

impl Sessions {
    pub(super) fn new(limits: SessionLimits, started: u64) -> Self {
        Self {
            book: SessionBook::new(limits, started),
            writers: HashMap::new(),
        }
    }

    /// Records how far a connection was sent, and queues a mark if that is further than before.
    fn mark(&mut self, client: ClientKey, tables: &Tables, due: &mut DirtyClients, now: Moment) {
        let Some(payload) = self.note(client, tables) else {
            return;
        };
        match self
            .writers
            .get(&client)
            .map(|writer| (writer, writer.push_mark(payload, now)))
        {
            Some((writer, Some(true))) => due.add(writer),
            Some((_, Some(false))) => {}
            Some((_, None)) | None => self.book.unmark(client),
        }
    }

    /// Records how far a connection was sent. Returns the payload of a mark if that is further than before.
    fn note(&mut self, client: ClientKey, tables: &Tables) -> Option<u64> {
        // A client may replay a thousand streams, in few groups.
        let groups: RefCell<HashMap<GroupKey, HashMap<SubscriptionId, &Cursor>>> = RefCell::default();
        let cursor = |key: GroupKey, id: SubscriptionId| {
            let mut groups = groups.borrow_mut();
            let group = groups.entry(key).or_insert_with(|| {
                let group = tables.replays.get(&key);
                group.map(|group| group.cursors().collect()).unwrap_or_default()
            });
            group.get(&id).copied()
        };
        let extent = |live: &Live<IndexSlot>| tables.extent_of(live.place, &live.recipient, client, cursor);
        let standing = |block: BlockRef| tables.published.with_history(|history| standing(history, block));
        self.book.note(client, extent, standing, rand::random)
    }

    /// Records the removal with which a repeated subscription begins: it may be over when the connection is noted next.
    fn note_removal(&mut self, tables: &Tables, id: SubscriptionId, key: GroupKey) {
        let cursor = tables.replays.get(&key).and_then(|group| group.cursor_of(id));
        if let Some(SentExtent::TakingBack { from }) = cursor.and_then(Cursor::sent_extent) {
            self.book.take_back(key.client(), id, from);
        }
    }

    /// Records how far a connection that ends was sent: a subscription that was just answered may begin without an event.
    fn note_last(&mut self, client: ClientKey, tables: &Tables) {
        if self.note(client, tables).is_some() {
            self.book.unmark(client);
        }
    }
}

fn standing(history: &History, block: BlockRef) -> Standing {
    let is_old = history.oldest().is_some_and(|oldest| block.number < oldest.number());
    if is_old || history.is_canonical(block) {
        return Standing::Canonical;
    }
    history
        .fork_of(block)
        .map_or(Standing::Unknown, |fork| Standing::Dropped(fork.number))
}

impl Registry {
    /// Bounds the sessions of a process that started at this time, in seconds since 1970.
    #[must_use]
    pub fn with_sessions(self, limits: SessionLimits, started: u64) -> Self {
        let sessions = parking_lot::Mutex::new(Sessions::new(limits, started));
        Self { sessions, ..self }
    }

    /// Opens a session for this connection; a connection of the same session before is closed. `unix` is the time in
    /// seconds since 1970. A connection whose session is not known any more is closed with the reason.
    pub fn open_session(&self, key: SessionKey, writer: &Arc<ClientWriter>, unix: u64) {
        // Under the lock of the tables nothing is sent to a connection after it was noted.
        let tables = self.tables.lock();
        let mut sessions = self.sessions.lock();
        let client = writer.id();
        if let Some(before) = sessions.book.client_of(&key) {
            sessions.note_last(before, &tables);
        }
        let opened = match sessions.book.open(key, client, self.clock.now(), unix) {
            Ok(opened) => opened,
            Err(_) => return writer.close(CloseReason::NoSession),
        };
        let displaced = opened.displaced.and_then(|before| sessions.writers.remove(&before));
        if let Some(displaced) = displaced {
            displaced.close(CloseReason::Replaced);
        }
        sessions.writers.insert(client, writer.clone());
        self.session_clients.store(sessions.writers.len(), Ordering::Relaxed);
        drop((sessions, tables));
        if opened.is_lost {
            self.count_session("lost");
            writer.close(CloseReason::PositionLost);
        }
    }

    /// Ends the connection of a session. Its positions stay unless the close reason said that they are lost. `is_noticed`:
    /// the close frame said that positions are lost, and the client has answered it; otherwise it is closed again.
    pub fn close_session(&self, client: ClientKey, keeps: bool, is_noticed: bool) {
        let tables = self.tables.lock();
        let mut sessions = self.sessions.lock();
        sessions.note_last(client, &tables);
        sessions.writers.remove(&client);
        if is_noticed {
            sessions.book.close_noticed(client, self.clock.now(), keeps);
        } else {
            sessions.book.close(client, self.clock.now(), keeps);
        }
        self.session_clients.store(sessions.writers.len(), Ordering::Relaxed);
    }

    /// Takes the position of an equal subscription that this session had before; `None` if there is none left.
    pub fn claim(&self, client: ClientKey, key: SubscriptionKey) -> Option<Claim> {
        self.sessions.lock().book.claim(client, key, self.clock.now())
    }

    /// Forgets a claimed position, and closes its client: it cannot be served.
    pub fn lose_claim(&self, writer: &Arc<ClientWriter>, claim: &Claim, reason: CloseReason) {
        self.sessions.lock().book.forget_claim(writer.id(), claim);
        self.count_session("lost");
        writer.close(reason);
    }

    /// Checks that there is room for one more position.
    ///
    /// # Errors
    /// The client's error text.
    pub fn admit_position(&self, client: ClientKey, unix: u64) -> Result<(), &'static str> {
        let admitted = self.sessions.lock().book.admit(client, unix);
        admitted.map_err(|_| "limit exceeded: positions of this client's sessions, subscribe without a session")
    }

    /// Follows a subscription of a session, from where it was claimed, or from where it begins.
    pub fn follow(&self, writer: &Arc<ClientWriter>, key: SubscriptionKey, claim: Option<&Claim>, own: &Subscription) {
        let tables = self.tables.lock();
        let live = Live {
            recipient: own.recipient.clone(),
            place: own.place,
        };
        let begins = tables.begins(&live);
        let mut sessions = self.sessions.lock();
        sessions.book.follow(writer.id(), key, claim, live, begins);
        if let IndexSlot::Resumed(_, key) = own.place {
            sessions.note_removal(&tables, own.recipient.id(), key);
        }
        if claim.is_some() {
            self.count_session("resumed");
        }
    }

    /// Sets the place of a new subscription whose first block had to be found.
    pub(super) fn begin_position(&self, tables: &Tables, id: SubscriptionId, key: GroupKey) {
        if self.session_clients.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut sessions = self.sessions.lock();
        if let Some((first, at)) = tables.begins_resumed(key, id) {
            sessions.book.begin(key.client(), id, first, at);
        }
        sessions.note_removal(tables, id, key);
    }

    /// Forgets the position of a subscription that its client has ended, or that cannot be served.
    pub fn forget_position(&self, client: ClientKey, id: SubscriptionId) {
        self.sessions.lock().book.forget(client, id);
    }

    /// Takes a pong; returns `false` if it answers no mark.
    pub fn confirm(&self, client: ClientKey, payload: u64) -> bool {
        self.sessions.lock().book.confirm(client, payload)
    }

    /// Forgets sessions whose time without a connection is over.
    pub fn expire_sessions(&self, unix: u64) {
        self.sessions.lock().book.expire(self.clock.now(), unix);
    }

    /// Returns the sizes of the book.
    #[must_use]
    pub fn session_totals(&self) -> SessionTotals {
        self.sessions.lock().book.totals()
    }

    /// Returns the bounds of sessions.
    #[must_use]
    pub fn session_limits(&self) -> SessionLimits {
        self.sessions.lock().book.limits()
    }

    /// Returns the positions of all sessions without a connection, to be kept over a restart.
    #[must_use]
    pub fn save_sessions(&self, unix: u64) -> SavedSessions {
        self.sessions.lock().book.save(self.clock.now(), unix)
    }

    /// Adds the positions that an earlier process has saved; returns their number.
    pub fn restore_sessions(&self, saved: SavedSessions, unix: u64) -> usize {
        self.sessions.lock().book.restore(saved, self.clock.now(), unix)
    }

    pub(in crate::subscription) fn count_session(&self, outcome: &'static str) {
        let label = crate::telemetry::OutcomeLabel { outcome };
        self.metrics.session_claims.get_or_create(&label).inc();
    }

    /// Queues marks for the sessions among the clients that were just sent events, so that they leave in the same write.
    pub(super) fn mark_due(&self, tables: &Tables, due: &mut DirtyClients, now: Moment) {
        if self.session_clients.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut sessions = self.sessions.lock();
        let clients: Vec<ClientKey> = due.clients().filter(|id| sessions.writers.contains_key(id)).collect();
        for client in clients {
            sessions.mark(client, tables, due, now);
        }
    }

    /// Queues marks for all sessions that have got further, those without events too.
    pub(super) fn mark_all(&self, tables: &Tables, due: &mut DirtyClients, now: Moment) {
        if self.session_clients.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut sessions = self.sessions.lock();
        let clients: Vec<ClientKey> = sessions.writers.keys().copied().collect();
        for client in clients {
            sessions.mark(client, tables, due, now);
        }
    }

    /// Queues a mark for one client; returns `true` if the caller has to flush.
    pub(super) fn mark_one(&self, client: ClientKey, tables: &Tables, now: Moment) -> bool {
        if self.session_clients.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let mut due = DirtyClients::default();
        self.sessions.lock().mark(client, tables, &mut due, now);
        !due.is_empty()
    }
}

impl Tables {
    /// Returns the extent of what a subscription was sent, and the number at which it began, if that is known; `None`
    /// within a block. `cursor` returns that of a subscription that replays.
    fn extent_of<'a>(
        &self,
        place: IndexSlot,
        to: &Arc<Recipient>,
        client: ClientKey,
        cursor: impl FnOnce(GroupKey, SubscriptionId) -> Option<&'a Cursor>,
    ) -> Option<(SentExtent, Option<u64>)> {
        let id = to.id();
        let live = |kind: Kind, is_missing: bool| {
            let current = self.sent_up_to(kind, is_missing, client, to.since())?;
            let (current, ever) = (Some(current), Some(current));
            Some((SentExtent::Whole { current, ever }, None))
        };
        match self.joined.get(&id).copied().unwrap_or(place) {
            IndexSlot::Heads(at) => live(Kind::Heads, self.heads.misses(at)),
            IndexSlot::Logs(_) => live(Kind::Logs, false),
            IndexSlot::Mined(_) => live(Kind::Mined, false),
            IndexSlot::Receipts(_) => live(Kind::Receipts, false),
            IndexSlot::Resumed(_, key) => {
                let cursor = cursor(key, id)?;
                Some((cursor.sent_extent()?, Some(cursor.first())))
            }
            IndexSlot::Trail(_, level) => {
                let extent = self.trails.extent(level)?;
                (to.since() < u64::MAX).then_some((extent, Some(to.since())))
            }
            IndexSlot::PendingHashes(_) | IndexSlot::Pending(_) | IndexSlot::Syncing(_) | IndexSlot::Passthrough => {
                None
            }
        }
    }

    /// Returns the newest canonical block of which a connection was sent all live events of this kind; `None` while a removal
    /// waits for it. `is_missing`: the newest head is still to come.
    fn sent_up_to(&self, kind: Kind, is_missing: bool, client: ClientKey, since: u64) -> Option<BlockRef> {
        let bound = self.gate.first_of(client);
        if bound.is_some_and(Position::is_of_removals) {
            // A removal waits: memory has left the branch, the client has not.
            return None;
        }
        let front = self.fronts().of(kind);
        self.published.with_history(|history| {
            let tip = history.tip()?.sequence;
            let is_sent = |own: &PublishedBlock| {
                let at = Position::of(kind, own.sequence);
                !(is_missing && own.sequence == tip)
                    && front.is_none_or(|front| at < front)
                    && bound.is_none_or(|bound| at < bound)
            };
            let own = history.newest_where(is_sent)?;
            (own.sequence.saturating_add(1) >= since).then_some(own.header.block)
        })
    }

    /// Returns the number at which a new subscription begins, and the block before; `None` if only its client knows.
    fn begins(&self, live: &Live<IndexSlot>) -> Option<(u64, Option<BlockRef>)> {
        let since = live.recipient.since();
        match live.place {
            IndexSlot::Resumed(_, key) => self.begins_resumed(key, live.recipient.id()),
            IndexSlot::Trail(_, level) => {
                let extent = self.trails.extent(level)?;
                (since < u64::MAX).then_some((since, extent.current()?))
            }
            place => self.published.with_history(|history| {
                let tip = history.tip()?;
                let is_head = matches!(place, IndexSlot::Heads(_));
                let before = history.newest_where(|own| is_head || own.sequence < since);
                let first = before.map_or(tip.number(), |own| own.number().saturating_add(1));
                Some((first, before.map(|own| own.header.block)))
            }),
        }
    }

    fn begins_resumed(&self, key: GroupKey, id: SubscriptionId) -> Option<(u64, Option<BlockRef>)> {
        let cursor = self.replays.get(&key)?.cursor_of(id)?;
        Some((cursor.first(), cursor.sent_extent()?.current()?))
    }
}
