//! Use of accounts at other headwaters: digests that name an account without its address or key, and what was reported.

use std::collections::VecDeque;
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use ring::hmac;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Identity;
use crate::clock::Moment;

/// Seconds in which an account was used elsewhere that are kept for its opening here.
const RECENT: usize = 8;

/// Age at which foreign use counts no more for an account that is opened here.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// Secret that several headwaters share, by which they name accounts to each other.
#[derive(Clone, Debug)]
pub struct AccountSecret(hmac::Key);

impl AccountSecret {
    /// Takes any secret.
    #[must_use]
    pub fn new(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// Returns the digest of an identity; `None` for one that means nothing to another process.
    pub(super) fn digest(&self, identity: &Identity) -> Option<AccountDigest> {
        let tag = hmac::sign(&self.0, &identity.to_bytes()?);
        let mut digest = [0; 16];
        digest.copy_from_slice(tag.as_ref().get(..16)?);
        Some(AccountDigest(digest))
    }
}

/// Name of an account between headwaters: half of the HMAC-SHA-256 of its identity, written in base64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountDigest([u8; 16]);

/// Text that is not a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not the digest of an account")]
pub struct InvalidAccountDigest;

impl fmt::Display for AccountDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for AccountDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for AccountDigest {
    type Err = InvalidAccountDigest;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut digest = [0; 16];
        match URL_SAFE_NO_PAD.decode_slice(text, &mut digest) {
            Ok(16) => Ok(Self(digest)),
            _ => Err(InvalidAccountDigest),
        }
    }
}

impl Serialize for AccountDigest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AccountDigest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Use of one account at one headwater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AccountUse {
    /// Units of requests that were admitted since the account was opened there.
    pub units: u64,
    /// Part of `units` since the use before this one.
    pub fresh_units: u64,
    /// Bytes of notifications that were sent since the account was opened there.
    pub bytes: u64,
    /// Part of `bytes` since the use before this one.
    pub fresh_bytes: u64,
    /// Places in use.
    pub places: Places,
}

/// Places of an account that are in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Open connections.
    pub connections: u32,
    /// Subscriptions.
    pub subscriptions: u32,
    /// Index entries of its filters.
    pub index_entries: u32,
}

/// Use of an account at other headwaters, as it is charged here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForeignCharge {
    /// Account.
    pub account: AccountDigest,
    /// Units of requests since the last charge.
    pub units: u64,
    /// Bytes of notifications since the last charge.
    pub bytes: u64,
    /// Places in use at all others together.
    pub places: Places,
}

/// Use of one account at all other headwaters.
#[derive(Debug, Default)]
pub(super) struct ForeignUse {
    connections: AtomicU32,
    subscriptions: AtomicU32,
    index_entries: AtomicU32,
    recent: Mutex<RecentUnits>,
}

impl ForeignUse {
    /// Records a charge.
    pub(super) fn note(&self, charge: &ForeignCharge, now: Moment) {
        let places = charge.places;
        self.connections.store(places.connections, Ordering::Relaxed);
        self.subscriptions.store(places.subscriptions, Ordering::Relaxed);
        self.index_entries.store(places.index_entries, Ordering::Relaxed);
        if charge.units > 0 {
            let units = u32::try_from(charge.units).unwrap_or(u32::MAX);
            self.recent.lock().add(units, now);
        }
    }

    /// Returns the places in use.
    pub(super) fn places(&self) -> Places {
        Places {
            connections: self.connections.load(Ordering::Relaxed),
            subscriptions: self.subscriptions.load(Ordering::Relaxed),
            index_entries: self.index_entries.load(Ordering::Relaxed),
        }
    }

    /// Returns the units that an account which is opened now owes.
    pub(super) fn owed(&self, per_second: NonZeroU32, now: Moment) -> u32 {
        self.recent.lock().owed(per_second, now)
    }

    /// Checks if nothing is in use, and nothing was for a while.
    pub(super) fn is_over(&self, now: Moment) -> bool {
        self.places() == Places::default() && self.recent.lock().is_over(now)
    }
}

/// Units by the second of their use, the newest last.
#[derive(Debug, Default)]
struct RecentUnits(VecDeque<(Moment, u32)>);

impl RecentUnits {
    fn add(&mut self, units: u32, now: Moment) {
        if let Some((since, sum)) = self.0.back_mut()
            && now.since(*since) < Duration::from_secs(1)
        {
            *sum = sum.saturating_add(units);
            return;
        }
        if self.0.len() == RECENT {
            self.0.pop_front();
        }
        self.0.push_back((now, units));
    }

    fn owed(&self, per_second: NonZeroU32, now: Moment) -> u32 {
        let mut owed = 0_u64;
        let mut before = None;
        let mut refill = |owed: u64, at: Moment| {
            let since = before.replace(at).map_or(Duration::ZERO, |before| at.since(before));
            let units = since.as_millis() * u128::from(per_second.get()) / 1000;
            owed.saturating_sub(u64::try_from(units).unwrap_or(u64::MAX))
        };
        for (at, units) in &self.0 {
            owed = refill(owed, *at) + u64::from(*units);
        }
        u32::try_from(refill(owed, now)).unwrap_or(u32::MAX)
    }

    fn is_over(&self, now: Moment) -> bool {
        self.0.back().is_none_or(|(at, _)| now.since(*at) >= FORGOTTEN)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;

    use super::*;
    use crate::clock::at;
    use crate::door::ApiKey;

    #[test]
    fn a_digest_says_the_same_everywhere_and_nothing_without_the_secret() {
        let secret = AccountSecret::new(b"a secret of the fleet");
        let network = |text: &str| Identity::Network(text.parse::<IpAddr>().unwrap().into());
        let token = |subject: &str, plan: &str| Identity::Token {
            subject: Arc::from(subject),
            plan: Arc::from(plan),
        };
        let all = [
            network("10.0.0.1"),
            network("10.0.0.2"),
            network("::a00:1"),
            token("ab", "c"),
            token("a", "bc"),
            Identity::Key(ApiKey::random().digest()),
        ];
        let digests: Vec<_> = all.iter().map(|identity| secret.digest(identity).unwrap()).collect();
        let other = AccountSecret::new(b"another");
        for (index, (identity, digest)) in all.iter().zip(&digests).enumerate() {
            assert_eq!(digest.to_string().parse(), Ok(*digest));
            assert!(!digests[..index].contains(digest), "{identity:?}");
            assert_ne!(other.digest(identity).unwrap(), *digest);
        }
        for local in [Identity::Connection(1), Identity::Within(1)] {
            assert_eq!(secret.digest(&local), None);
        }
        for wrong in [
            "",
            "AAAA",
            "AAAAAAAAAAAAAAAAAAAAAA==",
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
            "ä",
        ] {
            assert_eq!(wrong.parse::<AccountDigest>(), Err(InvalidAccountDigest), "{wrong}");
        }
    }

    #[test]
    fn recent_use_is_owed_until_it_is_refilled() {
        let mut recent = RecentUnits::default();
        let rate = NonZeroU32::new(10).unwrap();
        assert_eq!(recent.owed(rate, at(5_000)), 0);
        recent.add(20, at(10_000));
        recent.add(10, at(10_400));
        assert_eq!(recent.owed(rate, at(10_500)), 25);
        recent.add(5, at(12_000));
        assert_eq!(recent.owed(rate, at(12_000)), 15);
        assert_eq!(recent.owed(rate, at(13_500)), 0);
        assert!(!recent.is_over(at(71_999)) && recent.is_over(at(72_000)));
        (0..100).for_each(|second| recent.add(u32::MAX, at(80_000 + second * 1_000)));
        assert_eq!((recent.0.len(), recent.owed(rate, at(180_000))), (RECENT, u32::MAX));
    }
}
