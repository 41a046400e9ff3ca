//! The whole service over its real sockets: the app on a free port, a simulated node behind it, raw clients before it.
//!
//! Every wait is bounded by [`harness::PATIENCE`]. A test never waits to show that nothing arrives: a later event
//! whose arrival is certain shows that nothing came before.

// In a test a panic is the report.
#![allow(clippy::unwrap_used)]

mod access_log;
mod admin;
mod bench;
mod block_logs;
mod bystander;
mod calls;
mod cli;
#[path = "../shared/client_frame.rs"]
mod client_frame;
mod compression;
mod contents;
mod door;
mod envelope;
mod events;
mod extension;
mod finality;
mod fleet;
mod frames;
mod grammar;
mod granted;
mod handshake;
mod harness;
mod heights;
mod hostile;
mod http2;
mod http_compression;
mod keys;
mod lanes;
mod liar;
mod limits;
mod membership;
mod memory;
mod module;
mod odd_nodes;
mod odd_words;
mod operator;
mod passthrough;
mod pending;
mod policy;
mod rate_limits;
mod receipts;
mod recovery;
mod regressions;
mod reload;
mod replays;
mod resume;
mod routing;
mod scripted;
mod server_sent_events;
mod sessions;
mod shares;
mod sharing;
mod shutdown;
mod tail;
mod tls;
mod tracing;
mod transactions;
mod tree;
mod upstreams;
mod webhooks;
mod wire;
