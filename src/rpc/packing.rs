//! Packed bodies of answers over HTTP.
//!
//! Long texts are packed by threads apart from those that serve clients, few at a time and a quarter of them for one
//! account. Where none is free the text is sent as it is: packing never delays an answer behind another one's.

use std::sync::Arc;

use bytes::Bytes;

use super::Rpc;
use super::cache::PackedAnswer;
use crate::content_coding::{self, ContentCoding, Packed};
use crate::pieces;
use crate::shares::{Charge, FairPool, Owner};

/// Shortest body that is packed, in bytes: a shorter one fits into one packet anyway.
pub const PACK_FROM: usize = 1 << 10;

/// Longest text that is packed where the client is served, in bytes: well below a millisecond.
const AT_ONCE: usize = 32 << 10;

/// Longer texts that are packed at the same time.
const PLACES: usize = 8;

/// Places for texts that are being packed.
#[derive(Clone, Debug)]
pub(super) struct Packing(Arc<FairPool>);

impl Default for Packing {
    fn default() -> Self {
        Self(FairPool::new("too many answers are packed", PLACES, 0))
    }
}

/// All places are taken, or the packer failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotPacked;

impl Packing {
    /// Packs a text.
    pub(super) async fn pack(&self, coding: ContentCoding, text: &[Bytes], owner: Owner) -> Result<Packed, NotPacked> {
        if pieces::length(text) <= AT_ONCE {
            return content_coding::pack(coding, text).map_err(|_| NotPacked);
        }
        let place = self.0.try_acquire(owner).ok_or(NotPacked)?;
        let text = text.to_vec();
        let packing = tokio::task::spawn_blocking(move || {
            let packed = content_coding::pack(coding, &text);
            drop(place);
            packed
        });
        packing.await.map_err(|_| NotPacked)?.map_err(|_| NotPacked)
    }
}

impl Rpc {
    /// Returns a body in this coding, with the charge for it; `None` if it is to be sent as it is. `text` is the middle
    /// part of `parts` that other bodies may share: if it is a cached answer, it is packed once, and the packed form is
    /// cached beside it.
    pub async fn packed(
        &self,
        coding: ContentCoding,
        parts: &[Bytes],
        owner: Owner,
    ) -> Option<(Vec<Bytes>, Option<Charge>)> {
        if let [before, text, after] = parts {
            let packing = || self.calls.packing.pack(coding, std::slice::from_ref(text), owner);
            match self.calls.cache.packed(text, coding, packing).await {
                PackedAnswer::Packed(packed) => {
                    let body = content_coding::body(before, &packed, after);
                    let mut charge = None;
                    self.try_room(&mut charge, owner, pieces::length(&body)).ok()?;
                    return Some((body, charge));
                }
                PackedAnswer::AsItIs => return None,
                PackedAnswer::NotCached => {}
            }
        }
        let length = pieces::length(parts);
        // The text itself is charged until it is dropped.
        let mut charge = None;
        self.try_room(&mut charge, owner, length).ok()?;
        let packed = self.calls.packing.pack(coding, parts, owner).await.ok()?;
        let body = content_coding::body(b"", &packed, b"");
        let packed_length = pieces::length(&body);
        if let Some(charge) = &mut charge {
            charge.resize(packed_length).ok()?;
        }
        (packed_length < length).then_some((body, charge))
    }
}
