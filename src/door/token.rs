//! JSON Web Tokens: HS256 by a shared secret, RS256 and ES256 by the public keys of a JWKS file.
//!
//! The `jsonwebtoken` crate reads tokens and checks their claims; signatures are verified by ring, which is in the
//! tree for TLS. The crate's own back ends would bring a C library that needs cmake, or an RSA implementation with an
//! open advisory. The algorithm is decided by the key, never by the token.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use alloy_primitives::hex;
use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{ErrorKind, Result as TokenResult};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, JwkSet};
use jsonwebtoken::signature::{self, Verifier};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind, Validation};
use parking_lot::Mutex;
use ring::signature::{ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey};
use serde::Deserialize;

use super::Digest;

/// Difference between clocks that is tolerated, in seconds.
const LEEWAY: u64 = 5;

/// Shortest secret, in bytes: as long as its hash (RFC 7518 section 3.2).
const MIN_SECRET: usize = 32;

/// Files of the keys, and the claims that are required.
#[derive(Clone, Debug, Default)]
pub struct TokenSettings<'a> {
    /// File of a shared secret: 64 hex digits in geth's form, or at least 32 bytes, used as they are.
    pub secret_file: Option<&'a Path>,
    /// File of public keys (RFC 7517).
    pub jwks_file: Option<&'a Path>,
    /// Required `iss`; `None` for any.
    pub issuer: Option<&'a str>,
    /// Required `aud`; `None` for any.
    pub audience: Option<&'a str>,
    /// Plan of tokens without a claim `plan`.
    pub plan: &'a str,
}

/// File that cannot be used, with the reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// File of the secret.
    #[error("auth.jwt_secret_file: {0}")]
    Secret(String),
    /// File of the public keys.
    #[error("auth.jwks_file: {0}")]
    Jwks(String),
}

/// Most verified tokens in memory; the next request with one of them costs a hash.
const MAX_REMEMBERED: usize = 4096;

/// Keys that may sign tokens, and the claims that are required.
#[derive(Clone, Debug)]
pub struct Tokens {
    secret: Option<(DecodingKey, Digest)>,
    public: Vec<PublicKey>,
    validation: Validation,
    plan: Arc<str>,
    /// Claims of verified tokens, by the hash of the token.
    remembered: Arc<Mutex<HashMap<Digest, VerifiedToken>>>,
}

#[derive(Clone, Debug)]
struct PublicKey {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
    digest: Digest,
}

/// Claims of a verified token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedToken {
    /// Claim `sub`.
    pub subject: Arc<str>,
    /// Claim `plan`, or the plan of tokens without one.
    pub plan: Arc<str>,
    /// Last second in which the token is valid, leeway included, since 1970.
    pub expires: u64,
    /// Hash of the key that the token was verified with.
    pub signer: Digest,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    /// Seconds since 1970, maybe with a fraction (RFC 7519 section 2).
    exp: f64,
    plan: Option<String>,
}

impl Tokens {
    /// Reads the files; `None` if neither is configured.
    ///
    /// # Errors
    /// [`TokenError`] if a file cannot be read or has no usable key.
    pub fn read(settings: &TokenSettings<'_>) -> Result<Option<Self>, TokenError> {
        let read = |path: &Path| std::fs::read(path).map_err(|why| format!("{}: {why}", path.display()));
        let secret = settings.secret_file.map(|path| {
            let secret = secret(&read(path)?);
            if secret.len() < MIN_SECRET {
                return Err(format!("{}: must have at least {MIN_SECRET} bytes", path.display()));
            }
            let key = DecodingKey::from_secret(&secret).map_err(|why| format!("{}: {why}", path.display()))?;
            Ok((key, Digest::of_bytes(&secret)))
        });
        let public = settings.jwks_file.map(|path| {
            let set: JwkSet = serde_json::from_slice(&read(path)?)
                .map_err(|why| format!("{}: not a valid JWKS: {why}", path.display()))?;
            let keys = public_keys(&set);
            if keys.is_empty() {
                return Err(format!(
                    "{}: has no RSA key (2048 bits or more) and no P-256 key",
                    path.display()
                ));
            }
            Ok(keys)
        });
        let secret = secret.transpose().map_err(TokenError::Secret)?;
        let public = public.transpose().map_err(TokenError::Jwks)?.unwrap_or_default();
        if secret.is_none() && public.is_empty() {
            return Ok(None);
        }
        // Fails if the provider is installed already, which makes no difference.
        let _ = RING.install_default();
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = LEEWAY;
        validation.validate_nbf = true;
        let mut required = vec!["exp", "sub"];
        if let Some(issuer) = settings.issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        validation.validate_aud = settings.audience.is_some();
        if let Some(audience) = settings.audience {
            validation.set_audience(&[audience]);
            required.push("aud");
        }
        validation.set_required_spec_claims(&required);
        Ok(Some(Self {
            secret,
            public,
            validation,
            plan: settings.plan.into(),
            remembered: Arc::default(),
        }))
    }

    /// Returns the hashes of the keys that tokens may be signed with.
    pub fn signers(&self) -> impl Iterator<Item = Digest> {
        let secret = self.secret.iter().map(|(_, digest)| *digest);
        secret.chain(self.public.iter().map(|key| key.digest))
    }

    /// Returns the claims of a token that was verified before and has not expired; `now` in seconds since 1970.
    #[must_use]
    pub fn recall(&self, token: &str, now: u64) -> Option<VerifiedToken> {
        let verified = self.remembered.lock().get(&Digest::of(token)).cloned();
        verified.filter(|verified| now <= verified.expires)
    }

    fn remember(&self, token: &str, verified: &VerifiedToken) {
        let mut remembered = self.remembered.lock();
        if remembered.len() >= MAX_REMEMBERED {
            remembered.clear();
        }
        remembered.insert(Digest::of(token), verified.clone());
    }

    /// Verifies a token and returns its claims.
    ///
    /// # Errors
    /// The error of `jsonwebtoken` if the token is malformed, forged or not valid now; clients do not see it.
    pub fn verify(&self, token: &str) -> TokenResult<VerifiedToken> {
        let header = jsonwebtoken::decode_header(token)?;
        let mut validation = self.validation.clone();
        validation.algorithms = vec![header.alg];
        let decode = |key: &DecodingKey, signer: Digest| {
            let decoded = jsonwebtoken::decode::<Claims>(token, key, &validation);
            decoded.map(|decoded| (decoded.claims, signer))
        };
        let decoded = match header.alg {
            Algorithm::HS256 => self.secret.as_ref().map(|(key, digest)| decode(key, *digest)),
            algorithm => {
                let fitting = self.public.iter().filter(|key| {
                    // A key without an id fits every token, and every key fits a token without one.
                    let named = header.kid.is_none() || key.id.is_none() || key.id == header.kid;
                    named && key.algorithm == algorithm
                });
                // Several keys may fit while an issuer rotates them: the one that signed the token counts.
                let mut tried = None;
                for public in fitting {
                    let decoded = decode(&public.key, public.digest);
                    let done = decoded.is_ok();
                    tried = Some(decoded);
                    if done {
                        break;
                    }
                }
                tried
            }
        };
        let (claims, signer) = decoded.ok_or(ErrorKind::InvalidAlgorithm)??;
        let verified = VerifiedToken {
            subject: claims.sub.into(),
            plan: claims.plan.map_or_else(|| self.plan.clone(), Into::into),
            expires: (claims.exp as u64).saturating_add(LEEWAY),
            signer,
        };
        self.remember(token, &verified);
        Ok(verified)
    }
}

/// Reads a secret: 64 hex digits (geth's form), or else the bytes without the whitespace around them.
fn secret(file: &[u8]) -> Vec<u8> {
    let text = file.trim_ascii();
    let digits = text.strip_prefix(b"0x").unwrap_or(text);
    if digits.len() == 2 * MIN_SECRET
        && let Ok(bytes) = hex::decode(digits)
    {
        return bytes;
    }
    text.to_vec()
}

/// Returns the keys that can be used; the files of issuers contain others too.
fn public_keys(set: &JwkSet) -> Vec<PublicKey> {
    let usable = set.keys.iter().filter_map(|jwk| {
        let algorithm = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => Algorithm::RS256,
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => Algorithm::ES256,
            _ => return None,
        };
        let meant = jwk.common.key_algorithm.map(|meant| meant.to_string());
        if meant.is_some_and(|meant| meant != format!("{algorithm:?}")) {
            return None;
        }
        let key = DecodingKey::from_jwk(jwk).ok()?;
        if let DecodingKeyKind::RsaModulusExponent { n, .. } = key.kind()
            && n.len() < 256
        {
            return None;
        }
        let digest = match key.kind() {
            DecodingKeyKind::RsaModulusExponent { n, e } => Digest::of_bytes(&[&n[..], b".", &e[..]].concat()),
            DecodingKeyKind::SecretOrDer(key) => Digest::of_bytes(key),
        };
        Some(PublicKey {
            digest,
            id: jwk.common.key_id.clone(),
            algorithm,
            key,
        })
    });
    usable.collect()
}

static RING: CryptoProvider = CryptoProvider {
    signer_factory: |_, _| Err(ErrorKind::UnsupportedAlgorithm.into()),
    verifier_factory: |algorithm, key| Ok(Box::new(RingVerifier::new(*algorithm, key)?)),
    key_utils: KeyUtils::new_unimplemented(),
};

/// Verifier of the signatures of one key.
struct RingVerifier {
    algorithm: Algorithm,
    key: DecodingKey,
}

impl RingVerifier {
    fn new(algorithm: Algorithm, key: &DecodingKey) -> TokenResult<Self> {
        let family = match algorithm {
            Algorithm::HS256 => AlgorithmFamily::Hmac,
            Algorithm::RS256 => AlgorithmFamily::Rsa,
            Algorithm::ES256 => AlgorithmFamily::Ec,
            _ => return Err(ErrorKind::UnsupportedAlgorithm.into()),
        };
        if key.family() != family {
            return Err(ErrorKind::InvalidKeyFormat.into());
        }
        Ok(Self {
            algorithm,
            key: key.clone(),
        })
    }
}

impl Verifier<Vec<u8>> for RingVerifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        let verified = match self.key.kind() {
            DecodingKeyKind::RsaModulusExponent { n, e } => {
                RsaPublicKeyComponents { n, e }.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
            }
            DecodingKeyKind::SecretOrDer(key) if self.algorithm == Algorithm::HS256 => {
                let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key);
                // Compares in constant time.
                ring::hmac::verify(&key, message, signature)
            }
            DecodingKeyKind::SecretOrDer(key) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key).verify(message, signature)
            }
        };
        verified.map_err(|_| signature::Error::new())
    }
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

#[cfg(test)]
mod tests;
