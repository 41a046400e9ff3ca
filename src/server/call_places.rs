//! Calls of one HTTP/2 connection that are not answered yet, over all of its streams.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Number of places that are taken.
#[derive(Debug, Default)]
pub(crate) struct CallPlaces(AtomicU32);

/// Place among the calls of a connection, until dropped.
#[derive(Debug)]
pub(crate) struct CallPlace(Arc<CallPlaces>);

impl CallPlaces {
    /// Takes one of `max` places; `None` if no place is free.
    pub(crate) fn take(self: &Arc<Self>, max: u32) -> Option<CallPlace> {
        let one_more = |now: u32| (now < max).then(|| now + 1);
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        taken.ok().map(|_| CallPlace(self.clone()))
    }
}

impl Drop for CallPlace {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_and_given_back() {
        let places = Arc::<CallPlaces>::default();
        let both = [places.take(2), places.take(2)];
        assert!(both.iter().all(Option::is_some));
        assert!(places.take(2).is_none() && places.take(3).is_some());
        drop(both);
        assert!(places.take(1).is_some());
    }
}
