//! What leaves for a client: frames encoded once, and one bounded queue for each connection.

mod close;
mod compression;
pub mod frame;
mod outbox;
mod queue;
mod recipient;
pub mod series;
mod writing;

pub use close::CloseReason;
pub use compression::Compression;
pub use frame::{Event, Prefix};
pub use outbox::{Answered, InFlight, Outbox, OutboxLimits, OutboxShared, Over, Phase, Signs, Waits};
pub use queue::{Chunk, Gathered, Kind, Queue};
pub use recipient::{Batch, Recipient, SubscriptionId};

/// Milliseconds since the process's clock began; compared, never shown.
pub type Millis = u64;
