//! Settings of a simulated node, and its faults on demand.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// The settings of a simulated node. The defaults are those of the demo: a block every two seconds with 8 transactions
/// of 3 logs each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address for WebSocket and HTTP. Port 0 picks a free port; see [`super::Devnet::ws_url`].
    pub listen: SocketAddr,
    /// A Unix socket to serve as well, as geth's IPC does. A stale file at this path is replaced.
    pub ipc: Option<PathBuf>,
    /// Seed of every random choice: accounts, contracts, transactions, hashes.
    pub seed: u64,
    /// Distinguishes the blocks that nodes with the same `seed` make after their start: nodes that are to fork need
    /// different values. 0 continues with the randomness of `seed`. See [`super::Control::follow`].
    pub fork_seed: u64,
    /// Chain id, answered by `eth_chainId` and signed in transactions.
    pub chain_id: u64,
    /// Answer to `web3_clientVersion`.
    pub client_version: String,
    /// The timestamp of block 0, in seconds since 1970. Fixed rather than "now", so that hashes can be repeated.
    pub genesis_timestamp: u64,
    /// Seconds between the timestamps of two blocks, whatever the wall clock says. At least 1.
    pub timestamp_interval: u64,
    /// Number of blocks after the genesis block before the node serves.
    pub initial_blocks: u64,
    /// Time between automatic blocks; `None` for blocks by command only.
    #[serde(with = "humantime_serde")]
    pub block_time: Option<Duration>,
    /// Automatic pending transactions per second; 0 for none.
    pub pending_rate: f64,
    /// Number of transactions up to which a block is filled. Each generated transaction costs a signature.
    pub transactions_per_block: usize,
    /// Logs of every transaction to a token contract.
    pub logs_per_transaction: usize,
    /// Length of a log's data in bytes, at least 32: the amount, then padding. 32 gives about 650 bytes of JSON.
    pub log_data_bytes: usize,
    /// About one block in this many is one to three heights above its parent's successor, so the numbers between have
    /// no block, as with empty rounds or slots (Filecoin); 0 for none. The choice follows from the block's randomness:
    /// siblings may have different numbers, and all else is the same as without holes.
    pub holes: u32,
    /// About one block in this many has an empty bloom whatever its logs, as on chains that leave logs out of the bloom
    /// (Polygon's state sync, HyperEVM); 1 for all blocks, 0 for none.
    pub empty_blooms: u32,
    /// About one block in this many has a bloom that claims more than its logs, by one item or everything (Bor); 1 for
    /// all blocks, 0 for none.
    pub greedy_blooms: u32,
    /// Number of accounts that send transactions. At least 1.
    pub accounts: usize,
    /// Number of token contracts. The first is the busiest, the n-th has an n-th of its share. At least 1.
    pub tokens: usize,
    /// Number of heights for which blocks stay readable, on dropped branches too. Also the bound on the depth of a
    /// reorg.
    pub keep_blocks: u64,
    /// Maximum number of messages queued for one client; above it the client is dropped as a slow reader.
    pub queue_messages: usize,
    /// Faults from the start.
    pub faults: Faults,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            ipc: None,
            seed: 1,
            fork_seed: 0,
            chain_id: 1337,
            client_version: concat!("headwater-devnet/v", env!("CARGO_PKG_VERSION")).to_owned(),
            genesis_timestamp: 1_700_000_000,
            timestamp_interval: 2,
            initial_blocks: 16,
            block_time: Some(Duration::from_secs(2)),
            pending_rate: 4.0,
            transactions_per_block: 8,
            logs_per_transaction: 3,
            log_data_bytes: 32,
            holes: 0,
            empty_blooms: 0,
            greedy_blooms: 0,
            accounts: 32,
            tokens: 64,
            keep_blocks: 1024,
            queue_messages: 16_384,
            faults: Faults::default(),
        }
    }
}

impl Config {
    /// Returns the settings for tests: no event without a command, and a quick start.
    pub fn manual() -> Self {
        Self {
            block_time: None,
            pending_rate: 0.0,
            initial_blocks: 4,
            transactions_per_block: 3,
            logs_per_transaction: 2,
            ..Self::default()
        }
    }
}

/// The answer to a number that has no block, see [`Config::holes`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HoleAnswer {
    /// `null`, as for a block that does not exist yet.
    #[default]
    Null,
    /// An error response.
    Error,
    /// The nearest block below, with its own number.
    Before,
}

/// Faults of the node. Changeable while it runs, see [`super::Control::set_faults`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Announces only the newest adopted head after a reorg, as geth does. The logs of all adopted blocks are still
    /// sent.
    pub announce_tip_only_after_reorg: bool,
    /// Sends `removed: true` logs in a reorg. Some nodes never do.
    pub send_removed_logs: bool,
    /// The answer to a number that has no block.
    pub hole_answer: HoleAnswer,
    /// Announces headers with a hash by which no block is known; `parentHash` is the real one (Cosmos EVM chains,
    /// go-opera).
    pub announce_other_hash: bool,
    /// Announces headers without `logsBloom`; the blocks have it.
    pub announce_without_bloom: bool,
    /// Announces every head twice.
    pub duplicate_heads: bool,
    /// Number of next heads that are not announced, counted down.
    pub skip_heads: u32,
    /// Number of next heads that are announced after their successor, counted down. Their logs are sent on time.
    pub late_heads: u32,
    /// Number of next `eth_getLogs` answers that are empty although there are logs, counted down. Nodes do this while
    /// their receipts are not written yet.
    pub empty_log_answers: u32,
    /// Methods that fail with [`Self::failure`].
    pub failing_methods: Vec<String>,
    /// Code and message of simulated failures.
    pub failure: (i64, String),
    /// Number of next calls, of any method, that fail with [`Self::failure`], counted down.
    pub failing_calls: u32,
    /// Methods on which a connection is closed instead of an answer; over HTTP they are answered.
    pub hangs_up_on: Vec<String>,
    /// Text of messages on which a connection is closed, after a parse error; over HTTP they are answered.
    pub close_on: Option<String>,
    /// Answers logs and receipts of blocks below this number with error 4444, as nodes that expire history do
    /// (EIP-4444).
    pub pruned_below: u64,
    /// Removes the node's own kind of subscriptions, `blockNumbers`.
    pub no_own_kind: bool,
    /// Connections are closed as soon as they are accepted.
    pub refuse_connections: bool,
    /// Every call waits this long before it is executed and answered.
    #[serde(with = "humantime_serde")]
    pub delay: Option<Duration>,
    /// Texts of the messages that [`Self::delay`] applies to; empty for all messages.
    pub delay_on: Vec<String>,
    /// Length in bytes of the code that `eth_getCode` answers for every account; 0 for the contracts' own code.
    pub code_bytes: usize,
}

impl Default for Faults {
    /// No faults.
    fn default() -> Self {
        Self {
            announce_tip_only_after_reorg: false,
            send_removed_logs: true,
            hole_answer: HoleAnswer::Null,
            announce_other_hash: false,
            announce_without_bloom: false,
            duplicate_heads: false,
            skip_heads: 0,
            late_heads: 0,
            empty_log_answers: 0,
            failing_methods: Vec::new(),
            failure: (-32000, "simulated failure".into()),
            failing_calls: 0,
            hangs_up_on: Vec::new(),
            close_on: None,
            pruned_below: 0,
            no_own_kind: false,
            refuse_connections: false,
            delay: None,
            delay_on: Vec::new(),
            code_bytes: 0,
        }
    }
}

impl Faults {
    /// Returns the delay of this message.
    pub(super) fn delay_of(&self, message: &[u8]) -> Option<Duration> {
        let slow = self.delay_on.is_empty() || self.delay_on.iter().any(|text| holds(message, text));
        self.delay.filter(|_| slow)
    }

    /// Checks if this message closes its connection.
    pub(super) fn closes_over(&self, message: &[u8]) -> bool {
        self.close_on.as_ref().is_some_and(|text| holds(message, text)) || nests_deeper_than(message, MAX_DEPTH)
    }
}

/// Maximum nesting of arrays and objects in Go's decoder (`maxNestingDepth` in encoding/json). Deeper nesting is a
/// syntax error there, after which geth reads no more from the connection.
const MAX_DEPTH: usize = 10_000;

fn holds(message: &[u8], text: &str) -> bool {
    !text.is_empty() && message.windows(text.len()).any(|window| window == text.as_bytes())
}

/// Checks if brackets outside strings nest deeper than `limit`.
fn nests_deeper_than(message: &[u8], limit: usize) -> bool {
    if message.len() <= limit {
        return false;
    }
    let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
    for byte in message {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'[' | b'{' if !quoted => depth += 1,
            b']' | b'}' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > limit {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_a_round_trip_and_unknown_keys_are_named() {
        let text = toml::to_string(&Config::default()).unwrap();
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), Config::default());
        let error = toml::from_str::<Config>("blocktime = '1s'").unwrap_err();
        assert!(error.to_string().contains("blocktime"), "{error}");
    }

    #[test]
    fn messages_that_are_delayed_or_end_a_connection() {
        let faults = Faults {
            delay: Some(Duration::from_secs(1)),
            delay_on: vec!["eth_call".into()],
            close_on: Some("dead".into()),
            ..Faults::default()
        };
        let deep = |depth: usize| [vec![b'['; depth], vec![b']'; depth]].concat();
        let quoted = [b"[\"\\\"".to_vec(), vec![b'['; 20_000], b"\"]".to_vec()].concat();
        for (message, delayed, closes) in [
            (b"eth_call 0xbeef".to_vec(), true, false),
            (b"eth_syncing 0xdead".to_vec(), false, true),
            (deep(10_000), false, false),
            (deep(10_001), false, true),
            (quoted, false, false),
        ] {
            let seen = (faults.delay_of(&message).is_some(), faults.closes_over(&message));
            assert_eq!(seen, (delayed, closes), "{}", message.len());
        }
    }

    #[test]
    fn durations_are_written_as_people_say_them() {
        let config: Config = toml::from_str("block_time = '250ms'\n[faults]\ndelay = '1s'").unwrap();
        assert_eq!(config.block_time, Some(Duration::from_millis(250)));
        assert_eq!(config.faults.delay, Some(Duration::from_secs(1)));
    }
}
