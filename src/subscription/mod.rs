//! Who wants what, and handing it to them.

mod dispatch;
mod filter;
mod index;
mod kind;
mod registry;
mod replay;
mod start;

pub use dispatch::dispatch;
pub use filter::{InBloom, LogFilter};
pub use index::{Index, Slot};
pub use kind::{Topic, no_such_kind};
pub use registry::{Registry, Subscription};
pub use replay::{Finding, ReplaySettings, Replays};
pub use start::Start;
