//! Attacks by connections, by bytes that are not a request, and on the operator's port.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::arena::Arena;
use crate::calls::code_of;
use crate::client_frame::frame;
use crate::peer::{NEWCOMER, PING, Peer, TEXT, attacker, post_head, request};
use crate::proxy;

/// Longest message of a client, by default.
const MESSAGE: usize = 5 << 20;
/// Receive buffer in bytes: small, so that a client that does not read is noticed soon.
const RECEIVE_BUFFER: u32 = 4 << 10;
/// Timeout of a newcomer's admission.
const PATIENCE: Duration = Duration::from_secs(5);

/// Connections that say nothing, from four addresses, as many as may wait for their first request, and newcomers beside them.
pub async fn silent(arena: Arena) {
    let silent = arena.size(1_200, 4 * 1_100);
    let quiet = arena.all(silent, async |arena: Arena, number| {
        if let Some(mut peer) = Peer::connect(&arena, attacker(number % 4)).await {
            tokio::select! {
                () = arena.end() => {}
                _ = peer.byte() => arena.count("cut"),
            }
        }
    });
    let newcomers = async {
        while arena.goes_on() {
            match timeout(PATIENCE, Peer::open(&arena, NEWCOMER)).await {
                Ok(Some(_)) => arena.count("newcomer let in"),
                Ok(None) => arena.broken("a newcomer was turned away"),
                Err(_) => arena.broken("a newcomer was let wait"),
            }
            sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::join!(quiet, newcomers);
}

/// Messages as long as they may be, each but for its last bytes.
pub async fn unfinished(arena: Arena) {
    let message: Arc<Vec<u8>> = Arc::new(frame(TEXT, vec![b' '; MESSAGE]));
    let connections = arena.size(60, 300);
    arena
        .all(connections, move |arena: Arena, number| {
            let message = message.clone();
            async move {
                let Some(mut peer) = Peer::open(&arena, attacker(number)).await else {
                    return;
                };
                for piece in message[..message.len() - 100].chunks(64 << 10) {
                    if !arena.goes_on() || !peer.write(piece).await {
                        return;
                    }
                }
                arena.count("unfinished");
                arena.end().await;
            }
        })
        .await;
}

/// Requests over HTTP that ask for nothing, at full speed.
pub async fn costless(arena: Arena) {
    let requests = [
        "GET / HTTP/1.1\r\nhost: localhost".to_owned(),
        "POST / HTTP/1.1\r\nhost: localhost\r\ncontent-type: text/plain\r\ncontent-length: 0".to_owned(),
        post_head(0),
        "OPTIONS / HTTP/1.1\r\nhost: localhost".to_owned(),
        post_head(1 << 40),
    ];
    let requests = Arc::new(requests);
    arena
        .all(8, move |arena: Arena, number| {
            let requests = requests.clone();
            async move {
                while arena.goes_on() {
                    let Some(mut peer) = Peer::connect(&arena, attacker(number % 2)).await else {
                        return;
                    };
                    for head in requests.iter().cycle().skip(number) {
                        if !arena.goes_on() || peer.http(head, "").await.is_none() {
                            break;
                        }
                    }
                }
            }
        })
        .await;
}

/// Batches of long answers over HTTP, of which nobody reads a byte.
pub async fn unread_batches(arena: Arena) {
    let connections = arena.size(12, 40);
    arena
        .all(connections, async |arena: Arena, number| {
            let to = arena.address();
            let Some(mut peer) = Peer::connect_to(&arena, to, attacker(number % 4), Some(RECEIVE_BUFFER)).await else {
                return;
            };
            let batch = Value::from(vec![code_of(700_000 + 2 * number), code_of(700_001 + 2 * number)]).to_string();
            peer.write(format!("{}\r\n\r\n{batch}", post_head(batch.len()))).await;
            arena.end().await;
        })
        .await;
}

/// Clients that come, subscribe, ask, and leave by a reset, again and again.
pub async fn storm(arena: Arena) {
    arena
        .all(8, async |arena: Arena, number| {
            for turn in 0_usize.. {
                if !arena.goes_on() {
                    return;
                }
                let Some(mut peer) = Peer::open(&arena, attacker(number)).await else {
                    sleep(Duration::from_millis(20)).await;
                    continue;
                };
                arena.count("let in");
                peer.send(request(1, "eth_subscribe", &json!(["newHeads"])).to_string())
                    .await;
                let account = format!("{:#042x}", 0x50_0000_0000 + (number << 32) + turn);
                peer.send(request(2, "eth_getBalance", &json!([account, "latest"])).to_string())
                    .await;
                match turn % 2 {
                    0 => peer.cut(),
                    _ => drop(peer),
                }
            }
        })
        .await;
}

/// Pings without end, whose pongs nobody reads.
pub async fn pings(arena: Arena) {
    let pings = Arc::new(frame(PING, [7; 125]).repeat(50));
    arena
        .all(7, move |arena: Arena, number| {
            let pings = pings.clone();
            async move {
                while arena.goes_on() {
                    let Some(mut peer) = Peer::open(&arena, attacker(number)).await else {
                        sleep(Duration::from_millis(20)).await;
                        continue;
                    };
                    let flood = async { while arena.goes_on() && peer.write(pings.as_slice()).await {} };
                    tokio::select! {
                        () = flood => arena.count("cut"),
                        () = arena.end() => {}
                    }
                }
            }
        })
        .await;
}

/// The operator's port: pages for a browser that was misled, requests that never end, connections without number.
pub async fn admin(arena: Arena) {
    let admin = arena.admin();
    for (name, head) in [
        ("a foreign host", "GET /status HTTP/1.1\r\nhost: evil.example"),
        (
            "a foreign origin",
            "GET /status HTTP/1.1\r\nhost: localhost\r\norigin: http://evil.example",
        ),
    ] {
        let Some(mut peer) = Peer::connect_to(&arena, admin, attacker(0), None).await else {
            return arena.broken("the operator's port takes no connection");
        };
        if peer.http(head, "").await.is_some_and(|reply| reply.status == 200) {
            arena.broken(format!("{name} was served"));
        }
    }
    let refused = Arc::new(AtomicUsize::new(0));
    let connections = arena.size(300, 2_000);
    let counted = refused.clone();
    let slow = arena.all(connections, move |arena: Arena, number| {
        let refused = counted.clone();
        async move {
            let Some(mut peer) = Peer::connect_to(&arena, admin, attacker(number), None).await else {
                return;
            };
            let dribble = async {
                while peer.write("G").await {
                    sleep(Duration::from_millis(500)).await;
                }
                refused.fetch_add(1, Ordering::Relaxed);
            };
            tokio::select! {
                () = dribble => arena.count("cut"),
                () = arena.end() => {}
            }
        }
    });
    let operator = async {
        while arena.goes_on() {
            if !proxy::is_ready(admin).await {
                arena.broken("the operator is not answered");
            }
            sleep(Duration::from_millis(300)).await;
        }
    };
    tokio::join!(slow, operator);
}
