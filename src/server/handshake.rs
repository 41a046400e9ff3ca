//! Whether a request may become a WebSocket (RFC 6455 section 4.2; PROTOCOL 1.1).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{CONNECTION, HeaderMap, ORIGIN, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderName, Method, Request, StatusCode, Version};
use sha1::{Digest, Sha1};

/// Which browser pages may connect. Requests without `Origin` do not come from browsers and pass, as in geth.
#[derive(Clone, Debug, Default)]
pub struct Origins {
    rules: Vec<String>,
}

impl Origins {
    /// Rules as geth's `--ws.origins`: `*`, or scheme, host and port, of which scheme and port may be left out.
    #[must_use]
    pub fn new(rules: &[String]) -> Self {
        Self {
            rules: rules.iter().map(|rule| rule.trim().to_ascii_lowercase()).collect(),
        }
    }

    fn allow(&self, origin: &str) -> bool {
        let origin = origin.to_ascii_lowercase();
        let origin = parts(&origin);
        self.rules.iter().any(|rule| {
            let rule_parts = parts(rule);
            rule == "*"
                || (rule_parts.host == origin.host
                    && rule_parts.scheme.is_none_or(|scheme| origin.scheme == Some(scheme))
                    && rule_parts.port.is_none_or(|port| origin.port == Some(port)))
        })
    }
}

struct Parts<'a> {
    scheme: Option<&'a str>,
    host: &'a str,
    port: Option<&'a str>,
}

fn parts(text: &str) -> Parts<'_> {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) => (Some(scheme), rest),
        None => (None, text),
    };
    // The colons of a bare IPv6 address are no port.
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|digit| digit.is_ascii_digit()) => {
            (host, Some(port))
        }
        _ => (rest, None),
    };
    Parts { scheme, host, port }
}

/// Why there is no upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not RFC 6455, version 13.
    Malformed,
    /// The page's origin is not on the list.
    Origin,
    /// No room for another client.
    Full,
    /// There was no TLS handshake, so there is no answer either.
    Tls,
    /// There was no PROXY protocol header before everything else.
    NotProxied,
}

impl Refusal {
    /// The answer's status and body, in geth's words.
    #[must_use]
    pub fn answer(self) -> (StatusCode, &'static str) {
        match self {
            Self::Malformed | Self::Tls | Self::NotProxied => (StatusCode::BAD_REQUEST, "Bad Request\n"),
            Self::Origin => (StatusCode::FORBIDDEN, "Forbidden\n"),
            Self::Full => (
                StatusCode::TOO_MANY_REQUESTS,
                "Too many connections. Please try again later.\n",
            ),
        }
    }

    /// The value of the `reason` label in the metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Malformed => "handshake",
            Self::Origin => "origin",
            Self::Full => "connections",
            Self::Tls => "tls",
            Self::NotProxied => "proxy_protocol",
        }
    }
}

/// Whether the client asks for an upgrade at all (PROTOCOL H1: any case, anywhere in a list).
#[must_use]
pub fn is_upgrade<B>(request: &Request<B>) -> bool {
    has_token(request.headers(), &CONNECTION, "upgrade") && has_token(request.headers(), &UPGRADE, "websocket")
}

/// Checks the request; the value of `Sec-WebSocket-Accept` on success. Offered subprotocols are declined by silence
/// (PROTOCOL H6).
///
/// # Errors
/// [`Refusal`].
pub fn check<B>(request: &Request<B>, origins: &Origins) -> Result<String, Refusal> {
    check_origin(request, origins)?;
    let headers = request.headers();
    let version = headers
        .get(SEC_WEBSOCKET_VERSION)
        .is_some_and(|version| version == "13");
    let key = headers
        .get(SEC_WEBSOCKET_KEY)
        .filter(|key| STANDARD.decode(key).is_ok_and(|key| key.len() == 16));
    match key {
        Some(key) if version && request.method() == Method::GET && request.version() == Version::HTTP_11 => {
            Ok(accept(key.as_bytes()))
        }
        _ => Err(Refusal::Malformed),
    }
}

/// Whether the page that sends this may; for POST too, for a page can reach a service on its reader's own machine.
///
/// # Errors
/// [`Refusal::Origin`].
pub fn check_origin<B>(request: &Request<B>, origins: &Origins) -> Result<(), Refusal> {
    match request.headers().get(ORIGIN) {
        Some(origin) if !origin.to_str().is_ok_and(|origin| origins.allow(origin)) => Err(Refusal::Origin),
        _ => Ok(()),
    }
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|part| part.trim().eq_ignore_ascii_case(token))
}

/// RFC 6455 section 4.2.2, step 5.
fn accept(key: &[u8]) -> String {
    const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    STANDARD.encode(Sha1::new().chain_update(key).chain_update(GUID).finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rfcs_own_example() {
        assert_eq!(accept(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn origins_as_geth_compares_them() {
        let allow = |rule: &str, origin: &str| Origins::new(&[rule.to_owned()]).allow(origin);
        assert!(allow("*", "https://any.example"));
        assert!(allow("*", "null"));
        assert!(allow("localhost", "http://localhost:3000"));
        assert!(allow("http://localhost", "http://LOCALHOST:3000"));
        assert!(!allow("http://localhost", "https://localhost"));
        assert!(allow("http://localhost:3000", "http://localhost:3000"));
        assert!(!allow("http://localhost:3000", "http://localhost:3001"));
        assert!(!allow("http://localhost", "http://localhost.evil.example"));
        assert!(!allow("http://localhost", "null"));
    }

    #[test]
    fn what_is_an_upgrade() {
        let request = |edit: &dyn Fn(&mut HeaderMap)| {
            let mut request = Request::builder()
                .header("connection", "keep-alive, Upgrade")
                .header("upgrade", "WebSocket")
                .header("sec-websocket-version", "13")
                .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
                .body(())
                .unwrap();
            edit(request.headers_mut());
            request
        };
        let origins = Origins::new(&["http://localhost".to_owned()]);
        let set = |name: &'static str, value: &'static str| {
            request(&move |headers| drop(headers.insert(name, value.parse().unwrap())))
        };
        assert!(is_upgrade(&request(&|_| ())));
        assert!(check(&request(&|_| ()), &origins).is_ok());
        assert!(!is_upgrade(&set("connection", "close")));
        assert_eq!(
            check(&set("sec-websocket-version", "8"), &origins),
            Err(Refusal::Malformed)
        );
        assert_eq!(
            check(&set("sec-websocket-key", "short"), &origins),
            Err(Refusal::Malformed)
        );
        assert_eq!(
            check(&set("origin", "https://evil.example"), &origins),
            Err(Refusal::Origin)
        );
        assert!(check(&set("origin", "http://localhost:8080"), &origins).is_ok());
    }
}
