//! headwater: an Ethereum JSON-RPC endpoint that holds one connection to a node and serves subscriptions to thousands.
//!
//! # The map
//!
//! ```text
//! event    upstream (a node's words; standing: whose) > chain (ingest, assembly, tracker: one history) > backplane
//!          > subscription (registry with what was published; index, dispatch) > delivery (frames, queue, outbox) > the socket
//!          Of a block's transactions and receipts dispatch has chain::source fetch those that somebody wants; the next head
//!          waits.
//!
//! past     subscription::replay (a client that comes back) > chain::cursor over chain::history, or chain::archive for what
//!          is older than memory > delivery::outbox, until it is level and joins the line above
//!
//! request  server (listener, handshake) > door (who, how much) > session (reader)
//!          > subscription::registry      eth_subscribe, eth_unsubscribe; a kind that only the node knows is wanted of it
//!          > rpc                         everything else: known, held, kept, or somebody is asking
//!                > upstream::routing     a node that has the newest head, can answer, and has the least to do
//!          < delivery::outbox            every answer leaves by the same queue as the events
//! ```
//!
//! The two lines meet at four places: the client's socket, the upstream pool, and, where calls are answered from what was
//! published, the tip of the chain and the blocks that the registry holds.
//!
//! # What holds
//!
//! 1. Nothing before [`delivery`] knows that a client exists; nothing after [`chain`] knows that an upstream exists.
//! 2. What decides does no I/O and reads no clock: upstream's standing; the chain's assembly, tracker, history and cursor; the
//!    filter and its index; what an answer stands on (rpc's anchor); frames and the queue.
//! 3. No channel, map or buffer is unbounded.
//! 4. Loss is never silent: what cannot be delivered ends the connection with a close code and a reason.
//! 5. Only what may be asked twice is asked twice: a signed transaction goes to each node once.
//! 6. On the event path the node's JSON is not rebuilt: its bytes go in, the same bytes go out, to all.
//! 7. Dependencies point one way: `server > session > door, rpc, subscription > delivery`, `rpc > subscription > backplane >
//!    chain > upstream`. `src/layers.rs` says of each module which others it may use, and a test holds the sources against it.
//!
//! Modules in the order of the event's path, then of the request's, then what both stand on.

pub mod upstream;

pub mod chain;

pub mod backplane;

pub mod subscription;

pub mod delivery;

pub mod server;

pub mod door;

pub mod session;

pub mod rpc;

pub mod admin;
pub mod app;
pub mod config;
pub mod devnet;

pub mod clock;
pub mod deflate;
pub mod jsonrpc;
#[cfg(test)]
mod layers;
mod look;
pub mod panics;
pub mod patterns;
pub mod pieces;
pub mod quantity;
pub mod reload;
pub mod telemetry;
pub mod tls;
