//! permessage-deflate (RFC 7692): its negotiation, equal content, and compressed messages of clients.

use std::sync::Arc;

use headwater::config::typed::{self, Compression};
use headwater::deflate;
use headwater::devnet::{self, Block, Devnet};
use serde_json::{Value, json};

use crate::harness::{Event, Rig, adopted, eventually, reorged};
use crate::wire::{
    BINARY, CHAIN_ID, CHAIN_ID_ANSWER, CLOSE, DEFLATED, END, MORE, PING, PONG, TEXT, UPGRADE, Wire, frame,
};

const AGREED: &str = "permessage-deflate; client_no_context_takeover";

/// Clients of one filter from which on their logs are compressed as a series, with a shared window.
const MANY: usize = 32;

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

/// Returns a call of `len` bytes, which compresses well.
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
        (
            Some("permessage-deflate; server_no_context_takeover"),
            Some("permessage-deflate; server_no_context_takeover; client_no_context_takeover"),
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

/// Starts a rig with 300 logs in a block, which compress to about 40 kB.
async fn busy_rig(edit: impl FnOnce(&mut typed::Config)) -> Rig {
    let node = devnet::Config {
        logs_per_transaction: 100,
        ..devnet::Config::manual()
    };
    let node = Devnet::start(node).await.unwrap();
    Rig::before(node, |config| {
        config.delivery.compression = Compression::On;
        edit(config);
    })
    .await
}

/// Returns the lines of all logs of these blocks.
fn logs(blocks: &[Arc<Block>]) -> Vec<String> {
    let mut lines = adopted(blocks);
    lines.retain(|line| line.starts_with("log"));
    lines
}

/// Makes a call and returns its result.
async fn call(wire: &mut Wire, method: &str, params: Value) -> Value {
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    wire.send(TEXT, call.to_string()).await;
    let answer: Value = serde_json::from_str(&wire.text().await).unwrap();
    answer["result"].clone()
}

/// Three clients keep no context, and either as many keep one as make a series worthwhile, or one too few. All get
/// the same events, and a series takes fewer bytes.
#[tokio::test]
async fn a_compressed_client_is_told_what_a_plain_one_is() {
    let mut shares = Vec::new();
    for many in [MANY - 1, MANY] {
        let rig = rig().await;
        let mut plain = rig.watcher().await;
        let (mut keeping, mut forgetting) = (Vec::new(), Vec::new());
        for _ in 0..many {
            keeping.push(Wire::deflating(rig.address).await);
        }
        for _ in 0..3 {
            forgetting.push(Wire::deflating_alone(rig.address).await);
        }
        for wire in keeping.iter_mut().chain(&mut forgetting) {
            subscribe(wire, json!(["newHeads"])).await;
            subscribe(wire, json!(["logs", {}])).await;
            wire.received = 0;
        }
        let mut story = adopted(&rig.control.mine_many(3));
        let mut arrived = plain.events(story.len()).await;
        let reorg = reorged(&rig.control.reorg(2, 3).unwrap());
        arrived.extend(plain.events(reorg.len()).await);
        story.extend(reorg);
        assert_eq!(arrived.iter().map(Event::line).collect::<Vec<_>>(), story);
        for wire in keeping.iter_mut().chain(&mut forgetting) {
            for event in &arrived {
                let (text, deflated) = wire.inflated().await;
                assert!(deflated, "{text}");
                assert_eq!(Event::parse(&text).payload, event.payload);
            }
        }
        let plain: usize = arrived.iter().map(|event| event.payload.len() + 118).sum();
        let share = |wire: &Wire| 1.0 - wire.received as f64 / plain as f64;
        let saved: f64 = keeping.iter().chain(&forgetting).map(share).sum();
        let counted = rig.metric("headwater_saved_bytes_total").await / plain as f64;
        assert!((saved - counted).abs() < 0.05 * saved, "{saved} {counted}");
        shares.push((share(&keeping[0]), share(&forgetting[0])));
        for wire in keeping.iter_mut().chain(&mut forgetting) {
            wire.works().await;
        }
        rig.nothing_else(&mut rig.watcher().await).await;
    }
    let [(few, alone), (many, still_alone)] = shares[..] else {
        panic!("two rounds")
    };
    assert!(
        few > 0.3 && (few - alone).abs() < 0.01 && (alone - still_alone).abs() < 0.01 && many > few + 0.15,
        "{shares:?}"
    );
}

/// Answers, compressed ones too, and pings arrive between the events.
#[tokio::test]
async fn nothing_is_read_of_a_subscription_that_was_ended_amid_a_burst() {
    let rig = busy_rig(|_| {}).await;
    let mut others = Vec::new();
    for _ in 1..MANY {
        let mut wire = Wire::deflating(rig.address).await;
        subscribe(&mut wire, json!(["logs", {}])).await;
        others.push(wire);
    }
    let mut other = others.swap_remove(0);
    // The queued events are far more than the kernel buffers for a client that does not read.
    let mut wire = Wire::deflating_with(rig.address, Some(16 << 10)).await;
    let ended = call(&mut wire, "eth_subscribe", json!(["logs", {}])).await;
    let stays = call(&mut wire, "eth_subscribe", json!(["logs", {}])).await;
    let story = logs(&rig.control.mine_many(15));
    for line in &story {
        assert_eq!(Event::parse(&other.inflated().await.0).line(), *line);
    }
    let unsubscribe = json!({"jsonrpc": "2.0", "id": "end", "method": "eth_unsubscribe", "params": [ended]});
    let long = format!(
        r#"{{"jsonrpc":"2.0","id":"{}","method":"eth_chainId"}}"#,
        "long".repeat(1000)
    );
    wire.send(PING, "between").await;
    wire.send(TEXT, &long).await;
    wire.send(TEXT, unsubscribe.to_string()).await;
    let (mut arrived, mut of_ended, mut is_over, mut pongs, mut answers) = (Vec::new(), 0, false, 0, 0);
    while arrived.len() < story.len() || !is_over {
        let (first, payload) = wire.frame().await;
        if first == PONG {
            pongs += 1;
            continue;
        }
        let (text, deflated) = wire.message(first, payload);
        if text.contains("longlong") {
            assert!(deflated);
            answers += 1;
        } else if text.contains(r#""id":"end""#) {
            assert!(text.contains("true"), "{text}");
            is_over = true;
        } else {
            let event = Event::parse(&text);
            if event.subscription == ended.as_str().unwrap() {
                assert!(!is_over, "nothing follows the answer");
                of_ended += 1;
            } else {
                assert_eq!(event.subscription, stays.as_str().unwrap());
                arrived.push(event.line());
            }
        }
    }
    assert!(
        arrived == story,
        "of {} logs it was arrived {}",
        story.len(),
        arrived.len()
    );
    assert_eq!((pongs, answers), (1, 1));
    assert!((1..story.len()).contains(&of_ended), "{of_ended}: amid the burst");
    wire.works().await;
}

/// A client that does not read is closed with a frame begun and its batch unfinished. The client can read all events
/// before the close frame, and the others are not affected.
#[tokio::test]
async fn a_client_is_cut_amid_a_batch() {
    let rig = busy_rig(|config| config.delivery.max_queue_bytes = bytesize::ByteSize::mib(1)).await;
    let mut wires = Vec::new();
    for _ in 0..MANY + 2 {
        let mut wire = Wire::deflating_with(rig.address, Some(16 << 10)).await;
        subscribe(&mut wire, json!(["logs", {}])).await;
        wires.push(wire);
    }
    let mut stalled = wires.swap_remove(0);
    wires.swap_remove(0).cut();
    let mut other = wires.swap_remove(0);
    for mut wire in wires {
        tokio::spawn(async move { wire.until_the_end().await });
    }
    let mut story = Vec::new();
    for _ in 0..12 {
        let lines = logs(&[rig.control.mine()]);
        for line in &lines {
            assert_eq!(Event::parse(&other.inflated().await.0).line(), *line);
        }
        story.extend(lines);
    }
    let mut arrived = Vec::new();
    loop {
        let (first, payload) = stalled.frame().await;
        if first == CLOSE {
            assert_eq!(payload[..2], 1013_u16.to_be_bytes());
            break;
        }
        arrived.push(Event::parse(&stalled.message(first, payload).0).line());
    }
    assert!(
        arrived.len() < story.len() && arrived.len() % 300 != 0,
        "{}",
        arrived.len()
    );
    assert!(arrived == story[..arrived.len()], "{}", arrived.len());
    drop(stalled);
    eventually("it is counted", async || {
        rig.metric(r#"headwater_closes_total{reason="slow_consumer"}"#).await >= 1.0
    })
    .await;
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
        // The same answer in a batch.
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
        // Only the first fragment has the compression bit.
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
    // RFC 7692 section 7.2.3.3: stored blocks, longer than their content.
    let text = padded(MAX);
    let mut stored = vec![0];
    stored.extend_from_slice(&(MAX as u16).to_le_bytes());
    stored.extend_from_slice(&(!MAX as u16).to_le_bytes());
    stored.extend_from_slice(text.as_bytes());
    stored.push(0);
    wire.send(DEFLATED, stored).await;
    assert_eq!(wire.text().await, CHAIN_ID_ANSWER);
}

/// Other clients are not affected.
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

/// A message of 5 kB that inflates to 5 MB costs as much as a plain one of 5 MB, and no work beyond that.
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
