//! Subscriptions that wait for a level of finality, in the registry.

use super::Registry;
use crate::chain::{Page, Tag, Tagged};
use crate::shares::Owner;
use crate::subscription::trails::{Reached, TrailWork};
use crate::subscription::{Level, LevelState};

impl Registry {
    /// Returns the state of each level with subscriptions.
    #[must_use]
    pub fn levels(&self) -> Vec<LevelState> {
        self.tables.lock().trails.states()
    }

    /// Checks if `owner` may subscribe to this level.
    ///
    /// # Errors
    /// The client's error text, if there are too many different depths.
    pub fn admit_level(&self, level: Level, owner: Owner) -> Result<(), String> {
        self.tables.lock().trails.admit(level, owner)
    }

    /// Returns the tags that clients subscribe to; `None` if there is no subscription of any level.
    pub(in crate::subscription) fn wanted_tags(&self) -> Option<Vec<Tag>> {
        let tables = self.tables.lock();
        let trails = &tables.trails;
        let wanted = Tag::ALL.into_iter().filter(|tag| trails.want(*tag));
        (!trails.is_empty()).then(|| wanted.collect())
    }

    /// Checks if the place of a level is known.
    pub(in crate::subscription) fn reached(&self, level: Level) -> Reached {
        self.tables.lock().trails.reached(level)
    }

    /// Takes a node's answer about a tag.
    pub(in crate::subscription) fn note_tag(&self, tag: Tag, tagged: Tagged, depth: u64) {
        self.tables.lock().note_tag(tag, tagged, depth);
        self.published.notify();
    }

    /// Takes a page for a level.
    pub(in crate::subscription) fn trail_page(&self, level: Level, page: Page) {
        self.tables.lock().trail_page(level, page);
    }

    /// Delivers blocks that have reached their level, some at a time.
    pub(in crate::subscription) fn advance_trails(&self) -> TrailWork {
        let work = self.with_tables(|tables, due, now| {
            let work = tables.advance_trails(due, now);
            if work.moved {
                self.mark_all(tables, due, now);
            }
            work
        });
        if work.needs {
            self.needs.notify_one();
        }
        if work.moved {
            // Replays of these levels go on, and answers to new subscriptions.
            self.published.notify();
        }
        work
    }
}
