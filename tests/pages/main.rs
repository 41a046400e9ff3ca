//! The programs of the pages on streams, run as they stand there, over restarts of the proxy, cut connections and reorgs.
//!
//! TypeScript runs where `tests/interop/node_modules` has viem, Python where `tests/interop/.venv` has web3.py, Go where it is
//! installed. The programs in Rust are those of `examples/streams`. Server-sent events are in `tests/it`.

// In a test a panic is the report.
#![allow(clippy::unwrap_used)]
// A skipped program is named.
#![allow(clippy::print_stdout)]

mod block_logs;
mod finality;
mod program;
mod proxy;
#[allow(dead_code, reason = "shared with other tests")]
#[path = "../it/tail/relay.rs"]
mod relay;
mod resume;
mod sessions;
mod webhooks;

use std::time::Duration;

use alloy_primitives::Address;
use headwater::devnet::{self, Block, Control, Devnet};
use tempfile::TempDir;

use program::interop;
use proxy::Proxy;

/// Time limit of every wait.
const PATIENCE: Duration = Duration::from_secs(60);

/// The node, the proxy before it, and a folder for programs.
struct World {
    node: Devnet,
    control: Control,
    proxy: Proxy,
    contract: Address,
    folder: TempDir,
}

impl World {
    async fn start() -> Self {
        let node = Devnet::start(devnet::Config::manual()).await.unwrap();
        let control = node.handle();
        control.mine_many(80);
        let proxy = Proxy::start(&node, "127.0.0.1:0", |_| {}).await;
        let contract = control.with_chain(|chain| chain.tokens()[0]);
        let folder = tempfile::Builder::new()
            .prefix(".pages-")
            .tempdir_in(interop())
            .unwrap();
        Self {
            node,
            control,
            proxy,
            contract,
            folder,
        }
    }

    /// Returns what most programs are started with: the proxy's URL and the contract.
    fn arguments(&self) -> [String; 2] {
        [format!("ws://{}", self.proxy.address), self.contract.to_string()]
    }
}

/// Returns the indices of the contract's logs in a block.
fn logs(block: &Block, contract: Address) -> Vec<usize> {
    let own = block.logs().enumerate().filter(|(_, log)| log.address == contract);
    own.map(|(index, _)| index).collect()
}
