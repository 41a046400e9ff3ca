//! Packed forms of cached answers: a long one is packed once in each coding, however many clients ask for it.

use std::collections::HashMap;
use std::sync::Arc;

use alloy_primitives::map::DefaultHashBuilder;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::CacheKey;
use crate::content_coding::{ContentCoding, Packed};

/// Shortest answer whose packed forms are kept, in bytes: a shorter one is packed in less time than it takes to send.
pub(super) const SHARE_FROM: usize = 16 << 10;

/// Forms of one answer, by coding; `None` for one that is not worth it.
#[derive(Debug, Default)]
pub(super) struct Forms([OnceCell<Option<Packed>>; 2]);

impl Forms {
    pub(super) fn of(&self, coding: ContentCoding) -> &OnceCell<Option<Packed>> {
        match coding {
            ContentCoding::Gzip => &self.0[0],
            ContentCoding::Zstd => &self.0[1],
        }
    }
}

/// Long answers that are cached, by their address in memory: a response has the cached bytes themselves, and knows of
/// no key. As many as the cache has.
#[derive(Debug, Default)]
pub(super) struct Register(Mutex<HashMap<usize, (CacheKey, Arc<Forms>), DefaultHashBuilder>>);

impl Register {
    /// Enters an answer, until the registration is dropped.
    pub(super) fn enter(self: &Arc<Self>, key: CacheKey, json: &Bytes) -> Arc<Registration> {
        let at = json.as_ptr() as usize;
        self.0.lock().insert(at, (key, Arc::default()));
        Arc::new(Registration {
            register: self.clone(),
            at,
        })
    }

    /// Returns key and forms of a cached answer; `None` for any other bytes.
    pub(super) fn find(&self, json: &Bytes) -> Option<(CacheKey, Arc<Forms>)> {
        self.0.lock().get(&(json.as_ptr() as usize)).cloned()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.lock().len()
    }
}

/// Entry of an answer in the register. Dropped before the answer: no other bytes can have the same address until then.
#[derive(Debug)]
pub(super) struct Registration {
    register: Arc<Register>,
    at: usize,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.register.0.lock().remove(&self.at);
    }
}
