//! Resume of a subscription of a session, from the position that the session has.

use std::sync::Arc;
use std::time::Duration;

use super::{Begun, Replays, StartLookup};
use crate::chain::{ContentKind, Cursor, Delivered, History, Located};
use crate::delivery::{ClientWriter, CloseReason};
use crate::subscription::{Level, Stream};

/// Attempts to find a position while no node answers, half a second apart; then the client is closed and may try again.
const TRIES: u32 = 20;
const BETWEEN_TRIES: Duration = Duration::from_millis(500);

/// Reason why a stream does not go on from its position.
#[derive(Debug)]
pub(super) enum NoPosition {
    /// No node answers: the position stays.
    Unavailable,
    /// The position is lost: the client is closed with this reason, and served live when it returns.
    Lost(CloseReason),
}

impl Replays {
    /// Adds a subscription that goes on behind what was delivered of it before.
    ///
    /// # Errors
    /// The reason to close the client: the position cannot be served.
    pub fn restore(
        self: &Arc<Self>,
        level: Option<Level>,
        stream: Stream,
        delivered: Delivered,
        writer: &Arc<ClientWriter>,
    ) -> Result<Begun, CloseReason> {
        let logs = stream.needs(ContentKind::Logs);
        let cursor = self
            .published
            .with_history(|history| self.position_in_memory(history, &delivered, level, logs))?;
        if cursor.is_some() {
            self.count("memory");
        }
        let subscription = self.registry.resume(level, stream, cursor.clone(), writer);
        let mut lookup = self.lookup(level, &subscription, None, logs, writer);
        if cursor.is_none() {
            let search = lookup.get_or_insert_with(|| self.search(level, &subscription, None, logs, writer));
            search.delivered = Some(Box::new(delivered));
        }
        if level.is_some() {
            self.leveled.notify_one();
        }
        Ok(Ok((subscription, lookup)))
    }

    /// Returns the cursor behind a position if memory suffices.
    ///
    /// # Errors
    /// The reason to close the client: a block of a final stream was dropped, or the position is too old.
    fn position_in_memory(
        &self,
        history: &History,
        delivered: &Delivered,
        level: Option<Level>,
        logs: bool,
    ) -> Result<Option<Cursor>, CloseReason> {
        if history.tip().is_none() {
            return Ok(None);
        }
        let places = delivered
            .blocks()
            .map(|block| Delivered::in_memory(history, block, logs));
        let Some(places) = places.collect::<Option<Vec<Located>>>() else {
            return Ok(None);
        };
        self.position(history, delivered, places, level).map(Some)
    }

    fn position(
        &self,
        history: &History,
        delivered: &Delivered,
        places: Vec<Located>,
        level: Option<Level>,
    ) -> Result<Cursor, CloseReason> {
        if level.is_some_and(Level::is_final) && places.iter().any(|place| !place.left.blocks.is_empty()) {
            return Err(CloseReason::FinalityBroken);
        }
        let cursor = delivered.resume(places, self.registry.session_limits().overlap);
        if cursor.first_ahead() < history.reach(self.settings.max_blocks) {
            self.count("too_old");
            return Err(CloseReason::PositionLost);
        }
        Ok(cursor)
    }
}

impl StartLookup {
    /// Finds the place of what was delivered, and asks again while no node answers.
    pub(super) async fn find_position(&self, delivered: &Delivered) -> Result<Cursor, NoPosition> {
        for _ in 0..TRIES {
            match self.try_position(delivered).await {
                Err(NoPosition::Unavailable) if self.writer.strong_count() > 0 => {
                    tokio::time::sleep(BETWEEN_TRIES).await;
                }
                found => return found,
            }
        }
        Err(NoPosition::Unavailable)
    }

    async fn try_position(&self, delivered: &Delivered) -> Result<Cursor, NoPosition> {
        let (replays, owner) = (&self.replays, self.owner);
        let published = &replays.published;
        published.begun().await;
        let in_memory = |history: &History| replays.position_in_memory(history, delivered, self.level, self.logs);
        match published.with_history(in_memory) {
            Ok(Some(cursor)) => return Ok(cursor),
            Ok(None) => {}
            Err(reason) => return Err(NoPosition::Lost(reason)),
        }
        if !published.has_begun() {
            return Err(NoPosition::Unavailable);
        }
        let mut places = Vec::new();
        for block in delivered.blocks() {
            if let Some(place) = published.with_history(|history| Delivered::in_memory(history, block, self.logs)) {
                places.push(place);
                continue;
            }
            replays.archive.forget();
            let located = replays
                .archive
                .locate(owner, block.hash, None, self.logs, replays.settings.max_reorg)
                .await;
            match located {
                Ok(Some(place)) => places.push(place),
                Ok(None) => {
                    replays.count("unknown");
                    return Err(NoPosition::Lost(CloseReason::PositionLost));
                }
                Err(_) => return Err(NoPosition::Unavailable),
            }
        }
        let cursor = published
            .with_history(|history| replays.position(history, delivered, places, self.level))
            .map_err(NoPosition::Lost)?;
        let tip = published.with_history(|history| history.tip().map_or(0, |tip| tip.number()));
        match self.is_served(cursor.first_ahead(), tip).await {
            Ok(()) => {
                replays.count("node");
                Ok(cursor)
            }
            Err(why) if why.code() == crate::jsonrpc::RESOURCE_NOT_FOUND => {
                Err(NoPosition::Lost(CloseReason::PositionLost))
            }
            Err(_) => Err(NoPosition::Unavailable),
        }
    }

    /// Closes a client whose stream does not go on.
    pub(super) fn close(&self, why: &NoPosition) {
        let Some(writer) = self.writer.upgrade() else { return };
        match why {
            NoPosition::Unavailable => writer.close(CloseReason::NotServed),
            NoPosition::Lost(reason) => {
                self.replays.registry.forget_position(writer.id(), self.recipient.id());
                self.replays.registry.count_session("lost");
                writer.close(*reason);
            }
        }
    }
}
