//! The programs of docs/finality.md and docs/block-logs.md, run as they stand there, over a restart of the proxy and a reorg.
//!
//! JavaScript runs where `tests/interop/node_modules` has viem, Python where `tests/interop/.venv` has web3.py, Go where it is installed.

// In a test a panic is the report.
#![allow(clippy::unwrap_used)]
// A skipped program is named.
#![allow(clippy::print_stdout)]

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::Address;
use headwater::app::{App, Broken};
use headwater::config::{Config, typed};
use headwater::devnet::{self, Block, Control, Devnet};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Time limit of every wait.
const PATIENCE: Duration = Duration::from_secs(60);

/// Depth of the simulated node's `finalized` block.
const FINALIZED: u64 = 64;

/// The proxy, which can end and begin anew on its port.
struct Proxy {
    address: SocketAddr,
    admin: SocketAddr,
    stop: CancellationToken,
    running: JoinHandle<Result<(), Broken>>,
}

impl Proxy {
    async fn start(node: &Devnet, listen: &str) -> Self {
        let typed = typed::Config {
            listen: listen.into(),
            admin: "127.0.0.1:0".into(),
            upstream: vec![node.ws_url().into()],
            ..typed::Config::default()
        };
        let app = App::bind(Config::check(&typed).unwrap()).await.unwrap();
        let (address, admin) = (app.address().unwrap(), app.admin_address().unwrap());
        let stop = CancellationToken::new();
        let running = tokio::spawn(app.run(stop.clone().cancelled_owned()));
        Self {
            address,
            admin,
            stop,
            running,
        }
    }

    async fn end(self) -> String {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
        self.address.to_string()
    }

    /// Waits until there are so many subscriptions.
    async fn has_subscriptions(&self, count: usize) {
        let waiting = async {
            loop {
                let mut admin = TcpStream::connect(self.admin).await.unwrap();
                let request = "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
                admin.write_all(request.as_bytes()).await.unwrap();
                let mut page = String::new();
                admin.read_to_string(&mut page).await.unwrap();
                let lines = page.lines().filter(|line| line.starts_with("headwater_subscriptions{"));
                let values = lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<usize>().ok());
                if values.sum::<usize>() == count {
                    return;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, waiting).await.expect("subscriptions");
    }
}

/// Program under way; each line that it prints is an event.
struct Program {
    name: &'static str,
    process: Child,
    lines: mpsc::UnboundedReceiver<String>,
}

impl Program {
    fn start(name: &'static str, command: &mut Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let (sender, lines) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            let lines = output.lines().map_while(Result::ok);
            lines.for_each(|line| drop(sender.send(line)));
        });
        Self { name, process, lines }
    }

    async fn expect(&mut self, story: &[String]) {
        for (at, line) in story.iter().enumerate() {
            let told = timeout(PATIENCE, self.lines.recv()).await;
            let told = told.unwrap_or_else(|_| panic!("{}: no line {at} of {story:?}", self.name));
            assert_eq!(told.as_deref(), Some(&**line), "{}: line {at} of {story:?}", self.name);
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns the page's code in this language.
fn code<'a>(page: &'a str, language: &str) -> &'a str {
    let (_, after) = page.split_once(&format!("```{language}\n")).unwrap();
    after.split_once("```").unwrap().0
}

/// What is put around the programs of a page.
struct Frame {
    page: &'static str,
    javascript: &'static str,
    python: &'static str,
    go: &'static str,
}

fn file(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

impl Frame {
    /// Starts the programs of the page, in a folder where their libraries are found.
    fn start(&self, folder: &TempDir, proxy: &Proxy, contract: Address) -> Vec<Program> {
        let (folder, interop) = (folder.path(), interop());
        let arguments = [format!("ws://{}", proxy.address), contract.to_string()];
        let mut programs = Vec::new();
        if interop.join("node_modules/viem").exists() {
            let text = format!("{}\n{}", code(self.page, "js"), self.javascript);
            let script = file(folder, "follow.mjs", &text);
            programs.push(Program::start(
                "viem",
                Command::new("node").arg(script).args(&arguments),
            ));
        } else {
            println!("skipped: no viem, see tests/interop/README.md");
        }
        let python = interop.join(".venv/bin/python");
        if python.exists() {
            let text = format!("{}\n{}", code(self.page, "python"), self.python);
            let script = file(folder, "follow.py", &text);
            programs.push(Program::start(
                "Python",
                Command::new(python).arg(script).args(&arguments),
            ));
        } else {
            println!("skipped: no web3.py, see tests/interop/README.md");
        }
        let source = file(folder, "follow.go", &format!("{}\n{}", self.go, code(self.page, "go")));
        let binary = folder.join("follow");
        let mut build = Command::new("go");
        let build = build.current_dir(interop.join("go")).args(["build", "-o"]);
        match build.arg(&binary).arg(source).status() {
            Ok(built) => {
                assert!(built.success());
                programs.push(Program::start("Go", Command::new(binary).args(&arguments)));
            }
            Err(_) => println!("skipped: no Go"),
        }
        programs
    }
}

fn interop() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop")
}

async fn world() -> (Devnet, Control, Proxy, Address, TempDir) {
    let node = Devnet::start(devnet::Config::manual()).await.unwrap();
    let control = node.handle();
    control.mine_many(80);
    let proxy = Proxy::start(&node, "127.0.0.1:0").await;
    let contract = control.with_chain(|chain| chain.tokens()[0]);
    let folder = tempfile::Builder::new()
        .prefix(".pages-")
        .tempdir_in(interop())
        .unwrap();
    (node, control, proxy, contract, folder)
}

/// Returns the indices of the contract's logs in a block.
fn logs(block: &Block, contract: Address) -> Vec<usize> {
    let own = block.logs().enumerate().filter(|(_, log)| log.address == contract);
    own.map(|(index, _)| index).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_programs_of_block_logs_go_on_after_a_restart_and_undo_a_reorg() {
    let (node, control, proxy, contract, folder) = world().await;
    let frame = Frame {
        page: include_str!("../../docs/block-logs.md"),
        javascript: r#"
const [, , url, address] = process.argv;
const chain = [];
const store = {
  lastBlock: async () => chain.at(-1),
  undo: (hash) => (chain.pop(), console.log(`undo ${hash}`)),
  add: ({ hash }, logs) => (chain.push(hash), console.log(`add ${hash} ${logs.length}`)),
};
for (;;) {
  await follow(url, address, store).catch(() => {});
  await new Promise((done) => setTimeout(done, 200));
}
"#,
        python: r#"
import sys
import time

from websockets import WebSocketException

url, address = sys.argv[1:]
chain = []


class Store:
    def last_block(self):
        return chain[-1] if chain else None

    def undo(self, block):
        chain.pop()
        print("undo", block, flush=True)

    def add(self, block, logs):
        chain.append(block["hash"])
        print("add", block["hash"], len(logs), flush=True)


while True:
    try:
        asyncio.run(follow(url, address, Store()))
    except (OSError, WebSocketException):
        pass
    time.sleep(0.2)
"#,
        go: r#"package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/rpc"
)

func main() {
	var chain []common.Hash
	for ; ; time.Sleep(200 * time.Millisecond) {
		var last *common.Hash
		if len(chain) > 0 {
			last = &chain[len(chain)-1]
		}
		follow(os.Args[1], common.HexToAddress(os.Args[2]), last, func(message BlockLogs) {
			if message.Removed {
				chain = chain[:len(chain)-1]
				fmt.Println("undo", message.Block.Hash)
			} else {
				chain = append(chain, message.Block.Hash)
				fmt.Println("add", message.Block.Hash, len(message.Logs))
			}
		})
	}
}
"#,
    };
    let mut programs = frame.start(&folder, &proxy, contract);
    proxy.has_subscriptions(programs.len()).await;
    let add = |blocks: &[Arc<Block>]| -> Vec<String> {
        let blocks = blocks.iter();
        let lines = blocks.map(|block| format!("add {} {}", block.hash(), logs(block, contract).len()));
        lines.collect()
    };
    let blocks = control.mine_many(4);
    for program in &mut programs {
        program.expect(&add(&blocks)).await;
    }
    let listen = proxy.end().await;
    let reorg = control.reorg(2, 3).unwrap();
    let _proxy = Proxy::start(&node, &listen).await;
    let dropped = reorg.dropped.iter().map(|block| (block.number(), block.hash()));
    let mut dropped: Vec<_> = dropped.collect();
    dropped.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    let undone = dropped.iter().map(|(_, hash)| format!("undo {hash}"));
    let story: Vec<String> = undone.chain(add(&reorg.adopted)).collect();
    for program in &mut programs {
        program.expect(&story).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_programs_of_final_logs_go_on_after_a_restart() {
    let (node, control, proxy, contract, folder) = world().await;
    let frame = Frame {
        page: include_str!("../../docs/finality.md"),
        javascript: r#"
const [, , url, address] = process.argv;
let last;
const save = (log) => {
  last = log;
  console.log(`${log.blockHash} ${Number(log.logIndex)}`);
};
for (;;) {
  await follow(url, address, last, save).catch(() => {});
  await new Promise((done) => setTimeout(done, 200));
}
"#,
        python: r#"
import asyncio
import sys
import time

from websockets import ConnectionClosed
from web3.exceptions import Web3RPCError

url, address = sys.argv[1:]
last = None


def save(log):
    global last
    last = log
    print(log["blockHash"].to_0x_hex(), log["logIndex"], flush=True)


while True:
    try:
        asyncio.run(follow(url, address, last, save))
    except (OSError, ConnectionClosed, Web3RPCError):
        pass
    time.sleep(0.2)
"#,
        go: r#"package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/rpc"
)

func main() {
	var last *types.Log
	for ; ; time.Sleep(200 * time.Millisecond) {
		follow(os.Args[1], common.HexToAddress(os.Args[2]), last, func(log types.Log) {
			last = &log
			fmt.Println(log.BlockHash, log.Index)
		})
	}
}
"#,
    };
    let mut programs = frame.start(&folder, &proxy, contract);
    proxy.has_subscriptions(programs.len()).await;
    let mut next = control.head().number() - FINALIZED + 1;
    let mut story = || -> Vec<String> {
        let top = control.head().number() - FINALIZED;
        let blocks = (next..=top).map(|number| control.with_chain(|chain| chain.block_at(number).cloned().unwrap()));
        next = top + 1;
        let lines = blocks.flat_map(|block| {
            let hash = block.hash();
            let own = logs(&block, contract).into_iter();
            own.map(move |index| format!("{hash} {index}"))
        });
        lines.collect()
    };
    control.mine_many(8);
    let first = story();
    assert!(!first.is_empty());
    for program in &mut programs {
        program.expect(&first).await;
    }
    let listen = proxy.end().await;
    control.mine_many(4);
    let _proxy = Proxy::start(&node, &listen).await;
    control.mine_many(2);
    let second = story();
    for program in &mut programs {
        program.expect(&second).await;
    }
}
