//! Server for WebSocket and HTTP on one port.
//!
//! hyper reads requests over HTTP/1.1, h2 over HTTP/2, and [`crate::door`] admits clients. An upgraded connection leaves
//! hyper at once, and the session gets the bare socket back, so that there is no layer between our frames and the kernel.

mod call_places;
mod events;
mod events_query;
mod exchange;
mod handshake;
mod http_response;
mod http_rpc;
mod listener;
mod permessage_deflate;
mod proxy_protocol;
mod request_body;
mod response_body;
mod write_timeout;

pub use events::{EventsRequest, StreamStart};
// For users of the upgrade without the rest of the server: the echo server of `make autobahn`, and the fuzz targets.
pub use handshake::{check as check_upgrade, is_upgrade};
#[cfg(test)]
pub(crate) use http_rpc::Http;
pub use listener::{Http2, Http2Settings, Server, ServerSettings};
pub use permessage_deflate::agree as agree_on_extension;
pub use proxy_protocol::{NotProxied, client_of};
pub use write_timeout::WriteTimeout;
