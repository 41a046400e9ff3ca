//! permessage-deflate (RFC 7692): who gets it, that it says the same, and what may come in compressed.

use headwater::config::typed::{self, Compression};
use headwater::deflate;
use serde_json::{Value, json};

use crate::harness::{Event, Rig, adopted, eventually, reorged};
use crate::wire::{BINARY, CHAIN_ID, CHAIN_ID_ANSWER, DEFLATED, END, MORE, PING, TEXT, UPGRADE, Wire, frame};

const AGREED: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

async fn rig() -> Rig {
    rig_with(|_| {}).await
}

async fn rig_with(edit: impl FnOnce(&mut typed::Config)) -> Rig {
    Rig::with(|config| {
        config.delivery.compression = Compression::On;
        edit(config);
    })
    .await
}

fn compressed(text: impl AsRef<[u8]>) -> Vec<u8> {
    deflate::compress(&[text.as_ref()]).unwrap()
}

/// A call that is worth compressing, and as long as it is to be.
fn padded(len: usize) -> String {
    format!("{CHAIN_ID}{}", " ".repeat(len - CHAIN_ID.len()))
}

#[tokio::test]
async fn compression_is_for_those_who_offer_it_where_it_is_on() {
    let (on, off) = (rig().await, Rig::start().await);
    for (offer, agreed) in [
        (None, None),
        (Some("permessage-deflate; client_max_window_bits"), Some(AGREED)),
        (Some("permessage-deflate; server_max_window_bits=9"), None),
        (
            Some("permessage-deflate; server_max_window_bits=9, permessage-deflate"),
            Some(AGREED),
        ),
        (Some("permessage-bzip2"), None),
    ] {
        let offer = offer.map_or(String::new(), |offer| format!("\r\nSec-WebSocket-Extensions: {offer}"));
        for (rig, agreed) in [(&on, agreed), (&off, None)] {
            let mut wire = Wire::connect(rig.address).await;
            let reply = wire.handshake(&format!("{UPGRADE}{offer}"), b"").await;
            assert_eq!(reply.status, 101);
            assert_eq!(reply.header("sec-websocket-extensions"), agreed, "{offer}");
            wire.works().await;
        }
    }
}

async fn subscribe(wire: &mut Wire, params: Value) {
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_subscribe", "params": params});
    wire.send(TEXT, call.to_string()).await;
    assert!(wire.text().await.contains("result"));
}

#[tokio::test]
async fn a_compressed_client_is_told_what_a_plain_one_is() {
    let rig = rig().await;
    let mut plain = rig.watcher().await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut wire = Wire::deflating(rig.address).await;
        subscribe(&mut wire, json!(["newHeads"])).await;
        subscribe(&mut wire, json!(["logs", {}])).await;
        clients.push(wire);
    }
    let mut story = adopted(&rig.control.mine_many(3));
    let mut told = plain.events(story.len()).await;
    let reorg = reorged(&rig.control.reorg(2, 3).unwrap());
    told.extend(plain.events(reorg.len()).await);
    story.extend(reorg);
    assert_eq!(told.iter().map(Event::line).collect::<Vec<_>>(), story);
    for wire in &mut clients {
        for event in &told {
            let (text, deflated) = wire.inflated().await;
            assert!(deflated, "{text}");
            assert_eq!(Event::parse(&text).payload, event.payload);
        }
        wire.works().await;
    }
    let saved = rig.metric("headwater_saved_bytes_total").await;
    let plain: usize = told.iter().map(|event| event.payload.len() + 120).sum();
    assert!(saved > 0.3 * 3.0 * plain as f64, "{saved} of {plain} for each of three");
    rig.nothing_else(&mut rig.watcher().await).await;
}

#[tokio::test]
async fn what_is_tiny_stays_plain() {
    let rig = rig().await;
    let mut wire = Wire::deflating(rig.address).await;
    subscribe(&mut wire, json!(["newPendingTransactions"])).await;
    eventually("the node is asked for them", async || {
        rig.control.stats().subscriptions.get("newPendingTransactions") == Some(&1)
    })
    .await;
    let hash = rig.control.add_pending().unwrap().hash();
    let (text, deflated) = wire.inflated().await;
    assert_eq!((Event::parse(&text).json(), deflated), (json!(hash), false));
}

#[tokio::test]
async fn answers_are_compressed_from_a_kibibyte_to_a_frame() {
    let rig = rig().await;
    let mut wire = Wire::deflating(rig.address).await;
    let around = CHAIN_ID_ANSWER.len() + 1;
    for (len, deflated) in [(1023, false), (1024, true), (1 << 20, true)] {
        let id = "i".repeat(len - around);
        let call = format!(r#"{{"jsonrpc":"2.0","id":"{id}","method":"eth_chainId"}}"#);
        wire.send(DEFLATED, compressed(&call)).await;
        let expect = format!(r#"{{"jsonrpc":"2.0","id":"{id}","result":"0x539"}}"#);
        assert!(
            expect.len() == len && wire.inflated().await == (expect, deflated),
            "{len}"
        );
        // All the same in a batch.
        wire.send(TEXT, format!("[{call}]").replacen(&id[2..], "", 1)).await;
        assert!(!wire.inflated().await.1);
    }
    let id = "i".repeat((1 << 20) + 1 - around);
    wire.send(
        TEXT,
        format!(r#"{{"jsonrpc":"2.0","id":"{id}","method":"eth_chainId"}}"#),
    )
    .await;
    assert_eq!(wire.frame().await.0, TEXT & MORE, "what needs fragments is plain");
}

#[tokio::test]
async fn compressed_messages_come_in() {
    const MAX: usize = 4096;
    let rig = rig_with(|config| config.limits.max_message_bytes = bytesize::ByteSize::b(MAX as u64)).await;
    let mut wire = Wire::deflating(rig.address).await;
    for len in [100, 1024, MAX] {
        let message = compressed(padded(len));
        wire.send(DEFLATED, &message).await;
        assert_eq!(wire.text().await, CHAIN_ID_ANSWER);
        wire.send(BINARY | 0x40, &message).await;
        assert_eq!(wire.text().await, CHAIN_ID_ANSWER);
        // The first fragment alone is marked.
        let (a, rest) = message.split_at(10);
        let (b, c) = rest.split_at(10);
        wire.send(DEFLATED & MORE, a).await;
        wire.send(PING, "between").await;
        assert_eq!(wire.frame().await.1, b"between");
        wire.send(0, b).await;
        wire.send(END, c).await;
        assert_eq!(wire.text().await, CHAIN_ID_ANSWER);
        wire.works().await;
    }
    // RFC 7692 section 7.2.3.3: stored blocks, longer than what they hold.
    let text = padded(MAX);
    let mut stored = vec![0];
    stored.extend_from_slice(&(MAX as u16).to_le_bytes());
    stored.extend_from_slice(&(!MAX as u16).to_le_bytes());
    stored.extend_from_slice(text.as_bytes());
    stored.push(0);
    wire.send(DEFLATED, stored).await;
    assert_eq!(wire.text().await, CHAIN_ID_ANSWER);
}

/// Others notice nothing of it.
#[tokio::test]
async fn violations_of_compression_are_closed_with_their_code() {
    const MAX: usize = 4096;
    let rig = rig_with(|config| config.limits.max_message_bytes = bytesize::ByteSize::b(MAX as u64)).await;
    let mut bystander = rig.watcher().await;
    let message = compressed(padded(200));
    let (start, end) = message.split_at(10);
    let bomb = compressed(vec![b' '; 400_000]);
    assert!(bomb.len() < MAX);
    let rows = [
        ("a byte too many", 1009, frame(DEFLATED, compressed(padded(MAX + 1)))),
        ("a bomb", 1009, frame(DEFLATED, &bomb)),
        (
            "a bomb in fragments",
            1009,
            [frame(DEFLATED & MORE, &bomb[..9]), frame(END, &bomb[9..])].concat(),
        ),
        ("a plain message that is too long", 1009, frame(TEXT, padded(MAX + 1))),
        ("no DEFLATE at all", 1007, frame(DEFLATED, "\u{7f}\u{7f}\u{7f}\u{7f}")),
        ("nothing", 1007, frame(DEFLATED, "")),
        ("half of a message", 1007, frame(DEFLATED, start)),
        (
            "what the message before said",
            1007,
            frame(DEFLATED, [0xf2, 0x00, 0x11, 0x00, 0x00]),
        ),
        ("text that is no UTF-8", 1007, frame(DEFLATED, compressed([0xff; 200]))),
        ("a compressed ping", 1002, frame(PING | 0x40, "")),
        ("a compressed close", 1002, frame(0xc8, "")),
        (
            "a marked continuation",
            1002,
            [frame(DEFLATED & MORE, start), frame(END | 0x40, end)].concat(),
        ),
        (
            "a marked end of a plain message",
            1002,
            [frame(TEXT & MORE, "{"), frame(END | 0x40, "}")].concat(),
        ),
        ("another reserved bit", 1002, frame(DEFLATED | 0x20, &message)),
    ];
    for (what, code, bytes) in rows {
        let mut wire = Wire::deflating(rig.address).await;
        wire.works().await;
        wire.write(bytes).await;
        assert_eq!(wire.closed().await, (0, Some(code)), "{what}");
    }
    let mut wire = Wire::open(rig.address).await;
    wire.send(DEFLATED, &message).await;
    assert_eq!(wire.closed().await, (0, Some(1002)), "never agreed on");
    rig.nothing_else(&mut bystander).await;
}

/// A message of 5 kB that becomes 5 MB costs what one of 5 MB costs, and no work beyond that.
#[tokio::test]
async fn a_bomb_is_charged_while_it_grows() {
    let rig = rig_with(|config| {
        config.limits.requests_per_second = 1;
        config.limits.request_burst = 30;
        config.limits.max_batch = 30;
    })
    .await;
    let mut wire = Wire::deflating(rig.address).await;
    wire.send(DEFLATED, compressed(padded(5 << 20))).await;
    let (text, _) = wire.inflated().await;
    assert!(
        text.contains("limit exceeded") && text.contains(r#""id":null"#),
        "{text}"
    );
    wire.send(TEXT, CHAIN_ID).await;
    let (text, _) = wire.inflated().await;
    assert!(text.contains("-32005"), "{text}");
}
