//! Logs by `after`, over a restart with a reorg. TypeScript and Python are in `tests/interop/libraries/examples.mjs`.

use std::sync::Arc;

use headwater::devnet::Block;

use crate::program::{Frame, Program};
use crate::proxy::Proxy;
use crate::{World, logs};

/// Waits until the last line of a program is this list of logs.
async fn has(program: &mut Program, places: &str) {
    while program.line(places).await != places {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_programs_of_resume_have_the_canonical_logs_after_a_restart_and_a_reorg() {
    let world = World::start().await;
    let frame = Frame {
        page: include_str!("../../docs/resume.md"),
        typescript: None,
        python: None,
        go: r#"package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/rpc"
)

var fromBlock = os.Args[3]

func main() {
	save := func(logs []types.Log) {
		var places []string
		for _, log := range logs {
			places = append(places, fmt.Sprintf("%s/%d", log.BlockHash, log.Index))
		}
		fmt.Println(strings.Join(places, " "))
	}
	for ; ; time.Sleep(200 * time.Millisecond) {
		if err := follow(os.Args[1], common.HexToAddress(os.Args[2]), save); err != nil {
			panic(err)
		}
	}
}
"#,
        rust: ("resume", include_str!("../../examples/streams/resume.rs")),
    };
    let first = world.control.head().number() + 1;
    let mut programs = frame.start(&world.folder, || {
        let [url, contract] = world.arguments();
        vec![url, contract, format!("{first:#x}")]
    });
    let World {
        node,
        control,
        proxy,
        contract,
        folder: _folder,
    } = world;
    let places = |blocks: &[Arc<Block>]| -> String {
        let places = blocks.iter().flat_map(|block| {
            let own = logs(block, contract).into_iter();
            own.map(|index| format!("{}/{index}", block.hash()))
        });
        places.collect::<Vec<_>>().join(" ")
    };
    let mut chain = control.mine_many(6);
    for program in &mut programs {
        has(program, &places(&chain)).await;
    }
    let listen = proxy.end().await;
    let reorg = control.reorg(3, 4).unwrap();
    let more = control.mine_many(2);
    let _proxy = Proxy::start(&node, &listen, |_| {}).await;
    chain.truncate(3);
    let chain = [chain, reorg.adopted, more].concat();
    for program in &mut programs {
        has(program, &places(&chain)).await;
    }
}
