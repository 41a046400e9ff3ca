//! What a simulated node is made of, and what it does wrong on demand.

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
    /// Where WebSocket and HTTP are served. Port 0 takes a free one; see [`super::Devnet::ws_url`].
    pub listen: SocketAddr,
    /// A Unix socket to serve as well, as geth's IPC does. A stale file at this path is replaced.
    pub ipc: Option<PathBuf>,
    /// What every random choice follows from: accounts, contracts, transactions, hashes.
    pub seed: u64,
    /// What sets the blocks that this node makes after its start apart from those of another node with the same `seed`:
    /// two that are to disagree need different ones. See [`super::Control::follow`].
    pub fork_seed: u64,
    /// Chain id, answered by `eth_chainId` and signed in transactions.
    pub chain_id: u64,
    /// Answer to `web3_clientVersion`.
    pub client_version: String,
    /// The timestamp of block 0, in seconds since 1970. Fixed rather than "now", so that hashes can be repeated.
    pub genesis_timestamp: u64,
    /// Seconds between the timestamps of two blocks, whatever the wall clock says. At least 1.
    pub timestamp_interval: u64,
    /// How many blocks follow the genesis block before the node serves.
    pub initial_blocks: u64,
    /// Time between automatic blocks; without it blocks come by command only.
    #[serde(with = "humantime_serde")]
    pub block_time: Option<Duration>,
    /// Automatic pending transactions per second; 0 for none.
    pub pending_rate: f64,
    /// A block is filled up to this many transactions. Each one that did not come from the pool costs a signature.
    pub transactions_per_block: usize,
    /// Logs that every transaction to a token contract leaves behind.
    pub logs_per_transaction: usize,
    /// Length of a log's data in bytes, at least 32: the amount, then padding. 32 gives about 650 bytes of JSON.
    pub log_data_bytes: usize,
    /// About one block in so many stands one to three heights above its parent's successor, so that the numbers between
    /// have no block, as where rounds or slots may stay empty (Filecoin); 0 for none. Follows from the block's
    /// randomness: siblings may have different numbers, and all else is as without.
    pub holes: u32,
    /// About one block in so many has an empty bloom whatever its logs, as where logs are not part of the bloom (Polygon's
    /// state sync, HyperEVM); 1 for all blocks, 0 for none.
    pub empty_blooms: u32,
    /// About one block in so many has a bloom that claims more than its logs, be it one item or everything (Bor); 1 for
    /// all blocks, 0 for none.
    pub greedy_blooms: u32,
    /// How many accounts send transactions. At least 1.
    pub accounts: usize,
    /// How many token contracts there are. The first is the busiest, the n-th has an n-th of its share. At least 1.
    pub tokens: usize,
    /// How far back blocks stay readable, dropped branches too. Also the bound on the depth of a reorg.
    pub keep_blocks: u64,
    /// Messages that may wait for one client before it is dropped as a slow reader.
    pub queue_messages: usize,
    /// What the node does wrong from the start.
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
    /// The settings for tests: nothing happens unless commanded, and the start is quick.
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
    /// `null`, as for a block that is not there yet.
    #[default]
    Null,
    /// An error.
    Error,
    /// The nearest block below, under its own number.
    Before,
}

/// What the node does wrong. Changeable while it runs, see [`super::Control::set_faults`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// After a reorg only the newest of the adopted heads is announced, as geth does. The logs of the others still are.
    pub announce_tip_only_after_reorg: bool,
    /// Whether a reorg sends `removed: true` logs. Some nodes never do.
    pub send_removed_logs: bool,
    /// The answer to a number that has no block.
    pub hole_answer: HoleAnswer,
    /// Announced headers have a hash by which no block is known; `parentHash` is that of the parent (Cosmos EVM chains,
    /// go-opera).
    pub announce_other_hash: bool,
    /// Announced headers have no `logsBloom`; the blocks have.
    pub announce_without_bloom: bool,
    /// Every head is announced twice.
    pub duplicate_heads: bool,
    /// Heads that were to be announced next stay unannounced: this many, counted down.
    pub skip_heads: u32,
    /// Heads are announced after the head that follows them: this many, counted down. Their logs come on time.
    pub late_heads: u32,
    /// The next so many `eth_getLogs` answers are empty although there are logs, counted down. Nodes do this while their
    /// receipts are not written yet.
    pub empty_log_answers: u32,
    /// These methods fail with [`Self::failure`].
    pub failing_methods: Vec<String>,
    /// Code and message of what fails.
    pub failure: (i64, String),
    /// The next so many calls fail in the same way, whatever they are, counted down.
    pub failing_calls: u32,
    /// Over these methods a connection is closed in place of an answer; over HTTP they are answered.
    pub hangs_up_on: Vec<String>,
    /// Over a message with this text a connection is closed, after a parse error; over HTTP it is answered.
    pub close_on: Option<String>,
    /// Logs and receipts of blocks below this number are answered with error 4444, as nodes do that expire history (EIP-4444).
    pub pruned_below: u64,
    /// The node does not have its own kind of subscriptions, `blockNumbers`.
    pub no_own_kind: bool,
    /// Connections are closed as soon as they are accepted.
    pub refuse_connections: bool,
    /// Every call waits this long before it is executed and answered.
    #[serde(with = "humantime_serde")]
    pub delay: Option<Duration>,
    /// Texts of the messages that [`Self::delay`] applies to; empty for all messages.
    pub delay_on: Vec<String>,
    /// Length in bytes of the code that `eth_getCode` answers for every account; 0 for that of the contracts.
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

/// Arrays and objects within each other that Go's decoder takes (`maxNestingDepth` in encoding/json); deeper ones are a
/// syntax error to it, after which geth reads no more from the connection.
const MAX_DEPTH: usize = 10_000;

fn holds(message: &[u8], text: &str) -> bool {
    !text.is_empty() && message.windows(text.len()).any(|window| window == text.as_bytes())
}

/// Brackets in strings do not count.
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
