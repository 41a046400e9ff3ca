//! The door: one port for WebSocket and HTTP.
//!
//! hyper reads requests; an upgrade leaves it at once, and the session gets the bare socket back, so that nothing stands
//! between our frames and the kernel.

mod extension;
mod handshake;
mod listener;
mod post;
mod proxied;

pub use handshake::{Origins, Refusal};
pub use listener::{Server, ServerSettings};
