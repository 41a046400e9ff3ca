//! Server for WebSocket and HTTP on one port.
//!
//! hyper reads requests and [`crate::door`] admits clients. An upgraded connection leaves hyper at once, and the
//! session gets the bare socket back, so that there is no layer between our frames and the kernel.

mod answer;
mod body;
mod extension;
mod handshake;
mod listener;
mod patient;
mod post;
mod proxied;
mod upload;

// For users of the upgrade without the rest of the server: the echo server of `make autobahn`, and the fuzz targets.
pub use extension::agree as agree_on_extension;
pub use handshake::{check as check_upgrade, is_upgrade};
pub use listener::{Server, ServerSettings};
pub use proxied::{NotProxied, client_of};
