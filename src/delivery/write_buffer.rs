//! Current write: gathered chunks, and the position up to which they are written.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;

use arrayvec::ArrayVec;
use bytes::Bytes;

use super::template::Template;
use super::{Batch, Chunk, Compression, Recipient};

/// Most pieces in one `writev`. The kernel takes 1024 (`UIO_MAXIOV`); the array is on the stack, 6 kB.
const MAX_SLICES: usize = 384;

/// Chunk completed by a write.
#[derive(Debug)]
pub(super) enum Done {
    /// Frames for this client alone; these subscriptions start after the hold-off.
    Released(Vec<Arc<Recipient>>),
    /// All events of a batch.
    Delivered(Arc<Batch>),
}

/// Chunks, and a position in the first of them.
#[derive(Debug, Default)]
pub(super) struct WriteBuffer {
    chunks: VecDeque<Chunk>,
    /// Pieces (or events) of the first chunk that are written.
    unit: usize,
    /// Bytes of the next piece (or event) that are written.
    offset: usize,
    compression: Compression,
}

impl WriteBuffer {
    /// Creates an empty write for a client with this compression.
    #[must_use]
    pub(super) fn new(compression: Compression) -> Self {
        Self {
            compression,
            ..Self::default()
        }
    }

    /// Returns the list to which gathered chunks are added.
    pub(super) fn chunks(&mut self) -> &mut VecDeque<Chunk> {
        if self.chunks.capacity() == 0 {
            // Growing starts with four, three of which most clients never need.
            self.chunks.reserve_exact(1);
        }
        &mut self.chunks
    }

    /// Returns the uncompressed bytes of all chunks, including the written part of the first.
    #[must_use]
    pub(super) fn bytes(&self) -> usize {
        let len = |chunk: &Chunk| match chunk {
            Chunk::Bytes(pieces, _) => pieces.iter().map(Bytes::len).sum(),
            Chunk::Events(_, batch) => batch.wire_len,
        };
        self.chunks.iter().map(len).sum()
    }

    /// Checks if everything is written.
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Frees the memory if nothing is left to write; capacity for up to four chunks is kept for the next event.
    pub(super) fn rest(&mut self) {
        if self.chunks.is_empty() && self.chunks.capacity() > 4 {
            self.chunks = VecDeque::new();
        }
    }

    /// Adds one frame after all chunks.
    pub(super) fn push(&mut self, frame: Bytes) {
        self.chunks.push_back(Chunk::Bytes(vec![frame], Vec::new()));
    }

    /// Drops all but the frame in progress, so that a close frame can follow. A message for this client alone is
    /// written to its end, since its pieces may be parts of one frame.
    pub(super) fn cut(&mut self) {
        self.chunks.truncate(1);
        let begun = self.unit > 0 || self.offset > 0;
        match self.chunks.front() {
            Some(Chunk::Bytes(..)) if begun => {}
            Some(Chunk::Events(to, batch)) if self.offset > 0 => {
                let rest = batch
                    .slices(self.unit, to.prefix(), self.compression)
                    .concat()
                    .split_off(self.offset);
                self.chunks.clear();
                self.push(rest.into());
                (self.unit, self.offset) = (0, 0);
            }
            _ => {
                self.chunks.clear();
                (self.unit, self.offset) = (0, 0);
            }
        }
    }

    /// Calls `write` once with as many pieces as fit; returns the bytes written and reports completed chunks to `done`.
    ///
    /// # Errors
    /// Returns the error of `write`, `WouldBlock` included.
    pub(super) fn write(
        &mut self,
        mut write: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>,
        mut done: impl FnMut(Done),
    ) -> io::Result<usize> {
        let written = write(&self.slices())?;
        self.advance(written, &mut done);
        Ok(written)
    }

    /// Like [`Self::write`], as one piece if nothing is written yet and `template` can hold it. What the socket does not
    /// take of the piece remains in the chunks.
    ///
    /// # Errors
    /// Returns the error of `write`, `WouldBlock` included.
    pub(super) fn write_filled(
        &mut self,
        template: &mut Template,
        mut write: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>,
        mut done: impl FnMut(Done),
    ) -> io::Result<usize> {
        let is_begun = self.unit > 0 || self.offset > 0;
        let filled = match is_begun {
            true => None,
            false => template.fill(&self.chunks, self.compression),
        };
        let Some(bytes) = filled else {
            return self.write(write, done);
        };
        let written = write(&[IoSlice::new(bytes)])?;
        if written == bytes.len() {
            self.chunks.drain(..).for_each(|chunk| chunk.done(&mut done));
        } else {
            self.advance(written, &mut done);
        }
        Ok(written)
    }

    /// Returns the next pieces. Not in a `Vec`: the cost of one allocation for each write of each client is measurable.
    fn slices(&self) -> ArrayVec<IoSlice<'_>, MAX_SLICES> {
        let mut slices = ArrayVec::new();
        let mut skip = self.offset;
        let mut first = self.unit;
        for chunk in &self.chunks {
            let units = match chunk {
                Chunk::Bytes(pieces, _) => pieces.len(),
                Chunk::Events(_, batch) => batch.events.len(),
            };
            for unit in first..units {
                // An event has three pieces; an event that does not fit waits whole.
                if slices.remaining_capacity() < 3 {
                    return slices;
                }
                match chunk {
                    Chunk::Bytes(pieces, _) => slices.push(IoSlice::new(&pieces[unit][skip..])),
                    Chunk::Events(to, batch) => {
                        for piece in batch.slices(unit, to.prefix(), self.compression) {
                            if skip < piece.len() {
                                slices.push(IoSlice::new(&piece[skip..]));
                                skip = 0;
                            } else {
                                skip -= piece.len();
                            }
                        }
                    }
                }
                skip = 0;
            }
            first = 0;
        }
        slices
    }

    fn advance(&mut self, written: usize, done: &mut impl FnMut(Done)) {
        let mut left = written;
        while let Some(chunk) = self.chunks.front() {
            let (units, len) = match chunk {
                Chunk::Bytes(pieces, _) => (pieces.len(), pieces.get(self.unit).map_or(0, Bytes::len)),
                Chunk::Events(_, batch) => (batch.events.len(), batch.event_len(self.unit, self.compression)),
            };
            if left < len - self.offset {
                self.offset += left;
                return;
            }
            left -= len - self.offset;
            self.offset = 0;
            self.unit += 1;
            if self.unit >= units {
                self.unit = 0;
                if let Some(chunk) = self.chunks.pop_front() {
                    chunk.done(done);
                }
            }
        }
    }
}

impl Chunk {
    /// Reports that the chunk is written.
    fn done(self, done: &mut impl FnMut(Done)) {
        match self {
            Self::Bytes(_, releases) if !releases.is_empty() => done(Done::Released(releases)),
            Self::Bytes(..) => {}
            Self::Events(_, batch) => done(Done::Delivered(batch)),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use proptest::prelude::*;

    use super::*;
    use crate::delivery::{Event, Kind, SubscriptionId};

    fn batch(sizes: &[usize]) -> Arc<Batch> {
        let events = sizes.iter().map(|&n| Event::new(&vec![b'e'; n]).compressible());
        Batch::in_series(Kind::Logs, events.collect(), Instant::now())
    }

    fn any_compression() -> impl Strategy<Value = Compression> {
        prop::sample::select(vec![Compression::None, Compression::NoTakeover, Compression::Takeover])
    }

    /// A template, or none: what is written must not depend on it.
    fn template() -> impl Strategy<Value = Option<Template>> {
        any::<bool>().prop_map(|some| some.then(Template::default))
    }

    fn chunks(shape: &[(bool, Vec<usize>)]) -> Vec<Chunk> {
        shape
            .iter()
            .map(|(shared, sizes)| {
                if *shared {
                    Chunk::Events(Recipient::new(SubscriptionId::random(), 0), batch(sizes))
                } else {
                    let pieces = sizes.iter().map(|&n| vec![b'p'; n].into()).collect();
                    Chunk::Bytes(pieces, vec![Recipient::new(SubscriptionId::random(), 0)])
                }
            })
            .collect()
    }

    fn wire(chunks: &[Chunk], compression: Compression) -> Vec<u8> {
        let mut out = Vec::new();
        for chunk in chunks {
            match chunk {
                Chunk::Bytes(pieces, _) => pieces.iter().for_each(|piece| out.extend_from_slice(piece)),
                Chunk::Events(to, batch) => {
                    for at in 0..batch.events.len() {
                        out.extend(batch.slices(at, to.prefix(), compression).concat());
                    }
                }
            }
        }
        out
    }

    proptest! {
        #[test]
        fn whatever_the_socket_takes_the_bytes_arrive_once_and_in_order(
            shape in prop::collection::vec((any::<bool>(), prop::collection::vec(0usize..600, 1..60)), 1..12),
            compression in any_compression(),
            takes in prop::collection::vec(0usize..5_000, 1..20),
            mut template in template(),
        ) {
            let chunks = chunks(&shape);
            let expect = wire(&chunks, compression);
            let mut writing = WriteBuffer::new(compression);
            writing.chunks().extend(chunks);
            let (mut got, mut finished) = (Vec::new(), 0);
            let mut takes = takes.into_iter().cycle();
            let mut rounds = 0;
            while !writing.is_empty() {
                let take = takes.next().unwrap_or(1) + if rounds > 40 { 4_096 } else { 0 };
                rounds += 1;
                let write = |slices: &[IoSlice<'_>]| {
                    let all: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
                    let taken = &all[..take.min(all.len())];
                    got.extend_from_slice(taken);
                    Ok(taken.len())
                };
                match &mut template {
                    Some(template) => writing.write_filled(template, write, |_| finished += 1),
                    None => writing.write(write, |_| finished += 1),
                }
                .expect("no error");
            }
            prop_assert_eq!(got, expect);
            prop_assert_eq!(finished, shape.len());
        }

        #[test]
        fn after_a_cut_the_close_frame_stands_on_a_frame_boundary(sizes in prop::collection::vec(0usize..600, 1..20), take in 0usize..4_000, compression in any_compression(), mut template in template()) {
            let chunks = chunks(&[(true, sizes.clone())]);
            let all = wire(&chunks, compression);
            let mut ends = vec![0];
            for at in 0..sizes.len() {
                ends.push(ends[at] + batch(&sizes).event_len(at, compression));
            }
            let mut writing = WriteBuffer::new(compression);
            writing.chunks().extend(chunks);
            let write = |slices: &[IoSlice<'_>]| Ok(take.min(slices.iter().map(|s| s.len()).sum()));
            let written = match &mut template {
                Some(template) => writing.write_filled(template, write, |_| ()),
                None => writing.write(write, |_| ()),
            }
            .expect("no error");
            writing.cut();
            let mut rest = Vec::new();
            while !writing.is_empty() {
                writing.write(|slices| { slices.iter().for_each(|s| rest.extend_from_slice(s)); Ok(slices.iter().map(|s| s.len()).sum()) }, |_| ()).expect("no error");
            }
            prop_assert!(all[written..].starts_with(&rest));
            prop_assert!(ends.contains(&(written + rest.len())));
        }
    }
}
