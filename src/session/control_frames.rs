//! Pings and pongs of one connection, which are no requests and yet work.

use crate::clock::Millis;
use crate::delivery::CloseReason;

/// How many pings and pongs one connection has sent of late.
///
/// They are no requests: who shares an address with somebody that has used up the quota may still say that it is alive. But
/// each is work, and each ping is answered, so their number is bounded by itself.
#[derive(Debug, Default)]
pub struct ControlFrames {
    since: Millis,
    count: u32,
}

impl ControlFrames {
    /// Most in one [`Self::WINDOW`]: hundred a second, where libraries send one in seconds.
    pub const MAX: u32 = 1_000;
    /// What is counted together, in milliseconds.
    pub const WINDOW: Millis = 10_000;

    /// Counts one more.
    ///
    /// # Errors
    /// Why the connection has to end: it was one too many.
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
