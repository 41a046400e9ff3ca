//! The body of a request, charged before it is read: who has used up the quota does not cost the reading of a long one.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};

use crate::door::{BYTES_PER_REQUEST, Exceeded, Pass};

/// Why a body was not read to its end.
#[derive(Debug)]
pub enum Unread {
    /// The client's quota does not reach for its length.
    Exceeded(Exceeded),
    /// It is longer than bodies may be.
    TooLong,
    /// The client broke off, or broke the rules of HTTP.
    Broken,
}

/// Reads a body. The length that was announced is charged at once; where none was, what comes is charged as it comes.
///
/// # Errors
/// [`Unread`].
pub async fn read(mut body: Incoming, pass: &Pass) -> Result<Bytes, Unread> {
    let max = pass.terms().rights.plan.max_body_bytes;
    let charge = |bytes| pass.terms().charge_bytes(bytes).map_err(Unread::Exceeded);
    let announced = body.size_hint().exact();
    if let Some(length) = announced {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > max {
            return Err(Unread::TooLong);
        }
        charge(length)?;
    }
    // Grows with what comes: an announcement alone is no reason for memory.
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
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
        // Most bodies come in one piece, which need not be copied.
        if before == 0 && body.is_end_stream() {
            return Ok(data);
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}
