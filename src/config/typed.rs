//! The settings as they are written, with defaults. Each field is a key of the file and a variable
//! `HEADWATER_SECTION_KEY`.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use bytesize::ByteSize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::chain::Verify;
use crate::door::{CredentialSource, Development, ForwardedHeader, PUBLIC, Unknown};
use crate::otlp::Protocol;
use crate::server::Http2;
use crate::telemetry::LogFormat;
use crate::upstream::{NodeCompression, Share};

/// The whole file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)] // The words for every key are in `describe`, where people read them.
pub struct Config {
    pub listen: String,
    pub admin: String,
    #[serde(deserialize_with = "one_or_many")]
    pub admin_hosts: Vec<String>,
    pub admin_token_file: String,
    pub admin_usage_file: String,
    #[serde(deserialize_with = "one_or_many")]
    pub upstream: Vec<Upstream>,
    pub node: Node,
    pub calls: Calls,
    pub cache: Cache,
    pub history: History,
    pub subscriptions: Subscriptions,
    pub sessions: Sessions,
    pub fleet: Fleet,
    pub limits: Limits,
    pub plans: BTreeMap<String, Plan>,
    pub auth: Auth,
    pub keys: BTreeMap<String, Key>,
    pub webhooks: BTreeMap<String, Webhook>,
    pub delivery: Delivery,
    pub memory: Memory,
    pub keepalive: Keepalive,
    pub server: Server,
    pub tls: Tls,
    pub methods: Methods,
    pub ready: Ready,
    pub shutdown: Shutdown,
    pub log: Log,
    pub tracing: Tracing,
    pub devnet: Devnet,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:9546".into(),
            admin: "127.0.0.1:9547".into(),
            admin_hosts: Vec::new(),
            admin_token_file: String::new(),
            admin_usage_file: String::new(),
            upstream: Vec::new(),
            node: Node::default(),
            calls: Calls::default(),
            cache: Cache::default(),
            history: History::default(),
            subscriptions: Subscriptions::default(),
            sessions: Sessions::default(),
            fleet: Fleet::default(),
            limits: Limits::default(),
            plans: BTreeMap::new(),
            auth: Auth::default(),
            keys: BTreeMap::new(),
            webhooks: BTreeMap::new(),
            delivery: Delivery::default(),
            memory: Memory::default(),
            keepalive: Keepalive::default(),
            server: Server::default(),
            tls: Tls::default(),
            methods: Methods::default(),
            ready: Ready::default(),
            shutdown: Shutdown::default(),
            log: Log::default(),
            tracing: Tracing::default(),
            devnet: Devnet::default(),
        }
    }
}

/// Defines a section: its fields, their types and defaults.
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

section!(Node, "Connections to the nodes, and their time limits." {
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
    failback_after: Duration = Duration::from_secs(30),
    #[serde(with = "humantime_serde")]
    poll_interval: Duration = Duration::from_secs(1),
    lanes: u8 = 2,
    http_compression: NodeCompression = NodeCompression::Auto,
    max_in_flight: usize = 4096,
    max_request_bytes: ByteSize = ByteSize::mib(5),
    max_message_bytes: ByteSize = ByteSize::mib(256),
});

/// A node: an address, or a table with an address and options.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
#[allow(missing_docs)]
pub enum Upstream {
    Address(String),
    Described(Described),
}

/// See [`crate::upstream::Node`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Described {
    pub address: String,
    #[serde(default)]
    pub archive: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub methods: Option<Vec<String>>,
    #[serde(default)]
    pub calls: Share,
}

impl From<String> for Upstream {
    fn from(address: String) -> Self {
        Self::Address(address)
    }
}

/// Implemented by hand: for an untagged enum serde reports that no variant fits, but not why.
impl<'de> Deserialize<'de> for Upstream {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Upstream;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address or a table")
            }

            fn visit_str<E>(self, text: &str) -> Result<Upstream, E> {
                Ok(text.into())
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Upstream, A::Error> {
                Described::deserialize(MapAccessDeserializer::new(map)).map(Upstream::Described)
            }
        }
        deserializer.deserialize_any(Read)
    }
}

impl From<&str> for Upstream {
    fn from(address: &str) -> Self {
        Self::Address(address.to_owned())
    }
}

section!(Calls, "Forwarding of calls." {
    #[serde(with = "humantime_serde")]
    head_wait_timeout: Duration = Duration::from_secs(3),
    hedge: bool = false,
    broadcast: bool = false,
    max_response_bytes: ByteSize = ByteSize::mib(128),
    max_batch_response_bytes: ByteSize = ByteSize::mib(24),
});

section!(Cache, "Cached answers." {
    max_bytes: ByteSize = ByteSize::mib(64),
});

section!(History, "Blocks in memory, and resumes." {
    blocks: usize = 256,
    max_replay: u64 = 10_000,
    verify: Verify = Verify::Bloom,
    finality_depth: u64 = 0,
});

section!(Subscriptions, "Meaning of subscriptions." {
    filter_from_block: FilterFromBlock = FilterFromBlock::Bound,
    #[serde(deserialize_with = "one_or_many")]
    passthrough: Vec<String> = vec!["eth_*".into()],
    max_passthrough: usize = 16,
});

section!(Sessions, "Positions of clients that return." {
    #[serde(with = "humantime_serde")]
    keep: Duration = Duration::from_secs(600),
    overlap: u64 = 1,
    max: usize = 40_000,
    file: String = String::new(),
});

/// Meaning of a filter's `fromBlock` in `eth_subscribe("logs", …)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FilterFromBlock {
    /// `fromBlock` bounds the live logs, as in geth.
    Bound,
    /// The logs from `fromBlock` on are delivered first.
    Replay,
}

section!(Limits, "Limits of clients." {
    max_connections: usize = 10_000,
    max_connections_per_client: usize = 9_500,
    handshakes_per_minute: u32 = 12_000,
    requests_per_second: u32 = 500,
    request_burst: u32 = 2_000,
    max_subscriptions: usize = 1_024,
    max_subscriptions_per_client: usize = 100_000,
    max_index_entries: usize = 200_000,
    egress_bytes_per_second: ByteSize = ByteSize(0),
    max_message_bytes: ByteSize = ByteSize::mib(5),
    max_body_bytes: ByteSize = ByteSize::mib(5),
    max_batch: usize = 1_000,
    max_in_flight: u32 = 256,
    max_refusals: u32 = 1_000,
    #[serde(with = "humantime_serde")]
    refusal_window: Duration = Duration::from_secs(10),
});

/// Limits of a plan that differ from [`Limits`]; `None` takes the limit there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Plan {
    pub max_connections_per_client: Option<usize>,
    pub handshakes_per_minute: Option<u32>,
    pub requests_per_second: Option<u32>,
    pub request_burst: Option<u32>,
    pub max_subscriptions: Option<usize>,
    pub max_subscriptions_per_client: Option<usize>,
    pub max_index_entries: Option<usize>,
    pub egress_bytes_per_second: Option<ByteSize>,
    pub max_message_bytes: Option<ByteSize>,
    pub max_body_bytes: Option<ByteSize>,
    pub max_batch: Option<usize>,
    pub max_in_flight: Option<u32>,
}

section!(Auth, "Keys and tokens." {
    required: bool = false,
    accept: Vec<CredentialSource> = vec![CredentialSource::Bearer, CredentialSource::Header, CredentialSource::Path, CredentialSource::Query],
    jwt_secret_file: String = String::new(),
    jwks_file: String = String::new(),
    jwt_issuer: String = String::new(),
    jwt_audience: String = String::new(),
    jwt_plan: String = "default".into(),
});

/// One API key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Key {
    pub hash: String,
    pub plan: Option<String>,
    #[serde(default)]
    pub edge: bool,
    pub methods: Option<Vec<String>>,
    pub subscriptions: Option<Vec<String>>,
    pub origins: Option<Vec<String>>,
    pub addresses: Option<Vec<String>>,
}

/// One webhook; see [`crate::webhooks`]. `None` takes the default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Webhook {
    pub url: String,
    pub stream: Option<String>,
    pub secret_file: Option<String>,
    pub state: Option<String>,
    pub batch: Option<usize>,
    pub batch_bytes: Option<ByteSize>,
    #[serde(default, with = "humantime_serde")]
    pub timeout: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    pub retry_max: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    pub retry_for: Option<Duration>,
    pub dead_letters: Option<String>,
    pub dead_letters_bytes: Option<ByteSize>,
    #[serde(default)]
    pub allow_private: bool,
    pub ca: Option<String>,
}

section!(Fleet, "Quotas that hold for several headwaters." {
    secret_file: String = String::new(),
    #[serde(with = "humantime_serde")]
    exchange: Duration = Duration::from_millis(100),
});

section!(Delivery, "Delivery of events." {
    #[serde(with = "humantime_serde")]
    holdoff: Duration = Duration::from_millis(10),
    max_queue_bytes: ByteSize = ByteSize::mib(16),
    max_total_queue_bytes: ByteSize = ByteSize::mib(256),
    #[serde(with = "humantime_serde")]
    max_queue_age: Duration = Duration::from_secs(30),
    #[serde(with = "humantime_serde")]
    write_deadline: Duration = Duration::from_secs(20),
    notsent_lowat: ByteSize = ByteSize::kib(128),
    compression: Compression = Compression::Off,
});

/// Setting for clients that offer permessage-deflate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// The offer is ignored, as nodes do.
    Off,
    /// permessage-deflate (RFC 7692).
    On,
}

section!(Memory, "Memory for clients and nodes." {
    inbound: ByteSize = ByteSize::mib(64),
    answers: ByteSize = ByteSize::mib(128),
    upstream: ByteSize = ByteSize::mib(128),
    replays: ByteSize = ByteSize::mib(64),
    parents: ByteSize = ByteSize::mib(64),
    history: ByteSize = ByteSize::mib(128),
    sessions: ByteSize = ByteSize::mib(64),
});

section!(Keepalive, "Signs of life from clients." {
    #[serde(with = "humantime_serde")]
    ping_interval: Duration = Duration::from_secs(25),
    #[serde(with = "humantime_serde")]
    silence_timeout: Duration = Duration::from_secs(60),
});

section!(Server, "Admission of clients." {
    #[serde(deserialize_with = "one_or_many")]
    origins: Vec<String> = vec!["http://localhost".into(), "http://127.0.0.1".into(), "http://[::1]".into()],
    #[serde(deserialize_with = "one_or_many")]
    hosts: Vec<String> = vec!["*".into()],
    #[serde(deserialize_with = "one_or_many")]
    subprotocols: Vec<String> = Vec::new(),
    #[serde(deserialize_with = "one_or_many")]
    trusted_proxies: Vec<String> = Vec::new(),
    forwarded_header: ForwardedHeader = ForwardedHeader::XForwardedFor,
    max_handshakes: usize = 4_096,
    #[serde(with = "humantime_serde")]
    header_timeout: Duration = Duration::from_secs(10),
    http_compression: Compression = Compression::On,
    http2: Http2 = Http2::On,
    http2_streams: usize = 128,
    proxy_protocol: bool = false,
    reuse_port: bool = false,
});

section!(Tls, "TLS of the client port." {
    certificate: String = String::new(),
    key: String = String::new(),
    client_ca: String = String::new(),
});

section!(Methods, "Methods that clients may call." {
    #[serde(deserialize_with = "one_or_many")]
    allowed: Vec<String> = PUBLIC.iter().map(|namespace| format!("{namespace}_*")).collect(),
    #[serde(deserialize_with = "one_or_many")]
    denied: Vec<String> = Vec::new(),
    unknown: Unknown = Unknown::Refuse,
    development: Development = Development::Local,
    weights: BTreeMap<String, u32> = WEIGHTS.iter().map(|(method, weight)| ((*method).to_owned(), *weight)).collect(),
});

/// Weight of a call: its cost for a node relative to the cheapest call, about as hosted nodes price it; for methods of
/// headwater's own by the length of their answers.
const WEIGHTS: &[(&str, u32)] = &[
    ("debug_*", 25),
    ("debug_trace*", 100),
    ("eth_call", 2),
    ("eth_callMany", 20),
    ("eth_createAccessList", 5),
    ("eth_estimateGas", 5),
    ("eth_getBlockReceipts", 10),
    ("eth_getFilterLogs", 10),
    ("eth_getLogs", 10),
    ("eth_getProof", 5),
    ("eth_newFilter", 2),
    ("eth_sendRawTransaction", 5),
    ("eth_simulateV1", 20),
    ("headwater_accountSubscriptions", 10),
    ("ots_*", 20),
    ("rpc.discover", 10),
    ("rpc_discover", 10),
    ("trace_*", 50),
    ("trace_filter", 100),
    ("txpool_content*", 50),
];

section!(Ready, "Readiness." {
    #[serde(with = "humantime_serde")]
    max_head_age: Duration = Duration::from_secs(120),
});

section!(Shutdown, "Shutdown." {
    #[serde(with = "humantime_serde")]
    grace: Duration = Duration::from_secs(10),
});

section!(Log, "The log." {
    format: LogFormat = LogFormat::Text,
    filter: String = "info".into(),
    access: String = String::new(),
    access_sample: f64 = 1.0,
});

section!(Tracing, "Export of spans." {
    endpoint: String = String::new(),
    protocol: Protocol = Protocol::Http,
    sample: f64 = 0.01,
    service: String = "headwater".into(),
    ca: String = String::new(),
});

section!(Devnet, "The embedded chain." {
    seed: u64 = 1,
    #[serde(with = "humantime_serde")]
    block_time: Duration = Duration::from_secs(2),
    pending_rate: u32 = 4,
    transactions_per_block: usize = 8,
    logs_per_transaction: usize = 3,
});

/// Reads one value, a list, or a text with commas (the form for a variable).
fn one_or_many<'de, D: Deserializer<'de>, T: Deserialize<'de> + From<String>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    struct Read<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de> + From<String>> Visitor<'de> for Read<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("one, or a list")
        }

        fn visit_str<E>(self, text: &str) -> Result<Vec<T>, E> {
            let words = text.split(',').map(str::trim).filter(|one| !one.is_empty());
            Ok(words.map(|one| one.to_owned().into()).collect())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
            let mut many = Vec::new();
            while let Some(one) = seq.next_element()? {
                many.push(one);
            }
            Ok(many)
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Vec<T>, A::Error> {
            T::deserialize(MapAccessDeserializer::new(map)).map(|one| vec![one])
        }
    }
    deserializer.deserialize_any(Read(PhantomData))
}
