//! Room for sessions: those whose time is over leave, and those without a connection make room for others.

use std::sync::Arc;

use super::session::Account;
use super::{NoRoom, SessionBook, SessionKey, SessionLimits, token};
use crate::clock::Moment;
use crate::shares::share;

impl<P: Copy> SessionBook<P> {
    /// Forgets sessions whose time without a connection is over; `unix` is the time in seconds since 1970.
    pub(in crate::subscription) fn expire(&mut self, now: Moment, unix: u64) {
        let mut over = Vec::new();
        for (name, account) in &self.accounts {
            for token in account.stored.values() {
                let key = SessionKey {
                    account: name.clone(),
                    token: token.clone(),
                };
                match self.sessions.get(&key) {
                    Some(session) if now.since(session.left_at) < self.limits.keep => break,
                    _ => over.push(key),
                }
            }
        }
        over.iter().for_each(|key| self.remove(key));
        let is_used = |account: &Account| account.sessions > 0 || token::is_fresh(account.forgot_at, unix);
        self.accounts.retain(|_, account| is_used(account));
    }

    pub(super) fn remove(&mut self, key: &SessionKey) {
        let Some(session) = self.sessions.remove(key) else {
            return;
        };
        self.bytes -= session.bytes();
        if let Some(account) = self.accounts.get_mut(&key.account) {
            account.sessions -= 1;
            account.bytes -= session.bytes();
            account.stored.remove(&session.order);
        }
    }

    /// Makes room for so many bytes and sessions of this account: its own sessions without a connection leave for its share,
    /// those of an account that has more for the whole. None leaves if the connected ones already fill the share.
    pub(super) fn make_room(
        &mut self,
        key: &SessionKey,
        bytes: usize,
        sessions: usize,
        unix: u64,
    ) -> Result<(), NoRoom> {
        let SessionLimits { max, max_bytes, .. } = self.limits;
        let account = self.accounts.get(&key.account);
        let (connected, connected_bytes) = account.map_or((0, 0), |own| (own.connected(), own.connected_bytes));
        // One session may always be tried: a quarter of fewer than four is none.
        let share_of_sessions = share(max, self.connected.len() - connected).max(1);
        let share_of_bytes = share(max_bytes, self.connected_bytes - connected_bytes);
        if connected + sessions > share_of_sessions || connected_bytes + bytes > share_of_bytes {
            return Err(NoRoom);
        }
        loop {
            let account = self.accounts.get(&key.account);
            let (own_sessions, own_bytes) = account.map_or((0, 0), |own| (own.sessions, own.bytes));
            let victim = if own_sessions + sessions > share_of_sessions || own_bytes + bytes > share_of_bytes {
                self.oldest_of(&key.account)
            } else if self.sessions.len() + sessions > max {
                self.oldest_of_largest(&key.account, sessions, |account| account.sessions)
            } else if self.bytes + bytes > max_bytes {
                self.oldest_of_largest(&key.account, bytes, |account| account.bytes)
            } else {
                return Ok(());
            };
            let victim = victim.ok_or(NoRoom)?;
            self.remove(&victim);
            if let Some(account) = self.accounts.get_mut(&victim.account) {
                account.forgot_at = unix;
            }
        }
    }

    /// Returns the oldest session without a connection of the account that has most; of `own`, unless another one has more
    /// than that would have with `more`.
    fn oldest_of_largest(&self, own: &Arc<str>, more: usize, size: impl Fn(&Account) -> usize) -> Option<SessionKey> {
        let own_size = self.accounts.get(own).map_or(0, &size) + more;
        let with_stored = self.accounts.iter().filter(|(_, account)| !account.stored.is_empty());
        let larger = with_stored.filter(|(_, account)| size(account) > own_size);
        let largest = larger.max_by_key(|(_, account)| size(account));
        self.oldest_of(largest.map_or(own, |(name, _)| name))
    }

    fn oldest_of(&self, account: &Arc<str>) -> Option<SessionKey> {
        let (_, token) = self.accounts.get(account)?.stored.first_key_value()?;
        let (account, token) = (account.clone(), token.clone());
        Some(SessionKey { account, token })
    }
}
