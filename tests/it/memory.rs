//! Memory of the whole process with default settings, while clients and a node try all that takes memory at once.

use std::io::{BufRead as _, Write as _};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};

use crate::cli::{headwater, serving};
use crate::harness::{Client, within};
use crate::scripted::{Answer, Scripted};
use crate::wire::{CHAIN_ID, CHAIN_ID_ANSWER, TEXT, UPGRADE, Wire, frame};

/// Bound stated in README, in MiB.
const BOUND: u64 = 1280;

/// Last bytes of the attackers' addresses 127.0.0.x; each address is a client of its own.
const HOSTS: std::ops::Range<u8> = 3..13;

/// Connections of each attacker for each kind of attack.
const EACH: usize = 30;

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Returns the peak memory of the process so far, in MiB.
    fn peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
    }
}

async fn from(address: &str, host: u8) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.bind(([127, 0, 0, host], 0).into()).unwrap();
    within("connect", socket.connect(address.parse().unwrap()))
        .await
        .unwrap()
}

fn call(id: usize, method: &str, params: &Value) -> String {
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).to_string()
}

async fn post(address: &str, host: u8, body: String) -> TcpStream {
    let mut http = from(address, host).await;
    let head = format!(
        "POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let _ = http.write_all((head + &body).as_bytes()).await;
    http
}

/// Opens connections with a message of 5 MiB that is never complete.
async fn unfinished(address: String, host: u8, part: Arc<Vec<u8>>) -> Vec<Wire> {
    let mut held = Vec::new();
    for _ in 0..EACH {
        let mut wire = Wire::over(from(&address, host).await);
        if wire.try_handshake(UPGRADE).await == Some(101) {
            wire.try_write(&*part).await;
            held.push(wire);
        }
    }
    held
}

/// Opens connections that resume from block 1 and are never read.
async fn resumed(address: String, host: u8) -> Vec<Wire> {
    let mut held = Vec::new();
    for _ in 0..EACH {
        let mut wire = Wire::over(from(&address, host).await);
        if wire.try_handshake(UPGRADE).await == Some(101) {
            let resume = call(1, "eth_subscribe", &json!(["logs", {}, {"fromBlock": "0x1"}]));
            wire.try_write(frame(TEXT, resume.as_bytes())).await;
            held.push(wire);
        }
    }
    held
}

/// Requests long answers over HTTP that are never read, alone and in batches; no two calls share an answer.
async fn unread(address: String, host: u8) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for of in 0..EACH {
        let long = |id: usize| {
            let data = format!("0x{host:02x}{of:04x}{id:04x}");
            call(
                id,
                "eth_call",
                &json!([{"to": format!("0x{:040x}", 1), "data": data}, "latest"]),
            )
        };
        let body = match of % 2 {
            0 => long(0),
            _ => format!("[{}]", (0..8).map(long).collect::<Vec<_>>().join(",")),
        };
        held.push(post(&address, host, body).await);
    }
    held
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "sends gigabytes over loopback: make memory"]
async fn all_that_takes_memory_at_once() {
    let node = Scripted::start().await;
    node.mine_many(300, 100);
    let long = "ab".repeat(10 << 20);
    node.answer("eth_call", move |ask| {
        Answer::Raw(format!(r#"{{"jsonrpc":"2.0","id":{},"result":"0x{long}"}}"#, ask.id))
    });
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let upstream = format!(
        "upstream = [{{ address = \"{}\", methods = [\"eth_get*\", \"eth_syncing\"] }}, {{ address = \"{}\", methods = [\"eth_call\"] }}]",
        node.ws_url(),
        node.http_url()
    );
    file.write_all(upstream.as_bytes()).unwrap();
    let path = file.path().display().to_string();
    let mut command = headwater(
        &["--config", &path, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"],
        &[],
    );
    let mut running = Running(command.stderr(Stdio::piped()).spawn().unwrap());
    let (address, _, log) = serving(&mut running.0).await;
    std::thread::spawn(move || log.lines().map_while(Result::ok).for_each(drop));
    let before = running.peak();

    let part = {
        let header = [&[TEXT, 0xFF][..], &(5_u64 << 20).to_be_bytes(), &[0; 4]].concat();
        Arc::new([header, vec![b' '; (5 << 20) - 1]].concat())
    };
    let mut harm = tokio::task::JoinSet::new();
    let held = |any: Vec<Box<dyn Send>>| any;
    for host in HOSTS {
        let (address, part) = (address.clone(), part.clone());
        harm.spawn(async move {
            let unfinished = unfinished(address.clone(), host, part);
            let (unfinished, resumed, unread) =
                tokio::join!(unfinished, resumed(address.clone(), host), unread(address, host));
            held(vec![Box::new(unfinished), Box::new(resumed), Box::new(unread)])
        });
    }
    let flooding = node.clone();
    harm.spawn(async move {
        let extra = "ab".repeat(100_000);
        for i in 0..2000_u64 {
            let unknown = json!({
                "hash": format!("0x{:064x}", (1_u64 << 40) + i),
                "parentHash": format!("0x{:064x}", (1_u64 << 41) + i),
                "number": format!("{:#x}", flooding.head().number() + 1),
                "logsBloom": format!("0x{}", "00".repeat(256)),
                "extraData": format!("0x{extra}"),
            });
            flooding.announce(&unknown, "newHeads");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Vec::new()
    });

    let mut bystander = Client::over(from(&address, 2).await).await;
    let mut done = Vec::new();
    let mut calls = 0;
    loop {
        let ended = tokio::time::timeout(Duration::from_millis(100), harm.join_next()).await;
        assert_eq!(bystander.ask(CHAIN_ID).await, CHAIN_ID_ANSWER);
        let balance = bystander
            .call("eth_getTransactionCount", json!([format!("0x{calls:040x}"), "latest"]))
            .await;
        assert_ne!(balance["error"]["code"], -32005, "{balance}");
        calls += 1;
        match ended {
            Ok(Some(held)) => done.push(held.unwrap()),
            Ok(None) => break,
            Err(_) => {}
        }
    }
    let peak = running.peak();
    eprintln!("peak {peak} MiB, {before} MiB before; the bystander was answered {calls} times");
    assert!(peak < BOUND, "{peak} MiB");
}
