//! Outgoing WebSocket frames: encoded once, shared by all receivers.
//!
//! A notification is `[header][prefix][body]`. The prefix contains the subscription's id, whose length is constant, so
//! the header is the same for every receiver; the body is the event's JSON and the two braces that end the envelope.
//! Server frames are not masked (RFC 6455 section 5.1), so the same bytes are valid on every connection.
//!
//! For clients with permessage-deflate (RFC 7692) the layout is `[header, opening][id][body]`. The opening is
//! compressed and the same for all clients; it ends with the head of a *stored* block, whose content is the rest of the
//! prefix with the id. A stored block ends on a byte boundary, and the body, compressed once for all clients, refers to
//! nothing before itself, or only to earlier events of its [series](super::series). So the parts concatenated for each
//! client form one valid DEFLATE stream, and no client needs a compressor.

use std::borrow::Cow;
use std::sync::{Arc, LazyLock, OnceLock};

use bytes::Bytes;

use super::{Kind, SubscriptionId, event_stream};
use crate::deflate;
use crate::pieces::{self, Pieces};

/// Longest payload of one frame, in bytes; a longer message is split into fragments of [`FRAGMENT`].
///
/// websocket-node (web3.js 1) refuses longer frames (PROTOCOL F10).
pub const MAX_FRAME: usize = 1 << 20;

/// Payload of one fragment, in bytes.
pub const FRAGMENT: usize = 256 << 10;

const FIN: u8 = 0x80;

/// Bit that marks the first frame of a compressed message (RFC 7692 section 6).
const RSV1: u8 = 0x40;

/// Frame types that a server sends (RFC 6455 section 11.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// Fragment after the first.
    Continuation = 0x0,
    /// Text message: JSON.
    Text = 0x1,
    /// Close frame.
    Close = 0x8,
    /// Ping.
    Ping = 0x9,
    /// Pong.
    Pong = 0xA,
}

/// Frame header: the two to ten bytes before a payload (RFC 6455 section 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    bytes: [u8; 10],
    len: u8,
}

impl FrameHeader {
    /// Builds the header of an unmasked frame with `payload` bytes.
    #[must_use]
    pub fn new(opcode: Opcode, fin: bool, payload: usize) -> Self {
        let mut bytes = [0; 10];
        bytes[0] = opcode as u8 | if fin { FIN } else { 0 };
        let len = match payload {
            0..=125 => {
                bytes[1] = payload as u8;
                2
            }
            126..=0xFFFF => {
                bytes[1] = 126;
                bytes[2..4].copy_from_slice(&(payload as u16).to_be_bytes());
                4
            }
            _ => {
                bytes[1] = 127;
                bytes[2..10].copy_from_slice(&(payload as u64).to_be_bytes());
                10
            }
        };
        Self { bytes, len }
    }

    /// Builds the header of a compressed message in one frame of `payload` compressed bytes.
    #[must_use]
    pub fn deflated(payload: usize) -> Self {
        let mut header = Self::new(Opcode::Text, true, payload);
        header.bytes[0] |= RSV1;
        header
    }

    /// Returns the bytes on the wire.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// Bytes before the event in a notification; one for each subscription.
#[derive(Debug)]
pub struct Prefix(Box<[u8]>);

impl Prefix {
    const OPEN: &'static str = r#"{"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":""#;
    const BETWEEN: &'static str = r#"","result":"#;
    /// Length in bytes, the same for every subscription in the namespace `eth`.
    pub const LEN: usize = Self::OPEN.len() + SubscriptionId::TEXT_LEN + Self::BETWEEN.len();

    /// Builds the envelope of PROTOCOL 1.8 up to the event.
    #[must_use]
    pub fn new(id: SubscriptionId) -> Self {
        Self(format!("{}{id}{}", Self::OPEN, Self::BETWEEN).into_bytes().into())
    }

    /// Like [`Self::new`], for events of another namespace than `eth`; these are not compressed.
    #[must_use]
    pub fn within(namespace: &str, id: SubscriptionId) -> Self {
        let open = Self::OPEN.replacen("eth_", &format!("{namespace}_"), 1);
        Self(format!("{open}{id}{}", Self::BETWEEN).into_bytes().into())
    }

    const UNNAMED: &'static str = r#"{"jsonrpc":"2.0","params":{"subscription":""#;

    /// Like [`Self::new`], for events that contain their own method name ([`Event::naming`]); these are not compressed.
    #[must_use]
    pub fn unnamed(id: SubscriptionId) -> Self {
        Self(format!("{}{id}{}", Self::UNNAMED, Self::BETWEEN).into_bytes().into())
    }

    /// Builds the prefix of whole messages ([`Event::whole`]): no bytes.
    #[must_use]
    pub fn empty() -> Self {
        Self(Box::default())
    }

    /// Returns the length of a prefix in this namespace, in bytes.
    #[must_use]
    pub fn len_within(namespace: &str) -> usize {
        Self::LEN - "eth".len() + namespace.len()
    }

    /// Returns the bytes on the wire.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    /// Bytes from the id to the end, in every prefix that has an id.
    pub(super) const FROM_ID: usize = SubscriptionId::TEXT_LEN + Self::BETWEEN.len();

    /// Returns the id's text; `None` for the prefix of whole messages.
    pub(super) fn id(&self) -> Option<&[u8; SubscriptionId::TEXT_LEN]> {
        self.0.last_chunk::<{ Self::FROM_ID }>()?.first_chunk()
    }

    /// Returns a prefix whose id consists of the byte 0xFF, which no JSON contains.
    pub(super) fn of_nobody() -> Vec<u8> {
        [
            Self::OPEN.as_bytes(),
            &[0xFF; SubscriptionId::TEXT_LEN],
            Self::BETWEEN.as_bytes(),
        ]
        .concat()
    }

    /// Returns the id and the rest of the prefix: the content of the stored block in a compressed message.
    fn stored(&self) -> &[u8] {
        &self.0[Self::OPEN.len()..]
    }
}

/// [`Prefix::OPEN`] compressed, and the head of the stored block for the rest of the prefix (RFC 1951 section 3.2.4):
/// the empty block of the flush, given a length. Saves 13 of 121 bytes compared to storing the whole prefix.
static OPENING: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let stored = (Prefix::LEN - Prefix::OPEN.len()) as u16;
    let mut opening = deflate::compress(&[Prefix::OPEN.as_bytes()]).expect("58 bytes instead of 71");
    opening.extend_from_slice(&stored.to_le_bytes());
    opening.extend_from_slice(&(!stored).to_le_bytes());
    opening
});

/// One event, encoded once for every subscription that receives it.
#[derive(Clone, Debug)]
pub struct Event {
    header: FrameHeader,
    /// Length of the prefix between header and body, in bytes.
    prefix: u32,
    body: Bytes,
    /// Compressed form, made for the first client that needs it and shared by all batches with this event. Outer
    /// `None`: not compressible; inner `None`: compression would not make it shorter.
    deflated: Option<Arc<OnceLock<Option<Deflated>>>>,
    /// Position of the stream behind this event, for clients that resume by it; `None` if there are none.
    id: Option<Arc<str>>,
    /// The same event as a server-sent event, made for the first client that needs it and shared by all batches with
    /// this event; `None` without a position.
    streamed: Option<Arc<OnceLock<Event>>>,
}

/// Compressed frame of an event.
#[derive(Debug)]
pub(super) enum Deflated {
    /// Frame with the subscription's id between `head` and `body`.
    Opened {
        /// Header and [`OPENING`].
        head: Box<[u8]>,
        body: Box<[u8]>,
    },
    /// Whole frame, the same for all its clients: the prefix is empty, or a back-reference to that of an earlier event.
    Whole(Box<[u8]>),
}

impl Deflated {
    pub(super) fn opened(body: Vec<u8>) -> Self {
        let header = FrameHeader::deflated(OPENING.len() + Prefix::LEN - Prefix::OPEN.len() + body.len());
        Self::Opened {
            head: [header.as_slice(), &OPENING].concat().into(),
            body: body.into(),
        }
    }

    /// Builds a frame whose prefix repeats the one of the message that began `distance` bytes of text earlier.
    pub(super) fn repeated(distance: usize, body: &[u8]) -> Self {
        let prefix = deflate::repeat(Prefix::LEN, distance);
        let header = FrameHeader::deflated(prefix.len() + body.len());
        Self::Whole([header.as_slice(), &prefix, body].concat().into())
    }

    pub(super) fn slices<'a>(&'a self, prefix: &'a Prefix) -> [&'a [u8]; 3] {
        match self {
            Self::Opened { head, body } => [head, prefix.stored(), body],
            Self::Whole(frame) => [frame, &[], &[]],
        }
    }

    pub(super) fn wire_len(&self) -> usize {
        match self {
            Self::Opened { head, body } => head.len() + Prefix::LEN - Prefix::OPEN.len() + body.len(),
            Self::Whole(frame) => frame.len(),
        }
    }
}

/// Minimum body length of an event that is compressed, in bytes. Hashes of pending transactions (70 bytes) become 3 per
/// cent shorter; logs (400 bytes and more) 30 to 50.
const COMPRESS_EVENT: usize = 256;

impl Event {
    const CLOSE: &'static [u8] = b"}}";

    /// Encodes a payload (one JSON value, as the node sent it). This is the only copy made of an event.
    #[must_use]
    pub fn new(payload: &[u8]) -> Self {
        Self::behind(Prefix::LEN, payload, Self::CLOSE)
    }

    /// Like [`Self::new`], for subscriptions of this namespace only; must not be made
    /// [compressible](Self::compressible) unless the namespace is `eth`.
    #[must_use]
    pub fn within(namespace: &str, payload: &[u8]) -> Self {
        Self::behind(Prefix::len_within(namespace), payload, Self::CLOSE)
    }

    /// Like [`Self::new`], with the method name in the event instead of the prefix ([`Prefix::unnamed`]): the name is
    /// known only when the node sends the first event. The order of members in a JSON object is free, so the name can
    /// come last.
    #[must_use]
    pub fn naming(method: &str, payload: &[u8]) -> Self {
        let prefix = Prefix::LEN - Prefix::OPEN.len() + Prefix::UNNAMED.len();
        let close = format!("}},\"method\":{}}}", serde_json::Value::from(method));
        Self::behind(prefix, payload, close.as_bytes())
    }

    /// Encodes a whole message, envelope included, for the one subscription that it names ([`Prefix::empty`]).
    #[must_use]
    pub fn whole(message: &[u8]) -> Self {
        Self::behind(0, message, &[]).compressible()
    }

    /// Encodes text that is not a frame, the same for all its clients.
    pub(super) fn text(text: Vec<u8>) -> Self {
        let header = FrameHeader { bytes: [0; 10], len: 0 };
        Self::of(header, 0, text)
    }

    fn of(header: FrameHeader, prefix: usize, body: Vec<u8>) -> Self {
        Self {
            header,
            prefix: prefix as u32,
            body: body.into(),
            deflated: None,
            id: None,
            streamed: None,
        }
    }

    /// Adds the position of the stream behind this event.
    #[must_use]
    pub fn at(self, id: Option<Arc<str>>) -> Self {
        let streamed = id.is_some().then(Arc::default);
        Self { id, streamed, ..self }
    }

    /// Returns the same event as a server-sent event of this kind.
    pub(super) fn streamed(&self, kind: Kind) -> Self {
        let make = || Self::text(event_stream::event(kind, &self.payload(), self.id.as_deref()));
        match &self.streamed {
            Some(shared) => shared.get_or_init(make).clone(),
            None => make(),
        }
    }

    /// Returns the payload of an event in the namespace `eth` ([`Self::new`]).
    pub(super) fn payload(&self) -> Cow<'_, [u8]> {
        let end = |text: &[u8]| text.len().saturating_sub(Self::CLOSE.len());
        let prefix = self.prefix as usize;
        if prefix + self.body.len() <= MAX_FRAME {
            return Cow::Borrowed(&self.body[..end(&self.body)]);
        }
        let (first, mut rest) = self.body.split_at(FRAGMENT - prefix);
        let mut text = first.to_vec();
        while let Some((fragment, after)) = split_fragment(rest) {
            text.extend_from_slice(fragment);
            rest = after;
        }
        text.truncate(end(&text));
        Cow::Owned(text)
    }

    fn behind(prefix: usize, payload: &[u8], close: &[u8]) -> Self {
        let total = prefix + payload.len() + close.len();
        let mut text = Vec::with_capacity(payload.len() + close.len());
        text.extend_from_slice(payload);
        text.extend_from_slice(close);
        if total <= MAX_FRAME {
            return Self::of(FrameHeader::new(Opcode::Text, true, total), prefix, text);
        }
        let (first, rest) = text.split_at(FRAGMENT - prefix);
        let mut body = Vec::with_capacity(text.len() + 10 * (text.len() / FRAGMENT + 1));
        body.extend_from_slice(first);
        append_fragments(rest, &mut body);
        Self::of(FrameHeader::new(Opcode::Text, false, FRAGMENT), prefix, body)
    }

    /// Allows compression for clients that agreed on it, unless the event is too short to benefit or needs fragments:
    /// other clients would wait while a megabyte is compressed.
    #[must_use]
    pub fn compressible(mut self) -> Self {
        if self.body.len() >= COMPRESS_EVENT && Prefix::LEN + self.body.len() <= MAX_FRAME {
            self.deflated = Some(Arc::default());
        }
        self
    }

    /// Returns the text after the prefix, or `None` if the event is not compressible.
    pub(super) fn compressible_body(&self) -> Option<&[u8]> {
        self.deflated.as_ref().map(|_| &self.body[..])
    }

    /// Returns the three pieces of the uncompressed frame for one subscription. The same for all, without its prefix, if
    /// the event is a whole message.
    #[must_use]
    pub fn slices<'a>(&'a self, prefix: &'a Prefix) -> [&'a [u8]; 3] {
        let prefix = if self.prefix == 0 { &[] } else { prefix.as_slice() };
        [self.header.as_slice(), prefix, &self.body]
    }

    /// Returns the bytes on the wire without compression, the same for every subscription of the event.
    #[must_use]
    pub fn wire_len(&self) -> usize {
        self.header.as_slice().len() + self.prefix as usize + self.body.len()
    }

    /// Returns the event compressed on its own, or `None` if not compressible or not shorter.
    pub(super) fn deflated(&self) -> Option<&Deflated> {
        let deflate = || match self.prefix {
            0 => deflated_text(std::slice::from_ref(&self.body)).map(|frame| Deflated::Whole(frame[..].into())),
            _ => deflate::compress(&[&self.body]).map(Deflated::opened),
        };
        self.deflated.as_ref()?.get_or_init(deflate).as_ref()
    }
}

/// Appends the frames of all fragments but the first.
fn append_fragments(rest: &[u8], out: &mut Vec<u8>) {
    let mut chunks = rest.chunks(FRAGMENT).peekable();
    while let Some(chunk) = chunks.next() {
        let header = FrameHeader::new(Opcode::Continuation, chunks.peek().is_none(), chunk.len());
        out.extend_from_slice(header.as_slice());
        out.extend_from_slice(chunk);
    }
}

/// Splits off the payload of the first of these frames; `None` if there is no more.
fn split_fragment(frames: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, payload) = match *frames.get(1)? {
        126 => (
            usize::from(u16::from_be_bytes(*frames.get(2..)?.first_chunk()?)),
            &frames[4..],
        ),
        127 => {
            let len = u64::from_be_bytes(*frames.get(2..)?.first_chunk()?);
            (usize::try_from(len).ok()?, &frames[10..])
        }
        len => (usize::from(len), &frames[2..]),
    };
    payload.split_at_checked(len)
}

/// Encodes a text message for one client, as pieces to write in order.
#[must_use]
pub fn text(parts: &[Bytes]) -> Vec<Bytes> {
    let total = pieces::length(parts);
    if total > MAX_FRAME {
        return fragmented(parts, total);
    }
    let header = FrameHeader::new(Opcode::Text, true, total);
    let mut out = Pieces::with_room(header.as_slice().len() + total.min(pieces::COPY_BELOW));
    out.copy(header.as_slice());
    parts.iter().for_each(|part| out.share(part));
    out.finish()
}

/// Minimum length of an answer that is compressed, in bytes; a shorter one is a single packet with or without
/// compression.
const COMPRESS_ANSWER: usize = 1 << 10;

/// Like [`text`], for a client that agreed on compression. Returns `None` if the message is too short, would not become
/// shorter, or needs fragments: other clients would wait while a megabyte is compressed.
#[must_use]
pub fn deflated_text(parts: &[Bytes]) -> Option<Bytes> {
    if !(COMPRESS_ANSWER..=MAX_FRAME).contains(&pieces::length(parts)) {
        return None;
    }
    let parts: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
    let payload = deflate::compress(&parts)?;
    Some(
        [FrameHeader::deflated(payload.len()).as_slice(), &payload]
            .concat()
            .into(),
    )
}

/// Encodes a message in fragments. Long parts are sliced, not copied; any part may be long, since a client chooses the
/// id that the head echoes.
fn fragmented(parts: &[Bytes], total: usize) -> Vec<Bytes> {
    let mut parts = parts.iter().cloned();
    let mut part = Bytes::new();
    let mut left = total;
    let mut out = Pieces::default();
    let mut opcode = Opcode::Text;
    while left > 0 {
        let mut wanted = left.min(FRAGMENT);
        left -= wanted;
        out.copy(FrameHeader::new(opcode, left == 0, wanted).as_slice());
        opcode = Opcode::Continuation;
        while wanted > 0 {
            if part.is_empty() {
                match parts.next() {
                    Some(next) => part = next,
                    None => return out.finish(),
                }
            }
            let piece = part.split_to(wanted.min(part.len()));
            wanted -= piece.len();
            out.share(&piece);
        }
    }
    out.finish()
}

/// Encodes a control frame; the payload is cut at 125 bytes, the maximum in RFC 6455 section 5.5.
#[must_use]
pub fn control(opcode: Opcode, payload: &[u8]) -> Bytes {
    let payload = &payload[..payload.len().min(125)];
    let mut out = FrameHeader::new(opcode, true, payload.len()).as_slice().to_vec();
    out.extend_from_slice(payload);
    out.into()
}

/// Encodes a close frame with a code and a reason (cut at 123 bytes).
#[must_use]
pub fn close(code: u16, reason: &str) -> Bytes {
    let mut payload = code.to_be_bytes().to_vec();
    payload.extend_from_slice(reason.as_bytes());
    control(Opcode::Close, &payload)
}

#[cfg(test)]
mod tests;
