//! Receivers of webhooks: events in order, over a restart of the proxy; a batch that comes again counts once, and a forged one not
//! at all.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use headwater::config::typed;
use headwater::devnet::Block;
use headwater::webhooks::Secrets;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::program::Frame;
use crate::proxy::Proxy;
use crate::{PATIENCE, World};

/// Secret of the specification's own tests.
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Posts a batch to a receiver, and returns the status that it answers.
async fn post(port: u16, id: &str, signature: &str, timestamp: u64, body: &str) -> u16 {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request = format!(
        "POST /headwater HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nwebhook-id: {id}\r\nwebhook-timestamp: {timestamp}\r\nwebhook-signature: {signature}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 12];
    timeout(PATIENCE, socket.read_exact(&mut head)).await.unwrap().unwrap();
    let head = String::from_utf8_lossy(&head);
    head.rsplit_once(' ').unwrap().1.parse().unwrap()
}

/// Waits until all webhooks have a position: events from then on are sent.
async fn begun(proxy: &Proxy, count: usize) {
    let waiting = async {
        while proxy.get("/status").await.matches(r#""phase": "idle""#).count() < count {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, waiting).await.expect("webhooks");
}

/// Returns the line for each log, in order.
fn story(blocks: &[Arc<Block>]) -> Vec<String> {
    let logs = blocks.iter().flat_map(|block| {
        let hash = block.hash();
        (0..block.logs().count()).map(move |index| format!("logs {hash} {index:#x}"))
    });
    logs.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_receivers_of_the_page_take_each_event_once() {
    let World {
        node,
        control,
        proxy,
        contract: _,
        folder,
    } = World::start().await;
    proxy.end().await;
    let frame = Frame {
        page: include_str!("../../docs/webhooks.md"),
        typescript: Some(
            r#"
const [port, secret] = process.argv.slice(2) as [string, string];
receive(Number(port), secret, (type, event) => {
  const { blockHash, logIndex } = event as { blockHash: string; logIndex: string };
  console.log(`${type} ${blockHash} ${logIndex}`);
});
"#,
        ),
        python: Some(
            r#"import sys

port, secret = int(sys.argv[1]), sys.argv[2]


def take(kind, event):
    print(kind, event["blockHash"], event["logIndex"], flush=True)


{program}"#,
        ),
        go: r#"package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

func main() {
	port, _ := strconv.Atoi(os.Args[1])
	panic(receive(port, os.Args[2], func(kind string, event json.RawMessage) {
		var log struct{ BlockHash, LogIndex string }
		json.Unmarshal(event, &log)
		fmt.Println(kind, log.BlockHash, log.LogIndex)
	}))
}
"#,
        rust: ("webhooks", include_str!("../../examples/streams/webhooks.rs")),
    };
    // Free ports, which the receivers take as soon as they run.
    let mut ports = Vec::new();
    let mut programs = frame.start(&folder, || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        ports.push(port);
        vec![port.to_string(), SECRET.to_owned()]
    });
    for (port, program) in ports.iter().zip(&programs) {
        let listening = async {
            while TcpStream::connect(("127.0.0.1", *port)).await.is_err() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        assert!(timeout(PATIENCE, listening).await.is_ok(), "{} listens", program.name);
    }
    let path = |name: String| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("secret".to_owned()), SECRET).unwrap();
    let add_all = |config: &mut typed::Config| {
        for port in &ports {
            let hook = typed::Webhook {
                url: format!("http://127.0.0.1:{port}/headwater"),
                stream: Some("kind=logs".to_owned()),
                secret_file: Some(path("secret".to_owned())),
                state: Some(path(format!("state-{port}"))),
                batch: None,
                batch_bytes: None,
                timeout: None,
                retry_max: None,
                retry_for: None,
                dead_letters: None,
                dead_letters_bytes: None,
                allow_private: true,
                ca: None,
            };
            config.webhooks.insert(format!("receiver-{port}"), hook);
        }
    };
    let proxy = Proxy::start(&node, "127.0.0.1:0", add_all).await;
    begun(&proxy, programs.len()).await;
    let blocks = control.mine_many(3);
    for program in &mut programs {
        program.expect(&story(&blocks)).await;
    }
    proxy.end().await;
    let blocks = control.mine_many(2);
    let proxy = Proxy::start(&node, "127.0.0.1:0", add_all).await;
    for program in &mut programs {
        program.expect(&story(&blocks)).await;
    }
    begun(&proxy, programs.len()).await;
    proxy.end().await;

    let secrets = Secrets::parse(SECRET).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let batch =
        |hash: &str| format!(r#"{{"type":"logs","sequence":9,"data":[{{"blockHash":"{hash}","logIndex":"0x0"}}]}}"#);
    let gap = r#"{"type":"headwater.gap","sequence":10,"data":{"blockHash":"gap","logIndex":"0x0"}}"#;
    let (forged, real) = (batch("forged"), batch("real"));
    for (port, program) in ports.into_iter().zip(&mut programs) {
        let name = program.name;
        let foreign = secrets.sign("msg_8", now, real.as_bytes());
        assert_eq!(post(port, "msg_8", &foreign, now, &forged).await, 401, "{name}");
        let late = now - 400;
        let old = secrets.sign("msg_8", late, forged.as_bytes());
        assert_eq!(post(port, "msg_8", &old, late, &forged).await, 401, "{name}");
        for _ in 0..2 {
            // The second of two signatures, as while a secret changes.
            let signature = format!("v1,AAAA {}", secrets.sign("msg_9", now, real.as_bytes()));
            assert_eq!(post(port, "msg_9", &signature, now, &real).await, 204, "{name}");
        }
        let signature = secrets.sign("msg_10", now, gap.as_bytes());
        assert_eq!(post(port, "msg_10", &signature, now, gap).await, 204, "{name}");
        program
            .expect(&["logs real 0x0".to_owned(), "headwater.gap gap 0x0".to_owned()])
            .await;
    }
}
