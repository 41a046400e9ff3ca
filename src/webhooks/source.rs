//! Source of a webhook's events: its feed, and the times without one.

use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::event_text::TooLong;
use super::feed::{Feed, NoFeed};

/// Time for which a feed may wait while its events find no room; then it is dropped, and opened again at its position.
const UNREAD: Duration = Duration::from_secs(1);

/// Feed that is about to be opened.
pub(super) type Opening = Pin<Box<dyn Future<Output = Result<Feed, NoFeed>> + Send>>;

/// Source of the events.
pub(super) enum Source {
    /// None before this time.
    Closed(Instant),
    /// About to be opened at the position.
    Opening(Opening),
    /// Open.
    Open(Feed),
    /// The position cannot be served, for this reason: once all events are delivered, and not before this time, a live feed
    /// is opened.
    Gap(String, Instant),
    /// About to be opened live, behind a gap.
    Reopening(String, Opening),
    /// Live; its first item says where, and the gap is announced.
    Reopened(String, Feed),
}

/// Change of the source.
pub(super) enum Came {
    /// The feed may be opened.
    Due,
    /// The feed was opened, or could not be.
    Opened(Result<Feed, NoFeed>),
    /// More was read; `false` at its end.
    Read(Result<bool, TooLong>),
    /// Its events have found no room for too long.
    Unread,
}

impl Source {
    /// Waits for a change. Nothing is lost if the future is dropped.
    pub(super) async fn changed(&mut self, full_since: Option<Instant>) -> Came {
        match (self, full_since) {
            (Self::Opening(opening) | Self::Reopening(_, opening), _) => Came::Opened(opening.await),
            (Self::Closed(at), None) => {
                sleep_until(*at).await;
                Came::Due
            }
            (Self::Open(feed) | Self::Reopened(_, feed), None) => Came::Read(feed.more().await),
            (Self::Open(_), Some(since)) => {
                sleep_until(since + UNREAD).await;
                Came::Unread
            }
            (Self::Gap(_, at), _) if *at > Instant::now() => {
                sleep_until(*at).await;
                Came::Due
            }
            (Self::Closed(_) | Self::Gap(..) | Self::Reopened(..), _) => std::future::pending().await,
        }
    }
}
