//! Output to clients: frames encoded once, and one bounded queue for each connection.

mod backlog;
mod close;
mod compression;
mod egress;
pub mod event_stream;
pub mod frame;
mod pipe;
mod queue;
mod recipient;
pub mod series;
mod socket;
mod tap;
mod template;
mod write_buffer;
mod writer;

pub use backlog::Backlog;
pub use close::CloseReason;
pub use compression::Compression;
pub use egress::{Allowance, Egress};
pub use event_stream::Framing;
pub use frame::{Event, Prefix};
pub use pipe::Pipe;
pub use queue::{Chunk, Gathered, Kind, Queue};
pub use recipient::{Batch, Recipient, SubscriptionId};
pub use socket::Socket;
pub use tap::{Direction, Discloses, Disclosure, Results, TappedMessage};
pub use writer::{
    Answered, ClientWriter, Ended, InFlight, LivenessSigns, Phase, Sent, Waits, WriterLimits, WriterShared,
};
