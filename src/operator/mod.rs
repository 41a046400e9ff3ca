//! Operator's API: methods and subscriptions in the namespace `operator`, served by jsonrpsee on the admin port.
//!
//! ```text
//! api        the trait: methods and subscriptions; jsonrpsee makes the server's half and a client of it
//! views      what the methods return, as serde types
//! service    the server's half: reads the state of the others, and acts on it
//!   status   one state of everything, for a page that is drawn once a second
//!   clients  filter, sort and page
//!   tap      messages of one client, redacted
//! sampler    once a second: latencies of the last minute, sums of refusals; every ten seconds: usage
//! usage      requests, notifications and bytes of each key by hour
//! audit      acts of operators
//! ```
//!
//! Nothing here is on the path of an event or a call. Sums over all clients come from the walk that checks their signs
//! of life anyway (`session::Clients::watch`). No method takes the lock of the fan-out; the sampler does once a second.

mod api;
mod audit;
mod clients;
mod costs;
mod redaction;
mod sampler;
mod service;
mod status;
mod tap;
mod usage;
mod views;

pub use api::{OperatorClient, OperatorServer};
pub use service::{OperatorService, Parts};
pub use tap::{TapItem, TapQuery};
pub use usage::{UsageFileError, UsageLog};
pub use views::*;
// The items of `subscribe_events`.
pub use crate::telemetry::{Entry, Event};
