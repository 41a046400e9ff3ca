//! Limit on pings and pongs of one connection, which are not requests and yet cost work.

use std::time::Duration;

use crate::clock::Moment;
use crate::delivery::CloseReason;

/// Number of pings and pongs from one connection in the current window.
///
/// Control frames are not charged as requests: a client behind the same address as another that has used up the quota
/// may still show that it is alive. But each frame is work, and each ping is answered, so they have a limit of their
/// own.
#[derive(Debug, Default)]
pub struct ControlFrames {
    /// Start of the window; `None` before the first frame.
    since: Option<Moment>,
    count: u32,
}

impl ControlFrames {
    /// Most frames in one [`Self::WINDOW`]: a hundred a second, while libraries send one every few seconds.
    pub const MAX: u32 = 1_000;
    /// Length of a window.
    pub const WINDOW: Duration = Duration::from_secs(10);

    /// Counts one frame.
    ///
    /// # Errors
    /// The reason to close the connection, if there were too many frames.
    pub fn count(&mut self, now: Moment) -> Result<(), CloseReason> {
        if self.since.is_none_or(|since| now.since(since) >= Self::WINDOW) {
            (self.since, self.count) = (Some(now), 0);
        }
        self.count += 1;
        if self.count > Self::MAX {
            return Err(CloseReason::Flood("too many control frames"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::at;

    #[test]
    fn pings_up_to_the_limit_and_not_one_more() {
        let mut frames = ControlFrames::default();
        for now in [at(5), at(5) + ControlFrames::WINDOW, at(5) + 3 * ControlFrames::WINDOW] {
            for _ in 0..ControlFrames::MAX {
                assert!(frames.count(now).is_ok());
            }
        }
        assert!(frames.count(at(4) + 4 * ControlFrames::WINDOW).is_err());
        assert!(frames.count(at(5) + 4 * ControlFrames::WINDOW).is_ok());
    }
}
