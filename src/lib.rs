//! headwater: an Ethereum JSON-RPC endpoint that subscribes once at a node and serves subscriptions to thousands.
//!
//! # The map
//!
//! ```text
//! event    upstream      connection | poller      an actor per node reports heads; calls go beside it (call_lane)
//!          chain         ingest > pipeline        one canonical history (tracker) out of all reports
//!          backplane                              ordered chain events, bounded
//!          subscription  dispatch > registry      matching subscriptions (index); order per connection (gate)
//!            > chain     published                recent blocks and head, changed in step with the registry's tables
//!          delivery      writer > queue > pump    encoded once, one bounded queue per client, written to its socket
//!
//! contents subscription  content_stream           blocks whose logs, transactions or receipts are not yet delivered
//!          chain         content_fetches          fetched from any node, in parallel with the heads
//!                        > contents > evidence    checked against the header, or by a second way
//!          subscription  contents > gate          delivered per kind, in the order of the chain, then as events above
//!
//! request  server        listener > handshake     TCP, TLS, HTTP, upgrade
//!          door                                   identity, rights, quotas
//!          session       reader > intake          frames to JSON-RPC; charge, parse, plan (HTTP: server > intake)
//!            > subscription::registry             eth_subscribe, eth_unsubscribe
//!            > extension                          methods and subscriptions of the embedding program (jsonrpsee)
//!            > rpc                                everything else: known here, cached, shared with an equal call, or
//!                > upstream::routing              sent to a node
//!          < delivery::writer                     answers and events share one queue
//!
//! fleet    fleet         exchange > ledger        edges report their clients' use to roots, which answer with others'
//!            > door                                use elsewhere, subtracted from this account's quota
//!
//! operator admin         listener > access        pages, the live one too, and who may use the API
//!          operator      api > service            a trait served by jsonrpsee: reads the state of the others, acts on it
//!
//! failover upstream      shared > active          a node is lost, or lags; which one to use instead (ranking > choice)
//!
//! records  telemetry     recorder > access_log     lines, written by a thread
//!                        recorder > trace          spans, exported by otlp
//!
//! resume   subscription  replay > replay_group   a client that returns, up to the live stream
//!          chain         cursor                   over history (published, in memory) or archive (fetched from a node)
//! ```
//!
//! The paths meet at the client's queue, at the pool of upstreams, and at the published chain (`chain::Published`): the
//! registry applies events to it, rpc answers calls from it. `module` serves both to other jsonrpsee servers of the program,
//! by sessions and calls within the process; `webhooks` posts the events of such sessions to receivers.
//!
//! `docs/architecture.md` follows a head, a log, a subscription, a call and a resume step by step. `docs/design.md` has
//! the event contract (E1 to E9) and the reasons of decisions, `docs/protocol.md` the details of the wire protocol that
//! comments cite as "PROTOCOL J17".
//!
//! # Invariants
//!
//! 1. `upstream`, `chain` and `backplane` know no client; a call carries only its account's number (`shares::Owner`)
//!    and record (`conduct::Conduct`). `delivery`, `session` and `server` use neither `chain` nor `upstream`.
//! 2. A head is published as soon as its header and its parents are known. Contents of blocks never delay a head; the
//!    order of heads and contents is kept per connection, for the kinds to which the client subscribes
//!    (`subscription::gate`).
//! 3. Decisions do no I/O and read no clock; they log and count at most: upstream's ranking; the chain's pipeline,
//!    tracker, history, cursor, inquiry and evidence; streams of contents, gate, filters and index; rpc's cache scope; the
//!    queue.
//! 4. Every channel, map and buffer has a bound.
//! 5. Loss is never silent: events that cannot be delivered end the connection with a close code and a reason (a stream of
//!    server-sent events with an event that says it), or with a reset if the client takes no bytes at all.
//!    Best-effort events (pending transactions, kinds that only the node knows) are dropped first, and counted.
//! 6. Only idempotent calls are sent twice. A signed transaction goes to all nodes once or to one; it is sent again only
//!    if its connection was lost, and no node is known to have it.
//! 7. On the event path the node's JSON is not rebuilt: the bytes that arrive are the bytes that all clients get.
//!    Exceptions: headers that were fetched get the members that this node announces, and removed logs are marked.
//! 8. Tables of subscriptions change under one lock, and the published chain with them; sockets are written to after the
//!    lock is released.
//! 9. Dependencies point one way: `server > session > door, rpc, subscription > delivery`, `rpc > subscription >
//!    backplane > chain > upstream`. `src/layers.rs` lists the modules that each may use, and a test checks the sources
//!    against it.
//!
//! Modules in the order of the event path, then of the request path, then the modules that both use.

#![warn(clippy::disallowed_types, unreachable_pub)]

/// Version of jsonrpsee whose modules [`app::App::serve`] takes and [`app::App::module`] returns.
pub use jsonrpsee;

pub mod upstream;

pub mod chain;

pub mod backplane;

pub mod subscription;

pub mod delivery;

pub mod server;

pub mod door;

pub mod session;

pub mod extension;

pub mod fleet;

pub mod module;

pub mod webhooks;

pub mod rpc;

pub mod admin;
pub mod app;
pub mod config;
pub mod devnet;
pub mod operator;

mod backoff;
pub mod clock;
pub mod conduct;
pub mod content_coding;
pub mod deflate;
#[cfg(test)]
mod documents;
mod file_replacement;
pub mod jsonrpc;
#[cfg(test)]
mod layers;
pub mod method_pattern;
pub mod otlp;
pub mod panics;
pub mod pieces;
mod plain_json;
pub mod quantity;
pub mod reload;
pub mod shares;
pub mod telemetry;
pub mod tls;
