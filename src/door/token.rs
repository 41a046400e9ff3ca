//! JSON Web Tokens: HS256 by a shared secret, RS256 and ES256 by the public keys of a JWKS file.
//!
//! The `jsonwebtoken` crate reads tokens and judges their claims; signatures are checked by ring, which is in the tree for
//! TLS. Its own back ends would bring a C library that needs cmake, or an RSA implementation with an open advisory.
//! Which algorithm may be used with which key is decided by the key, never by the token.

use std::path::Path;
use std::sync::Arc;

use alloy_primitives::hex;
use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{ErrorKind, Result as TokenResult};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, JwkSet};
use jsonwebtoken::signature::{self, Verifier};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind, Validation};
use ring::signature::{ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey};
use serde::Deserialize;

/// Clocks differ by so much, in seconds.
const LEEWAY: u64 = 5;

/// Shortest secret, in bytes: as long as its hash (RFC 7518 section 3.2).
const MIN_SECRET: usize = 32;

/// What the files hold, and what claims must say.
#[derive(Clone, Debug, Default)]
pub struct TokenSettings<'a> {
    /// A shared secret: 64 hex digits as geth keeps them, or at least 32 bytes as they are.
    pub secret_file: Option<&'a Path>,
    /// Public keys (RFC 7517).
    pub jwks_file: Option<&'a Path>,
    /// `iss`, where it matters.
    pub issuer: Option<&'a str>,
    /// `aud`, where it matters.
    pub audience: Option<&'a str>,
    /// The plan of tokens without a claim `plan`.
    pub plan: &'a str,
}

/// A file that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The secret.
    #[error("auth.jwt_secret_file: {0}")]
    Secret(String),
    /// The public keys.
    #[error("auth.jwks_file: {0}")]
    Jwks(String),
}

/// Who may sign tokens, and for whom.
#[derive(Clone, Debug)]
pub struct Tokens {
    secret: Option<DecodingKey>,
    public: Vec<PublicKey>,
    validation: Validation,
    plan: Arc<str>,
}

#[derive(Clone, Debug)]
struct PublicKey {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

/// What a good token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// `sub`.
    pub subject: Arc<str>,
    /// `plan`, or the plan of those without.
    pub plan: Arc<str>,
    /// The last second in which it holds, since 1970.
    pub expires: u64,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    /// A number, maybe with a fraction (RFC 7519 section 2).
    exp: f64,
    plan: Option<String>,
}

impl Tokens {
    /// Reads the files; none where neither is configured.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn read(settings: &TokenSettings<'_>) -> Result<Option<Self>, TokenError> {
        let read = |path: &Path| std::fs::read(path).map_err(|why| format!("{}: {why}", path.display()));
        let secret = settings.secret_file.map(|path| {
            let secret = secret(&read(path)?);
            if secret.len() < MIN_SECRET {
                return Err(format!("{}: must hold at least {MIN_SECRET} bytes", path.display()));
            }
            Ok(DecodingKey::from_secret(&secret))
        });
        let public = settings.jwks_file.map(|path| {
            let set: JwkSet =
                serde_json::from_slice(&read(path)?).map_err(|why| format!("{}: no JWKS: {why}", path.display()))?;
            let keys = public_keys(&set);
            if keys.is_empty() {
                return Err(format!(
                    "{}: holds no RSA (2048 bits or more) and no P-256 key",
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
        // Fails when it is installed already, which is as good.
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
        }))
    }

    /// What a token says, where it holds now.
    ///
    /// # Errors
    /// The crate's, of which nobody is told.
    pub fn verify(&self, token: &str) -> TokenResult<Told> {
        let header = jsonwebtoken::decode_header(token)?;
        let key = match header.alg {
            Algorithm::HS256 => self.secret.as_ref(),
            algorithm => {
                let mut fitting = self.public.iter().filter(|key| {
                    // A key without a name fits every token.
                    let named = header.kid.is_none() || key.id.is_none() || key.id == header.kid;
                    named && key.algorithm == algorithm
                });
                fitting.next().map(|public| &public.key)
            }
        };
        let key = key.ok_or(ErrorKind::InvalidAlgorithm)?;
        let mut validation = self.validation.clone();
        validation.algorithms = vec![header.alg];
        let claims: Claims = jsonwebtoken::decode(token, key, &validation)?.claims;
        Ok(Told {
            subject: claims.sub.into(),
            plan: claims.plan.map_or_else(|| self.plan.clone(), Into::into),
            expires: (claims.exp as u64).saturating_add(LEEWAY),
        })
    }
}

/// geth's form, or the bytes as they are without the line's end.
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

/// Those that can be used; files of issuers hold others too.
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
        Some(PublicKey {
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

/// One signature's check.
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
                // In constant time.
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
