//! Sessions, over a cut of the connection with a reorg. `tests/sessions` has the same at length.

use std::collections::BTreeSet;

use headwater::devnet::Block;

use crate::program::{Frame, Program};
use crate::relay::Relay;
use crate::{World, logs};

/// Reads what a program prints until it has these logs, and no others; an event may come again.
async fn has(program: &mut Program, have: &mut BTreeSet<String>, expected: &BTreeSet<String>) {
    while have != expected {
        let awaited = format!("{:?}", expected.symmetric_difference(have));
        let line = program.line(&awaited).await;
        let (act, place) = line.split_once(' ').unwrap();
        match act {
            "add" => drop(have.insert(place.to_owned())),
            _ => drop(have.remove(place)),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_programs_of_sessions_see_no_hole() {
    let world = World::start().await;
    let relay = Relay::start(world.proxy.address).await;
    let frame = Frame {
        page: include_str!("../../docs/sessions.md"),
        typescript: Some(
            r#"
const [url, address] = process.argv.slice(2) as [string, Address];
follow(url, address, ({ removed, blockHash, logIndex }) => {
  console.log(`${removed ? "undo" : "add"} ${blockHash} ${logIndex}`);
});
"#,
        ),
        python: Some(
            r#"{program}
import sys

url, address = sys.argv[1:]


def take(event):
    if "logIndex" in event and event["address"].lower() == address.lower():
        act = "undo" if event["removed"] else "add"
        print(act, event["blockHash"].to_0x_hex(), event["logIndex"], flush=True)


asyncio.run(follow(with_session(url), take))
"#,
        ),
        go: r#"package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/event"
	"github.com/ethereum/go-ethereum/rpc"
)

func main() {
	client, err := rpc.Dial(withSession(os.Args[1]))
	if err != nil {
		panic(err)
	}
	logs := make(chan types.Log, 4096)
	subscribe(client, logs, "logs", map[string]any{"address": os.Args[2]})
	for log := range logs {
		act := "add"
		if log.Removed {
			act = "undo"
		}
		fmt.Println(act, log.BlockHash, log.Index)
	}
}
"#,
        rust: ("sessions", include_str!("../../examples/streams/sessions.rs")),
    };
    let mut programs = frame.start(&world.folder, || vec![relay.url(), world.contract.to_string()]);
    let logs_of_all = r#"headwater_subscriptions{kind="logs"}"#;
    world.proxy.has(logs_of_all, programs.len()).await;
    let places = |blocks: &[std::sync::Arc<Block>]| -> BTreeSet<String> {
        let places = blocks.iter().flat_map(|block| {
            let own = logs(block, world.contract).into_iter();
            own.map(|index| format!("{} {index}", block.hash()))
        });
        places.collect()
    };
    let mut seen = vec![BTreeSet::new(); programs.len()];
    let first = world.control.mine_many(6);
    for (program, have) in programs.iter_mut().zip(&mut seen) {
        has(program, have, &places(&first)).await;
    }
    // What happens before they have connected again: without a session it is lost.
    relay.cut();
    let reorg = world.control.reorg(2, 3).unwrap();
    let chain = [first[..4].to_vec(), reorg.adopted].concat();
    for (program, have) in programs.iter_mut().zip(&mut seen) {
        has(program, have, &places(&chain)).await;
    }
    // web3.py has heads as well.
    let heads = programs.iter().filter(|program| program.name == "Python").count();
    let resumed = r#"headwater_session_claims_total{outcome="resumed"}"#;
    world.proxy.has(resumed, programs.len() + heads).await;
    let chain = [chain, world.control.mine_many(2)].concat();
    for (program, have) in programs.iter_mut().zip(&mut seen) {
        has(program, have, &places(&chain)).await;
    }
}
