//! Checks of the WebSocket opening handshake (RFC 6455 section 4.2, RFC 8441 section 5; PROTOCOL 1.1).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderValue, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderName, Method, Request, Version};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::door::Refusal;
use crate::session::SessionToken;

/// Checks if the client requests an upgrade (PROTOCOL H1: in any case, anywhere in a list).
#[must_use]
pub fn is_upgrade<B>(request: &Request<B>) -> bool {
    has_token(request.headers(), &CONNECTION, "upgrade") && has_token(request.headers(), &UPGRADE, "websocket")
}

/// Checks if the client requests WebSocket on a stream of HTTP/2: an extended CONNECT (RFC 8441 section 4).
pub(super) fn is_extended_connect<B>(request: &Request<B>) -> bool {
    let protocol = request.extensions().get::<h2::ext::Protocol>();
    request.method() == Method::CONNECT
        && protocol.is_some_and(|protocol| protocol.as_str().eq_ignore_ascii_case("websocket"))
}

/// Checks an extended CONNECT, which has neither key nor `Sec-WebSocket-Accept`.
///
/// # Errors
/// [`Refusal::Malformed`] if the WebSocket version is invalid.
pub(super) fn check_connect<B>(request: &Request<B>) -> Result<(), Refusal> {
    if has_version(request.headers()) {
        Ok(())
    } else {
        Err(Refusal::Malformed)
    }
}

fn has_version(headers: &HeaderMap) -> bool {
    headers
        .get(SEC_WEBSOCKET_VERSION)
        .is_some_and(|version| version == "13")
}

/// Checks an upgrade request and returns the value of `Sec-WebSocket-Accept`.
///
/// # Errors
/// [`Refusal::Malformed`] if the method, the HTTP version, the WebSocket version or the key is invalid, or if there is
/// a body.
pub fn check<B>(request: &Request<B>) -> Result<String, Refusal> {
    let headers = request.headers();
    let key = headers
        .get(SEC_WEBSOCKET_KEY)
        .filter(|key| STANDARD.decode(key).is_ok_and(|key| key.len() == 16));
    match key {
        // The bytes of a body would be parsed as frames.
        Some(key)
            if has_version(headers)
                && !has_body(headers)
                && request.method() == Method::GET
                && request.version() == Version::HTTP_11 =>
        {
            Ok(derive_accept_key(key.as_bytes()))
        }
        _ => Err(Refusal::Malformed),
    }
}

/// Returns the token of the session that the client names in its URL (`?session=TOKEN`); `None` without one.
///
/// # Errors
/// [`Refusal::Session`] if the token has another form, or there are several.
pub(super) fn session<B>(request: &Request<B>) -> Result<Option<SessionToken>, Refusal> {
    let query = request.uri().query().unwrap_or_default().as_bytes();
    let mut named = url::form_urlencoded::parse(query).filter(|(name, _)| name == "session");
    match (named.next(), named.next()) {
        (None, _) => Ok(None),
        (Some((_, token)), None) => SessionToken::parse(&token).map(Some).ok_or(Refusal::Session),
        (Some(_), Some(_)) => Err(Refusal::Session),
    }
}

/// Checks if a request has a body.
pub(super) fn has_body(headers: &HeaderMap) -> bool {
    let length = headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0");
    length || headers.contains_key(TRANSFER_ENCODING)
}

/// Returns the subprotocol for the response: the first of those offered that is in `listed`. Never one that was not
/// offered, since clients then fail the connection (PROTOCOL H6).
#[must_use]
pub(super) fn subprotocol(headers: &HeaderMap, listed: &[String]) -> Option<HeaderValue> {
    let offered = headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    let agreed = offered.map(str::trim).find(|name| listed.iter().any(|own| own == name));
    agreed.and_then(|name| HeaderValue::from_str(name).ok())
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|part| part.trim().eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rfcs_own_example() {
        assert_eq!(
            derive_accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
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
        let set = |name: &'static str, value: &'static str| {
            request(&move |headers| drop(headers.insert(name, value.parse().unwrap())))
        };
        assert!(is_upgrade(&request(&|_| ())));
        assert!(check(&request(&|_| ())).is_ok());
        assert!(!is_upgrade(&set("connection", "close")));
        assert_eq!(check(&set("sec-websocket-version", "8")), Err(Refusal::Malformed));
        assert_eq!(check(&set("sec-websocket-key", "short")), Err(Refusal::Malformed));
    }

    #[test]
    fn a_session_is_named_once_and_well() {
        let named = |target: &str| {
            let request = Request::builder().uri(target).body(()).unwrap();
            session(&request).map(|token| token.map(|token| token.as_str().to_owned()))
        };
        for target in ["/", "/?key=x", "/v1/KEY?other=1-aaaaaaaaaaaaaaaa", "/?sessions=1"] {
            assert_eq!(named(target), Ok(None), "{target}");
        }
        let token = "1764504000-abcde";
        for target in [format!("/?session={token}"), format!("/v1/KEY?key=x&session={token}&y")] {
            assert_eq!(named(&target), Ok(Some(token.to_owned())), "{target}");
        }
        for target in [
            "/?session",
            "/?session=",
            "/?session=x",
            "/?session=1764504000-abcde&session=1764504000-abcde",
        ] {
            assert_eq!(named(target), Err(Refusal::Session), "{target}");
        }
    }

    #[test]
    fn of_the_offered_subprotocols_the_first_that_is_listed() {
        let listed = ["eth".to_owned(), "json".to_owned()];
        let check = |offers: &[&str], expect: Option<&str>| {
            let mut headers = HeaderMap::new();
            for offer in offers {
                headers.append(SEC_WEBSOCKET_PROTOCOL, offer.parse().unwrap());
            }
            let agreed = subprotocol(&headers, &listed);
            assert_eq!(
                agreed.as_ref().map(|agreed| agreed.to_str().unwrap()),
                expect,
                "{offers:?}"
            );
        };
        check(&[], None);
        check(&["graphql-ws"], None);
        check(&["graphql-ws, json,eth"], Some("json"));
        check(&["graphql-ws", " eth "], Some("eth"));
        check(&["ETH"], None);
    }
}
