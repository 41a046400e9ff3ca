use super::*;

#[test]
fn the_payload_of_an_event_is_found_in_its_frames() {
    for len in [
        0,
        1,
        1000,
        MAX_FRAME - Prefix::LEN - 2,
        MAX_FRAME - Prefix::LEN - 1,
        3 * FRAGMENT,
        MAX_FRAME + 3,
        5 * FRAGMENT + 100,
    ] {
        let payload: Vec<u8> = (0..len).map(|at| b'a' + (at % 26) as u8).collect();
        assert!(Event::new(&payload).payload() == payload, "{len}");
    }
}

use proptest::prelude::*;

/// Reads frames as a client would: (opcode, fin, payload).
fn read(mut wire: &[u8]) -> Vec<(u8, bool, Vec<u8>)> {
    let mut frames = Vec::new();
    while !wire.is_empty() {
        let (len, at) = match wire[1] {
            126 => (usize::from(u16::from_be_bytes([wire[2], wire[3]])), 4),
            127 => (
                u64::from_be_bytes(wire[2..10].try_into().expect("eight bytes")) as usize,
                10,
            ),
            short => (usize::from(short), 2),
        };
        frames.push((wire[0] & 0x0F, wire[0] & FIN != 0, wire[at..at + len].to_vec()));
        wire = &wire[at + len..];
    }
    frames
}

#[track_caller]
fn check_compressed(payload: &[u8], expect: bool) {
    let event = Event::new(payload).compressible();
    let prefix = Prefix::new(SubscriptionId::random());
    let plain = event.slices(&prefix).concat();
    assert_eq!(event.deflated().is_some(), expect);
    let Some(deflated) = event.deflated() else { return };
    let wire = deflated.slices(&prefix).concat();
    assert_eq!(wire.len(), deflated.wire_len());
    assert_eq!(wire[0] & RSV1, RSV1);
    assert!(wire.len() < plain.len());
    let [frame] = &read(&wire)[..] else {
        panic!("not one frame")
    };
    let text = deflate::inflate(&frame.2, MAX_FRAME, || Ok::<(), ()>(()));
    assert_eq!(text, Ok(read(&plain).remove(0).2));
}

#[test]
fn events_of_another_namespace_are_framed_by_the_length_of_its_name() {
    let id = SubscriptionId::random();
    for namespace in ["eth", "e", "chain"] {
        let prefix = Prefix::within(namespace, id);
        assert_eq!(prefix.as_slice().len(), Prefix::len_within(namespace));
        for len in [1, 200, MAX_FRAME - Prefix::len_within(namespace) - 2, MAX_FRAME] {
            let event = Event::within(namespace, &vec![b'1'; len]);
            let frame = event.slices(&prefix).concat();
            assert_eq!(frame.len(), event.wire_len());
            let open = format!(r#"{{"jsonrpc":"2.0","method":"{namespace}_subscription","params":{{"subscription":"#);
            let head = FrameHeader::new(Opcode::Text, true, prefix.as_slice().len() + len + 2);
            if len < MAX_FRAME {
                assert!(frame.starts_with(&[head.as_slice(), open.as_bytes()].concat()));
            } else {
                // The first of several fragments.
                assert_eq!(frame[0], Opcode::Text as u8);
                assert_eq!(frame[10 + FRAGMENT], Opcode::Continuation as u8);
            }
        }
    }
    assert_eq!(Prefix::within("eth", id).as_slice(), Prefix::new(id).as_slice());
}

#[test]
fn events_are_compressed_from_what_is_worth_it_to_a_frame() {
    let longest = MAX_FRAME - Prefix::LEN - 2;
    for (len, expect) in [(253, false), (254, true), (longest, true), (longest + 1, false)] {
        check_compressed(&vec![b'x'; len], expect);
    }
}

#[test]
fn answers_are_compressed_from_a_packet_to_a_frame() {
    for (len, compressed) in [(1023, false), (1024, true), (MAX_FRAME, true), (MAX_FRAME + 1, false)] {
        let body = Bytes::from(vec![b'y'; len - 3]);
        let frame = deflated_text(&[Bytes::from_static(b"hh"), body.clone(), Bytes::from_static(b"t")]);
        assert_eq!(frame.is_some(), compressed, "{len}");
        let Some(frame) = frame else { continue };
        assert_eq!(frame[0], 0xC1);
        let payload = read(&frame).remove(0).2;
        let text = deflate::inflate(&payload, len, || Ok::<(), ()>(()));
        assert_eq!(text, Ok([b"hh", &body[..], b"t"].concat()));
    }
}

#[track_caller]
fn check_message(wire: &[u8], expect: &[u8]) {
    let frames = read(wire);
    let last = frames.len() - 1;
    for (i, (opcode, fin, payload)) in frames.iter().enumerate() {
        assert_eq!(*opcode, u8::from(i == 0), "text first, continuations after");
        assert_eq!(*fin, i == last);
        assert!(payload.len() <= MAX_FRAME);
    }
    assert!(frames.into_iter().flat_map(|frame| frame.2).eq(expect.iter().copied()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn an_event_is_one_message_whatever_its_size(len in prop_oneof![0usize..300, 65_300usize..65_700, 1_048_300usize..1_048_700, 2_000_000usize..2_100_000]) {
        let payload = vec![b'x'; len];
        let event = Event::new(&payload);
        let id = SubscriptionId::random();
        let prefix = Prefix::new(id);
        let wire = event.slices(&prefix).concat();
        prop_assert_eq!(wire.len(), event.wire_len());
        let mut expect = format!(r#"{{"jsonrpc":"2.0","method":"eth_subscription","params":{{"subscription":"{id}","result":"#).into_bytes();
        expect.extend_from_slice(&payload);
        expect.extend_from_slice(b"}}");
        check_message(&wire, &expect);
        prop_assert!(event.deflated().is_none(), "nothing was said of compression");
    }

    /// With payloads of one letter, of hex digits, and of noise, which does not compress.
    #[test]
    fn a_compressed_event_says_the_same(
        len in prop_oneof![0usize..2_000, 65_300usize..65_700, 130_900usize..131_200],
        alphabet in prop::sample::select(vec![1u16, 16, 256]),
        seed: u64,
    ) {
        let mut random = fastrand::Rng::with_seed(seed);
        let payload: Vec<u8> = (0..len).map(|_| (random.u16(..alphabet) as u8).wrapping_add(b'0')).collect();
        check_compressed(&payload, len + 2 >= COMPRESS_EVENT && alphabet < 256);
    }

    #[test]
    fn an_answer_is_one_message_whatever_its_size(
        head in prop_oneof![0usize..50, 300_000usize..1_200_000],
        len in prop_oneof![0usize..5_000, 1_048_300usize..1_048_700, 2_000_000usize..2_100_000],
        tail in prop_oneof![0usize..3, 200_000usize..600_000],
    ) {
        let (head, body, tail) = (vec![b'h'; head], Bytes::from(vec![b'y'; len]), vec![b't'; tail]);
        prop_assume!(!head.is_empty() || !body.is_empty() || !tail.is_empty());
        let wire = text(&[head.clone().into(), body.clone(), tail.clone().into()]).concat();
        check_message(&wire, &[head.as_slice(), &body, &tail].concat());
    }
}
