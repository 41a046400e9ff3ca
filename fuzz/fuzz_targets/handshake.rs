//! The bytes before the first frame: the headers of a request, and a load balancer's PROXY protocol header.

#![no_main]

use futures_util::FutureExt;
use headwater::door::Origins;
use headwater::server::{agree_on_extension, check_upgrade, client_of, is_upgrade};
use http::{HeaderName, HeaderValue, Method, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut unread = data;
    let client = client_of(&mut unread).now_or_never().expect("the bytes are all there");
    if let Ok(client) = client {
        // The header is consumed whole, and no byte after it.
        let length = usize::from(u16::from_be_bytes([data[14], data[15]]));
        assert_eq!(data.len() - unread.len(), 16 + length);
        assert_eq!(client.is_none(), data[12] == 0x20, "its own checks have no client");
    }
    if let Some(request) = request(data) {
        upgrades(&request);
        extensions(&request);
    }
});

/// Builds a request: the first line is a rule for origins, the others are headers; hyper's parser has its own
/// fuzzers.
fn request(data: &[u8]) -> Option<(String, Request<()>)> {
    let mut lines = data.split(|byte| *byte == b'\n');
    let rule = String::from_utf8(lines.next()?.to_vec()).ok()?;
    let mut request = Request::new(());
    *request.method_mut() = Method::GET;
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(name),
            HeaderValue::from_bytes(value.trim_ascii()),
        ) else {
            continue;
        };
        request.headers_mut().append(name, value);
    }
    Some((rule, request))
}

fn upgrades((rule, request): &(String, Request<()>)) {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    if is_upgrade(request) {
        let all = |name: &str| {
            let values = request.headers().get_all(name).iter();
            values
                .map(|value| String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase())
                .collect::<String>()
        };
        assert!(all("connection").contains("upgrade") && all("upgrade").contains("websocket"));
    }
    if let Ok(accept) = check_upgrade(request) {
        assert_eq!(header("sec-websocket-version"), Some("13"));
        assert_eq!(header("sec-websocket-key").map(str::len), Some(24));
        assert_eq!(accept.len(), 28, "twenty bytes in base64");
    }
    let origin = request.headers().get("origin").map(|origin| String::from_utf8(origin.as_bytes().to_vec()));
    let allowed = origin.is_none_or(|origin| origin.is_ok_and(|origin| allows(rule, &origin)));
    assert_eq!(Origins::new(std::slice::from_ref(rule)).check(request.headers()), allowed);
}

/// Checks `origin` against a rule `[scheme://]host[:port]`; parts missing from the rule match anything.
fn allows(rule: &str, origin: &str) -> bool {
    let (rule, origin) = (rule.trim().to_ascii_lowercase(), origin.to_ascii_lowercase());
    let split = |text: &str| {
        let (scheme, rest) = text
            .split_once("://")
            .map_or((None, text), |(scheme, rest)| (Some(scheme.to_owned()), rest));
        let port = rest.rfind(':').map(|at| &rest[at + 1..]);
        let port = port.filter(|port| !port.is_empty() && port.chars().all(|c| c.is_ascii_digit()));
        let host = port.map_or(rest, |port| &rest[..rest.len() - port.len() - 1]);
        (scheme, host.to_owned(), port.map(str::to_owned))
    };
    let (wanted, given) = (split(&rule), split(&origin));
    let fits = |wanted: &Option<String>, given: &Option<String>| wanted.is_none() || wanted == given;
    rule == "*" || fits(&wanted.0, &given.0) && wanted.1 == given.1 && fits(&wanted.2, &given.2)
}

/// Checks the negotiation of extensions against RFC 7692 section 7.1, parsed character by character.
fn extensions((_, request): &(String, Request<()>)) {
    let mut expected = None;
    for value in request.headers().get_all("sec-websocket-extensions") {
        let Ok(value) = value.to_str() else { continue };
        for offer in unquoted_parts(value, ',') {
            expected = expected.or_else(|| answer(&offer));
        }
    }
    let agreed = agree_on_extension(request.headers());
    assert_eq!(
        agreed.map(|agreed| agreed.answer.ends_with("; server_max_window_bits=15")),
        expected,
        "{agreed:?}"
    );
}

fn unquoted_parts(value: &str, separator: char) -> Vec<String> {
    let mut parts = vec![String::new()];
    let (mut quoted, mut escaped) = (false, false);
    for c in value.chars() {
        if c == separator && !quoted {
            parts.push(String::new());
            continue;
        }
        if escaped {
            escaped = false;
        } else if quoted && c == '\\' {
            escaped = true;
        } else if c == '"' {
            quoted = !quoted;
        }
        parts.last_mut().expect("never empty").push(c);
    }
    parts
        .iter()
        .map(|part| part.trim_matches([' ', '\t']).to_owned())
        .collect()
}

/// Returns `Some(true)` if the answer must repeat the window size, and `None` if the offer cannot be accepted.
fn answer(offer: &str) -> Option<bool> {
    let parts = unquoted_parts(offer, ';');
    let (name, parameters) = parts.split_first()?;
    if name != "permessage-deflate" {
        return None;
    }
    let mut names = Vec::new();
    let mut window = false;
    for parameter in parameters {
        let (name, value) = match parameter.find('=') {
            Some(at) => {
                let value = parameter[at + 1..].trim_matches([' ', '\t']);
                let bare = value.len() >= 2 && value.starts_with('"') && value.ends_with('"');
                let value = if bare { &value[1..value.len() - 1] } else { value };
                (parameter[..at].trim_matches([' ', '\t']), Some(value))
            }
            None => (parameter.as_str(), None),
        };
        let digits = |value: &str| !value.starts_with('0') && value.chars().all(|c| c.is_ascii_digit());
        let fits = match (name, value) {
            ("server_no_context_takeover" | "client_no_context_takeover" | "client_max_window_bits", None) => true,
            ("client_max_window_bits", Some(bits)) => {
                digits(bits) && bits.parse().is_ok_and(|bits: u32| (8..=15).contains(&bits))
            }
            ("server_max_window_bits", Some(bits)) => {
                window = true;
                bits == "15"
            }
            _ => false,
        };
        if !fits || names.contains(&name) {
            return None;
        }
        names.push(name);
    }
    Some(window)
}
