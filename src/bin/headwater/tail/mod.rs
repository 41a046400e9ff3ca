//! `headwater tail`: prints the events of any endpoint, one line each, without a gap and without a duplicate.
//!
//! ```text
//! plan        flags, ABI files > endpoint, kinds, filter, events; checked before a connection is opened
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
mod error;
mod event;
mod filter;
mod follow;
mod format;
mod json;
mod message;
mod node;
mod plan;
mod printer;
mod resume;
mod value;
mod walk;
mod window;

use std::os::fd::AsFd as _;

use tokio::io::Interest;
use tokio::net::unix::pipe::Sender;

pub use error::TailError;
pub use plan::TailArgs;

/// Subscribes and prints until all that was asked for is printed.
///
/// # Errors
/// The reason for which it stopped before, with its exit code. A connection that is lost after the first subscription
/// counts only with `--no-retry`.
pub async fn tail(args: TailArgs) -> Result<(), TailError> {
    // Fails if a provider is installed already, which serves as well.
    drop(rustls::crypto::ring::default_provider().install_default());
    let abi_files = args.read_abi_files()?;
    let (plan, form, events, count) = plan::Plan::new(args, &abi_files)?;
    if count == Some(0) {
        return Ok(());
    }
    let printer = printer::Printer::new(anstream::stdout(), form, events, count);
    tokio::select! {
        end = follow::Follower::new(plan, printer).run() => end,
        () = reader_left() => Ok(()),
    }
}

/// Waits until the reader of standard output has left, as `head` does after its lines: the next write would tell, but
/// on a quiet endpoint that can take hours. Never ends if the output is no pipe.
async fn reader_left() {
    // Unchecked, and so without a change to the descriptor: it may be a terminal, and writes to it go on to block. A file
    // cannot be watched, and has no reader.
    let watched = std::io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .and_then(Sender::from_owned_fd_unchecked);
    match watched {
        Ok(output) if output.ready(Interest::ERROR).await.is_ok_and(|state| state.is_error()) => {}
        _ => std::future::pending().await,
    }
}
