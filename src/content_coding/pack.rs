//! Packing: gzip members and zstd frames out of shared blocks.

use std::io::{self, Write as _};

use bytes::Bytes;
use crc32fast::Hasher;
use flate2::{Compress, Compression, FlushCompress, Status};

use super::ContentCoding;

/// Level of deflate: fast, since answers are packed while a client waits.
const GZIP_LEVEL: u32 = 3;
/// Level of zstd, its default.
const ZSTD_LEVEL: i32 = 3;
/// Largest window of a zstd frame, as a power of two: 8 MiB, which every client accepts (RFC 9659).
pub(super) const ZSTD_WINDOW: u32 = 23;
/// Room for the output of one step of deflate, in bytes.
const STEP: usize = 32 << 10;

/// Magic number of a zstd frame.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Longest block of bytes as they are in a zstd frame: the smallest window, which bounds every block.
const ZSTD_STORED: usize = 1 << 10;
/// Longest stored block of deflate.
const GZIP_STORED: usize = u16::MAX as usize;

/// A packed text, without the beginning and the end of its format: its blocks may stand anywhere in a body.
#[derive(Clone, Debug)]
pub enum Packed {
    /// Blocks of deflate that end at a byte and of which none is the last.
    Gzip {
        /// The blocks.
        blocks: Bytes,
        /// Check value of the text, and its length in bytes modulo 2^32.
        crc: u32,
        /// Length of the text in bytes.
        length: usize,
    },
    /// Blocks of a zstd frame, of which none is the last.
    Zstd {
        /// Window that the blocks need, as the format's descriptor.
        window: u8,
        /// The blocks.
        blocks: Bytes,
    },
}

impl Packed {
    /// Returns the bytes that it occupies.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Gzip { blocks, .. } | Self::Zstd { blocks, .. } => blocks.len(),
        }
    }

    /// Checks if it has no blocks.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Packs a text in pieces.
///
/// # Errors
/// Returns the error of the compressor; none is known for a text in memory.
pub fn pack(coding: ContentCoding, text: &[Bytes]) -> io::Result<Packed> {
    match coding {
        ContentCoding::Gzip => gzip(text),
        ContentCoding::Zstd => zstd(text),
    }
}

fn gzip(text: &[Bytes]) -> io::Result<Packed> {
    let mut packer = Compress::new(Compression::new(GZIP_LEVEL), false);
    let mut blocks = Vec::with_capacity(STEP);
    let mut crc = Hasher::new();
    for piece in text {
        crc.update(piece);
        deflate(&mut packer, piece, FlushCompress::None, &mut blocks)?;
    }
    // Ends the last block at a byte.
    deflate(&mut packer, &[], FlushCompress::Sync, &mut blocks)?;
    Ok(Packed::Gzip {
        blocks: blocks.into(),
        crc: crc.finalize(),
        length: text.iter().map(Bytes::len).sum(),
    })
}

fn deflate(packer: &mut Compress, mut input: &[u8], flush: FlushCompress, out: &mut Vec<u8>) -> io::Result<()> {
    loop {
        if out.capacity() == out.len() {
            out.reserve(STEP);
        }
        let (before, taken) = (packer.total_in(), out.len());
        let status = packer.compress_vec(input, out, flush).map_err(io::Error::other)?;
        let read = usize::try_from(packer.total_in() - before).map_err(io::Error::other)?;
        input = input.get(read..).unwrap_or_default();
        // Room that is left shows that nothing more is to come.
        let is_done = input.is_empty() && out.len() < out.capacity();
        if is_done || matches!(status, Status::BufError) && out.len() == taken && input.is_empty() {
            return Ok(());
        }
    }
}

fn zstd(text: &[Bytes]) -> io::Result<Packed> {
    let length: usize = text.iter().map(Bytes::len).sum();
    let mut packer = zstd::stream::write::Encoder::new(Vec::with_capacity(STEP), ZSTD_LEVEL)?;
    packer.set_pledged_src_size(Some(length as u64))?;
    packer.include_contentsize(false)?;
    packer.include_checksum(false)?;
    packer.include_dictid(false)?;
    for piece in text {
        packer.write_all(piece)?;
    }
    let mut frame = packer.finish()?;
    let [a, b, c, d, 0, window, ..] = frame[..] else {
        return Err(io::Error::other("a zstd frame with an unexpected header"));
    };
    if [a, b, c, d] != ZSTD_MAGIC || window >> 3 > (ZSTD_WINDOW - 10) as u8 {
        return Err(io::Error::other("a zstd frame with an unexpected header"));
    }
    let last = last_block(&frame).ok_or_else(|| io::Error::other("a zstd frame with unexpected blocks"))?;
    frame[last] &= !1;
    Ok(Packed::Zstd {
        window,
        blocks: Bytes::from(frame).slice(6..),
    })
}

/// Returns the offset of the last block of a frame with a header of six bytes.
fn last_block(frame: &[u8]) -> Option<usize> {
    let mut at = 6;
    loop {
        let [a, b, c] = *frame.get(at..)?.first_chunk()?;
        let header = u32::from_le_bytes([a, b, c, 0]);
        // A block of one repeated byte holds that byte alone.
        let length = if header >> 1 & 3 == 1 { 1 } else { header >> 3 };
        if header & 1 == 1 {
            return Some(at);
        }
        at += 3 + length as usize;
    }
}

/// Returns a body in this coding: `before` and `after` as they are around the packed text. The pieces of `before` and
/// `after` are copied.
#[must_use]
pub fn body(before: &[u8], packed: &Packed, after: &[u8]) -> Vec<Bytes> {
    match packed {
        Packed::Gzip { blocks, crc, length } => {
            // No name, no time, an unknown system.
            let mut head = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
            before
                .chunks(GZIP_STORED)
                .for_each(|part| stored(&mut head, part, false));
            let mut tail = Vec::with_capacity(after.len() + 13);
            let mut parts = after.chunks(GZIP_STORED).peekable();
            if parts.peek().is_none() {
                stored(&mut tail, &[], true);
            }
            while let Some(part) = parts.next() {
                let is_last = parts.peek().is_none();
                stored(&mut tail, part, is_last);
            }
            let check = |text: &[u8]| {
                let mut crc = Hasher::new();
                crc.update(text);
                crc
            };
            let mut whole = check(before);
            whole.combine(&Hasher::new_with_initial_len(*crc, *length as u64));
            whole.combine(&check(after));
            let total = (before.len() + length + after.len()) as u32;
            tail.extend_from_slice(&whole.finalize().to_le_bytes());
            tail.extend_from_slice(&total.to_le_bytes());
            vec![head.into(), blocks.clone(), tail.into()]
        }
        Packed::Zstd { window, blocks } => {
            let mut head = ZSTD_MAGIC.to_vec();
            head.extend_from_slice(&[0, *window]);
            before.chunks(ZSTD_STORED).for_each(|part| raw(&mut head, part, false));
            let mut tail = Vec::with_capacity(after.len() + 3);
            let mut parts = after.chunks(ZSTD_STORED).peekable();
            if parts.peek().is_none() {
                raw(&mut tail, &[], true);
            }
            while let Some(part) = parts.next() {
                let is_last = parts.peek().is_none();
                raw(&mut tail, part, is_last);
            }
            vec![head.into(), blocks.clone(), tail.into()]
        }
    }
}

/// Appends a stored block of deflate (RFC 1951 section 3.2.4), at a byte.
fn stored(out: &mut Vec<u8>, part: &[u8], is_last: bool) {
    let length = part.len() as u16;
    out.push(u8::from(is_last));
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&(!length).to_le_bytes());
    out.extend_from_slice(part);
}

/// Appends a raw block of zstd (RFC 8878 section 3.1.1.2).
fn raw(out: &mut Vec<u8>, part: &[u8], is_last: bool) {
    let header = (part.len() as u32) << 3 | u32::from(is_last);
    out.extend_from_slice(&header.to_le_bytes()[..3]);
    out.extend_from_slice(part);
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use proptest::prelude::*;

    use super::*;

    fn unpack(coding: ContentCoding, body: &[Bytes]) -> Vec<u8> {
        let (all, mut text) = (body.concat(), Vec::new());
        match coding {
            ContentCoding::Gzip => {
                // One member, or browsers would stop at its end.
                let mut reader = flate2::bufread::GzDecoder::new(&all[..]);
                reader.read_to_end(&mut text).unwrap();
                assert!(reader.into_inner().is_empty(), "one member");
            }
            ContentCoding::Zstd => {
                let mut reader = zstd::stream::read::Decoder::with_buffer(&all[..])
                    .unwrap()
                    .single_frame();
                reader.window_log_max(ZSTD_WINDOW).unwrap();
                reader.read_to_end(&mut text).unwrap();
                assert!(reader.finish().is_empty(), "one frame");
            }
        }
        text
    }

    #[track_caller]
    fn check(before: &[u8], text: &[Bytes], after: &[u8]) {
        for coding in ContentCoding::ALL {
            let packed = pack(coding, text).unwrap();
            let expect = [before, &text.concat(), after].concat();
            assert!(unpack(coding, &body(before, &packed, after)) == expect, "{coding:?}");
            // The blocks are shared by any other body.
            assert!(unpack(coding, &body(b"", &packed, b"")) == text.concat(), "{coding:?}");
        }
    }

    #[test]
    fn a_body_around_a_packed_text_is_one_stream() {
        let words: Vec<u8> = (0..200_000u32)
            .flat_map(|at| format!("{:x}", at / 7).into_bytes())
            .collect();
        let text = Bytes::from(words);
        check(b"{\"id\":1,\"result\":", std::slice::from_ref(&text), b"}");
        check(b"", &[], b"");
        check(b"a", &[Bytes::new()], b"");
        check(
            &[b'x'; 70_000],
            &[text.clone(), Bytes::from_static(b"end")],
            &[b'y'; 140_000],
        );
        check(b"{", &[Bytes::from(vec![b'0'; 3 << 20])], b"}");
        for coding in ContentCoding::ALL {
            assert!(pack(coding, std::slice::from_ref(&text)).unwrap().len() < text.len() / 2);
        }
    }

    proptest! {
        #[test]
        fn any_text_comes_back(before: Vec<u8>, pieces: Vec<Vec<u8>>, after: Vec<u8>, again in 1usize..400) {
            let text: Vec<Bytes> = pieces.into_iter().map(|piece| piece.repeat(again).into()).collect();
            check(&before, &text, &after);
        }
    }
}
