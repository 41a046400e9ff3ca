//! PROTOCOL 1.2: WebSocket frames, well-formed and not.

use headwater::devnet;
use serde_json::json;

use crate::harness::{Rig, node_with_logs_of};
use crate::wire::{BINARY, CHAIN_ID, CHAIN_ID_ANSWER, CLOSE, END, MORE, PING, PONG, TEXT, Wire, close, frame};

#[tokio::test]
async fn messages_in_fragments_with_pings_between_are_put_together() {
    let rig = Rig::start().await;
    let mut wire = Wire::open(rig.address).await;
    for opcode in [TEXT, BINARY] {
        let (a, rest) = CHAIN_ID.as_bytes().split_at(10);
        let (b, c) = rest.split_at(10);
        wire.send(opcode & MORE, a).await;
        wire.send(PING, "one").await;
        assert_eq!(
            wire.frame().await,
            (PONG, b"one".to_vec()),
            "at once, not behind the message"
        );
        wire.send(0, b).await;
        wire.send(0, "").await;
        wire.send(PONG, "nobody asked").await;
        wire.send(PING, "").await;
        assert_eq!(wire.frame().await, (PONG, Vec::new()));
        wire.send(END, c).await;
        assert_eq!(wire.text().await, CHAIN_ID_ANSWER);
    }
    // One byte at a time.
    for byte in frame(TEXT, CHAIN_ID) {
        wire.write([byte]).await;
    }
    assert_eq!(wire.text().await, CHAIN_ID_ANSWER);
    // Many in one write.
    wire.write([frame(PING, [7; 125]), frame(TEXT, CHAIN_ID), frame(TEXT, CHAIN_ID)].concat())
        .await;
    assert_eq!(wire.frame().await, (PONG, vec![7; 125]));
    for _ in 0..2 {
        assert_eq!(wire.text().await, CHAIN_ID_ANSWER);
    }
    // A character split across two fragments is whole in the end.
    let text = r#"{"jsonrpc":"2.0","id":"é","method":"eth_chainId"}"#;
    let middle = text.find('é').unwrap() + 1;
    wire.send(TEXT & MORE, &text.as_bytes()[..middle]).await;
    wire.send(END, &text.as_bytes()[middle..]).await;
    assert_eq!(wire.text().await, r#"{"jsonrpc":"2.0","id":"é","result":"0x539"}"#);
}

#[tokio::test]
async fn a_close_frame_is_echoed_and_then_the_connection_ends() {
    let rig = Rig::start().await;
    for code in [
        1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 4999,
    ] {
        let mut wire = Wire::open(rig.address).await;
        wire.send(CLOSE, close(code, "so long")).await;
        assert_eq!(wire.frame().await, (CLOSE, close(code, "")));
        wire.ends().await;
    }
    let mut wire = Wire::open(rig.address).await;
    wire.send(CLOSE, "").await;
    assert_eq!(wire.frame().await, (CLOSE, Vec::new()));
    wire.ends().await;
}

/// Other clients are not affected.
#[tokio::test]
async fn violations_are_closed_with_their_code() {
    let rig = Rig::with(|config| config.limits.max_message_bytes = bytesize::ByteSize::b(1024)).await;
    let mut bystander = rig.watcher().await;
    let unmasked = |first: u8| [&[first, CHAIN_ID.len() as u8], CHAIN_ID.as_bytes()].concat();
    let mut rows = vec![
        ("an unmasked frame".to_owned(), 1002, unmasked(TEXT)),
        ("an unmasked ping".to_owned(), 1002, vec![PING, 0]),
        ("a continuation of nothing".to_owned(), 1002, frame(END, "x")),
        (
            "a message inside another".to_owned(),
            1002,
            [frame(TEXT & MORE, "{"), frame(TEXT, "}")].concat(),
        ),
        ("a ping in fragments".to_owned(), 1002, frame(PING & MORE, "x")),
        ("a close in fragments".to_owned(), 1002, frame(CLOSE & MORE, "")),
        ("a pong in fragments".to_owned(), 1002, frame(PONG & MORE, "x")),
        ("a ping of 126 bytes".to_owned(), 1002, frame(PING, [0; 126])),
        ("a pong of 126 bytes".to_owned(), 1002, frame(PONG, [0; 126])),
        (
            "a close frame of 126 bytes".to_owned(),
            1002,
            frame(CLOSE, close(1000, [b'x'; 124])),
        ),
        ("the head of a long ping alone".to_owned(), 1002, vec![PING, 0xff]),
        ("a close frame of one byte".to_owned(), 1002, frame(CLOSE, [3])),
        (
            "a close reason that is no UTF-8".to_owned(),
            1007,
            frame(CLOSE, close(1000, [0xff])),
        ),
        ("text that is no UTF-8".to_owned(), 1007, frame(TEXT, b"\"\xff\"")),
        ("a surrogate".to_owned(), 1007, frame(TEXT, b"\xed\xa0\x80")),
        (
            "half a character at the end of fragments".to_owned(),
            1007,
            [frame(TEXT & MORE, "\""), frame(END, [0xc3])].concat(),
        ),
        (
            "a fragment that can be no text".to_owned(),
            1007,
            frame(TEXT & MORE, b"\"\xff"),
        ),
        (
            "a fragment that ends what it began otherwise".to_owned(),
            1007,
            [frame(TEXT & MORE, [0xc3]), frame(0, "x")].concat(),
        ),
        ("an overlong character".to_owned(), 1007, frame(TEXT, b"\xc0\xaf")),
        (
            "a character beyond Unicode".to_owned(),
            1007,
            frame(TEXT, b"\xf4\x90\x80\x80"),
        ),
        ("a message above the limit".to_owned(), 1009, frame(TEXT, [b' '; 1025])),
        (
            "the head of a long message alone".to_owned(),
            1009,
            vec![TEXT, 0xff, 0, 0, 0, 0, 0x7f, 0, 0, 0, 1, 2, 3, 4],
        ),
        (
            "a length beyond all bounds".to_owned(),
            1009,
            vec![TEXT, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0],
        ),
        (
            "fragments that are too long together".to_owned(),
            1009,
            [frame(TEXT & MORE, [b' '; 1000]), frame(END, [b' '; 25])].concat(),
        ),
    ];
    for bit in [0x40, 0x20, 0x10] {
        rows.push((format!("reserved bit {bit:#x}"), 1002, frame(TEXT | bit, CHAIN_ID)));
    }
    for opcode in (3..=7).chain(11..=15) {
        rows.push((format!("opcode {opcode}"), 1002, frame(0x80 | opcode, "")));
    }
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, u16::MAX] {
        rows.push((format!("close code {code}"), 1002, frame(CLOSE, close(code, ""))));
    }
    for (what, code, bytes) in rows {
        let mut wire = Wire::open(rig.address).await;
        wire.works().await;
        wire.write(bytes).await;
        assert_eq!(wire.closed().await, (0, Some(code)), "{what}");
    }
    let mut wire = Wire::open(rig.address).await;
    wire.send(TEXT, format!("{CHAIN_ID}{}", " ".repeat(1024 - CHAIN_ID.len())))
        .await;
    assert_eq!(wire.text().await, CHAIN_ID_ANSWER, "exactly the limit");
    wire.send(TEXT & MORE, CHAIN_ID).await;
    wire.send(END, vec![b' '; 1024 - CHAIN_ID.len()]).await;
    assert_eq!(wire.text().await, CHAIN_ID_ANSWER, "exactly the limit in fragments");
    rig.nothing_else(&mut bystander).await;
}

#[tokio::test]
async fn a_long_answer_leaves_in_fragments_of_one_message() {
    let node = devnet::Config {
        log_data_bytes: 16 << 10,
        initial_blocks: 12,
        ..devnet::Config::manual()
    };
    let rig = Rig::before(devnet::Devnet::start(node).await.unwrap(), |_| {}).await;
    let request =
        json!({"jsonrpc": "2.0", "id": 1, "method": "eth_getLogs", "params": [{"fromBlock": "0x1", "toBlock": "0xc"}]});
    let expected = rig.ask_node(&request).await;
    assert!(expected.len() > 2 << 20);
    let mut wire = Wire::open(rig.address).await;
    wire.send(TEXT, request.to_string()).await;
    let mut message = Vec::new();
    loop {
        let (first, payload) = wire.frame().await;
        assert_eq!(first & 0x0f, u8::from(message.is_empty()), "text, then continuations");
        assert!(payload.len() <= 1 << 20, "{}", payload.len());
        message.extend(payload);
        if first & END != 0 {
            break;
        }
    }
    assert!(message == expected.as_bytes());
    wire.works().await;
}

#[tokio::test]
async fn a_pong_overtakes_the_backlog() {
    const BLOCKS: usize = 60;
    let rig = Rig::before(node_with_logs_of(32 << 10).await, |_| {}).await;
    let mut reader = rig.watcher().await;
    let mut wire = Wire::open_with(rig.address, b"", Some(16 << 10)).await;
    wire.subscribe_logs().await;
    for _ in 0..BLOCKS {
        rig.nothing_else(&mut reader).await;
    }
    wire.send(PING, "anyone?").await;
    let (mut before, mut after, mut pongs) = (0, 0, 0);
    while before + after < BLOCKS * 6 {
        match wire.frame().await.0 {
            PONG => pongs += 1,
            _ if pongs == 0 => before += 1,
            _ => after += 1,
        }
    }
    assert_eq!(pongs, 1);
    assert!(
        after > BLOCKS * 6 / 2,
        "{before} events came before the pong, {after} after it"
    );
}
