//! Who wants what, and handing it to them.

mod dispatch;
mod filter;
mod index;
mod kind;
mod registry;

pub use dispatch::dispatch;
pub use filter::LogFilter;
pub use index::{Index, Slot};
pub use kind::Topic;
pub use registry::{Registry, Subscription};
