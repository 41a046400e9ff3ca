//! The part of RFC 6455 that the load generator needs. No library: one core reads thousands of clients, next to the
//! server under test. The fan-out benchmark uses this file too.

use std::borrow::Cow;

use anyhow::{Context, Result, bail, ensure};

pub const TEXT: u8 = 0x1;
pub const BINARY: u8 = 0x2;
pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;
pub const PONG: u8 = 0xa;

const CONTINUATION: u8 = 0x0;

const MASK: [u8; 4] = [0x17, 0x2b, 0x3d, 0x59];

/// Returns a whole, masked frame, as a client sends it.
pub fn client_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = header(opcode, payload.len(), 0x80);
    frame.extend_from_slice(&MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// Returns the header of an unfragmented frame, up to its mask. `mask_bit` is 0x80 or 0.
pub fn header(opcode: u8, payload_len: usize, mask_bit: u8) -> Vec<u8> {
    let mut header = vec![0x80 | opcode];
    if payload_len < 126 {
        header.push(mask_bit | payload_len as u8);
    } else if let Ok(len) = u16::try_from(payload_len) {
        header.push(mask_bit | 126);
        header.extend_from_slice(&len.to_be_bytes());
    } else {
        header.push(mask_bit | 127);
        header.extend_from_slice(&(payload_len as u64).to_be_bytes());
    }
    header
}

/// A message or a control frame.
pub struct Message<'a> {
    pub opcode: u8,
    /// RSV1 of the first frame (RFC 7692 section 6).
    pub compressed: bool,
    pub payload: Cow<'a, [u8]>,
}

/// Splits a byte stream into messages. Bytes are copied only if a frame spans two reads or a message several frames, as
/// geth's larger messages do.
#[derive(Default)]
pub struct FrameReader {
    /// The beginning of an incomplete frame.
    partial: Vec<u8>,
    /// The beginning of an incomplete message.
    fragments: Option<Message<'static>>,
    /// `true` if permessage-deflate was negotiated.
    deflates: bool,
}

impl FrameReader {
    /// Creates a reader. `deflates` is `true` if permessage-deflate was negotiated.
    pub fn new(deflates: bool) -> Self {
        Self {
            deflates,
            ..Self::default()
        }
    }

    pub fn feed(&mut self, bytes: &[u8], mut on_message: impl FnMut(Message<'_>) -> Result<()>) -> Result<()> {
        let Self {
            partial,
            fragments,
            deflates,
        } = self;
        let mut on_frame = |frame: Frame<'_>| {
            ensure!(
                *deflates || !frame.message.compressed,
                "the server sent a compressed frame that was not negotiated"
            );
            assemble(fragments, frame, &mut on_message)
        };
        if partial.is_empty() {
            let rest = take_frames(bytes, &mut on_frame)?;
            partial.extend_from_slice(rest);
        } else {
            partial.extend_from_slice(bytes);
            let rest = take_frames(partial, &mut on_frame)?.len();
            partial.drain(..partial.len() - rest);
        }
        Ok(())
    }
}

struct Frame<'a> {
    last: bool,
    message: Message<'a>,
}

fn assemble(
    fragments: &mut Option<Message<'static>>,
    Frame { last, message }: Frame<'_>,
    on_message: &mut impl FnMut(Message<'_>) -> Result<()>,
) -> Result<()> {
    if last && message.opcode != CONTINUATION {
        return on_message(message);
    }
    match fragments {
        None if message.opcode != CONTINUATION => {
            *fragments = Some(Message {
                payload: Cow::Owned(message.payload.into_owned()),
                ..message
            });
        }
        Some(begun) if message.opcode == CONTINUATION => begun.payload.to_mut().extend_from_slice(&message.payload),
        _ => bail!("the server sent fragments out of order"),
    }
    match fragments.take_if(|_| last) {
        Some(whole) => on_message(whole),
        None => Ok(()),
    }
}

fn take_frames<'a>(mut bytes: &'a [u8], on_frame: &mut impl FnMut(Frame<'_>) -> Result<()>) -> Result<&'a [u8]> {
    while let Some((frame, len)) = first_frame(bytes)? {
        on_frame(frame)?;
        bytes = &bytes[len..];
    }
    Ok(bytes)
}

/// Parses the first frame. Returns the frame and its length in bytes, header included, or `None` if more bytes are
/// needed.
fn first_frame(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>> {
    let [first, second, rest @ ..] = bytes else {
        return Ok(None);
    };
    if first & 0x30 != 0 {
        bail!("the server sent a frame of an extension that was not offered (first byte {first:#04x})");
    }
    let (payload_len, rest) = match second & 0x7f {
        126 => {
            let Some((len, rest)) = rest.split_first_chunk::<2>() else {
                return Ok(None);
            };
            (usize::from(u16::from_be_bytes(*len)), rest)
        }
        127 => {
            let Some((len, rest)) = rest.split_first_chunk::<8>() else {
                return Ok(None);
            };
            (usize::try_from(u64::from_be_bytes(*len)).context("frame length")?, rest)
        }
        short => (usize::from(short), rest),
    };
    let (mask, rest) = if second & 0x80 == 0 {
        (None, rest)
    } else {
        let Some((mask, rest)) = rest.split_first_chunk::<4>() else {
            return Ok(None);
        };
        (Some(mask), rest)
    };
    let Some(payload) = rest.get(..payload_len) else {
        return Ok(None);
    };
    let len = bytes.len() - rest.len() + payload_len;
    let payload = match mask {
        None => Cow::Borrowed(payload),
        Some(mask) => payload
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, mask)| byte ^ mask)
            .collect(),
    };
    let frame = Frame {
        last: first & 0x80 != 0,
        message: Message {
            opcode: first & 0x0f,
            compressed: first & 0x40 != 0,
            payload,
        },
    };
    Ok(Some((frame, len)))
}

#[cfg(test)]
mod tests {
    // Each test has its own imports: the benchmark that includes this file has no harness, so no tests either.

    #[test]
    fn messages_come_out_whole_however_their_bytes_were_cut() {
        use super::*;

        let long = vec![b'x'; 70_000];
        let bytes = [
            client_frame(TEXT, b"first"),
            // Fragments with a ping between them, and an empty last one.
            vec![0x01, 2, b'a', b'b', 0x89, 1, b'!', 0x00, 1, b'c', 0x80, 0],
            client_frame(TEXT, &long),
        ]
        .concat();
        for step in [1, 7, 1000, bytes.len()] {
            let (mut reader, mut seen) = (FrameReader::default(), Vec::new());
            for chunk in bytes.chunks(step) {
                let keep = |message: Message<'_>| {
                    seen.push((message.opcode, message.payload.into_owned()));
                    Ok(())
                };
                reader.feed(chunk, keep).unwrap();
            }
            let expected = [
                (TEXT, b"first".to_vec()),
                (PING, b"!".to_vec()),
                (TEXT, b"abc".to_vec()),
                (TEXT, long.clone()),
            ];
            assert!(seen == expected, "in steps of {step}");
        }
    }

    #[test]
    fn what_was_compressed_is_unpacked_where_it_was_agreed_on() {
        use super::*;

        let mut reader = FrameReader::new(true);
        let mut seen = Vec::new();
        let bytes = [0x41, 1, b'a', 0x89, 0, 0x80, 1, b'b', 0x81, 0, 0xc2, 0];
        let keep = |message: Message<'_>| {
            seen.push((message.opcode, message.compressed, message.payload.len()));
            Ok(())
        };
        reader.feed(&bytes, keep).unwrap();
        let expected = [(PING, false, 0), (TEXT, true, 2), (TEXT, false, 0), (BINARY, true, 0)];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_continuation_of_nothing_is_an_error() {
        use super::FrameReader;

        assert!(FrameReader::default().feed(&[0x80, 0], |_| Ok(())).is_err());
        assert!(
            FrameReader::default().feed(&[0xc1, 0], |_| Ok(())).is_err(),
            "compressed"
        );
    }
}
