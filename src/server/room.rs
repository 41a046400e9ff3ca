//! Room for long answers over HTTP: what all clients together, and each of them, may leave unread.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::door::Account;

/// Answers below this need none, in bytes.
const LONG: usize = 64 << 10;

/// What one client may take of the whole.
const PART: usize = 4;

/// All of it.
#[derive(Debug)]
pub struct Room {
    max: usize,
    taken: Arc<AtomicUsize>,
}

/// Room that is taken, until this is dropped.
#[derive(Debug)]
pub struct Taken {
    bytes: usize,
    of_all: Arc<AtomicUsize>,
    account: Arc<Account>,
}

impl Room {
    /// So many bytes.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self {
            max,
            taken: Arc::default(),
        }
    }

    /// Room for an answer to this client, which may need none. A long answer gets in where nothing else is, however long
    /// it is: the call was allowed.
    ///
    /// # Errors
    /// [`Full`].
    pub fn take(&self, account: &Arc<Account>, bytes: usize) -> Result<Option<Taken>, Full> {
        if bytes < LONG {
            return Ok(None);
        }
        let enter = |taken: &AtomicUsize, max: usize| {
            let fits = |before: usize| (before == 0 || before + bytes <= max).then_some(before + bytes);
            let entered = taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
            entered.map(drop).map_err(|_| Full)
        };
        enter(account.unread(), self.max / PART)?;
        if let Err(full) = enter(&self.taken, self.max) {
            account.unread().fetch_sub(bytes, Ordering::Relaxed);
            return Err(full);
        }
        Ok(Some(Taken {
            bytes,
            of_all: self.taken.clone(),
            account: account.clone(),
        }))
    }
}

/// There is no room.
#[derive(Debug)]
pub struct Full;

impl Drop for Taken {
    fn drop(&mut self) {
        self.of_all.fetch_sub(self.bytes, Ordering::Relaxed);
        self.account.unread().fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
