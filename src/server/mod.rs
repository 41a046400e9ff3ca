//! One port for WebSocket and HTTP.
//!
//! hyper reads requests, [`crate::door`] says who may come in; an upgrade leaves hyper at once, and the session gets the
//! bare socket back, so that nothing stands between our frames and the kernel.

mod answer;
mod extension;
mod handshake;
mod listener;
mod post;
mod proxied;

pub use listener::{Server, ServerSettings};
