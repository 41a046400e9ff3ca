//! Server-sent events (WHATWG HTML, section 9.2): the form of events for clients of `text/event-stream`.
//!
//! An event is `event: <kind>`, `data: <the node's JSON>` and `id: <position>`. Nothing in it is specific to a client: the
//! frames of a batch are laid out once, and all its clients get the same bytes.

use bytes::Bytes;
use serde_json::json;

use super::{CloseReason, Kind};

/// Form in which a client gets its events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// Frames of a WebSocket connection.
    #[default]
    WebSocket,
    /// Body of an HTTP response that is a stream of server-sent events.
    EventStream,
}

/// Comment without text: keeps intermediaries from closing an idle connection.
pub const COMMENT: Bytes = Bytes::from_static(b":\n\n");

/// Wait of a client before it reconnects, in milliseconds. Short, since the instances left share the load, and a drain
/// spreads the closes.
const RETRY_MS: u32 = 1000;

/// Returns the first lines of a stream: the wait before a reconnect, and the position at which the stream begins.
#[must_use]
pub fn opening(id: Option<&str>) -> Bytes {
    let mut text = format!("retry: {RETRY_MS}\n").into_bytes();
    append_id(&mut text, id);
    text.push(b'\n');
    text.into()
}

/// Encodes an event.
pub(super) fn event(kind: Kind, payload: &[u8], id: Option<&str>) -> Vec<u8> {
    let name = kind.event_name();
    let id_len = id.map_or(0, |id| "id: \n".len() + id.len());
    let mut text = Vec::with_capacity("event: \ndata: \n\n".len() + name.len() + payload.len() + id_len);
    text.extend_from_slice(b"event: ");
    text.extend_from_slice(name.as_bytes());
    text.extend_from_slice(b"\ndata: ");
    // JSON has line breaks between its tokens only; most nodes send none.
    for (at, line) in payload.split(|byte| matches!(byte, b'\n' | b'\r')).enumerate() {
        if at > 0 {
            text.extend_from_slice(b"\ndata: ");
        }
        text.extend_from_slice(line);
    }
    text.push(b'\n');
    append_id(&mut text, id);
    text.push(b'\n');
    text
}

/// Encodes a position alone: the client keeps it, and dispatches no event.
pub(super) fn mark(id: &str) -> Vec<u8> {
    let mut text = Vec::new();
    append_id(&mut text, Some(id));
    text.push(b'\n');
    text
}

/// Encodes the end of a stream; `None` if there is nothing to say.
pub(super) fn end(reason: CloseReason) -> Option<Bytes> {
    let code = reason.code().filter(|_| !matches!(reason, CloseReason::Goodbye(_)))?;
    let data = json!({ "code": code, "reason": reason.text() });
    Some(format!("event: close\ndata: {data}\n\n").into())
}

/// Returns a stream that ends at once.
#[must_use]
pub fn whole(reason: CloseReason) -> Bytes {
    [opening(None), end(reason).unwrap_or_default()].concat().into()
}

fn append_id(text: &mut Vec<u8>, id: Option<&str>) {
    if let Some(id) = id {
        text.extend_from_slice(b"id: ");
        text.extend_from_slice(id.as_bytes());
        text.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_a_name_the_data_and_a_position() {
        let text = |payload: &str, id| String::from_utf8(event(Kind::Logs, payload.as_bytes(), id)).unwrap();
        assert_eq!(text("{}", Some("b1")), "event: logs\ndata: {}\nid: b1\n\n");
        assert_eq!(text("{}", None), "event: logs\ndata: {}\n\n");
        // A line break in the data would begin another field.
        assert_eq!(
            text("{\n\"a\":\r\n1}", None),
            "event: logs\ndata: {\ndata: \"a\":\ndata: \ndata: 1}\n\n"
        );
        assert_eq!(mark("b1"), b"id: b1\n\n");
        assert_eq!(opening(Some("b1")), "retry: 1000\nid: b1\n\n");
        assert_eq!(opening(None), "retry: 1000\n\n");
    }

    #[test]
    fn the_end_has_a_code_and_a_reason() {
        let drain = r#"{"code":1012,"reason":"service restart"}"#;
        let text = format!("event: close\ndata: {drain}\n\n");
        assert_eq!(end(CloseReason::Drain), Some(text.into()));
        assert_eq!(end(CloseReason::Goodbye(Some(1000))), None);
    }
}
