//! Settings, from text to checked values.
//!
//! [`typed::Config`] has what a file, variables and flags can set; [`Config`] is what the program runs on, and is made
//! only by checking the former. An unknown key or an invalid value stops the start with an error that names the key.

mod changes;
mod describe;
mod difference;
mod hooks;
mod load;
mod policy;
mod records;
mod schema;
pub mod typed;

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::admin::AdminToken;
use crate::chain::HistorySettings;
use crate::delivery::WriterLimits;
use crate::door::{AccountSecret, Hosts, Policy};
use crate::fleet::FleetSettings;
use crate::method_pattern::Patterns;
use crate::otlp::OtlpSettings;
use crate::rpc::RpcSettings;
use crate::server::{Http2, Http2Settings, ServerSettings};
use crate::session::{KeepaliveSettings, SessionSettings};
use crate::subscription::{ReplaySettings, SessionLimits};
use crate::telemetry::{AccessLogSettings, LogFormat};
use crate::tls::{self, TlsFiles};
use crate::upstream::{Endpoint, Node, Share, UpstreamSettings};
use crate::webhooks::HookSettings;

pub use changes::{check_reload, needs_restart};
pub use describe::{example, reference};
pub use difference::{Change, Effect, differences};
pub use load::{Flags, load};
pub use schema::schema;

/// Shortest interval between two exchanges of quotas.
const LEAST_EXCHANGE: Duration = Duration::from_millis(50);

/// Shortest secret of a fleet, in characters.
const LEAST_SECRET: usize = 32;

/// An unusable configuration; one line that names the key and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// The checked settings that the program runs on.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address for clients.
    pub listen: SocketAddr,
    /// Address for the operator's endpoints (health, metrics, status).
    pub admin: SocketAddr,
    /// Host names accepted in requests to the operator's endpoints.
    pub admin_hosts: Hosts,
    /// Token of the operator's API, see [`crate::admin::AdminToken`].
    pub admin_token: Option<AdminToken>,
    /// File for the usage of each key.
    pub usage_file: Option<PathBuf>,
    /// Nodes by priority; an empty list starts the embedded devnet.
    pub upstreams: Vec<Node>,
    /// Time limits and sizes for nodes.
    pub node: UpstreamSettings,
    /// Forwarding of calls, and caching of their answers.
    pub rpc: RpcSettings,
    /// Bounds of the chain history in memory.
    pub history: HistorySettings,
    /// Bounds of replays for resuming clients.
    pub replay: ReplaySettings,
    /// Admission, rights and quotas of clients; replaced by a reload.
    pub door: Arc<Policy>,
    /// Settings of the listener.
    pub server: ServerSettings,
    /// Bounds of the positions of sessions.
    pub positions: SessionLimits,
    /// Exchange of quotas with other headwaters; `None` if it is off.
    pub fleet: Option<FleetSettings>,
    /// File for the positions of sessions over a restart.
    pub positions_file: Option<PathBuf>,
    /// Settings of each session.
    pub session: SessionSettings,
    /// Maximum number of different subscriptions passed through to the node.
    pub max_passthrough: usize,
    /// Intervals and time limits of pings and writes.
    pub life_signs: KeepaliveSettings,
    /// A head older than this is stale.
    pub max_head_age: Duration,
    /// Time limit of the drain at shutdown.
    pub grace: Duration,
    /// `true` if another process may listen on the same port (SO_REUSEPORT).
    pub reuse_port: bool,
    /// Format of the log.
    pub log_format: LogFormat,
    /// Filter of the log, in `tracing` syntax.
    pub log_filter: String,
    /// Access log; `None` if it is off.
    pub access_log: Option<AccessLogSettings>,
    /// Export of spans; `None` if it is off.
    pub tracing: Option<OtlpSettings>,
    /// Webhooks; replaced by a reload.
    pub webhooks: Vec<HookSettings>,
    /// Settings of the embedded chain, used if there is no upstream.
    pub devnet: crate::devnet::Config,
}

impl Config {
    /// Checks the upstreams.
    fn check_nodes(typed: &typed::Config) -> Result<Vec<Node>, ConfigError> {
        let node = &typed.node;
        let upstreams = typed.upstream.iter().map(upstream).collect::<Result<Vec<_>, _>>()?;
        if !upstreams.is_empty() && upstreams.iter().all(|node| node.calls == Share::None) {
            return Err(bad(
                "upstream",
                &"calls is \"none\" for every upstream, so none could answer a call: change at least one",
            ));
        }
        // Between two polls a healthy node may lag behind.
        let polled = upstreams.iter().any(|node| matches!(node.endpoint, Endpoint::Http(_)));
        if polled && upstreams.len() > 1 && node.poll_interval > node.silence_timeout / 4 {
            return Err(bad(
                "node.poll_interval",
                &"must not be longer than a quarter of node.silence_timeout if there are several upstreams",
            ));
        }
        Ok(upstreams)
    }

    /// Checks the settings, and reads the files that they name.
    ///
    /// # Errors
    /// Returns a [`ConfigError`] for the first invalid value.
    pub fn check(typed: &typed::Config) -> Result<Self, ConfigError> {
        let address = |key: &str, value: &str| {
            value.parse::<SocketAddr>().map_err(|_| {
                bad(
                    key,
                    &format_args!("{value:?} is not a valid address: use IP:PORT, as in 127.0.0.1:9546 or [::]:9546"),
                )
            })
        };
        let upstreams = Self::check_nodes(typed)?;
        let (node, delivery) = (&typed.node, &typed.delivery);
        if node.reconnect_max < node.reconnect_min {
            return Err(bad(
                "node.reconnect_max",
                &"must not be shorter than node.reconnect_min",
            ));
        }
        if typed.keepalive.silence_timeout <= typed.keepalive.ping_interval {
            return Err(bad(
                "keepalive.silence_timeout",
                &"must be longer than keepalive.ping_interval",
            ));
        }
        // A token that is younger, and unknown, counts as new.
        if typed.sessions.keep < Duration::from_secs(30) {
            return Err(bad("sessions.keep", &"must be at least 30s"));
        }
        let file = |path: &str| (!path.is_empty()).then(|| PathBuf::from(path));
        let certificate = match (file(&typed.tls.certificate), file(&typed.tls.key)) {
            (Some(certificate), Some(key)) => {
                let client_ca = file(&typed.tls.client_ca);
                let files = TlsFiles {
                    certificate,
                    key,
                    client_ca,
                    http2: typed.server.http2 != Http2::Off,
                };
                Some(files.load().map_err(|why| bad("tls", &why))?)
            }
            (None, None) if typed.tls.client_ca.is_empty() => None,
            (None, _) => return Err(bad("tls.certificate", &"must be set if tls.key or tls.client_ca is")),
            (Some(_), None) => return Err(bad("tls.key", &"must be set if tls.certificate is")),
        };
        Ok(Self {
            listen: address("listen", &typed.listen)?,
            admin: address("admin", &typed.admin)?,
            admin_hosts: Hosts::new(&[&typed.admin_hosts[..], &["localhost".to_owned()]].concat()),
            admin_token: file(&typed.admin_token_file)
                .map(|path| AdminToken::read(&path).map_err(|why| bad("admin_token_file", &why)))
                .transpose()?,
            usage_file: file(&typed.admin_usage_file),
            reuse_port: typed.server.reuse_port,
            upstreams,
            node: UpstreamSettings {
                chain_id: NonZeroU64::new(node.chain_id),
                request_timeout: positive("node.request_timeout", node.request_timeout)?,
                connect_timeout: positive("node.connect_timeout", node.connect_timeout)?,
                reconnect_min: positive("node.reconnect_min", node.reconnect_min)?,
                reconnect_max: node.reconnect_max,
                silence_timeout: positive("node.silence_timeout", node.silence_timeout)?,
                failback_after: node.failback_after,
                poll_interval: positive("node.poll_interval", node.poll_interval)?,
                head_wait: typed.calls.head_wait_timeout,
                hedge: typed.calls.hedge,
                max_in_flight: at_least("node.max_in_flight", node.max_in_flight, 1)?,
                max_passthrough: typed.subscriptions.max_passthrough,
                lanes: match node.lanes {
                    lanes @ 1..=2 => lanes,
                    _ => return Err(bad("node.lanes", &"must be 1 or 2")),
                },
                compression: node.http_compression,
                max_message_bytes: bytes("node.max_message_bytes", node.max_message_bytes, 1 << 20)?,
                max_answer_bytes: bytes("memory.upstream", typed.memory.upstream, 1 << 20)?,
                trust: tls::trust(file(&node.ca).as_deref()).map_err(|why| bad("node.ca", &why))?,
            },
            rpc: RpcSettings {
                broadcast: typed.calls.broadcast,
                max_request_bytes: bytes("node.max_request_bytes", node.max_request_bytes, 1024)?,
                max_response_bytes: bytes("calls.max_response_bytes", typed.calls.max_response_bytes, 1024)?,
                max_batch_response_bytes: bytes(
                    "calls.max_batch_response_bytes",
                    typed.calls.max_batch_response_bytes,
                    1024,
                )?,
                max_cache_bytes: typed.cache.max_bytes.as_u64(),
                verify: typed.history.verify,
                is_local: address("listen", &typed.listen)?.ip().is_loopback(),
                max_in_flight: node.max_in_flight,
                queue_wait: node.request_timeout,
                max_answer_bytes: bytes("memory.answers", typed.memory.answers, 64 << 10)?,
            },
            history: HistorySettings {
                blocks: at_least("history.blocks", typed.history.blocks, 1)?,
                max_replay: typed.history.max_replay,
                verify: typed.history.verify,
                // Longer than the silence timeout of any upstream: a node that reconnects may report an abandoned
                // branch before it has caught up, and to follow it there may lead below the history in memory.
                rewind_delay: 3 * node.silence_timeout,
                max_parent_bytes: bytes("memory.parents", typed.memory.parents, 1 << 20)?,
                max_bytes: bytes("memory.history", typed.memory.history, 1 << 20)?,
            },
            replay: ReplaySettings {
                max_blocks: typed.history.max_replay,
                max_reorg: typed.history.blocks,
                filter_from_block: typed.subscriptions.filter_from_block == typed::FilterFromBlock::Replay,
                finality_depth: typed.history.finality_depth,
                block_wait: typed.calls.head_wait_timeout,
                max_page_bytes: bytes("memory.replays", typed.memory.replays, 1 << 20)?,
            },
            door: Arc::new(policy::check(typed)?),
            server: ServerSettings {
                header_timeout: positive("server.header_timeout", typed.server.header_timeout)?,
                write_deadline: positive("delivery.write_deadline", delivery.write_deadline)?,
                compression: delivery.compression == typed::Compression::On,
                http_compression: typed.server.http_compression == typed::Compression::On,
                http2: Http2Settings {
                    offered: typed.server.http2,
                    max_streams: u32::try_from(at_least("server.http2_streams", typed.server.http2_streams, 1)?)
                        .map_err(|_| bad("server.http2_streams", &"must be below 4,294,967,296"))?,
                    ping_interval: positive("keepalive.ping_interval", typed.keepalive.ping_interval)?,
                    silence_timeout: typed.keepalive.silence_timeout,
                },
                proxied: typed.server.proxy_protocol,
                tls: certificate,
            },
            max_passthrough: typed.subscriptions.max_passthrough,
            positions: SessionLimits {
                keep: typed.sessions.keep,
                overlap: typed.sessions.overlap,
                max: at_least("sessions.max", typed.sessions.max, 1)?,
                max_bytes: bytes("memory.sessions", typed.memory.sessions, 64 << 10)?,
            },
            fleet: fleet(&typed.fleet)?,
            positions_file: file(&typed.sessions.file),
            session: SessionSettings {
                silence_timeout: typed.keepalive.silence_timeout,
                writer: WriterLimits {
                    max_bytes: bytes("delivery.max_queue_bytes", delivery.max_queue_bytes, 64 << 10)?,
                    max_total_bytes: bytes(
                        "delivery.max_total_queue_bytes",
                        delivery.max_total_queue_bytes,
                        64 << 10,
                    )?,
                    max_age: positive("delivery.max_queue_age", delivery.max_queue_age)?,
                    holdoff: delivery.holdoff,
                },
                max_inbound_bytes: bytes("memory.inbound", typed.memory.inbound, 64 << 10)?,
                notsent_lowat: u32::try_from(delivery.notsent_lowat.as_u64())
                    .map_err(|_| bad("delivery.notsent_lowat", &"must be below 4 GiB"))?,
            },
            life_signs: KeepaliveSettings {
                ping_interval: positive("keepalive.ping_interval", typed.keepalive.ping_interval)?,
                silence_timeout: typed.keepalive.silence_timeout,
                write_deadline: positive("delivery.write_deadline", delivery.write_deadline)?,
            },
            max_head_age: positive("ready.max_head_age", typed.ready.max_head_age)?,
            grace: positive("shutdown.grace", typed.shutdown.grace)?,
            log_format: typed.log.format,
            log_filter: typed.log.filter.clone(),
            access_log: records::access_log(&typed.log)?,
            tracing: records::tracing(&typed.tracing)?,
            webhooks: hooks::check(&typed.webhooks)?,
            devnet: crate::devnet::Config {
                seed: typed.devnet.seed,
                block_time: Some(positive("devnet.block_time", typed.devnet.block_time)?),
                pending_rate: f64::from(typed.devnet.pending_rate),
                transactions_per_block: typed.devnet.transactions_per_block,
                logs_per_transaction: typed.devnet.logs_per_transaction,
                ..crate::devnet::Config::default()
            },
        })
    }
}

fn upstream(typed: &typed::Upstream) -> Result<Node, ConfigError> {
    let node = |address: &str| {
        let endpoint = address.parse::<Endpoint>().map_err(|why| bad("upstream", &why))?;
        Ok(Node::from(endpoint))
    };
    match typed {
        typed::Upstream::Address(address) => node(address),
        typed::Upstream::Described(own) => Ok(Node {
            archive: own.archive,
            methods: match &own.methods {
                Some(methods) if methods.is_empty() => {
                    return Err(bad(
                        "upstream.methods",
                        &"is empty: list the methods of the node, or set calls = \"none\" for heads and logs only",
                    ));
                }
                Some(methods) => Patterns::parse(methods).map_err(|why| bad("upstream.methods", &why))?,
                None => Patterns::all(),
            },
            calls: own.calls,
            ..node(&own.address)?
        }),
    }
}

fn fleet(typed: &typed::Fleet) -> Result<Option<FleetSettings>, ConfigError> {
    const KEY: &str = "fleet.secret_file";
    if typed.exchange < LEAST_EXCHANGE {
        return Err(bad("fleet.exchange", &"must be at least 50ms"));
    }
    if typed.secret_file.is_empty() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&typed.secret_file).map_err(|why| {
        bad(
            KEY,
            &format_args!(
                "cannot read {}: {why}; create it with `openssl rand -hex 32`",
                typed.secret_file
            ),
        )
    })?;
    let secret = text.trim();
    if secret.len() < LEAST_SECRET {
        return Err(bad(
            KEY,
            &format_args!(
                "{} holds less than {LEAST_SECRET} characters: create it with `openssl rand -hex 32`",
                typed.secret_file
            ),
        ));
    }
    Ok(Some(FleetSettings {
        secret: AccountSecret::new(secret.as_bytes()),
        exchange: typed.exchange,
    }))
}

fn share(key: &str, value: f64) -> Result<f64, ConfigError> {
    if !(0.0..=1.0).contains(&value) {
        return Err(bad(key, &format_args!("is {value}, must be from 0 to 1")));
    }
    Ok(value)
}

fn bad(key: &str, why: &dyn std::fmt::Display) -> ConfigError {
    ConfigError(format!("{key}: {why}"))
}

fn positive(key: &str, value: Duration) -> Result<Duration, ConfigError> {
    if value.is_zero() {
        return Err(bad(key, &"must be longer than 0s"));
    }
    Ok(value)
}

fn at_least(key: &str, value: usize, least: usize) -> Result<usize, ConfigError> {
    if value < least {
        return Err(bad(key, &format_args!("is {value}, must be at least {least}")));
    }
    Ok(value)
}

fn bytes(key: &str, value: bytesize::ByteSize, least: usize) -> Result<usize, ConfigError> {
    let value = usize::try_from(value.as_u64()).map_err(|_| bad(key, &"is too large"))?;
    at_least(key, value, least)
}

fn non_zero(key: &str, value: u32) -> Result<NonZeroU32, ConfigError> {
    NonZeroU32::new(value).ok_or_else(|| bad(key, &"must be at least 1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(edit: impl FnOnce(&mut typed::Config), message: &str) {
        let mut typed = typed::Config::default();
        edit(&mut typed);
        assert_eq!(Config::check(&typed).expect_err("refused").to_string(), message);
    }

    #[test]
    fn the_defaults_make_sense() {
        assert!(Config::check(&typed::Config::default()).is_ok());
    }

    #[test]
    fn what_makes_no_sense_names_its_key() {
        refused(
            |c| c.limits.max_connections = 0,
            "limits.max_connections: is 0, must be at least 1",
        );
        refused(
            |c| c.limits.requests_per_second = 0,
            "limits.requests_per_second: must be at least 1",
        );
        refused(
            |c| c.listen = "9546".into(),
            "listen: \"9546\" is not a valid address: use IP:PORT, as in 127.0.0.1:9546 or [::]:9546",
        );
        refused(
            |c| c.upstream = vec!["localhost".into()],
            "upstream: \"localhost\" is not a valid node address: use ws://, wss://, http:// or https://, or the \
             path of an IPC socket",
        );
        refused(
            |c| c.node.reconnect_max = Duration::ZERO,
            "node.reconnect_max: must not be shorter than node.reconnect_min",
        );
        refused(
            |c| {
                c.upstream = vec!["ws://a".into(), "http://b".into()];
                c.node.poll_interval = Duration::from_secs(3);
            },
            "node.poll_interval: must not be longer than a quarter of node.silence_timeout if there are several \
             upstreams",
        );
        refused(
            |c| c.shutdown.grace = Duration::ZERO,
            "shutdown.grace: must be longer than 0s",
        );
        refused(
            |c| c.delivery.max_total_queue_bytes = bytesize::ByteSize::b(0),
            "delivery.max_total_queue_bytes: is 0, must be at least 65536",
        );
        refused(
            |c| (c.log.access, c.log.access_sample) = ("stdout".into(), 1.5),
            "log.access_sample: is 1.5, must be from 0 to 1",
        );
        refused(
            |c| c.tracing.endpoint = "127.0.0.1:4318".into(),
            "tracing.endpoint: is not the address of a collector: use http:// or https://, as in http://127.0.0.1:4318",
        );
        refused(
            |c| c.limits.max_batch = 5000,
            "limits.max_batch: is 5000, above limits.request_burst (2000): such a batch would always be refused",
        );
    }
}
