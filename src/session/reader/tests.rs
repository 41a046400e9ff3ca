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

/// Feeds the bytes in chunks of every size up to nine, and whole; the outcome must not depend on the size.
#[track_caller]
fn check(wire: &[u8], expect: &str) {
    check_as(false, wire, expect);
}

#[track_caller]
fn check_as(deflates: bool, wire: &[u8], expect: &str) {
    for chunk in (1..10).chain([wire.len()]) {
        let mut reader = MessageReader::new(MAX, deflates);
        let mut seen = Vec::new();
        'all: for piece in wire.chunks(chunk) {
            reader.buffer().extend_from_slice(piece);
            loop {
                let inbound = match reader.next_inbound() {
                    Ok(Some(ClientFrame::DeflatedMessage(message))) => {
                        match message.inflate(MAX, || Ok::<(), ()>(())) {
                            Ok(inflated) => Ok(Some(ClientFrame::Message(message.form(), inflated.into()))),
                            Err(why) => Err(why.unwrap_err()),
                        }
                    }
                    other => other,
                };
                match inbound {
                    Ok(None) => break,
                    Ok(Some(ClientFrame::DeflatedMessage(_))) => unreachable!("inflated above"),
                    Ok(Some(ClientFrame::Message(_, bytes))) if bytes.len() > 50 => {
                        seen.push(format!("{} bytes", bytes.len()))
                    }
                    Ok(Some(ClientFrame::Message(_, bytes))) => seen.push(String::from_utf8_lossy(&bytes).into_owned()),
                    Ok(Some(ClientFrame::Ping(bytes))) => seen.push(format!("ping({})", bytes.len())),
                    Ok(Some(ClientFrame::Pong(_))) => seen.push("pong".to_owned()),
                    Ok(Some(ClientFrame::Close(code))) => seen.push(format!("close({code:?})")),
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
    check(&frame(0x80, b"a"), "1002 continuation frame without a message");
    check(
        &[frame(0x01, b"a"), frame(0x81, b"b")].concat(),
        "1002 new message before the end of a fragmented one",
    );
    check(&frame(0x81, b"\xff"), "1007 invalid UTF-8");
    check(&[frame(0x01, b"\xce"), frame(0x80, b"\xba")].concat(), "\u{3ba}");
    check(&frame(0x82, b"\xff"), "\u{fffd}");
    // Bytes that can no longer become UTF-8 are rejected at once; bytes that still may are not.
    check(&frame(0x01, b"\xff"), "1007 invalid UTF-8");
    check(
        &[frame(0x01, b"\xce"), frame(0x00, b"a")].concat(),
        "1007 invalid UTF-8",
    );
    check(&[frame(0x01, b"\xce"), frame(0x80, b"")].concat(), "1007 invalid UTF-8");
    check(
        &[frame(0x01, b"\xf0\x9f"), frame(0x00, b"\xa6"), frame(0x00, b"")].concat(),
        "",
    );
    check(&frame(0x81, &vec![b'a'; MAX + 1])[..20], "1009 message too big");
    check(
        &[frame(0x01, &vec![b'a'; MAX]), frame(0x00, b"b")].concat(),
        "1009 message too big",
    );
}

#[test]
fn compressed_messages_where_they_were_agreed_on() {
    let hello = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
    let (a, b) = hello.split_at(3);
    let agreed = |wire: &[Vec<u8>], expect: &str| check_as(true, &wire.concat(), expect);
    agreed(&[frame(0xC1, &hello)], "Hello");
    agreed(&[frame(0xC2, &hello), frame(0x81, b"plain")], "Hello; plain");
    agreed(&[frame(0xC1, &[0])], "");
    agreed(
        &[
            frame(0x41, a),
            frame(0x89, b"p"),
            frame(0x00, b""),
            frame(0x80, b),
            frame(0x81, b"x"),
        ],
        "ping(1); Hello; x",
    );
    agreed(
        &[frame(0x01, b"a"), frame(0x80, b"b"), frame(0xC1, &hello)],
        "ab; Hello",
    );
    for first in [0xC0, 0x40, 0xC8, 0xC9, 0xCA, 0x91, 0xA1, 0xD1, 0xE1] {
        agreed(&[frame(0x01, b"a"), frame(first, b"")], "1002 unexpected reserved bits");
    }
    agreed(&[frame(0xC1, b"Hello")], "1007 invalid compressed data");
    agreed(&[frame(0xC1, b"")], "1007 invalid compressed data");
    agreed(&[frame(0xC1, a)], "1007 invalid compressed data");
    agreed(
        &[frame(0x41, a), frame(0x80, b"\xff\xff")],
        "1007 invalid compressed data",
    );
    let not_text = deflate::compress(&[&[0xff; 100]]).unwrap();
    agreed(&[frame(0xC1, &not_text)], "1007 invalid UTF-8");
    agreed(&[frame(0xC2, &not_text)], "100 bytes");
}

#[test]
fn what_is_compressed_may_be_as_long_as_what_is_not() {
    for (len, expect) in [(MAX, "100000 bytes"), (MAX + 1, "1009 message too big")] {
        let wire = frame(0xC1, &deflate::compress(&[&vec![b'a'; len]]).unwrap());
        check_as(true, &wire, expect);
        check_as(true, &frame(0x81, &vec![b'a'; len]), expect);
        check_as(
            true,
            &[frame(0x01, &vec![b'a'; MAX]), frame(0x80, &vec![b'a'; len - MAX])].concat(),
            expect,
        );
        // Stored blocks make the message a little longer than the text.
        let mut stored = Vec::new();
        for block in vec![b'a'; len].chunks(1000) {
            stored.extend(
                [
                    &[0][..],
                    &(block.len() as u16).to_le_bytes(),
                    &(!block.len() as u16).to_le_bytes(),
                    block,
                ]
                .concat(),
            );
        }
        stored.push(0);
        let (a, b) = stored.split_at(MAX / 2);
        check_as(true, &[frame(0x41, a), frame(0x80, b)].concat(), expect);
    }
    let long = vec![0; MAX + MAX / 8 + 65];
    check_as(true, &frame(0xC1, &long)[..20], "1009 message too big");
    check_as(
        true,
        &[frame(0x41, &long[..MAX]), frame(0x80, &long[MAX..])].concat(),
        "1009 message too big",
    );
}

#[test]
fn closes() {
    check(&frame(0x88, b""), "close(None)");
    check(&frame(0x88, &[0x03, 0xE8]), "close(Some(1000))");
    check(&frame(0x88, &[0x03, 0xE8, b'x']), "close(Some(1000))");
    check(&frame(0x88, &[0x03]), "1002 close frame of one byte");
    check(&frame(0x88, &[0x03, 0xE8, 0xFF]), "1007 invalid UTF-8");
    for code in [0u16, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000] {
        check(&frame(0x88, &code.to_be_bytes()), "1002 invalid close code");
    }
}

#[test]
fn a_message_has_so_many_fragments_and_not_one_more() {
    for (empty, ends) in [(MAX_FRAGMENTS - 2, true), (MAX_FRAGMENTS - 1, false)] {
        let mut reader = MessageReader::new(MAX, false);
        reader.buffer().extend_from_slice(&frame(0x01, b"a"));
        reader
            .buffer()
            .extend_from_slice(&frame(0x00, b"").repeat(empty as usize));
        reader.buffer().extend_from_slice(&frame(0x80, b"b"));
        let last = reader.next_inbound();
        if ends {
            assert_eq!(last, Ok(Some(ClientFrame::Message(Form::Text, "ab".into()))));
        } else {
            assert_eq!(last, Err(CloseReason::Flood("too many fragments in one message")));
        }
    }
}

#[test]
fn it_is_known_when_a_message_is_not_whole() {
    let mut reader = MessageReader::new(MAX, false);
    assert!(reader.is_between_messages());
    let wire = [frame(0x01, b"a"), frame(0x89, b""), frame(0x80, b"b"), frame(0x88, b"")].concat();
    let mut ends = Vec::new();
    for (i, byte) in wire.iter().enumerate() {
        reader.buffer().extend_from_slice(&[*byte]);
        if reader.next_inbound().expect("well-formed").is_some() {
            ends.push((i + 1, reader.is_inside_message()));
            assert_eq!(reader.is_between_messages(), !reader.is_inside_message());
        } else {
            assert!(!reader.is_between_messages(), "byte {i}");
        }
    }
    assert_eq!(ends, [(13, true), (20, false), (26, false)]);
}

#[test]
fn nothing_is_kept_while_idle() {
    let mut reader = MessageReader::new(MAX, true);
    reader.buffer().extend_from_slice(&frame(0x81, b"hello"));
    assert!(reader.next_inbound().is_ok_and(|inbound| inbound.is_some()));
    assert!(reader.next_inbound().is_ok_and(|inbound| inbound.is_none()));
    reader.rest();
    assert_eq!(reader.buffer().capacity(), 0);
}
