//! Frames of one write in one piece of memory, in which only the subscriptions' ids are replaced for each client.
//!
//! Clients of one filter get the same bytes but for the 34 of the id in each frame, at the same places. So the frames
//! are laid out once for a group of clients that are written to one after the other, and each client costs its ids and
//! one slice in place of three slices for each event: a hundred logs are 3.4 kB to copy instead of 75 kB, or of three
//! hundred slices for the kernel to walk through. Each subscription keeps an id of its own (PROTOCOL I2, I3): a client
//! that returns and ends a subscription of its former connection must not end the new one, and nobody learns from an id
//! that others have the same filter.

use std::collections::VecDeque;
use std::sync::Arc;

use super::frame::Prefix;
use super::{Batch, Chunk, Compression, SubscriptionId};

/// Most uncompressed bytes in a template. Larger writes are gathered from their pieces: a socket seldom takes them at
/// once, and the core's cache no longer holds the copy.
const MAX_BYTES: usize = 512 << 10;

/// Frames of some batches, with the places of the ids.
#[derive(Debug, Default)]
pub(super) struct Template {
    bytes: Vec<u8>,
    parts: Vec<Part>,
    /// Positions of the ids in `bytes`, those of all parts in order.
    ids: Vec<usize>,
    compression: Compression,
}

/// Batch in a template. Keeps the batch, so that no other can take its address.
#[derive(Debug)]
struct Part {
    batch: Arc<Batch>,
    ids: usize,
}

impl Template {
    /// Returns the bytes of these chunks, all from their first byte on; `None` if they are not events alone, or too long.
    /// The frames are laid out anew if the previous client got other batches.
    pub(super) fn fill(&mut self, chunks: &VecDeque<Chunk>, compression: Compression) -> Option<&[u8]> {
        if !self.is_of(chunks, compression) {
            self.lay_out(chunks, compression)?;
        }
        let mut places = self.ids.iter();
        for (part, chunk) in self.parts.iter().zip(chunks) {
            let Chunk::Events(to, _) = chunk else { return None };
            if part.ids == 0 {
                continue;
            }
            let id = to.prefix().id()?;
            for &at in places.by_ref().take(part.ids) {
                self.bytes[at..at + SubscriptionId::TEXT_LEN].copy_from_slice(id);
            }
        }
        Some(&self.bytes)
    }

    /// Checks if the frames are those of these chunks.
    fn is_of(&self, chunks: &VecDeque<Chunk>, compression: Compression) -> bool {
        let is_part = |(part, chunk): (&Part, &Chunk)| match chunk {
            Chunk::Events(_, batch) => Arc::ptr_eq(&part.batch, batch),
            Chunk::Bytes(..) => false,
        };
        self.compression == compression
            && self.parts.len() == chunks.len()
            && self.parts.iter().zip(chunks).all(is_part)
    }

    fn lay_out(&mut self, chunks: &VecDeque<Chunk>, compression: Compression) -> Option<()> {
        let Self { bytes, parts, ids, .. } = self;
        bytes.clear();
        parts.clear();
        ids.clear();
        self.compression = compression;
        let add = |total: usize, chunk: &Chunk| match chunk {
            Chunk::Events(_, batch) => Some(total + batch.wire_len).filter(|total| *total <= MAX_BYTES),
            Chunk::Bytes(..) => None,
        };
        bytes.reserve(chunks.iter().try_fold(0, add)?);
        for chunk in chunks {
            let Chunk::Events(to, batch) = chunk else { return None };
            let before = ids.len();
            for at in 0..batch.events.len() {
                let [head, prefix, body] = batch.slices(at, to.prefix(), compression);
                bytes.extend_from_slice(head);
                bytes.extend_from_slice(prefix);
                if !prefix.is_empty() {
                    ids.push(bytes.len() - Prefix::FROM_ID);
                }
                bytes.extend_from_slice(body);
            }
            parts.push(Part {
                batch: batch.clone(),
                ids: ids.len() - before,
            });
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::time::Instant;

    use super::*;
    use crate::delivery::{Event, Kind, Recipient};

    /// Subscription of one of the forms that prefixes have, with a batch whose events have room for it.
    #[derive(Clone, Copy, Debug)]
    enum Form {
        Eth,
        Series,
        Namespace,
        Unnamed,
    }

    impl Form {
        fn recipient(self) -> Arc<Recipient> {
            let id = SubscriptionId::random();
            match self {
                Self::Eth | Self::Series => Recipient::new(id, 0),
                Self::Namespace => Recipient::within("chain", id),
                Self::Unnamed => Recipient::unnamed(id),
            }
        }

        fn batch(self, sizes: &[usize]) -> Arc<Batch> {
            let event = |&len: &usize| match self {
                Self::Eth | Self::Series => Event::new(&vec![b'e'; len]).compressible(),
                Self::Namespace => Event::within("chain", &vec![b'e'; len]),
                Self::Unnamed => Event::naming("chain_news", &vec![b'e'; len]),
            };
            let new = match self {
                Self::Series => Batch::in_series,
                _ => Batch::new,
            };
            new(Kind::Logs, sizes.iter().map(event).collect(), Instant::now())
        }
    }

    fn form() -> impl Strategy<Value = Form> {
        prop::sample::select(vec![Form::Eth, Form::Series, Form::Namespace, Form::Unnamed])
    }

    /// Returns the bytes of a client's chunks as they are without a template.
    fn wire(chunks: &VecDeque<Chunk>, compression: Compression) -> Vec<u8> {
        let frames = chunks.iter().flat_map(|chunk| match chunk {
            Chunk::Events(to, batch) => (0..batch.events.len())
                .map(|at| batch.slices(at, to.prefix(), compression).concat())
                .collect::<Vec<_>>(),
            Chunk::Bytes(pieces, _) => vec![pieces.concat()],
        });
        frames.collect::<Vec<_>>().concat()
    }

    proptest! {
        /// Clients with different subscriptions, one of which may get a batch twice, and differently compressed.
        #[test]
        fn every_client_gets_its_own_frames(
            shapes in prop::collection::vec((form(), prop::collection::vec(0usize..700, 1..40)), 1..4),
            clients in prop::collection::vec(
                (prop::collection::vec(0usize..4, 1..5), prop::sample::select(vec![Compression::None, Compression::NoTakeover, Compression::Takeover])),
                1..12,
            ),
        ) {
            let batches: Vec<_> = shapes.iter().map(|(form, sizes)| (*form, form.batch(sizes))).collect();
            let mut template = Template::default();
            for (batches_of_client, compression) in clients {
                let chunk = |which: &usize| {
                    let (form, batch) = &batches[which % batches.len()];
                    Chunk::Events(form.recipient(), batch.clone())
                };
                let chunks: VecDeque<Chunk> = batches_of_client.iter().map(chunk).collect();
                let filled = template.fill(&chunks, compression);
                prop_assert_eq!(filled, Some(&wire(&chunks, compression)[..]));
            }
        }
    }

    #[test]
    fn a_group_of_clients_is_laid_out_once() {
        let batch = Form::Eth.batch(&[300; 5]);
        let mut template = Template::default();
        let mut fill = || {
            let chunks = [Chunk::Events(Form::Eth.recipient(), batch.clone())].into();
            template.fill(&chunks, Compression::None).map(<[u8]>::as_ptr)
        };
        let first = fill();
        assert!(first.is_some());
        assert!((0..10).all(|_| fill() == first));
        assert_eq!(Arc::strong_count(&batch), 2, "kept once");
    }

    #[test]
    fn answers_and_long_writes_are_left_to_the_pieces() {
        let (short, long) = (Form::Eth.batch(&[10]), Form::Eth.batch(&[MAX_BYTES]));
        let events = |batch: &Arc<Batch>| Chunk::Events(Form::Eth.recipient(), batch.clone());
        let answer = || Chunk::Bytes(vec![b"answer".as_slice().into()], Vec::new());
        let mut template = Template::default();
        for (chunks, fits) in [
            (vec![events(&short)], true),
            (vec![answer()], false),
            (vec![events(&short), answer()], false),
            (vec![answer(), events(&short)], false),
            (vec![events(&long)], false),
            (vec![events(&short), events(&long)], false),
            (vec![events(&short), events(&short)], true),
        ] {
            let chunks = chunks.into();
            let filled = template.fill(&chunks, Compression::None).map(<[u8]>::to_vec);
            assert_eq!(filled, fits.then(|| wire(&chunks, Compression::None)));
        }
    }

    /// Messages of an extension name their subscription themselves, wherever it stands in them.
    #[test]
    fn whole_messages_have_no_id_to_replace() {
        let batch = Batch::new(Kind::Extension, [Event::whole(b"[1,2]")].into(), Instant::now());
        let mut template = Template::default();
        for _ in 0..2 {
            let to = Recipient::whole(SubscriptionId::random());
            let chunks = [Chunk::Events(to, batch.clone())].into();
            let filled = template.fill(&chunks, Compression::None);
            assert_eq!(filled, Some(&b"\x81\x05[1,2]"[..]));
        }
    }
}
