//! One port for WebSocket and HTTP.
//!
//! hyper reads requests, [`crate::door`] says who may come in; an upgrade leaves hyper at once, and the session gets the
//! bare socket back, so that nothing stands between our frames and the kernel.

mod answer;
mod body;
mod extension;
mod handshake;
mod listener;
mod patient;
mod post;
mod proxied;
mod upload;

// These for whoever upgrades without the rest of the door: the echo server of `make autobahn`, and the fuzz targets.
pub use extension::agree as agree_on_extension;
pub use handshake::{check as check_upgrade, is_upgrade};
pub use listener::{Server, ServerSettings};
pub use proxied::{NotProxied, client_of};
