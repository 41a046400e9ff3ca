//! How much one client may ask: governor quotas by address.

use std::net::IpAddr;
use std::num::NonZeroU32;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use crate::delivery::{CloseReason, Millis};
use crate::jsonrpc::{ErrorObjectOwned, LIMIT_EXCEEDED};

/// Who is charged: an IPv4 address, or the /64 of an IPv6 address, for a /64 is one customer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity(u64, bool);

impl From<IpAddr> for Identity {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self(u32::from(address).into(), false),
            IpAddr::V6(address) => Self((u128::from(address) >> 64) as u64, true),
        }
    }
}

/// A message of this length costs as much as a request, whatever it says. Most requests are a hundredth of it.
pub const BYTES_PER_REQUEST: usize = 64 << 10;

/// The quota of requests for each identity.
#[derive(Debug)]
pub struct RequestQuota {
    limiter: DefaultKeyedRateLimiter<Identity>,
    clock: DefaultClock,
}

impl RequestQuota {
    /// `per_second` refills what `burst` allows at once.
    #[must_use]
    pub fn new(per_second: NonZeroU32, burst: NonZeroU32) -> Self {
        let limiter = RateLimiter::keyed(Quota::per_second(per_second).allow_burst(burst));
        Self {
            limiter,
            clock: DefaultClock::default(),
        }
    }

    /// Charges `count` requests; each item of a batch is one.
    ///
    /// # Errors
    /// `-32005 limit exceeded` with `data.retryAfterMs`; a batch above the burst can never pass and has no such hint.
    pub fn charge(&self, identity: Identity, count: u32) -> Result<(), ErrorObjectOwned> {
        let Some(count) = NonZeroU32::new(count) else {
            return Ok(());
        };
        let exceeded = |retry_after_ms: Option<u64>| {
            let data = retry_after_ms.map(|ms| serde_json::json!({ "retryAfterMs": ms }));
            ErrorObjectOwned::owned(LIMIT_EXCEEDED, "limit exceeded", data)
        };
        match self.limiter.check_key_n(&identity, count) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(until)) => Err(exceeded(Some(
                until.wait_time_from(self.clock.now()).as_millis() as u64 + 1,
            ))),
            Err(_) => Err(exceeded(None)),
        }
    }

    /// Charges the length of a message before it is read: one request for each 64 KiB.
    ///
    /// # Errors
    /// As [`Self::charge`].
    pub fn charge_bytes(&self, identity: Identity, bytes: usize) -> Result<(), ErrorObjectOwned> {
        self.charge(identity, u32::try_from(bytes / BYTES_PER_REQUEST).unwrap_or(u32::MAX))
    }

    /// Forgets identities whose quota is full again, so that the table shrinks.
    pub fn forget_idle(&self) {
        self.limiter.retain_recent();
        self.limiter.shrink_to_fit();
    }

    /// Identities that are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.limiter.len()
    }

    /// Whether nobody is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.limiter.is_empty()
    }
}

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

    const fn n(value: u32) -> NonZeroU32 {
        NonZeroU32::new(value).expect("not zero")
    }

    #[test]
    fn a_burst_passes_and_one_more_does_not() {
        let quota = RequestQuota::new(n(1), n(5));
        let [one, other] = ["10.0.0.1", "10.0.0.2"].map(|ip| Identity::from(ip.parse::<IpAddr>().expect("ip")));
        assert!(quota.charge(one, 5).is_ok());
        let error = quota.charge(one, 1).expect_err("exceeded");
        assert_eq!((error.code(), error.message()), (-32005, "limit exceeded"));
        assert!(error.data().is_some_and(|data| data.get().contains("retryAfterMs")));
        assert!(quota.charge(other, 5).is_ok(), "others keep theirs");
        assert!(quota.charge(other, 6).expect_err("above the burst").data().is_none());
    }

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

    #[test]
    fn a_64_is_one_client() {
        let id = |text: &str| Identity::from(text.parse::<IpAddr>().expect("ip"));
        assert_eq!(id("2001:db8:1:2::1"), id("2001:db8:1:2:ffff::9"));
        assert_ne!(id("2001:db8:1:2::1"), id("2001:db8:1:3::1"));
        assert_eq!(id("::ffff:10.0.0.1"), id("10.0.0.1"));
        assert_ne!(id("10.0.0.1"), id("10.0.0.2"));
    }
}
