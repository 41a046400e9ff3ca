//! Sessions of browsers that have shown the admin token. Time is passed in.

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::access::{Hash, hash};

/// Lifetime of a session.
pub(super) const SESSION: Duration = Duration::from_secs(12 * 60 * 60);

/// Most sessions; the oldest one ends for a new one.
const MAX_SESSIONS: usize = 64;

/// Sessions by the hash of their id.
#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<HashMap<Hash, Session>>);

#[derive(Debug)]
struct Session {
    end: Instant,
    ended: CancellationToken,
}

/// Ends the connections of the session with it.
impl Drop for Session {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}

/// End of a session, which a connection of the session waits for.
#[derive(Clone, Debug)]
pub(super) struct SessionEnd {
    at: Instant,
    ended: CancellationToken,
}

impl SessionEnd {
    /// Waits until the session ends: by its lifetime, a logout, or for a new one.
    pub(super) async fn over(&self) {
        tokio::select! {
            () = self.ended.cancelled() => {}
            () = tokio::time::sleep_until(self.at) => {}
        }
    }
}

impl Sessions {
    /// Begins a session; returns its id.
    pub(super) fn begin(&self, now: Instant) -> String {
        let id = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>());
        let mut sessions = self.0.lock();
        sessions.retain(|_, session| session.end > now);
        if sessions.len() >= MAX_SESSIONS
            && let Some(oldest) = sessions
                .iter()
                .min_by_key(|(_, session)| session.end)
                .map(|(id, _)| *id)
        {
            sessions.remove(&oldest);
        }
        let session = Session {
            end: now + SESSION,
            ended: CancellationToken::new(),
        };
        sessions.insert(hash(&id), session);
        id
    }

    /// Returns the end of the session with this id, if there is one.
    pub(super) fn get(&self, id: &str, now: Instant) -> Option<SessionEnd> {
        let sessions = self.0.lock();
        let session = sessions.get(&hash(id)).filter(|session| session.end > now)?;
        Some(SessionEnd {
            at: session.end,
            ended: session.ended.clone(),
        })
    }

    /// Ends a session.
    pub(super) fn end(&self, id: &str) {
        self.0.lock().remove(&hash(id));
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn the_oldest_session_ends_for_a_new_one() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let second = Duration::from_secs(1);
        let ids: Vec<String> = (0..=MAX_SESSIONS as u32)
            .map(|at| sessions.begin(now + second * at))
            .collect();
        let is_open = |id: &String| sessions.get(id, now).is_some();
        assert!(!is_open(&ids[0]) && ids[1..].iter().all(is_open));
        assert_eq!(sessions.0.lock().len(), MAX_SESSIONS);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_learns_of_each_end_of_its_session() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let id = sessions.begin(now);
        let end = sessions.get(&id, now).unwrap();
        assert!(end.over().now_or_never().is_none());
        sessions.end(&id);
        end.over().await;
        assert!(Instant::now() == now && sessions.get(&id, now).is_none());

        let id = sessions.begin(now);
        let end = sessions.get(&id, now).unwrap();
        end.over().await;
        assert!(Instant::now() >= now + SESSION && sessions.get(&id, now + SESSION).is_none());

        let first = sessions.begin(now);
        let end = sessions.get(&first, now).unwrap();
        for _ in 0..=MAX_SESSIONS {
            sessions.begin(now + SESSION / 2);
        }
        assert!(end.over().now_or_never().is_some(), "it ended for a new one");
    }
}
