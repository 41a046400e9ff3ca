//! Access to the operator's API: the admin token, sessions of browsers, and loopback.
//!
//! ```text
//! Authorization: Bearer TOKEN    programs
//! Cookie: headwater_session=ID   the page, after POST /login with the token: a browser's WebSocket sets no headers
//! neither                        only without a token, from loopback to loopback
//! ```
//!
//! Tokens and session ids are compared by their SHA-256, in constant time. Time is passed in.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use axum::http::header::{AUTHORIZATION, COOKIE, HeaderMap, ORIGIN};
use parking_lot::Mutex;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::time::Instant;

use super::sessions::{SESSION, SessionEnd, Sessions};

/// Fewest characters of a token.
const MIN_TOKEN: usize = 16;

/// Name of the cookie.
const COOKIE_NAME: &str = "headwater_session";

/// Failed attempts of an address within [`WINDOW`] after which its tokens are not compared any more.
const MAX_FAILURES: u32 = 10;

/// Failed attempts of all addresses beyond [`MAX_ADDRESSES`] together, after which theirs are not compared any more.
/// Addresses of loopback are counted apart even then: many guessers do not lock out an operator on the machine.
const MAX_FAILURES_OF_OTHERS: u32 = 1000;

/// Time for which failed attempts are counted, from the first one.
const WINDOW: Duration = Duration::from_secs(60);

/// Most addresses that are counted apart, besides those of loopback; the others share one count.
const MAX_ADDRESSES: usize = 1024;

/// Headers by which a proxy names its client: a request that has one does not come from loopback, whoever the peer is.
const FORWARDED: [&str; 4] = ["forwarded", "x-forwarded-for", "x-real-ip", "via"];

pub(super) type Hash = [u8; 32];

pub(super) fn hash(secret: &str) -> Hash {
    Sha256::digest(secret.as_bytes()).into()
}

/// File that holds no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    /// The file cannot be read.
    #[error("{0}: {1}")]
    Unreadable(std::path::PathBuf, std::io::Error),
    /// The token is short enough to be guessed.
    #[error("{0}: the token has fewer than {MIN_TOKEN} characters: use one from `openssl rand -hex 32`")]
    Short(std::path::PathBuf),
}

/// Token of the operator's API; only its hash is kept.
#[derive(Clone)]
pub struct AdminToken(Hash);

/// Hides the hash.
impl std::fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AdminToken(…)")
    }
}

impl AdminToken {
    /// Reads the token from a file, without the white space around it.
    ///
    /// # Errors
    /// Returns a [`TokenFileError`] if the file cannot be read, or the token is short.
    pub fn read(path: &Path) -> Result<Self, TokenFileError> {
        let text = std::fs::read_to_string(path).map_err(|why| TokenFileError::Unreadable(path.to_owned(), why))?;
        let token = text.trim();
        if token.len() < MIN_TOKEN {
            return Err(TokenFileError::Short(path.to_owned()));
        }
        Ok(Self(hash(token)))
    }

    fn is(&self, shown: &str) -> bool {
        self.0.ct_eq(&hash(shown)).into()
    }
}

/// Proof by which a request is admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Credential {
    /// The token in the request.
    Token,
    /// Session of a browser that has shown the token.
    Session,
    /// No proof: no token is set, and the request comes from this machine.
    Loopback,
}

impl Credential {
    /// Returns the word for audit lines.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Session => "session",
            Self::Loopback => "loopback",
        }
    }
}

/// Sender of an admitted request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Actor {
    /// Proof.
    pub credential: Credential,
    /// Address of the peer, which may be a proxy's.
    pub peer: IpAddr,
}

/// Refusal of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// Neither token nor session, or not valid.
    Unauthorized,
    /// Too many failed attempts of this address, or of the others together, with the time until the next is checked.
    Attempts(Duration),
    /// Session in a request that a page sends without naming its origin.
    NoOrigin,
}

/// Access rules, sessions and failed attempts.
#[derive(Debug)]
pub struct Access {
    token: Option<AdminToken>,
    /// `true` if the admin port listens on loopback alone.
    is_local: bool,
    sessions: Sessions,
    failures: Mutex<HashMap<Guesser, Failures>>,
}

/// Sender of failed attempts that are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Guesser {
    Address(IpAddr),
    /// All addresses of loopback.
    Loopback,
    /// All addresses beyond [`MAX_ADDRESSES`].
    Others,
}

impl Guesser {
    fn max_failures(self) -> u32 {
        match self {
            Self::Others => MAX_FAILURES_OF_OTHERS,
            Self::Address(_) | Self::Loopback => MAX_FAILURES,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Failures {
    since: Instant,
    count: u32,
}

impl Access {
    /// Creates the rules for a port that listens on this address.
    #[must_use]
    pub fn new(token: Option<AdminToken>, listener: SocketAddr) -> Self {
        Self {
            token,
            is_local: listener.ip().to_canonical().is_loopback(),
            sessions: Sessions::default(),
            failures: Mutex::default(),
        }
    }

    /// Admits a request from this peer. `acts` is `true` for a request that a page of another origin could send with the
    /// session's cookie: a POST, and the upgrade to a WebSocket.
    ///
    /// # Errors
    /// Returns the reason of the refusal.
    pub fn check(&self, headers: &HeaderMap, peer: IpAddr, acts: bool, now: Instant) -> Result<Actor, Denied> {
        let peer = peer.to_canonical();
        let as_one = |credential| Actor { credential, peer };
        let Some(token) = &self.token else {
            let is_forwarded = FORWARDED.iter().any(|name| headers.contains_key(*name));
            let is_local = self.is_local && peer.is_loopback() && !is_forwarded;
            return is_local
                .then(|| as_one(Credential::Loopback))
                .ok_or(Denied::Unauthorized);
        };
        if let Some(shown) = bearer(headers) {
            return self.prove(token, shown, peer, now).map(|()| as_one(Credential::Token));
        }
        self.session(headers, now).ok_or(Denied::Unauthorized)?;
        // The listener has compared an Origin with the Host.
        if acts && !headers.contains_key(ORIGIN) {
            return Err(Denied::NoOrigin);
        }
        Ok(as_one(Credential::Session))
    }

    /// Begins a session for a browser that shows the token; returns the cookie to set. `is_secured` is `true` if the
    /// browser speaks TLS, to a proxy: then it sends the cookie over TLS alone.
    ///
    /// # Errors
    /// Returns the reason of the refusal. Without a token there are no sessions.
    pub fn log_in(&self, shown: &str, peer: IpAddr, is_secured: bool, now: Instant) -> Result<String, Denied> {
        let token = self.token.as_ref().ok_or(Denied::Unauthorized)?;
        self.prove(token, shown, peer.to_canonical(), now)?;
        let id = self.sessions.begin(now);
        let secure = if is_secured { "; Secure" } else { "" };
        Ok(cookie(&id, SESSION) + secure)
    }

    /// Returns the end of the session that a request names, if there is one.
    pub(super) fn session(&self, headers: &HeaderMap, now: Instant) -> Option<SessionEnd> {
        self.sessions.get(session_id(headers)?, now)
    }

    /// Ends the session of a request, and its connections, if it has one; returns the cookie that replaces it.
    pub fn log_out(&self, headers: &HeaderMap) -> String {
        if let Some(id) = session_id(headers) {
            self.sessions.end(id);
        }
        cookie("", Duration::ZERO)
    }

    /// Compares a token, unless this address, or the others together, have failed too often.
    fn prove(&self, token: &AdminToken, shown: &str, peer: IpAddr, now: Instant) -> Result<(), Denied> {
        let mut failures = self.failures.lock();
        let end = |failed: &Failures| failed.since + WINDOW;
        let own = if peer.is_loopback() {
            Guesser::Loopback
        } else {
            Guesser::Address(peer)
        };
        if failures.len() >= MAX_ADDRESSES && !failures.contains_key(&own) {
            failures.retain(|_, failed| end(failed) > now);
        }
        let guesser = match own {
            Guesser::Address(_) if failures.len() >= MAX_ADDRESSES && !failures.contains_key(&own) => Guesser::Others,
            own => own,
        };
        let failed = failures.get(&guesser).copied().filter(|failed| end(failed) > now);
        if let Some(failed) = failed
            && failed.count >= guesser.max_failures()
        {
            return Err(Denied::Attempts(end(&failed) - now));
        }
        if token.is(shown) {
            if guesser != Guesser::Others {
                failures.remove(&guesser);
            }
            return Ok(());
        }
        let failed = failed.unwrap_or(Failures { since: now, count: 0 });
        let count = failed.count + 1;
        failures.insert(guesser, Failures { count, ..failed });
        Err(Denied::Unauthorized)
    }
}

fn cookie(id: &str, lifetime: Duration) -> String {
    let seconds = lifetime.as_secs();
    format!("{COOKIE_NAME}={id}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}")
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn session_id(headers: &HeaderMap) -> Option<&str> {
    let lines = headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
    let mut cookies = lines.flat_map(|line| line.split(';')).map(str::trim);
    cookies.find_map(|cookie| cookie.strip_prefix(COOKIE_NAME)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef";
    const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn access(token: Option<&str>, listener: &str) -> Access {
        Access::new(token.map(|token| AdminToken(hash(token))), listener.parse().unwrap())
    }

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let lines = lines.iter().map(|(name, value)| {
            let name = axum::http::HeaderName::from_static(name);
            (name, value.parse().unwrap())
        });
        lines.collect()
    }

    #[test]
    fn without_a_token_only_loopback_to_loopback_is_admitted() {
        let now = Instant::now();
        for (listener, peer, lines, is_admitted) in [
            ("127.0.0.1:1", "127.0.0.1", &[][..], true),
            ("127.0.0.1:1", "127.0.0.2", &[], true),
            ("[::1]:1", "::1", &[], true),
            ("127.0.0.1:1", "::ffff:127.0.0.1", &[], true),
            ("0.0.0.0:1", "127.0.0.1", &[], false),
            ("[::]:1", "::1", &[], false),
            ("10.0.0.1:1", "10.0.0.1", &[], false),
            ("127.0.0.1:1", "10.0.0.2", &[], false),
            ("127.0.0.1:1", "127.0.0.1", &[("x-forwarded-for", "203.0.113.7")], false),
            ("127.0.0.1:1", "127.0.0.1", &[("forwarded", "for=203.0.113.7")], false),
            ("127.0.0.1:1", "127.0.0.1", &[("authorization", "Bearer 1")], true),
        ] {
            let checked = access(None, listener).check(&headers(lines), peer.parse().unwrap(), true, now);
            assert_eq!(checked.is_ok(), is_admitted, "{listener} {peer} {lines:?}");
        }
        let no_token = access(None, "127.0.0.1:1");
        assert_eq!(no_token.log_in("", LOCAL, false, now), Err(Denied::Unauthorized));
    }

    #[test]
    fn with_a_token_nothing_else_is_admitted() {
        let now = Instant::now();
        let access = access(Some(TOKEN), "127.0.0.1:1");
        let check = |value: &str| {
            let checked = access.check(&headers(&[("authorization", value)]), LOCAL, true, now);
            checked.map(|actor| actor.credential)
        };
        assert_eq!(check(&format!("Bearer {TOKEN}")), Ok(Credential::Token));
        assert_eq!(check(&format!("bearer  {TOKEN} ")), Ok(Credential::Token));
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            "Basic 0123456789abcdef",
            TOKEN,
            "Bearer 0123456789abcdeF",
        ] {
            assert_eq!(check(wrong), Err(Denied::Unauthorized), "{wrong}");
        }
        let none = access.check(&headers(&[]), LOCAL, true, now);
        assert_eq!(none, Err(Denied::Unauthorized));
    }

    #[test]
    fn a_session_begins_with_the_token_and_ends_in_time() {
        let now = Instant::now();
        let access = access(Some(TOKEN), "0.0.0.0:1");
        assert_eq!(access.log_in("guess", LOCAL, false, now), Err(Denied::Unauthorized));
        let set = access.log_in(TOKEN, LOCAL, false, now).unwrap();
        assert!(
            set.ends_with("; Path=/; HttpOnly; SameSite=Strict; Max-Age=43200"),
            "{set}"
        );
        let secured = access.log_in(TOKEN, LOCAL, true, now).unwrap();
        assert!(secured.ends_with("; Max-Age=43200; Secure"), "{secured}");
        let own = set.split(';').next().unwrap();
        let check = |cookie: &str, origin: bool, acts: bool, at: Instant| {
            let mut lines = vec![("cookie", cookie)];
            lines.extend(origin.then_some(("origin", "http://localhost")));
            access
                .check(&headers(&lines), LOCAL, acts, at)
                .map(|actor| actor.credential)
        };
        let admitted = Ok(Credential::Session);
        assert_eq!(check(own, true, true, now), admitted);
        assert_eq!(check(&format!("a=b; {own}; c=d"), true, true, now), admitted);
        assert_eq!(check(own, false, false, now), admitted);
        assert_eq!(check(own, false, true, now), Err(Denied::NoOrigin));
        for wrong in ["", "headwater_session=", "headwater_session=AAAA", "other=1"] {
            assert_eq!(check(wrong, true, true, now), Err(Denied::Unauthorized), "{wrong}");
        }
        assert_eq!(check(own, true, true, now + SESSION), Err(Denied::Unauthorized));
        assert!(access.log_out(&headers(&[("cookie", own)])).contains("=; "));
        assert_eq!(check(own, true, true, now), Err(Denied::Unauthorized));
    }

    #[test]
    fn addresses_that_fail_often_are_refused_unheard_for_a_while() {
        let now = Instant::now();
        let access = access(Some(TOKEN), "0.0.0.0:1");
        let other: IpAddr = "203.0.113.7".parse().unwrap();
        for _ in 0..MAX_FAILURES {
            assert_eq!(access.log_in("guess", other, false, now), Err(Denied::Unauthorized));
        }
        assert_eq!(access.log_in(TOKEN, other, false, now), Err(Denied::Attempts(WINDOW)));
        assert!(access.log_in(TOKEN, LOCAL, false, now).is_ok(), "others are heard");
        assert!(access.log_in(TOKEN, other, false, now + WINDOW).is_ok());
        for number in 0..MAX_ADDRESSES as u32 {
            let address = IpAddr::V4(std::net::Ipv4Addr::from(number));
            assert_eq!(access.log_in("guess", address, false, now), Err(Denied::Unauthorized));
        }
        // Further addresses are counted together.
        for number in 0..MAX_FAILURES_OF_OTHERS {
            let address = IpAddr::V4(std::net::Ipv4Addr::from(MAX_ADDRESSES as u32 + number));
            assert_eq!(access.log_in("guess", address, false, now), Err(Denied::Unauthorized));
        }
        assert_eq!(access.log_in("guess", other, false, now), Err(Denied::Attempts(WINDOW)));
        assert_eq!(access.log_in(TOKEN, other, false, now), Err(Denied::Attempts(WINDOW)));
        assert_eq!(access.log_in("guess", LOCAL, false, now), Err(Denied::Unauthorized));
        assert!(access.log_in(TOKEN, LOCAL, false, now).is_ok(), "loopback is heard");
        assert!(access.failures.lock().len() <= MAX_ADDRESSES + 2);
        assert_eq!(
            access.log_in("guess", other, false, now + WINDOW),
            Err(Denied::Unauthorized)
        );
        assert_eq!(access.failures.lock().len(), 1);
    }

    #[test]
    fn a_short_token_is_no_token() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), " 0123456789abcdef\n").unwrap();
        assert!(AdminToken::read(file.path()).unwrap().is(TOKEN));
        std::fs::write(file.path(), "0123456789abcde\n").unwrap();
        let why = AdminToken::read(file.path()).unwrap_err().to_string();
        assert!(why.contains("fewer than 16 characters"), "{why}");
        assert!(AdminToken::read(Path::new("/nowhere")).is_err());
    }
}
