//! A client's bytes in arbitrary pieces: the reader gives the same results as a stateless decoder that has the whole
//! input at once, and stays within its memory bound.

#![no_main]

use flate2::{Decompress, FlushDecompress, Status};
use headwater::delivery::CloseReason;
use headwater::session::{Form, ClientFrame, MAX_FRAGMENTS, MessageReader};
use libfuzzer_sys::fuzz_target;

/// Maximum message size in bytes; short, so that generated messages exceed it.
const MAX: usize = 300;

fuzz_target!(|data: &[u8]| {
    let [flags, cuts, wire @ ..] = data else { return };
    let deflates = flags & 1 != 0;
    let mut received = read(wire, deflates, *cuts);
    let expected = decode(wire, deflates);
    // Corrupt compressed data may exceed the size limit before the corruption shows, since the reader accepts a block
    // without an end as long as data remains.
    if expected.last() == Some(&Told::Corrupt) {
        received.pop_if(|last| *last == Told::Broken(1007) || *last == Told::Broken(1009));
        received.push(Told::Corrupt);
    }
    assert_eq!(received, expected);
});

#[derive(Debug, PartialEq, Eq)]
enum Told {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>),
    /// The end of the connection, with this close code; nothing is read after it.
    Broken(u16),
    /// The end of the connection, for invalid compressed data.
    Corrupt,
}

impl Told {
    fn message(form: Form, bytes: Vec<u8>) -> Self {
        match form {
            Form::Text => Self::Text(bytes),
            Form::Binary => Self::Binary(bytes),
        }
    }
}

fn read(wire: &[u8], deflates: bool, cuts: u8) -> Vec<Told> {
    let mut reader = MessageReader::new(MAX, deflates);
    let mut received = Vec::new();
    let mut rest = wire;
    let mut cut = usize::from(cuts);
    while !rest.is_empty() {
        // Pieces of varying size, from one byte to the whole input.
        let (piece, behind) = rest.split_at((cut % 37 + 1).min(rest.len()));
        let piece = if cuts == 0xFF { rest } else { piece };
        rest = if cuts == 0xFF { &[] } else { behind };
        cut = cut.wrapping_mul(5).wrapping_add(usize::from(cuts) | 1);
        reader.buffer().extend_from_slice(piece);
        loop {
            let one = match reader.next_inbound() {
                Ok(None) => break,
                Ok(Some(ClientFrame::Message(form, bytes))) => Told::message(form, bytes.to_vec()),
                Ok(Some(ClientFrame::DeflatedMessage(message))) => match message.inflate(MAX, || Ok::<(), ()>(())) {
                    Ok(bytes) => Told::message(message.form(), bytes),
                    Err(why) => broken(why.expect_err("nothing is refused")),
                },
                Ok(Some(ClientFrame::Ping(payload))) => Told::Ping(payload.to_vec()),
                Ok(Some(ClientFrame::Pong(_))) => Told::Pong,
                Ok(Some(ClientFrame::Close(code))) => Told::Close(code),
                Err(reason) => broken(reason),
            };
            let ends = matches!(one, Told::Broken(_));
            received.push(one);
            if ends {
                return received;
            }
        }
        // At most a message and its next frame, both of maximum length, and a frame header.
        assert!(
            reader.held_bytes() <= 2 * longest(deflates) + 14,
            "{}",
            reader.held_bytes()
        );
        let idle = reader.is_between_messages();
        reader.rest();
        assert!(!idle || reader.held_bytes() == 0 && reader.buffer().capacity() == 0);
    }
    received
}

fn broken(reason: CloseReason) -> Told {
    Told::Broken(reason.code().expect("not a goodbye"))
}

/// Returns the maximum wire size of a message in bytes: `MAX`, plus an eighth of it and 64 if compressed.
fn longest(deflated: bool) -> usize {
    if deflated { MAX + MAX / 8 + 64 } else { MAX }
}

/// Decodes the whole input by RFC 6455 section 5, independently of the reader.
fn decode(mut wire: &[u8], deflates: bool) -> Vec<Told> {
    let mut received = Vec::new();
    let mut message: Option<(Form, bool, Vec<u8>, u32)> = None;
    let fail = |mut received: Vec<Told>, code| {
        received.push(Told::Broken(code));
        received
    };
    loop {
        let Some(&first) = wire.first() else { return received };
        let (fin, opcode, deflated) = (first & 0x80 != 0, first & 0x0F, first & 0x40 != 0);
        if first & 0x30 != 0
            || deflated && !(deflates && (opcode == 1 || opcode == 2))
            || !matches!(opcode, 0 | 1 | 2 | 8 | 9 | 10)
        {
            return fail(received, 1002);
        }
        let is_control = opcode >= 8;
        let Some(&second) = wire.get(1) else { return received };
        if second & 0x80 == 0 || is_control && second & 0x7F > 125 {
            return fail(received, 1002);
        }
        let (header, len) = match second & 0x7F {
            126 if wire.len() >= 4 => (4, u64::from(u16::from_be_bytes([wire[2], wire[3]]))),
            127 if wire.len() >= 10 => (10, u64::from_be_bytes(wire[2..10].try_into().expect("eight"))),
            126 | 127 => return received,
            len => (2, u64::from(len)),
        };
        if wire.len() < header + 4 {
            return received;
        }
        if is_control && !fin {
            return fail(received, 1002);
        }
        // The header alone suffices to refuse a frame that exceeds the maximum for compressed messages.
        if len > longest(deflates) as u64 {
            return fail(received, 1009);
        }
        let (head, rest) = wire.split_at(header + 4);
        if (rest.len() as u64) < len {
            return received;
        }
        let (masked, rest) = rest.split_at(len as usize);
        let mask = &head[header..];
        let payload: Vec<u8> = masked.iter().enumerate().map(|(i, byte)| byte ^ mask[i % 4]).collect();
        wire = rest;
        match opcode {
            9 => received.push(Told::Ping(payload)),
            10 => received.push(Told::Pong),
            8 => match close(&payload) {
                Ok(code) => received.push(Told::Close(code)),
                Err(code) => return fail(received, code),
            },
            _ => {
                let (form, is_deflated, mut bytes, fragments) = match (opcode, message.take()) {
                    (0, Some(message)) => message,
                    (1, None) => (Form::Text, deflated, Vec::new(), 0),
                    (2, None) => (Form::Binary, deflated, Vec::new(), 0),
                    _ => return fail(received, 1002),
                };
                bytes.extend(payload);
                let fragments = fragments + 1;
                if fragments > MAX_FRAGMENTS {
                    return fail(received, 1008);
                }
                if bytes.len() > longest(is_deflated) {
                    return fail(received, 1009);
                }
                let text = form == Form::Text && !is_deflated;
                if text && std::str::from_utf8(&bytes).is_err_and(|why| fin || why.error_len().is_some()) {
                    return fail(received, 1007);
                }
                if !fin {
                    message = Some((form, is_deflated, bytes, fragments));
                    continue;
                }
                if is_deflated {
                    bytes = match inflate(&bytes) {
                        Ok(bytes) => bytes,
                        Err(why) => {
                            received.push(why);
                            return received;
                        }
                    };
                    if form == Form::Text && std::str::from_utf8(&bytes).is_err() {
                        return fail(received, 1007);
                    }
                }
                received.push(Told::message(form, bytes));
            }
        }
    }
}

fn close(payload: &[u8]) -> Result<Option<u16>, u16> {
    match payload {
        [] => Ok(None),
        [_] => Err(1002),
        [high, low, reason @ ..] => match u16::from_be_bytes([*high, *low]) {
            code @ (1000..=1003 | 1007..=1014 | 3000..=4999) => match std::str::from_utf8(reason) {
                Ok(_) => Ok(Some(code)),
                Err(_) => Err(1007),
            },
            _ => Err(1002),
        },
    }
}

/// Inflates a message by RFC 7692 section 7.2.2: four bytes are appended. The empty final block after them marks the
/// end; if the message has a final block itself, only the beginning of the next block may follow it (7.2.3.4).
fn inflate(message: &[u8]) -> Result<Vec<u8>, Told> {
    let whole = [message, &[0, 0, 0xFF, 0xFF, 1, 0, 0, 0xFF, 0xFF]].concat();
    let mut inflater = Decompress::new(false);
    let mut out = vec![0; MAX + 1];
    let status = inflater.decompress(&whole, &mut out, FlushDecompress::None);
    let (read, written) = (inflater.total_in() as usize, inflater.total_out() as usize);
    if written > MAX {
        return Err(Told::Broken(1009));
    }
    out.truncate(written);
    match status {
        Ok(Status::StreamEnd) if read == whole.len() => Ok(out),
        Ok(Status::StreamEnd) if read < message.len() && message[read..] == [0] => Ok(out),
        _ => Err(Told::Corrupt),
    }
}
