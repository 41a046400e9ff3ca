//! gzip and zstd over HTTP: to clients that accept them, and from nodes that offer them.

use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use headwater::content_coding::{ContentCoding, body, pack};
use headwater::upstream::NodeCompression;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{Client, Proxy, Rig, adopted, node, node_with_logs_of, within};
use crate::wire::{CHAIN_ID, CHAIN_ID_ANSWER, FORWARDED, FORWARDED_ANSWER, http};

/// An answer with its body as it came.
struct Raw {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Raw {
    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines
            .into_iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// Returns the text, by the coding that the answer names.
    fn text(&self) -> String {
        let mut text = String::new();
        match self.header("content-encoding") {
            None => text = String::from_utf8(self.body.clone()).unwrap(),
            Some("gzip") => drop(
                flate2::read::GzDecoder::new(&self.body[..])
                    .read_to_string(&mut text)
                    .unwrap(),
            ),
            Some("zstd") => {
                let mut decoder = zstd::stream::read::Decoder::new(&self.body[..]).unwrap();
                decoder.read_to_string(&mut text).unwrap();
            }
            Some(other) => panic!("{other}"),
        }
        text
    }
}

/// Posts a body, with this value of `Accept-Encoding`.
async fn post(address: SocketAddr, accept: &str, body: &str) -> Raw {
    let mut socket = within("connect", TcpStream::connect(address)).await.unwrap();
    let accept = match accept {
        "" => String::new(),
        accept => format!("accept-encoding: {accept}\r\n"),
    };
    let length = body.len();
    let request = format!(
        "POST / HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n{accept}content-length: {length}\r\n\r\n{body}"
    );
    within("write", socket.write_all(request.as_bytes())).await.unwrap();
    let mut answer = Vec::new();
    within("an answer", socket.read_to_end(&mut answer)).await.unwrap();
    let at = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .expect("HTTP");
    let head = String::from_utf8(answer[..at].to_vec()).unwrap();
    Raw {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head,
        body: answer[at + 4..].to_vec(),
    }
}

fn logs_of(block: u64, id: &str) -> String {
    let number = format!("{block:#x}");
    json!({"jsonrpc": "2.0", "id": id, "method": "eth_getLogs",
        "params": [{"fromBlock": number, "toBlock": number}]})
    .to_string()
}

#[tokio::test]
async fn long_answers_are_compressed_for_clients_that_accept_it() {
    let rig = Rig::before(node_with_logs_of(8_000).await, |_| {}).await;
    let mut watcher = rig.proxy.watcher().await;
    let block = rig.control.mine();
    watcher.expect(adopted(std::slice::from_ref(&block))).await;
    let call = logs_of(block.number(), "\u{e9}");
    let plain = post(rig.address, "", &call).await;
    assert_eq!((plain.status, plain.header("content-encoding")), (200, None));
    assert_eq!(plain.header("vary"), Some("Accept-Encoding"));
    for (accept, coding) in [
        ("gzip", Some("gzip")),
        ("gzip, deflate, br, zstd", Some("zstd")),
        ("zstd;q=0.2, gzip;q=0.3", Some("gzip")),
        ("*;q=0", None),
        ("br", None),
    ] {
        // Again and again: cached answers too.
        for _ in 0..3 {
            let answer = post(rig.address, accept, &call).await;
            assert_eq!(answer.header("content-encoding"), coding, "{accept}");
            assert_eq!(answer.header("vary"), Some("Accept-Encoding"));
            let length = answer.body.len().to_string();
            assert_eq!(answer.header("content-length"), Some(&*length));
            assert_eq!(answer.text(), plain.text(), "{accept}");
            assert!(coding.is_none() || answer.body.len() < plain.body.len());
        }
    }
    // Short answers, and batches.
    let short = post(rig.address, "gzip", CHAIN_ID).await;
    assert_eq!(
        (short.header("content-encoding"), &*short.text()),
        (None, CHAIN_ID_ANSWER)
    );
    let batch = format!("[{call},{CHAIN_ID},{call}]");
    let expect = post(rig.address, "", &batch).await.text();
    for coding in ["gzip", "zstd"] {
        let answer = post(rig.address, coding, &batch).await;
        assert_eq!(
            (answer.header("content-encoding"), answer.text()),
            (Some(coding), expect.clone())
        );
    }
    // A page sees both reasons for which the answer varies.
    let page = "POST / HTTP/1.1\r\ncontent-type: application/json\r\norigin: http://localhost";
    let reply = http(rig.address, page, CHAIN_ID).await;
    let vary = reply.head.lines().filter(|line| line.starts_with("vary"));
    assert_eq!(vary.collect::<Vec<_>>(), ["vary: Accept-Encoding", "vary: Origin"]);
    // Clients that ask for it do not delay one that does not.
    let (answer, beside) = watcher.ask_alone(FORWARDED).await;
    assert_eq!((&*answer, beside.len()), (FORWARDED_ANSWER, 0));
}

#[tokio::test]
async fn packed_answers_count_among_the_bytes_of_the_cache() {
    let rig = Rig::before(node().await, |_| {}).await;
    rig.control.set_faults(|faults| faults.code_bytes = 100_000);
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_getCode",
        "params": ["0x0000000000000000000000000000000000000001", "latest"]})
    .to_string();
    // A state read is cached from the second time on.
    let mut text = String::new();
    for _ in 0..3 {
        text = post(rig.address, "", &call).await.text();
    }
    let before = rig.proxy.metric("headwater_cache_bytes").await;
    assert!(before > 100_000.0, "{before}");
    let mut sizes = Vec::new();
    for _ in 0..5 {
        let answer = post(rig.address, "gzip", &call).await;
        assert_eq!(
            (answer.header("content-encoding"), answer.text()),
            (Some("gzip"), text.clone())
        );
        sizes.push(rig.proxy.metric("headwater_cache_bytes").await - before);
    }
    assert!(
        sizes[0] > 0.0 && sizes.iter().all(|size| *size == sizes[0]),
        "once: {sizes:?}"
    );
}

#[tokio::test]
async fn it_can_be_turned_off() {
    let rig = Rig::before(node_with_logs_of(8_000).await, |config| {
        config.server.http_compression = headwater::config::typed::Compression::Off;
    })
    .await;
    let mut watcher = rig.proxy.watcher().await;
    let block = rig.control.mine();
    watcher.expect(adopted(std::slice::from_ref(&block))).await;
    let answer = post(rig.address, "gzip, zstd", &logs_of(block.number(), "1")).await;
    assert_eq!((answer.header("content-encoding"), answer.header("vary")), (None, None));
}

/// A proxy in front of a node's HTTP port that compresses each answer, as gateways do.
struct Gateway {
    address: SocketAddr,
    /// Connections accepted so far.
    connections: Arc<AtomicUsize>,
    /// Answers sent in the coding.
    packed: Arc<AtomicUsize>,
}

impl Gateway {
    /// Starts it; answers to `bomb` are 1 GiB of spaces, and broken ones come for `broken`.
    async fn start(node: SocketAddr, coding: ContentCoding) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gateway = Self {
            address: listener.local_addr().unwrap(),
            connections: Arc::default(),
            packed: Arc::default(),
        };
        let (connections, packed) = (gateway.connections.clone(), gateway.packed.clone());
        let bomb = Arc::new(bomb(coding));
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve(socket, node, coding, packed.clone(), bomb.clone()));
            }
        });
        gateway
    }
}

/// Returns 1 GiB of spaces in a coding: some hundred thousand bytes.
fn bomb(coding: ContentCoding) -> Vec<u8> {
    let spaces = bytes::Bytes::from(vec![b' '; 16 << 20]);
    let packed = pack(coding, &vec![spaces; 64]).unwrap();
    body(b"", &packed, b"").concat()
}

/// Serves requests of one connection until its end.
async fn serve(
    socket: TcpStream,
    node: SocketAddr,
    coding: ContentCoding,
    packed: Arc<AtomicUsize>,
    bomb: Arc<Vec<u8>>,
) -> Option<()> {
    let mut socket = BufReader::new(socket);
    loop {
        let (mut length, mut accepts) = (0, false);
        loop {
            let mut line = String::new();
            if socket.read_line(&mut line).await.ok()? == 0 {
                return None;
            }
            let line = line.trim().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            accepts |= line.starts_with("accept-encoding:") && line.contains(coding.name());
            if line.is_empty() {
                break;
            }
        }
        let mut request = vec![0; length];
        socket.read_exact(&mut request).await.ok()?;
        let call = String::from_utf8_lossy(&request);
        assert!(accepts, "the answer's coding is offered");
        let answer = if call.contains("eth_getCode") {
            bomb.to_vec()
        } else {
            let text = http(node, "POST / HTTP/1.1\r\ncontent-type: application/json", &request)
                .await
                .body;
            let mut answer = body(b"", &pack(coding, &[text.into()]).unwrap(), b"").concat();
            if call.contains("eth_gasPrice") {
                answer.truncate(answer.len() - 5);
            }
            answer
        };
        packed.fetch_add(1, Ordering::Relaxed);
        let (name, length) = (coding.name(), answer.len());
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-encoding: {name}\r\ncontent-length: {length}\r\n\r\n"
        );
        socket.get_mut().write_all(head.as_bytes()).await.ok()?;
        socket.get_mut().write_all(&answer).await.ok()?;
    }
}

#[tokio::test]
async fn nodes_may_compress_and_a_bomb_costs_its_caller_one_error() {
    for coding in ContentCoding::ALL {
        let node = node_with_logs_of(8_000).await;
        let control = node.handle();
        let gateway = Gateway::start(node.address(), coding).await;
        let proxy = Proxy::start(&[format!("http://{}", gateway.address)], |config| {
            config.node.http_compression = NodeCompression::On;
            config.node.poll_interval = Duration::from_millis(20);
            config.node.max_message_bytes = bytesize::ByteSize::mib(4);
            config.memory.upstream = bytesize::ByteSize::mib(64);
        })
        .await;
        proxy.settled(&control).await;
        let mut watcher = proxy.watcher().await;
        let mut caller = Client::connect_from("127.0.0.7", proxy.address).await;
        watcher.expect(adopted(&control.mine_many(3))).await;
        assert_eq!(caller.ask(FORWARDED).await, FORWARDED_ANSWER);
        let code = json!(["0x0000000000000000000000000000000000000001", "latest"]);
        for _ in 0..3 {
            let refused = caller.call("eth_getCode", code.clone()).await;
            assert_eq!(
                refused["error"]["message"], "response too large",
                "{coding:?}: {refused}"
            );
            watcher.expect(adopted(&[control.mine()])).await;
        }
        let memory = proxy.metric("headwater_memory_bytes{budget=\"upstream\"}").await;
        assert_eq!(memory, 0.0);
        // A body that is cut off is no answer.
        let broken: Value = caller.call("eth_gasPrice", json!([])).await;
        assert!(broken.get("error").is_some(), "{coding:?}: {broken}");
        // Calls and polls share few connections, which stay open.
        let before = gateway.connections.load(Ordering::Relaxed);
        let answers = gateway.packed.load(Ordering::Relaxed);
        for _ in 0..50 {
            assert_eq!(caller.ask(FORWARDED).await, FORWARDED_ANSWER);
        }
        watcher.expect(adopted(&[control.mine()])).await;
        let opened = gateway.connections.load(Ordering::Relaxed) - before;
        assert!(
            opened <= 3,
            "{opened} connections for {} answers",
            gateway.packed.load(Ordering::Relaxed) - answers
        );
        let (answer, beside) = watcher.ask_alone(FORWARDED).await;
        assert_eq!((&*answer, beside.len()), (FORWARDED_ANSWER, 0));
    }
}
