//! Every block in one message, over a restart and a reorg.

use std::sync::Arc;

use headwater::devnet::Block;

use crate::program::Frame;
use crate::proxy::Proxy;
use crate::{World, logs};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_programs_of_block_logs_go_on_after_a_restart_and_undo_a_reorg() {
    let world = World::start().await;
    let frame = Frame {
        page: include_str!("../../docs/block-logs.md"),
        typescript: Some(
            r#"
const [url, address] = process.argv.slice(2) as [string, Address];
const chain: Hash[] = [];
const store: Store = {
  lastBlock: async () => chain.at(-1),
  undo: ({ hash }) => (chain.pop(), console.log(`undo ${hash}`)),
  add: ({ hash }, logs) => (chain.push(hash), console.log(`add ${hash} ${logs.length}`)),
};
for (;;) {
  await follow(url, address, store).catch(() => {});
  await new Promise((done) => setTimeout(done, 200));
}
"#,
        ),
        python: Some(
            r#"{program}
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
        ),
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
        rust: ("block-logs", include_str!("../../examples/streams/block_logs.rs")),
    };
    let mut programs = frame.start(&world.folder, || world.arguments().to_vec());
    world.proxy.has_subscriptions(programs.len()).await;
    let World {
        node,
        control,
        proxy,
        contract,
        folder: _folder,
    } = world;
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
    let _proxy = Proxy::start(&node, &listen, |_| {}).await;
    let dropped = reorg.dropped.iter().map(|block| (block.number(), block.hash()));
    let mut dropped: Vec<_> = dropped.collect();
    dropped.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    let undone = dropped.iter().map(|(_, hash)| format!("undo {hash}"));
    let story: Vec<String> = undone.chain(add(&reorg.adopted)).collect();
    for program in &mut programs {
        program.expect(&story).await;
    }
}
