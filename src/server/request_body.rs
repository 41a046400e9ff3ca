//! Reading of request bodies. Each is charged before it is read, so that a client whose quota is used up cannot make us
//! read a long one.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Body as HyperBody;
use tokio::sync::Notify;

use crate::door::{BYTES_PER_REQUEST, Pass};
use crate::session::RequestRefusal;
use crate::shares::{Budget, Charge, Full};

/// Minimum length of a body that is charged to the inbound budget of all clients, in bytes.
const LONG: usize = (4 << 10) + 1;

/// Reason why a body was not read to its end.
#[derive(Debug)]
pub(super) enum Unread {
    /// No quota for the body's length, or no room in the inbound budget for the bytes received so far.
    Refused(RequestRefusal),
    /// Body longer than the limit.
    TooLong,
    /// Client disconnected, or violated HTTP.
    Broken,
}

/// Reads a body, and charges its bytes to the inbound budget as they arrive. An announced length is charged to the
/// client's quota at once; otherwise bytes are charged as they arrive.
///
/// # Errors
/// [`Unread`] if the body exceeds its limit, the quota or the budget, if the charge was evicted for other clients, or
/// if the client fails.
pub(super) async fn read<B: HyperBody<Data = Bytes> + Unpin>(
    mut body: B,
    pass: &Pass,
    inbound: &Arc<Budget>,
) -> Result<(Bytes, Option<Charge>), Unread> {
    let given_up = Arc::new(Notify::new());
    let mut room: Option<Charge> = None;
    let mut held = |bytes: usize| {
        if bytes < LONG {
            return Ok(());
        }
        let charge = room.get_or_insert_with(|| {
            let given_up = given_up.clone();
            inbound.open_evictable(pass.account().owner(), Arc::new(move || given_up.notify_one()))
        });
        charge.resize(bytes).map_err(no_room)
    };
    let max = pass.terms().rights.plan.max_body_bytes;
    let charge = |bytes| {
        let charged = pass.terms().charge_bytes(bytes);
        charged.map_err(|exceeded| Unread::Refused(RequestRefusal::Quota(exceeded)))
    };
    let announced = body.size_hint().exact();
    if let Some(length) = announced {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > max {
            return Err(Unread::TooLong);
        }
        charge(length)?;
    }
    // Grows as bytes arrive: memory is not allocated for an announced length.
    let mut whole = BytesMut::new();
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            () = given_up.notified() => return Err(no_room(Full("too many bytes of messages at once"))),
        };
        let Some(frame) = frame else { break };
        let Ok(data) = frame.map_err(|_| Unread::Broken)?.into_data() else {
            continue;
        };
        let (before, after) = (whole.len(), whole.len() + data.len());
        if after > max {
            return Err(Unread::TooLong);
        }
        if announced.is_none() {
            charge((after / BYTES_PER_REQUEST - before / BYTES_PER_REQUEST) * BYTES_PER_REQUEST)?;
        }
        // Most bodies arrive in one piece, which need not be copied.
        if before == 0 && body.is_end_stream() {
            held(data.len())?;
            whole = data.into();
            break;
        }
        whole.extend_from_slice(&data);
        held(whole.capacity())?;
    }
    if let Some(room) = &mut room {
        room.keep();
    }
    Ok((whole.freeze(), room))
}

fn no_room(full: Full) -> Unread {
    Unread::Refused(RequestRefusal::InboundBytes(full))
}
