//! Logs of final blocks, over a restart.

use crate::program::Frame;
use crate::proxy::Proxy;
use crate::{World, logs};

/// Depth of the simulated node's `finalized` block.
const FINALIZED: u64 = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_programs_of_final_logs_go_on_after_a_restart() {
    let world = World::start().await;
    let frame = Frame {
        page: include_str!("../../docs/finality.md"),
        typescript: Some(
            r#"
const [url, address] = process.argv.slice(2) as [string, Address];
let last: RpcLog | undefined;
const save = (log: RpcLog) => {
  last = log;
  console.log(`${log.blockHash} ${Number(log.logIndex)}`);
};
for (;;) {
  await follow(url, address, last, save).catch(() => {});
  await new Promise((done) => setTimeout(done, 200));
}
"#,
        ),
        python: Some(
            r#"{program}
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
	var last *types.Log
	for ; ; time.Sleep(200 * time.Millisecond) {
		follow(os.Args[1], common.HexToAddress(os.Args[2]), last, func(log types.Log) {
			last = &log
			fmt.Println(log.BlockHash, log.Index)
		})
	}
}
"#,
        rust: ("finality", include_str!("../../examples/streams/finality.rs")),
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
    let _proxy = Proxy::start(&node, &listen, |_| {}).await;
    control.mine_many(2);
    let second = story();
    for program in &mut programs {
        program.expect(&second).await;
    }
}
