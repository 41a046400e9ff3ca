//! Texts in pieces that are written in order: long pieces are shared, short ones copied together.

use bytes::Bytes;

/// Minimum length of a piece that is shared, in bytes; below, a copy is cheaper than another entry of a `writev`.
pub const COPY_BELOW: usize = 4 << 10;

/// Builder of a list of pieces.
#[derive(Debug, Default)]
pub struct Pieces {
    done: Vec<Bytes>,
    open: Vec<u8>,
}

impl Pieces {
    /// Creates a builder with capacity for `bytes` copied bytes.
    #[must_use]
    pub fn with_room(bytes: usize) -> Self {
        Self {
            // Mostly all pieces are short, and become one.
            done: Vec::with_capacity(1),
            open: Vec::with_capacity(bytes),
        }
    }

    /// Adds a copy of `piece`.
    pub fn copy(&mut self, piece: &[u8]) {
        self.open.extend_from_slice(piece);
    }

    /// Adds a piece, shared if long enough, else copied.
    pub fn share(&mut self, piece: &Bytes) {
        if piece.len() < COPY_BELOW {
            return self.copy(piece);
        }
        self.close();
        self.done.push(piece.clone());
    }

    /// Returns all pieces, in order.
    #[must_use]
    pub fn finish(mut self) -> Vec<Bytes> {
        self.close();
        self.done
    }

    fn close(&mut self) {
        if !self.open.is_empty() {
            self.done.push(std::mem::take(&mut self.open).into());
        }
    }
}

/// Returns the total length of the pieces, in bytes.
#[must_use]
pub fn length(pieces: &[Bytes]) -> usize {
    pieces.iter().map(Bytes::len).sum()
}

/// Returns the same text with short neighbours merged into one piece.
#[must_use]
pub fn together(pieces: &[Bytes]) -> Vec<Bytes> {
    let mut out = Pieces::with_room(length(pieces).min(COPY_BELOW));
    pieces.iter().for_each(|piece| out.share(piece));
    out.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_pieces_are_shared_and_short_ones_copied_together() {
        let long = Bytes::from(vec![b'x'; COPY_BELOW]);
        let short = Bytes::from_static(b"ab");
        let pieces = together(&[short.clone(), short.clone(), long.clone(), Bytes::new(), short.clone()]);
        assert_eq!(pieces.len(), 3);
        assert_eq!((&pieces[0][..], &pieces[2][..]), (&b"abab"[..], &b"ab"[..]));
        assert_eq!(pieces[1].as_ptr(), long.as_ptr());
        assert_eq!(length(&pieces), COPY_BELOW + 6);
        assert!(together(&[]).is_empty());
    }
}
