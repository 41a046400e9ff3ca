//! Signatures of the Standard Webhooks specification, version 1.0.0: HMAC-SHA256 over id, timestamp and body.

use std::fmt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;

/// Prefix of a secret as text.
const PREFIX: &str = "whsec_";

/// Lengths of a secret that the specification allows, in bytes.
const LENGTHS: std::ops::RangeInclusive<usize> = 24..=64;

/// Longest file of secrets that is read, in bytes.
const MAX_FILE: u64 = 4 << 10;

/// Most secrets: the new and the old one while a receiver changes from one to the other.
const MOST: usize = 2;

/// File of secrets that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    /// The system's error.
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// Something else than one or two secrets.
    #[error(
        "must hold one or two lines of whsec_ and the base64 of 24 to 64 bytes: \
         (printf whsec_; head -c 32 /dev/urandom | base64) > FILE makes a secret"
    )]
    Form,
}

/// Secrets that sign the messages of one webhook.
#[derive(Clone)]
pub struct Secrets(Vec<Vec<u8>>);

/// Without the bytes.
impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({})", self.0.len())
    }
}

impl PartialEq for Secrets {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Secrets {
    /// Reads a file of one or two secrets, one on a line.
    ///
    /// # Errors
    /// [`SecretFileError`] without any byte of the file.
    pub fn read(path: &Path) -> Result<Self, SecretFileError> {
        use std::io::Read as _;
        let mut text = String::new();
        let file = std::fs::File::open(path)?;
        let read = file.take(MAX_FILE).read_to_string(&mut text);
        read.map_err(|why| match why.kind() {
            std::io::ErrorKind::InvalidData => SecretFileError::Form,
            _ => why.into(),
        })?;
        Self::parse(&text).ok_or(SecretFileError::Form)
    }

    /// Reads the text of such a file.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let secret = |line: &str| {
            let bytes = STANDARD.decode(line.strip_prefix(PREFIX)?).ok()?;
            LENGTHS.contains(&bytes.len()).then_some(bytes)
        };
        let secrets = lines.map(secret).collect::<Option<Vec<_>>>()?;
        (1..=MOST).contains(&secrets.len()).then_some(Self(secrets))
    }

    /// Returns the value of `webhook-signature`: one signature for each secret, with spaces between. `timestamp` is in
    /// seconds since 1970.
    #[must_use]
    pub fn sign(&self, id: &str, timestamp: u64, body: &[u8]) -> String {
        let head = format!("{id}.{timestamp}.");
        let sign = |secret: &Vec<u8>| {
            let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, secret));
            context.update(head.as_bytes());
            context.update(body);
            format!("v1,{}", STANDARD.encode(context.sign()))
        };
        self.0.iter().map(sign).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Secret, id, timestamp, body and signature of the specification's own libraries' tests ("sign function works").
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const TIMESTAMP: u64 = 1_614_265_330;
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    #[test]
    fn a_message_is_signed_as_the_specification_says() {
        let secrets = Secrets::parse(SECRET).unwrap();
        assert_eq!(secrets.sign(ID, TIMESTAMP, BODY), SIGNATURE);
        assert_ne!(secrets.sign(ID, TIMESTAMP + 1, BODY), SIGNATURE);
    }

    #[test]
    fn two_secrets_sign_during_a_rotation() {
        let other = format!("whsec_{}", STANDARD.encode([7; 32]));
        let both = Secrets::parse(&format!("{other}\n{SECRET}\n")).unwrap();
        let alone = Secrets::parse(&other).unwrap();
        let expected = format!("{} {SIGNATURE}", alone.sign(ID, TIMESTAMP, BODY));
        assert_eq!(both.sign(ID, TIMESTAMP, BODY), expected);
    }

    #[test]
    fn a_file_has_one_or_two_secrets() {
        let of = |length: usize| format!("whsec_{}", STANDARD.encode(vec![1; length]));
        for (text, count) in [
            (SECRET.to_owned(), Some(1)),
            (format!("\n  {SECRET}  \r\n\n{}\n", of(64)), Some(2)),
            (String::new(), None),
            (SECRET.replace("whsec_", ""), None),
            (SECRET.replace("whsec_", "whpk_"), None),
            (of(23), None),
            (of(24), Some(1)),
            (of(65), None),
            (format!("{SECRET}\n{SECRET}\n{SECRET}"), None),
            (format!("{SECRET} {SECRET}"), None),
        ] {
            let read = Secrets::parse(&text);
            assert_eq!(read.map(|own| own.0.len()), count, "{text:?}");
        }
    }

    #[test]
    fn no_text_about_secrets_holds_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        std::fs::write(&path, "whsec_c2VjcmV0").unwrap();
        let why = Secrets::read(&path).unwrap_err();
        let secrets = Secrets::parse(SECRET).unwrap();
        for text in [why.to_string(), format!("{why:?} {secrets:?}")] {
            assert!(!text.contains("c2VjcmV0") && !text.contains("MfKQ"), "{text}");
        }
    }
}
