//! From bytes to messages.
//!
//! yawc's frame decoder does the frames: of the crates at hand (see DESIGN) it is the one whose decoder stands alone,
//! needs no buffer of its own while idle and leaves the socket to us. tungstenite and fastwebsockets own socket and
//! buffer, soketto checks neither masks nor UTF-8. Here is what lies above frames: fragments put together under one
//! limit, UTF-8, the rules for control frames (RFC 6455 section 5.5), and close codes (section 7.4).

use bytes::{Bytes, BytesMut};
use tokio_util::codec::Decoder as _;
use yawc::codec::Decoder;
use yawc::frame::OpCode;
use yawc::{Role, WebSocketError};

use crate::delivery::CloseReason;

/// What a client sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Inbound {
    /// A whole message; text was checked, binary is taken for text too (web3.py sends every request so).
    Message(Bytes),
    /// Wants a pong with the same payload.
    Ping(Bytes),
    /// A sign of life.
    Pong,
    /// The end, with the code that was given.
    Close(Option<u16>),
}

/// Reads one client's frames. Keeps no buffer while nothing is half read.
pub struct Reader {
    buffer: BytesMut,
    decoder: Decoder,
    at_boundary: bool,
    partial: Option<Partial>,
    max_message: usize,
}

/// A message of which fragments are still to come.
struct Partial {
    text: bool,
    bytes: BytesMut,
}

impl Reader {
    /// A reader of messages up to `max_message` bytes.
    #[must_use]
    pub fn new(max_message: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            // The decoder refuses what is as long as its limit.
            decoder: Decoder::new(Role::Server, max_message.saturating_add(1)),
            at_boundary: true,
            partial: None,
            max_message,
        }
    }

    /// Where to read into.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Gives the buffer back where nothing waits in it.
    pub fn rest(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }

    /// The next message or control frame.
    ///
    /// # Errors
    /// Why the connection has to end.
    pub fn next_inbound(&mut self) -> Result<Option<Inbound>, CloseReason> {
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

    /// What the decoder leaves unchecked, with geth's words (PROTOCOL F6). No extension is negotiated, so no reserved
    /// bit is allowed.
    fn check_header(&self) -> Result<(), CloseReason> {
        if let Some(first) = self.buffer.first() {
            if first & 0x70 != 0 {
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

    fn frame(&mut self, opcode: OpCode, fin: bool, payload: Bytes) -> Result<Option<Inbound>, CloseReason> {
        match opcode {
            OpCode::Ping => Ok(Some(Inbound::Ping(payload))),
            OpCode::Pong => Ok(Some(Inbound::Pong)),
            OpCode::Close => close_code(&payload).map(|code| Some(Inbound::Close(code))),
            OpCode::Text | OpCode::Binary => {
                if self.partial.is_some() {
                    return Err(CloseReason::Protocol("a new message inside a fragmented one"));
                }
                let text = opcode == OpCode::Text;
                if fin {
                    return message(text, payload).map(Some);
                }
                self.partial = Some(Partial {
                    text,
                    bytes: payload.as_ref().into(),
                });
                Ok(None)
            }
            OpCode::Continuation => {
                let Some(partial) = &mut self.partial else {
                    return Err(CloseReason::Protocol("a continuation of nothing"));
                };
                if partial.bytes.len() + payload.len() > self.max_message {
                    return Err(CloseReason::TooBig);
                }
                partial.bytes.extend_from_slice(&payload);
                match self.partial.take_if(|_| fin) {
                    Some(whole) => message(whole.text, whole.bytes.freeze()).map(Some),
                    None => Ok(None),
                }
            }
        }
    }
}

fn message(text: bool, payload: Bytes) -> Result<Inbound, CloseReason> {
    if text && std::str::from_utf8(&payload).is_err() {
        return Err(CloseReason::NotUtf8);
    }
    Ok(Inbound::Message(payload))
}

fn close_code(payload: &[u8]) -> Result<Option<u16>, CloseReason> {
    let (code, reason) = match payload {
        [] => return Ok(None),
        [_] => return Err(CloseReason::Protocol("a close frame of one byte")),
        [high, low, reason @ ..] => (u16::from_be_bytes([*high, *low]), reason),
    };
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(CloseReason::Protocol("a close code that may not be sent"));
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
mod tests {
    use super::*;

    const MAX: usize = 100_000;

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![first];
        match payload.len() {
            len @ 0..=125 => out.push(0x80 | len as u8),
            len @ 126..=0xFFFF => {
                out.push(0x80 | 126);
                out.extend_from_slice(&(len as u16).to_be_bytes());
            }
            len => {
                out.push(0x80 | 127);
                out.extend_from_slice(&(len as u64).to_be_bytes());
            }
        }
        let mask = [1, 2, 3, 4];
        out.extend_from_slice(&mask);
        out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        out
    }

    /// Feeds the bytes in chunks of every size up to nine, and whole; the outcome may not depend on it.
    #[track_caller]
    fn check(wire: &[u8], expect: &str) {
        for chunk in (1..10).chain([wire.len()]) {
            let mut reader = Reader::new(MAX);
            let mut seen = Vec::new();
            'all: for piece in wire.chunks(chunk) {
                reader.buffer().extend_from_slice(piece);
                loop {
                    match reader.next_inbound() {
                        Ok(None) => break,
                        Ok(Some(Inbound::Message(bytes))) if bytes.len() > 50 => {
                            seen.push(format!("{} bytes", bytes.len()))
                        }
                        Ok(Some(Inbound::Message(bytes))) => seen.push(String::from_utf8_lossy(&bytes).into_owned()),
                        Ok(Some(Inbound::Ping(bytes))) => seen.push(format!("ping({})", bytes.len())),
                        Ok(Some(Inbound::Pong)) => seen.push("pong".to_owned()),
                        Ok(Some(Inbound::Close(code))) => seen.push(format!("close({code:?})")),
                        Err(reason) => {
                            seen.push(format!("{:?} {}", reason.code().unwrap_or_default(), reason.text()));
                            break 'all;
                        }
                    }
                }
            }
            assert_eq!(seen.join("; "), expect, "in chunks of {chunk}");
        }
    }

    #[test]
    fn messages_of_every_length_form() {
        for len in [0, 1, 125, 126, 127, 65_535, 65_536, MAX] {
            let payload = vec![b'a'; len];
            let expect = if len > 50 {
                format!("{len} bytes")
            } else {
                "a".repeat(len)
            };
            check(&frame(0x81, &payload), &expect);
            check(&frame(0x82, &payload), &expect);
        }
    }

    #[test]
    fn fragments_with_control_frames_between() {
        let wire = [
            frame(0x01, b"a"),
            frame(0x89, b"p"),
            frame(0x00, b"b"),
            frame(0x8A, b""),
            frame(0x80, b"c"),
        ]
        .concat();
        check(&wire, "ping(1); pong; abc");
    }

    #[test]
    fn what_breaks_the_rules_ends_with_its_code() {
        let mut unmasked = frame(0x81, b"a");
        unmasked[1] &= 0x7F;
        check(&unmasked, "1002 incorrect mask flag");
        for bit in [0x40, 0x20, 0x10] {
            check(&frame(0x81 | bit, b"a"), "1002 unexpected reserved bits");
        }
        for opcode in [3, 7, 11, 15] {
            check(&frame(0x80 | opcode, b"a"), "1002 unknown opcode");
        }
        check(&frame(0x09, b"a"), "1002 fragmented control frame");
        for opcode in [0x88, 0x89, 0x8A] {
            check(&frame(opcode, &[b'a'; 126]), "1002 control frame too long");
        }
        check(&frame(0x80, b"a"), "1002 a continuation of nothing");
        check(
            &[frame(0x01, b"a"), frame(0x81, b"b")].concat(),
            "1002 a new message inside a fragmented one",
        );
        check(&frame(0x81, b"\xff"), "1007 invalid UTF-8");
        check(&[frame(0x01, b"\xce"), frame(0x80, b"\xba")].concat(), "\u{3ba}");
        check(&frame(0x82, b"\xff"), "\u{fffd}");
        check(&frame(0x81, &vec![b'a'; MAX + 1])[..20], "1009 message too big");
        check(
            &[frame(0x01, &vec![b'a'; MAX]), frame(0x00, b"b")].concat(),
            "1009 message too big",
        );
    }

    #[test]
    fn closes() {
        check(&frame(0x88, b""), "close(None)");
        check(&frame(0x88, &[0x03, 0xE8]), "close(Some(1000))");
        check(&frame(0x88, &[0x03, 0xE8, b'x']), "close(Some(1000))");
        check(&frame(0x88, &[0x03]), "1002 a close frame of one byte");
        check(&frame(0x88, &[0x03, 0xE8, 0xFF]), "1007 invalid UTF-8");
        for code in [0u16, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000] {
            check(
                &frame(0x88, &code.to_be_bytes()),
                "1002 a close code that may not be sent",
            );
        }
    }

    #[test]
    fn nothing_is_kept_while_idle() {
        let mut reader = Reader::new(MAX);
        reader.buffer().extend_from_slice(&frame(0x81, b"hello"));
        assert!(reader.next_inbound().is_ok_and(|inbound| inbound.is_some()));
        assert!(reader.next_inbound().is_ok_and(|inbound| inbound.is_none()));
        reader.rest();
        assert_eq!(reader.buffer().capacity(), 0);
    }
}
