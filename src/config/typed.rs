//! What can be typed, with its defaults. Every field is a key of the file and a variable `HEADWATER_SECTION_KEY`.

use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Deserializer, Serialize};

use crate::chain::Verify;
use crate::telemetry::LogFormat;

/// The whole file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)] // The words for every key are in `describe`, where people read them.
pub struct Config {
    pub listen: String,
    pub admin: String,
    #[serde(deserialize_with = "one_or_many")]
    pub upstream: Vec<String>,
    pub node: Node,
    pub history: History,
    pub subscriptions: Subscriptions,
    pub limits: Limits,
    pub delivery: Delivery,
    pub keepalive: Keepalive,
    pub server: Server,
    pub tls: Tls,
    pub methods: Methods,
    pub ready: Ready,
    pub shutdown: Shutdown,
    pub log: Log,
    pub devnet: Devnet,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:9546".into(),
            admin: "127.0.0.1:9547".into(),
            upstream: Vec::new(),
            node: Node::default(),
            history: History::default(),
            subscriptions: Subscriptions::default(),
            limits: Limits::default(),
            delivery: Delivery::default(),
            keepalive: Keepalive::default(),
            server: Server::default(),
            tls: Tls::default(),
            methods: Methods::default(),
            ready: Ready::default(),
            shutdown: Shutdown::default(),
            log: Log::default(),
            devnet: Devnet::default(),
        }
    }
}

/// A section: its fields, their types and defaults.
macro_rules! section {
    ($name:ident, $what:literal { $( $(#[$attribute:meta])* $field:ident: $kind:ty = $default:expr, )* }) => {
        #[doc = $what]
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        #[allow(missing_docs)]
        pub struct $name { $( $(#[$attribute])* pub $field: $kind, )* }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )* }
            }
        }
    };
}

section!(Node, "Patience towards the nodes." {
    chain_id: u64 = 0,
    ca: String = String::new(),
    #[serde(with = "humantime_serde")]
    request_timeout: Duration = Duration::from_secs(30),
    #[serde(with = "humantime_serde")]
    connect_timeout: Duration = Duration::from_secs(10),
    #[serde(with = "humantime_serde")]
    reconnect_min: Duration = Duration::from_millis(100),
    #[serde(with = "humantime_serde")]
    reconnect_max: Duration = Duration::from_secs(10),
    #[serde(with = "humantime_serde")]
    silence_timeout: Duration = Duration::from_secs(10),
    #[serde(with = "humantime_serde")]
    take_back_after: Duration = Duration::from_secs(30),
    #[serde(with = "humantime_serde")]
    poll_interval: Duration = Duration::from_secs(1),
    max_in_flight: usize = 4096,
    max_request_bytes: ByteSize = ByteSize::mib(5),
    max_message_bytes: ByteSize = ByteSize::mib(256),
});

section!(History, "What is kept of the chain." {
    blocks: usize = 256,
    max_replay: u64 = 10_000,
    verify: Verify = Verify::Bloom,
});

section!(Subscriptions, "What subscriptions mean." {
    filter_from_block: FilterFromBlock = FilterFromBlock::Bound,
});

/// What the `fromBlock` of a filter means in `eth_subscribe("logs", …)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FilterFromBlock {
    /// It bounds the live logs, as in geth.
    Bound,
    /// The logs from there on are told first.
    Replay,
}

section!(Limits, "How much clients may ask." {
    max_connections: usize = 10_000,
    requests_per_second: u32 = 500,
    request_burst: u32 = 2_000,
    max_subscriptions: usize = 1_024,
    max_message_bytes: ByteSize = ByteSize::mib(5),
    max_body_bytes: ByteSize = ByteSize::mib(5),
    max_batch: usize = 1_000,
    max_in_flight: u32 = 256,
});

section!(Delivery, "How events leave." {
    #[serde(with = "humantime_serde")]
    holdoff: Duration = Duration::from_millis(10),
    max_queue_bytes: ByteSize = ByteSize::mib(16),
    max_total_queue_bytes: ByteSize = ByteSize::mib(512),
    #[serde(with = "humantime_serde")]
    max_queue_age: Duration = Duration::from_secs(30),
    #[serde(with = "humantime_serde")]
    write_deadline: Duration = Duration::from_secs(20),
    notsent_lowat: ByteSize = ByteSize::kib(128),
    compression: Compression = Compression::Off,
});

/// Whether clients that offer compression get it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Their offer is declined by silence, as nodes do.
    Off,
    /// permessage-deflate (RFC 7692).
    On,
}

section!(Keepalive, "Signs of life from clients." {
    #[serde(with = "humantime_serde")]
    ping_interval: Duration = Duration::from_secs(25),
    #[serde(with = "humantime_serde")]
    silence_timeout: Duration = Duration::from_secs(60),
});

section!(Server, "The door." {
    origins: Vec<String> = vec!["http://localhost".into(), "http://127.0.0.1".into()],
    #[serde(with = "humantime_serde")]
    header_timeout: Duration = Duration::from_secs(10),
    proxy_protocol: bool = false,
    reuse_port: bool = false,
});

section!(Tls, "Our certificate." {
    certificate: String = String::new(),
    key: String = String::new(),
    client_ca: String = String::new(),
});

section!(Methods, "What is forwarded." {
    denied: Vec<String> = ["admin_*", "clique_*", "debug_*", "engine_*", "miner_*", "personal_*"].map(str::to_owned).to_vec(),
});

section!(Ready, "When `/ready` says yes." {
    #[serde(with = "humantime_serde")]
    max_head_age: Duration = Duration::from_secs(120),
});

section!(Shutdown, "How we leave." {
    #[serde(with = "humantime_serde")]
    grace: Duration = Duration::from_secs(10),
});

section!(Log, "The log." {
    format: LogFormat = LogFormat::Text,
    filter: String = "info".into(),
});

section!(Devnet, "The embedded chain." {
    seed: u64 = 1,
    #[serde(with = "humantime_serde")]
    block_time: Duration = Duration::from_secs(2),
    pending_rate: u32 = 4,
    transactions_per_block: usize = 8,
    logs_per_transaction: usize = 3,
});

/// One address, several in a list, or several with commas between (the form for a variable).
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::Many(many) => many,
        OneOrMany::One(text) => text
            .split(',')
            .map(|one| one.trim().to_owned())
            .filter(|one| !one.is_empty())
            .collect(),
    })
}
