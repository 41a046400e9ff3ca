//! `headwater tail`: prints the events of any endpoint, one line each, without a gap and without a duplicate.
//!
//! ```text
//! plan        flags > endpoint, kinds, filter, abi     checked before anything is opened
//! follow      connect, find out what the endpoint is, and again after a disconnect
//!   resume      a headwater: subscriptions that continue where the last ones ended
//!   backfill    any other node: blocks are walked, their contents fetched; heads only wake the walk
//! window      what was printed: to take it back in a reorg, and to continue after it
//! walk        the way from there to the node's head
//! printer     event > format | json > standard output
//! ```
//!
//! `docs/tail.md` is the manual.

mod abi;
mod backfill;
mod connection;
mod event;
mod filter;
mod follow;
mod format;
mod json;
mod node;
mod plan;
mod printer;
mod resume;
mod text;
mod trouble;
mod value;
mod walk;
mod window;

pub use plan::TailArgs;
pub use trouble::Trouble;

/// Subscribes and prints until all that was asked for is printed.
pub async fn tail(args: TailArgs) -> Result<(), Trouble> {
    // Fails if a provider is installed already, which serves as well.
    drop(rustls::crypto::ring::default_provider().install_default());
    let (plan, form, events, count) = plan::Plan::new(args)?;
    if count == Some(0) {
        return Ok(());
    }
    let printer = printer::Printer::new(anstream::stdout(), form, events, count);
    follow::Follower::new(plan, printer).run().await
}
