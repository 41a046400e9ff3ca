//! The live page: its files, compiled into the binary, and the headers under which a browser shows them.
//!
//! The files hold no secret: what they show comes from the operator's API, which asks for the token. The content
//! security policy admits these files alone, and connections to this port and to the client port.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HOST, IF_NONE_MATCH, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use sha2::{Digest as _, Sha256};

use super::Admin;

/// Name of the document, which is served at `/`.
const DOCUMENT: &str = "index.html";

/// Lists files of `src/admin/page` with their content types.
macro_rules! files {
    ($($name:literal: $kind:literal,)*) => {
        [$(File { name: $name, kind: $kind, text: include_str!(concat!("page/", $name)) },)*]
    };
}

/// The files.
const FILES: [File; 22] = files! {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "main.js": "text/javascript; charset=utf-8",
    "api.js": "text/javascript; charset=utf-8",
    "blocks.js": "text/javascript; charset=utf-8",
    "clients.js": "text/javascript; charset=utf-8",
    "dialogs.js": "text/javascript; charset=utf-8",
    "dom.js": "text/javascript; charset=utf-8",
    "events.js": "text/javascript; charset=utf-8",
    "figures.js": "text/javascript; charset=utf-8",
    "format.js": "text/javascript; charset=utf-8",
    "keyboard.js": "text/javascript; charset=utf-8",
    "limits.js": "text/javascript; charset=utf-8",
    "plot.js": "text/javascript; charset=utf-8",
    "rates.js": "text/javascript; charset=utf-8",
    "streams.js": "text/javascript; charset=utf-8",
    "tree.js": "text/javascript; charset=utf-8",
    "try.js": "text/javascript; charset=utf-8",
    "upstreams.js": "text/javascript; charset=utf-8",
    "usage.js": "text/javascript; charset=utf-8",
    "webhooks.js": "text/javascript; charset=utf-8",
};

/// File of the page.
#[derive(Clone, Copy, Debug)]
struct File {
    name: &'static str,
    kind: &'static str,
    text: &'static str,
}

/// Client port, to which the page subscribes when its reader tries a subscription.
#[derive(Clone, Copy, Debug)]
pub struct ClientPort {
    /// Address of the listener.
    pub address: SocketAddr,
    /// `true` if it speaks TLS itself.
    pub is_tls: bool,
}

impl ClientPort {
    /// Returns the URL for a browser that reached the admin port under this Host. A listener on all addresses, or on
    /// loopback, is assumed to be where the admin port is: a tunnel forwards both.
    fn url(self, host: &str) -> Option<String> {
        let scheme = if self.is_tls { "wss" } else { "ws" };
        let ip = self.address.ip();
        if !ip.is_unspecified() && !ip.is_loopback() {
            return Some(format!("{scheme}://{}", self.address));
        }
        let authority: Authority = host.parse().ok()?;
        Some(format!(
            "{scheme}://{}:{}",
            plain(authority.host())?,
            self.address.port()
        ))
    }
}

/// The page.
#[derive(Debug)]
pub struct Page {
    /// Files with their entity tags, by name.
    files: HashMap<&'static str, (File, HeaderValue)>,
    client_port: ClientPort,
}

impl Page {
    /// Creates the page; `client_port` is the port at which it tries subscriptions.
    #[must_use]
    pub fn new(client_port: ClientPort) -> Self {
        let tagged = FILES.map(|file| (file.name, (file, entity_tag(file.text))));
        Self {
            files: tagged.into(),
            client_port,
        }
    }

    /// Returns the URL of the client port for the browser that sent these headers.
    pub(super) fn client_url(&self, headers: &HeaderMap) -> Option<String> {
        self.client_port.url(headers.get(HOST)?.to_str().ok()?)
    }

    fn serve(&self, name: &str, headers: &HeaderMap) -> Response {
        let Some((file, tag)) = self.files.get(name) else {
            return (StatusCode::NOT_FOUND, "no such file\n").into_response();
        };
        let is_known = headers.get_all(IF_NONE_MATCH).iter().any(|known| lists(known, tag));
        let mut response = if is_known {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            ([(CONTENT_TYPE, file.kind)], file.text).into_response()
        };
        let sent = response.headers_mut();
        sent.insert(ETAG, tag.clone());
        for (name, value) in [
            // Kept, and asked for again each time: an update of headwater is seen at once.
            (CACHE_CONTROL, "no-cache"),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (X_FRAME_OPTIONS, "DENY"),
            (REFERRER_POLICY, "no-referrer"),
            (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
            (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        ] {
            sent.insert(name, HeaderValue::from_static(value));
        }
        if let Ok(policy) = self.policy(headers).parse() {
            sent.insert(CONTENT_SECURITY_POLICY, policy);
        }
        response
    }

    /// Returns the content security policy. Besides other files, it forbids to make HTML of text: what nodes and clients
    /// send cannot become markup even by mistake.
    fn policy(&self, headers: &HeaderMap) -> String {
        let host = headers.get(HOST).and_then(|host| host.to_str().ok()).and_then(plain);
        // Some browsers do not count a WebSocket as 'self'.
        let own = host.map_or_else(String::new, |host| format!(" ws://{host} wss://{host}"));
        let client = self
            .client_url(headers)
            .map_or(Cow::Borrowed(""), |url| format!(" {url}").into());
        format!(
            "default-src 'self'; connect-src 'self'{own}{client}; object-src 'none'; base-uri 'none'; form-action \
             'self'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
        )
    }
}

/// Returns the host if it is a name or an address, with or without a port: nothing that a policy reads otherwise.
fn plain(host: &str) -> Option<&str> {
    let is_plain = |letter: u8| letter.is_ascii_alphanumeric() || b".-_:[]".contains(&letter);
    (!host.is_empty() && host.bytes().all(is_plain)).then_some(host)
}

fn entity_tag(text: &str) -> HeaderValue {
    let mut tag = String::from("\"");
    for byte in &Sha256::digest(text.as_bytes())[..8] {
        // Writing to a string does not fail.
        let _ = write!(tag, "{byte:02x}");
    }
    tag.push('"');
    HeaderValue::try_from(tag).unwrap_or_else(|_| HeaderValue::from_static("\"\""))
}

/// Checks if an `If-None-Match` lists this tag.
fn lists(known: &HeaderValue, tag: &HeaderValue) -> bool {
    let mut known = known.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    known.any(|one| one == b"*" || one.strip_prefix(b"W/").unwrap_or(one) == tag.as_bytes())
}

/// Answers `/`.
pub(super) async fn document(State(admin): State<Arc<Admin>>, headers: HeaderMap) -> Response {
    admin.page.serve(DOCUMENT, &headers)
}

/// Answers `/page/FILE`.
pub(super) async fn file(State(admin): State<Arc<Admin>>, Path(name): Path<String>, headers: HeaderMap) -> Response {
    admin.page.serve(&name, &headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(address: &str) -> Page {
        Page::new(ClientPort {
            address: address.parse().unwrap(),
            is_tls: false,
        })
    }

    fn headers(lines: &[(HeaderName, &str)]) -> HeaderMap {
        let lines = lines.iter().map(|(name, value)| (name.clone(), value.parse().unwrap()));
        lines.collect()
    }

    #[test]
    fn the_files_are_those_of_the_folder_and_small() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/admin/page");
        let mut there: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let mut listed = FILES.map(|file| file.name.to_owned());
        there.sort();
        listed.sort();
        assert_eq!(there, listed);
        let bytes: usize = FILES.iter().map(|file| file.text.len()).sum();
        assert!(bytes <= 150_000, "{bytes}");
        let longest = FILES.iter().map(|file| (file.text.lines().count(), file.name)).max();
        assert!(longest.unwrap().0 <= 500, "{longest:?}");
    }

    /// The policy would stop them in the browser; this names the place.
    #[test]
    fn no_file_makes_html_of_text_or_has_inline_code() {
        for File { name, text, .. } in FILES {
            for word in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                " style=\"",
                " onclick",
            ] {
                assert!(!text.contains(word), "{name}: {word}");
            }
        }
    }

    #[test]
    fn the_client_port_is_where_the_browser_is_unless_it_has_its_own_address() {
        for (address, host, url) in [
            ("127.0.0.1:9546", "127.0.0.1:9547", Some("ws://127.0.0.1:9546")),
            ("127.0.0.1:9546", "localhost:1234", Some("ws://localhost:9546")),
            ("0.0.0.0:9546", "ops.internal", Some("ws://ops.internal:9546")),
            ("[::]:9546", "[::1]:9547", Some("ws://[::1]:9546")),
            ("10.0.0.7:9546", "127.0.0.1:9547", Some("ws://10.0.0.7:9546")),
            ("127.0.0.1:9546", "a;b", None),
            ("127.0.0.1:9546", "a b", None),
            ("127.0.0.1:9546", "", None),
        ] {
            let sent = headers(&[(HOST, host)]);
            assert_eq!(page(address).client_url(&sent).as_deref(), url, "{address} {host}");
        }
    }

    #[test]
    fn the_policy_names_both_ports_and_nothing_that_the_request_adds() {
        let policy = |host: &str| page("0.0.0.0:9546").policy(&headers(&[(HOST, host)]));
        let own = policy("ops.internal:9547");
        assert!(own.starts_with(
            "default-src 'self'; connect-src 'self' ws://ops.internal:9547 wss://ops.internal:9547 ws://ops.internal:9546; "
        ));
        for host in ["a; script-src *", "*", "a,b", "'unsafe-inline'"] {
            assert!(
                policy(host).starts_with("default-src 'self'; connect-src 'self'; "),
                "{host}"
            );
        }
    }

    #[test]
    fn a_file_that_the_browser_has_is_not_sent_again() {
        let page = page("127.0.0.1:9546");
        let fresh = page.serve("style.css", &HeaderMap::new());
        assert_eq!(fresh.status(), StatusCode::OK);
        assert_eq!(fresh.headers()[CONTENT_TYPE], "text/css; charset=utf-8");
        let tag = fresh.headers()[ETAG].to_str().unwrap().to_owned();
        for (known, status) in [
            (tag.clone(), StatusCode::NOT_MODIFIED),
            (format!("\"other\", W/{tag}"), StatusCode::NOT_MODIFIED),
            ("*".to_owned(), StatusCode::NOT_MODIFIED),
            ("\"other\"".to_owned(), StatusCode::OK),
        ] {
            let answer = page.serve("style.css", &headers(&[(IF_NONE_MATCH, &known)]));
            assert_eq!(answer.status(), status, "{known}");
            assert_eq!(answer.headers()[X_FRAME_OPTIONS], "DENY");
        }
        assert_eq!(
            page.serve("../access.rs", &HeaderMap::new()).status(),
            StatusCode::NOT_FOUND
        );
    }
}
