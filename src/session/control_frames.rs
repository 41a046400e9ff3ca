//! Limit on pings and pongs of one connection, which are not requests and yet cost work.

use crate::clock::Millis;
use crate::delivery::CloseReason;

/// Number of pings and pongs from one connection in the current window.
///
/// Control frames are not charged as requests: a client behind the same address as another that has used up the quota
/// may still show that it is alive. But each frame is work, and each ping is answered, so they have a limit of their
/// own.
#[derive(Debug, Default)]
pub struct ControlFrames {
    since: Millis,
    count: u32,
}

impl ControlFrames {
    /// Most frames in one [`Self::WINDOW`]: a hundred a second, while libraries send one every few seconds.
    pub const MAX: u32 = 1_000;
    /// Length of a window, in milliseconds.
    pub const WINDOW: Millis = 10_000;

    /// Counts one frame.
    ///
    /// # Errors
    /// The reason to close the connection, if there were too many frames.
    pub fn count(&mut self, now: Millis) -> Result<(), CloseReason> {
        if now.saturating_sub(self.since) >= Self::WINDOW {
            (self.since, self.count) = (now, 0);
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

    #[test]
    fn pings_up_to_the_limit_and_not_one_more() {
        let mut frames = ControlFrames::default();
        for now in [5, 5 + ControlFrames::WINDOW, 5 + 3 * ControlFrames::WINDOW] {
            for _ in 0..ControlFrames::MAX {
                assert!(frames.count(now).is_ok());
            }
        }
        assert!(frames.count(4 + 4 * ControlFrames::WINDOW).is_err());
        assert!(frames.count(5 + 4 * ControlFrames::WINDOW).is_ok());
    }
}
