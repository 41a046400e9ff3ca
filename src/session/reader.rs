//! Parser from bytes to WebSocket messages.
//!
//! yawc's frame decoder parses frames: of the available crates (see DESIGN) it is the one whose decoder can be used
//! alone, needs no buffer of its own while idle and leaves the socket to us. tungstenite and fastwebsockets own socket
//! and buffer, soketto checks neither masks nor UTF-8. This module implements the layer above frames: reassembly of
//! fragments under one limit, UTF-8, the rules for control frames (RFC 6455 section 5.5), and close codes (section
//! 7.4).

use bytes::{Bytes, BytesMut};
use tokio_util::codec::Decoder as _;
use yawc::codec::Decoder;
use yawc::frame::OpCode;
use yawc::{Role, WebSocketError};

use crate::deflate::{self, Unreadable};
use crate::delivery::CloseReason;

/// Most fragments of one message. Libraries send a few; Autobahn sends 4 MiB in pieces of 64 bytes.
pub const MAX_FRAGMENTS: u32 = 128 << 10;

/// Declared type of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Text: UTF-8.
    Text,
    /// Binary: any bytes.
    Binary,
}

/// Message or control frame from a client.
#[derive(Debug, PartialEq, Eq)]
pub enum ClientFrame {
    /// Complete message. Text was checked; binary is treated as text too (web3.py sends every request as binary).
    Message(Form, Bytes),
    /// Complete compressed message.
    DeflatedMessage(DeflatedMessage),
    /// Ping; the pong must carry the same payload.
    Ping(Bytes),
    /// Pong: a sign of life, and with the payload of a mark the confirmation of a position.
    Pong(Bytes),
    /// Close frame, with its code, if any.
    Close(Option<u16>),
}

/// Compressed message (RFC 7692 section 6.2). Inflating is work, so the owner decides if it is done.
#[derive(Debug, PartialEq, Eq)]
pub struct DeflatedMessage {
    form: Form,
    payload: Bytes,
}

impl DeflatedMessage {
    /// Returns the declared type.
    #[must_use]
    pub fn form(&self) -> Form {
        self.form
    }

    /// Inflates the message to at most `max` bytes; calls `may_grow` before each `deflate::STEP` bytes beyond the
    /// first.
    ///
    /// # Errors
    /// `Ok` with the error of `may_grow`, or `Err` with the reason to close the connection: the message is corrupt, too
    /// long or not UTF-8.
    pub fn inflate<E>(
        &self,
        max: usize,
        may_grow: impl FnMut() -> Result<(), E>,
    ) -> Result<Vec<u8>, Result<E, CloseReason>> {
        let inflated = deflate::inflate(&self.payload, max, may_grow).map_err(|why| match why {
            Unreadable::Corrupt => Err(CloseReason::Corrupt),
            Unreadable::TooLong => Err(CloseReason::TooBig),
            Unreadable::Refused(why) => Ok(why),
        })?;
        match self.form {
            Form::Text if std::str::from_utf8(&inflated).is_err() => Err(Err(CloseReason::NotUtf8)),
            _ => Ok(inflated),
        }
    }
}

/// Parser of one client's frames. Has no buffer while no input is incomplete.
pub struct MessageReader {
    buffer: BytesMut,
    decoder: Decoder,
    at_boundary: bool,
    /// `true` if compression was agreed.
    deflates: bool,
    /// `true` if the current frame begins a compressed message.
    deflated: bool,
    /// On the heap: few clients send fragments, and every idle one would have room for them.
    partial: Option<Box<Partial>>,
    max_message: usize,
}

/// Message with fragments still to come.
struct Partial {
    form: Form,
    deflated: bool,
    bytes: BytesMut,
    /// Number of bytes known to be valid UTF-8: a character may be split between fragments.
    checked: usize,
    fragments: u32,
}

impl Partial {
    /// Adds a fragment. Text that is not UTF-8, whatever follows, is rejected at once.
    fn add(&mut self, payload: &[u8], max: usize) -> Result<(), CloseReason> {
        self.fragments += 1;
        if self.fragments > MAX_FRAGMENTS {
            return Err(CloseReason::Flood("too many fragments in one message"));
        }
        if self.bytes.len() + payload.len() > max {
            return Err(CloseReason::TooBig);
        }
        self.bytes.extend_from_slice(payload);
        if self.form == Form::Text && !self.deflated {
            match std::str::from_utf8(&self.bytes[self.checked..]) {
                Ok(rest) => self.checked += rest.len(),
                Err(cut) if cut.error_len().is_none() => self.checked += cut.valid_up_to(),
                Err(_) => return Err(CloseReason::NotUtf8),
            }
        }
        Ok(())
    }

    fn whole(self) -> Result<ClientFrame, CloseReason> {
        let payload = self.bytes.freeze();
        match self.form {
            form if self.deflated => Ok(ClientFrame::DeflatedMessage(DeflatedMessage { form, payload })),
            Form::Text if self.checked < payload.len() => Err(CloseReason::NotUtf8),
            form => Ok(ClientFrame::Message(form, payload)),
        }
    }
}

impl MessageReader {
    /// Creates a reader of messages up to `max_message` bytes; `deflates` if compression was agreed.
    #[must_use]
    pub fn new(max_message: usize, deflates: bool) -> Self {
        Self {
            buffer: BytesMut::new(),
            // The decoder rejects a payload as long as its limit.
            decoder: Decoder::new(Role::Server, max_payload(max_message, deflates).saturating_add(1)),
            at_boundary: true,
            deflates,
            deflated: false,
            partial: None,
            max_message,
        }
    }

    /// Returns the buffer to read into.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Frees the buffer if empty.
    pub fn rest(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }

    /// Returns the bytes of memory in use: for an incomplete message, and for its incomplete frame.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.buffer.capacity() + self.partial.as_ref().map_or(0, |partial| partial.bytes.capacity())
    }

    /// Drops all incomplete input; nothing can be parsed afterwards.
    pub fn forget(&mut self) {
        self.buffer = BytesMut::new();
        self.partial = None;
    }

    /// Checks if no message or frame is incomplete.
    #[must_use]
    pub fn is_between_messages(&self) -> bool {
        self.partial.is_none() && self.at_boundary && self.buffer.is_empty()
    }

    /// Checks if fragments of an incomplete message have arrived; a control frame may come between them.
    #[must_use]
    pub fn is_inside_message(&self) -> bool {
        self.partial.is_some()
    }

    /// Returns the next message or control frame; `None` if more input is needed.
    ///
    /// # Errors
    /// The reason to close the connection, if the client violates the protocol or exceeds a limit.
    pub fn next_inbound(&mut self) -> Result<Option<ClientFrame>, CloseReason> {
        loop {
            if self.at_boundary {
                self.check_header()?;
            }
            let before = self.buffer.len();
            let Some(frame) = self
                .decoder
                .decode(&mut self.buffer)
                .map_err(|error| violation(&error))?
            else {
                self.at_boundary &= self.buffer.len() == before;
                return Ok(None);
            };
            self.at_boundary = true;
            let (opcode, fin, payload) = frame.into_parts();
            if let Some(inbound) = self.frame(opcode, fin, payload)? {
                return Ok(Some(inbound));
            }
        }
    }

    /// Checks the parts of a header that the decoder does not, with geth's error texts (PROTOCOL F6). Of the reserved
    /// bits only the first may be set, if compression was agreed, by the first frame of a message (RFC 7692 section 6).
    fn check_header(&mut self) -> Result<(), CloseReason> {
        if let Some(first) = self.buffer.first() {
            self.deflated = first & 0x40 != 0;
            if first & 0x30 != 0 || self.deflated && !(self.deflates && matches!(first & 0x0F, 1 | 2)) {
                return Err(CloseReason::Protocol("unexpected reserved bits"));
            }
            if !matches!(first & 0x0F, 0..=2 | 8..=10) {
                return Err(CloseReason::Protocol("unknown opcode"));
            }
            let length = self.buffer.get(1);
            if length.is_some_and(|second| second & 0x80 == 0) {
                return Err(CloseReason::Protocol("incorrect mask flag"));
            }
            if first & 0x08 != 0 && length.is_some_and(|second| second & 0x7F > 125) {
                return Err(CloseReason::Protocol("control frame too long"));
            }
        }
        Ok(())
    }

    fn frame(&mut self, opcode: OpCode, fin: bool, payload: Bytes) -> Result<Option<ClientFrame>, CloseReason> {
        match opcode {
            OpCode::Ping => Ok(Some(ClientFrame::Ping(payload))),
            OpCode::Pong => Ok(Some(ClientFrame::Pong(payload))),
            OpCode::Close => close_code(&payload).map(|code| Some(ClientFrame::Close(code))),
            OpCode::Text | OpCode::Binary => {
                if self.partial.is_some() {
                    return Err(CloseReason::Protocol("new message before the end of a fragmented one"));
                }
                let form = if opcode == OpCode::Text {
                    Form::Text
                } else {
                    Form::Binary
                };
                if fin {
                    return self.message(form, payload).map(Some);
                }
                let mut partial = Partial {
                    form,
                    deflated: self.deflated,
                    bytes: BytesMut::new(),
                    checked: 0,
                    fragments: 0,
                };
                partial.add(&payload, max_payload(self.max_message, self.deflated))?;
                self.partial = Some(Box::new(partial));
                Ok(None)
            }
            OpCode::Continuation => {
                let Some(partial) = &mut self.partial else {
                    return Err(CloseReason::Protocol("continuation frame without a message"));
                };
                partial.add(&payload, max_payload(self.max_message, partial.deflated))?;
                self.partial.take_if(|_| fin).map(|partial| partial.whole()).transpose()
            }
        }
    }

    /// Returns a message of one frame.
    fn message(&self, form: Form, payload: Bytes) -> Result<ClientFrame, CloseReason> {
        if self.deflated {
            return Ok(ClientFrame::DeflatedMessage(DeflatedMessage { form, payload }));
        }
        if payload.len() > self.max_message {
            return Err(CloseReason::TooBig);
        }
        match form {
            Form::Text if std::str::from_utf8(&payload).is_err() => Err(CloseReason::NotUtf8),
            _ => Ok(ClientFrame::Message(form, payload)),
        }
    }
}

/// Returns the payload limit for a message limit. Data that does not compress becomes longer, by an eighth with fixed
/// codes (RFC 1951 section 3.2.6).
fn max_payload(max_message: usize, deflated: bool) -> usize {
    let longer = if deflated { max_message / 8 + 64 } else { 0 };
    max_message.saturating_add(longer)
}

fn close_code(payload: &[u8]) -> Result<Option<u16>, CloseReason> {
    let (code, reason) = match payload {
        [] => return Ok(None),
        [_] => return Err(CloseReason::Protocol("close frame of one byte")),
        [high, low, reason @ ..] => (u16::from_be_bytes([*high, *low]), reason),
    };
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(CloseReason::Protocol("invalid close code"));
    }
    if std::str::from_utf8(reason).is_err() {
        return Err(CloseReason::NotUtf8);
    }
    Ok(Some(code))
}

fn violation(error: &WebSocketError) -> CloseReason {
    match error {
        WebSocketError::FrameTooLarge => CloseReason::TooBig,
        WebSocketError::ControlFrameFragmented => CloseReason::Protocol("fragmented control frame"),
        WebSocketError::PingFrameTooLarge => CloseReason::Protocol("control frame too long"),
        _ => CloseReason::Protocol("malformed frame"),
    }
}

#[cfg(test)]
mod tests;
