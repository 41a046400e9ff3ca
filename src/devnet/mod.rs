//! A simulated Ethereum node in a struct: the demo when no upstream is configured, the peer in tests, the source of
//! benchmarks.
//!
//! ```text
//! command  Control, devnet_* > node > chain (accounts, block) > feed > session > socket
//! request  server > http | session > rpc (params, abi, filter) > chain > shape > socket
//! ```
//!
//! Everything is seeded: the same [`Config`] and the same sequence of commands give the same hashes. Headers, roots,
//! blooms, signatures and nonces are real; only the state root and the contracts' code are made up. Tests with it are
//! no evidence that real nodes work.

mod abi;
mod accounts;
mod block;
mod chain;
mod config;
mod control;
mod feed;
mod filter;
mod http;
mod ipc;
mod node;
mod params;
mod polling;
mod pool;
mod receipts;
mod rpc;
mod server;
mod session;
mod shape;
mod stall;

pub use block::{Block, Transaction};
pub use chain::{Chain, ChainError, Reorg};
pub use config::{Config, Faults, HoleAnswer};
pub use control::Control;
pub use feed::Stats;
pub use filter::LogFilter;
pub use rpc::RpcError;
pub use server::{Devnet, Error};
