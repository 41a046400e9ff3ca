//! API keys: `hw_` and 256 random bits. Only their hashes are kept.
//!
//! SHA-256 without salt or stretching would be wrong for passwords and is right here: 2^256 values cannot be tried,
//! so there is no attack to slow down, and a slow hash at admission would be a way to keep us busy. The look-up is by
//! the hash of the key that was sent: its timing can only reveal how hashes compare, and a hash does not lead to a
//! key.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

/// Prefix of every key. It distinguishes a key from a token and from an ordinary path, and lets scanners for leaked
/// secrets find keys.
const PREFIX: &str = "hw_";

/// Key in the clear, which exists only when it is made.
pub struct ApiKey(String);

impl ApiKey {
    /// Makes a key with the thread's cryptographic generator.
    #[must_use]
    pub fn random() -> Self {
        Self(format!(
            "{PREFIX}{}",
            URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>())
        ))
    }

    /// Returns the key in the clear, to be shown to its owner once.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Returns the hash of the key, for the configuration.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.0)
    }

    /// Checks by the prefix if a text is a key, and not a token, a path or anything else.
    #[must_use]
    pub fn is_one(text: &str) -> bool {
        text.starts_with(PREFIX)
    }
}

/// The SHA-256 of a key, written `sha256:` and 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Hashes a key as it was sent.
    #[must_use]
    pub fn of(key: &str) -> Self {
        Self::of_bytes(key.as_bytes())
    }

    /// Returns the hash.
    pub(super) fn to_bytes(self) -> [u8; 32] {
        self.0
    }

    /// Hashes any secret.
    pub(super) fn of_bytes(secret: &[u8]) -> Self {
        Self(Sha256::digest(secret).into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Hides the digits: not even the hash may get into a log.
impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest(…)")
    }
}

/// Text that is not a hash of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a valid key hash: use sha256: and 64 hex digits, as printed by `headwater key`")]
pub struct InvalidDigest;

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let digits = text.strip_prefix("sha256:").ok_or(InvalidDigest)?;
        let mut bytes = [0; 32];
        alloy_primitives::hex::decode_to_slice(digits, &mut bytes).map_err(|_| InvalidDigest)?;
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_by_its_hash_and_by_nothing_else() {
        let key = ApiKey::random();
        assert!(ApiKey::is_one(key.reveal()) && key.reveal().len() == 46);
        assert_ne!(key.reveal(), ApiKey::random().reveal());
        let written = key.digest().to_string();
        assert_eq!(written.parse(), Ok(Digest::of(key.reveal())));
        assert!(!written.contains(&key.reveal()[3..]));
        assert_eq!(format!("{:?}", key.digest()), "Digest(…)");
        assert_eq!(
            Digest::of("abc").to_string(),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        for wrong in ["", "sha256:", "sha256:00", &written[7..], key.reveal()] {
            assert_eq!(wrong.parse::<Digest>(), Err(InvalidDigest), "{wrong}");
        }
    }
}
