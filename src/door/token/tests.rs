use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};

use super::*;
use crate::door::unix_now;

const SECRET: &[u8] = b"a secret of at least thirty-two bytes, for tests";

/// Public half of a key pair whose private half was discarded, and a token that it signed:
/// `{"sub":"alice","exp":4102444800}`.
const MODULUS: &str = "oi0SOwrXwPP2xkJNfxZl64shw7oUIKi7_9hncxJmx3SNoH1wLTrZ3ee5yA4MhckYiJnUbh5FRV-KryhISFmOD86_ttvgIMireTc7ATzQTmqO2T4LXRzhIx2T6CAmc3s7SNuUP_onsVLty8dHqu-Ktecb6ko2JHsm8a68AnT3XIBGble1EC1rau5aa9XoaE8DCBdAx0CZc4m2wYRt-5T1qwgl8qXLWFRU3g0YHN2aAsJKCzbhkjQ1uhFoJW-85ERvUXk1OsYI-tXowz4nvOIlWLKlP6sI093GLnSC7_XVTuRAoGp8iKbNu-27GzHtjpHs3tLKEC_O8WTltTwUNmQxqQ";
const RS256: &str = "eyJhbGciOiAiUlMyNTYiLCAia2lkIjogInRlc3QtcnNhIn0.eyJzdWIiOiAiYWxpY2UiLCAiZXhwIjogNDEwMjQ0NDgwMH0.ffz7LVbneqh06cfyEm_8lzkEZMACiht-DKHpPnwPykUeCl3FWIGLxD9keDcp_hQLeneHPLg0NYpGea9BiOrKO2URSQMg3Caq7S0UdoMDA50rWSk8DerVpNpNXurqD3tRLr8YCF5bvWJvnXLNV0tEabeyQUBSBR3ogfmWp2Ag2AMGwFzlAJtwpDYCn3itAbQOaXrn9VMulWOIe3nK15SliBA0AjKn2hqzhUCB-AmWx1QtZST1VRRSiDWheJglOJkWrRLcHSAUeX451eXoDCguQmzJPmRxcVGGqZwZPPI0OJtMm1YzKM_n1iNM7JXTuT9pV3Sj06soWCEXGhqku603eg";

fn file(content: impl AsRef<[u8]>) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content.as_ref()).unwrap();
    file
}

fn body(header: &Value, claims: &Value) -> String {
    format!(
        "{}.{}",
        BASE64.encode(header.to_string()),
        BASE64.encode(claims.to_string())
    )
}

fn hs256(secret: &[u8], claims: &Value) -> String {
    let body = body(&json!({"alg": "HS256"}), claims);
    let tag = ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret), body.as_bytes());
    format!("{body}.{}", BASE64.encode(tag))
}

fn with_secret(edit: impl FnOnce(&mut TokenSettings<'_>)) -> Tokens {
    let file = file(SECRET);
    let mut settings = TokenSettings {
        secret_file: Some(file.path()),
        plan: "default",
        ..TokenSettings::default()
    };
    edit(&mut settings);
    Tokens::read(&settings).unwrap().unwrap()
}

fn jwks(keys: &Value) -> Result<Option<Tokens>, TokenError> {
    let file = file(json!({ "keys": keys }).to_string());
    Tokens::read(&TokenSettings {
        jwks_file: Some(file.path()),
        plan: "default",
        ..TokenSettings::default()
    })
}

#[test]
fn a_token_says_who_on_which_plan_and_until_when() {
    let tokens = with_secret(|_| {});
    let exp = unix_now() + 60;
    let received = tokens
        .verify(&hs256(SECRET, &json!({"sub": "alice", "exp": exp})))
        .unwrap();
    assert_eq!(
        (&*received.subject, &*received.plan, received.expires),
        ("alice", "default", exp + LEEWAY)
    );
    let fraction = json!({"sub": "alice", "exp": exp as f64 + 0.5, "plan": "partner"});
    assert_eq!(&*tokens.verify(&hs256(SECRET, &fraction)).unwrap().plan, "partner");
}

#[test]
fn what_is_wrong_with_a_token_keeps_it_out() {
    let tokens = with_secret(|_| {});
    let now = unix_now();
    let good = json!({"sub": "alice", "exp": now + 60});
    for claims in [
        json!({"sub": "alice"}),
        json!({"exp": now + 60}),
        json!({"sub": 7, "exp": now + 60}),
        json!({"sub": "alice", "exp": now - LEEWAY - 1}),
        json!({"sub": "alice", "exp": "4102444800"}),
        json!({"sub": "alice", "exp": now + 60, "nbf": now + LEEWAY + 10}),
        json!({"sub": "alice", "exp": now + 60, "nbf": "soon"}),
    ] {
        assert!(tokens.verify(&hs256(SECRET, &claims)).is_err(), "{claims}");
    }
    assert!(
        tokens
            .verify(&hs256(b"another secret of more than thirty-two bytes", &good))
            .is_err()
    );
    for alg in ["none", "HS384", "RS256", "ES256"] {
        let unsigned = body(&json!({ "alg": alg }), &good);
        let tag = ring::hmac::sign(
            &ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET),
            unsigned.as_bytes(),
        );
        for signature in [String::new(), BASE64.encode(tag)] {
            assert!(tokens.verify(&format!("{unsigned}.{signature}")).is_err(), "{alg}");
        }
    }
    for nonsense in ["", ".", "..", "a.b.c", "hw_1", RS256] {
        assert!(tokens.verify(nonsense).is_err(), "{nonsense}");
    }
}

#[test]
fn issuer_and_audience_where_they_matter() {
    let tokens = with_secret(|settings| (settings.issuer, settings.audience) = (Some("us"), Some("rpc")));
    let check = |more: Value, good: bool| {
        let mut claims = json!({"sub": "alice", "exp": unix_now() + 60});
        claims
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        assert_eq!(tokens.verify(&hs256(SECRET, &claims)).is_ok(), good, "{claims}");
    };
    check(json!({"iss": "us", "aud": "rpc"}), true);
    check(json!({"iss": "us", "aud": ["x", "rpc"]}), true);
    check(json!({"iss": "us"}), false);
    check(json!({"aud": "rpc"}), false);
    check(json!({"iss": "them", "aud": "rpc"}), false);
    check(json!({"iss": "us", "aud": "x"}), false);
    let anybody = with_secret(|_| {});
    let claims = json!({"sub": "alice", "exp": unix_now() + 60, "aud": "x"});
    assert!(anybody.verify(&hs256(SECRET, &claims)).is_ok());
}

#[test]
fn public_keys_check_what_the_private_ones_signed() {
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap();
    let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
    let ec = json!({"kty": "EC", "crv": "P-256", "kid": "ec", "x": BASE64.encode(x), "y": BASE64.encode(y)});
    let rsa = json!({"kty": "RSA", "kid": "test-rsa", "alg": "RS256", "n": MODULUS, "e": "AQAB"});
    let other = json!({"kty": "oct", "kid": "secret", "k": BASE64.encode(SECRET)});
    let strange = json!({"kty": "OKP", "crv": "Ed25519", "x": BASE64.encode([7; 32])});
    let tokens = jwks(&json!([other, strange, ec, rsa])).unwrap().unwrap();
    assert_eq!(&*tokens.verify(RS256).unwrap().subject, "alice");
    let forged = format!("{}{}", &RS256[..RS256.len() - 2], "AA");
    assert!(tokens.verify(&forged).is_err());
    let good = json!({"sub": "bob", "exp": unix_now() + 60});
    let es256 = |header: &Value| {
        let body = body(header, &good);
        format!("{body}.{}", BASE64.encode(pair.sign(&random, body.as_bytes()).unwrap()))
    };
    assert_eq!(
        &*tokens
            .verify(&es256(&json!({"alg": "ES256", "kid": "ec"})))
            .unwrap()
            .subject,
        "bob"
    );
    assert!(tokens.verify(&es256(&json!({"alg": "ES256"}))).is_ok());
    assert!(
        tokens
            .verify(&es256(&json!({"alg": "ES256", "kid": "test-rsa"})))
            .is_err()
    );
    assert!(tokens.verify(&es256(&json!({"alg": "RS256", "kid": "ec"}))).is_err());
    // A symmetric key among public ones is ignored, and a public key is not a secret.
    assert!(tokens.verify(&hs256(SECRET, &good)).is_err());
    assert!(tokens.verify(&hs256(&BASE64.decode(MODULUS).unwrap(), &good)).is_err());
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let short = file("too short");
    let settings = TokenSettings {
        secret_file: Some(short.path()),
        ..TokenSettings::default()
    };
    let why = Tokens::read(&settings).unwrap_err().to_string();
    assert!(
        why.starts_with("auth.jwt_secret_file: ") && why.ends_with("at least 32 bytes"),
        "{why}"
    );
    let small = BASE64.encode([0x80; 128]);
    let why = jwks(&json!([{"kty": "RSA", "n": small, "e": "AQAB"}]))
        .unwrap_err()
        .to_string();
    assert!(why.starts_with("auth.jwks_file: "), "{why}");
    let none = TokenSettings {
        jwks_file: Some(Path::new("/does/not/exist")),
        ..TokenSettings::default()
    };
    assert!(Tokens::read(&none).unwrap_err().to_string().contains("/does/not/exist"));
    assert_eq!(secret(format!(" 0x{}\n", "ab".repeat(32)).as_bytes()), [0xab; 32]);
}
