//! Hostile clients: each is closed with its code and counted, while a bystander gets all events in order.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytesize::ByteSize;
use headwater::config::typed::{self, Compression};
use headwater::deflate;
use headwater::session::{ControlFrames, MAX_FRAGMENTS};

use crate::harness::{Rig, eventually, node_with_logs_of, within};
use crate::wire::{CHAIN_ID, CHAIN_ID_ANSWER, CLOSE, DEFLATED, MORE, PING, PONG, TEXT, Wire, frame};

/// Runs `harm` while blocks are mined, of which a watcher must miss none; checks that `reason` closed `times`
/// clients.
async fn beside_a_bystander<T>(rig: &Rig, reason: &str, times: f64, harm: impl Future<Output = T>) -> T {
    let mut watcher = rig.watcher().await;
    let done = AtomicBool::new(false);
    let harming = async {
        let outcome = harm.await;
        done.store(true, Ordering::Relaxed);
        outcome
    };
    let watching = async {
        while !done.load(Ordering::Relaxed) {
            rig.nothing_else(&mut watcher).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        rig.nothing_else(&mut watcher).await;
    };
    let (outcome, ()) = tokio::join!(harming, watching);
    let counter = format!("headwater_closes_total{{reason=\"{reason}\"}}");
    eventually(&counter, async || rig.metric(&counter).await == times).await;
    rig.nothing_else(&mut watcher).await;
    outcome
}

fn small_messages(config: &mut typed::Config) {
    config.limits.max_message_bytes = ByteSize::kib(4);
}

/// Sets a silence timeout long enough for a busy machine, and short enough for a test.
fn short_silence(config: &mut typed::Config) {
    config.keepalive.ping_interval = Duration::from_secs(1);
    config.keepalive.silence_timeout = Duration::from_secs(3);
}

#[tokio::test]
async fn a_bomb() {
    let rig = Rig::with(|config| {
        small_messages(config);
        config.delivery.compression = Compression::On;
    })
    .await;
    let bomb = deflate::compress(&[&vec![b' '; 512 << 10]]).unwrap();
    assert!(bomb.len() <= 4 << 10);
    beside_a_bystander(&rig, "too_big", 1.0, async {
        let mut wire = Wire::deflating(rig.address).await;
        wire.send(DEFLATED, &bomb).await;
        assert_eq!(wire.closed().await, (0, Some(1009)));
    })
    .await;
}

#[tokio::test]
async fn a_frame_above_the_limit() {
    let rig = Rig::with(small_messages).await;
    beside_a_bystander(&rig, "too_big", 2.0, async {
        // The app does not wait for the payload that the header announces.
        let mut wire = Wire::open(rig.address).await;
        wire.write(&frame(TEXT, vec![b' '; 70_000])[..14]).await;
        assert_eq!(wire.closed().await, (0, Some(1009)));
        let mut wire = Wire::open(rig.address).await;
        wire.send(TEXT, vec![b' '; (4 << 10) + 1]).await;
        assert_eq!(wire.closed().await, (0, Some(1009)));
    })
    .await;
}

#[tokio::test]
async fn pings_or_pongs_without_end() {
    const MAX: usize = ControlFrames::MAX as usize;
    let rig = Rig::start().await;
    beside_a_bystander(&rig, "flood", 2.0, async {
        // As many pings as are allowed are answered, although all arrive at once, and the connection goes on.
        let mut wire = Wire::open(rig.address).await;
        for _ in 0..MAX / 50 {
            wire.write(frame(PING, [7; 125]).repeat(50)).await;
            for _ in 0..50 {
                assert_eq!(wire.frame().await, (PONG, vec![7; 125]));
            }
        }
        wire.works().await;
        for flood in [PING, PONG] {
            // The client reads nothing before it has sent all frames.
            let mut wire = Wire::open_with(rig.address, b"", Some(16 << 10)).await;
            wire.write(frame(flood, [7; 125]).repeat(MAX + 1)).await;
            let mut pongs = 0;
            loop {
                let (first, payload) = wire.frame().await;
                if first == CLOSE {
                    assert_eq!(payload, crate::wire::close(1008, "too many control frames"));
                    break;
                }
                assert_eq!(first, PONG);
                pongs += 1;
            }
            assert!(pongs <= if flood == PING { MAX } else { 0 });
        }
    })
    .await;
}

#[tokio::test]
async fn a_fragmented_message_that_never_ends() {
    let rig = Rig::with(small_messages).await;
    beside_a_bystander(&rig, "flood", 1.0, async {
        // By size.
        let mut wire = Wire::open(rig.address).await;
        wire.send(TEXT & MORE, " ").await;
        wire.write(frame(0, " ").repeat(4 << 10)).await;
        assert_eq!(wire.closed().await, (0, Some(1009)));
        // By number: fragments may be empty.
        let mut wire = Wire::open(rig.address).await;
        wire.send(TEXT & MORE, " ").await;
        wire.write(frame(0, "").repeat(MAX_FRAGMENTS as usize)).await;
        assert_eq!(wire.closed().await, (0, Some(1008)));
    })
    .await;
    assert_eq!(rig.metric(r#"headwater_closes_total{reason="too_big"}"#).await, 1.0);
}

/// Each byte is a sign of life, but the message comes no nearer to its end.
#[tokio::test]
async fn a_message_that_takes_too_long() {
    let rig = Rig::with(short_silence).await;
    let fragments = [frame(TEXT & MORE, "{"), frame(0, " ").repeat(1_000)].concat();
    let byte_by_byte = frame(TEXT, vec![b' '; 1_000]);
    beside_a_bystander(&rig, "unfinished", 2.0, async {
        let dribble = async |bytes: Vec<u8>, step: usize| {
            let mut wire = Wire::open(rig.address).await;
            for piece in bytes.chunks(step) {
                if !wire.try_write(piece).await {
                    break;
                }
                if let Some((first, payload)) = wire.frame_within(Duration::from_millis(100)).await
                    && first == CLOSE
                {
                    let words = "incomplete message: the rest did not arrive in time";
                    assert_eq!(payload, crate::wire::close(1008, words));
                    return;
                }
            }
            panic!("never closed");
        };
        tokio::join!(dribble(fragments, 7), dribble(byte_by_byte, 1));
    })
    .await;
}

/// The time limit is for each message; messages may follow one another without a pause.
#[tokio::test]
async fn messages_that_overlap_take_as_long_as_they_like_together() {
    let rig = Rig::with(short_silence).await;
    let mut wire = Wire::open(rig.address).await;
    let call = frame(TEXT, CHAIN_ID);
    let (start, end) = call.split_at(20);
    wire.write(start).await;
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        wire.write([end, start].concat()).await;
        loop {
            match wire.frame().await {
                (PING, _) => {}
                (first, text) => {
                    assert_eq!((first, text.as_slice()), (TEXT, CHAIN_ID_ANSWER.as_bytes()));
                    break;
                }
            }
        }
    }
}

#[tokio::test]
async fn a_reader_of_a_few_bytes_a_second() {
    let rig = Rig::before(node_with_logs_of(64 << 10).await, |config| {
        config.delivery.write_deadline = Duration::from_secs(2);
        config.delivery.max_queue_bytes = ByteSize::mib(512);
        config.delivery.max_total_queue_bytes = ByteSize::gib(1);
    })
    .await;
    beside_a_bystander(&rig, "write_deadline", 1.0, async {
        let mut wire = Wire::open_with(rig.address, b"", Some(16 << 10)).await;
        wire.subscribe_logs().await;
        let reading = async {
            while rig.metric(r#"headwater_closes_total{reason="write_deadline"}"#).await == 0.0 {
                wire.byte().await;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        within("it is cut off", reading).await;
    })
    .await;
}
