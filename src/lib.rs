//! map
pub mod admin;
pub mod app;
pub mod backplane;
pub mod chain;
pub mod clock;
pub mod config;
pub mod delivery;
pub mod devnet;
pub mod jsonrpc;
pub mod rpc;
pub mod server;
pub mod session;
pub mod subscription;
pub mod telemetry;
pub mod upstream;
