//! Raw DEFLATE (RFC 1951) as used in WebSocket messages: RFC 7692 section 7.2.
//!
//! miniz_oxide at its fastest level takes 20 µs for a log, and its output is within one per cent of that of zlib-rs in
//! 30 µs, whose own fastest level does not code hex digits at all. It is used directly, since the inflater in flate2
//! treats a reference to data before the message as zeros.
//!
//! A compressor takes 300 kB, so there is one for each thread that needs one; an inflater takes 11 kB and lives for one
//! message. No client has either. Messages may still refer to earlier ones ([`compress_series`]) if it is known what
//! the receiver has read in between.

use std::cell::RefCell;

use miniz_oxide::deflate::core::{
    CompressorOxide, TDEFLFlush, TDEFLStatus, compress_to_output, create_comp_flags_from_zip_params,
};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::{TINFL_FLAG_HAS_MORE_INPUT, TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF};
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

/// Window bits that select raw DEFLATE, without a zlib header.
const RAW: i32 = -15;

const FASTEST: i32 = 1;

thread_local! {
    static COMPRESSOR: RefCell<Box<CompressorOxide>> =
        RefCell::new(Box::new(CompressorOxide::new(create_comp_flags_from_zip_params(FASTEST, RAW, 0))));
}

/// End of a sync flush, which a message omits (RFC 7692 section 7.2.1).
const FLUSHED: [u8; 4] = [0, 0, 0xFF, 0xFF];

/// Input read after a message: the omitted bytes, and an empty final block, so that only a complete message ends.
const END: [u8; 9] = [0, 0, 0xFF, 0xFF, 1, 0, 0, 0xFF, 0xFF];

/// Inflated bytes allowed without a call of `may_grow`, and with each call.
pub const STEP: usize = 64 << 10;

/// Greatest distance of a match, in bytes (RFC 1951 section 3.3).
pub const WINDOW: usize = 32 << 10;

/// Compresses one text, given in pieces. The result refers to nothing before itself and omits the `00 00 FF FF` of its
/// flush. Returns `None` if the result would not be shorter.
#[must_use]
pub fn compress(pieces: &[&[u8]]) -> Option<Vec<u8>> {
    let len: usize = pieces.iter().map(|piece| piece.len()).sum();
    let mut out = Vec::with_capacity(len / 2 + FLUSHED.len());
    COMPRESSOR.with_borrow_mut(|compressor| {
        compressor.reset();
        pieces
            .iter()
            .try_for_each(|piece| push(compressor, piece, TDEFLFlush::None, &mut out))?;
        push(compressor, &[], TDEFLFlush::Sync, &mut out)
    })?;
    out.truncate(out.strip_suffix(&FLUSHED)?.len());
    out.shrink_to_fit();
    (out.len() < len).then_some(out)
}

/// Compresses texts for a receiver that reads them in order, with `before` ahead of each. Each result refers only to
/// `before` and earlier texts; like that of [`compress`] it omits the end of its flush, but it may be longer than the
/// text.
///
/// The bytes that the receiver reads instead of `before` may differ in positions whose byte occurs in no text: there
/// are no references to these. Returns `None` if the compressor fails.
#[must_use]
pub fn compress_series<'a>(before: &[u8], texts: impl Iterator<Item = &'a [u8]>) -> Option<Vec<Vec<u8>>> {
    /// Longest block that gets fixed codes, in bytes; finding better codes for discarded output took as long as the
    /// texts.
    const FIXED: usize = 47;
    COMPRESSOR.with_borrow_mut(|compressor| {
        compressor.reset();
        let mut unsent = Vec::new();
        let mut next = |text: &[u8]| {
            for piece in before.chunks(FIXED) {
                unsent.clear();
                push(compressor, piece, TDEFLFlush::Sync, &mut unsent)?;
            }
            let mut out = Vec::with_capacity(text.len() / 2 + FLUSHED.len());
            push(compressor, text, TDEFLFlush::Sync, &mut out)?;
            out.truncate(out.strip_suffix(&FLUSHED)?.len());
            Some(out)
        };
        texts.map(&mut next).collect()
    })
}

fn push(compressor: &mut CompressorOxide, piece: &[u8], flush: TDEFLFlush, out: &mut Vec<u8>) -> Option<()> {
    let (status, read) = compress_to_output(compressor, piece, flush, |bytes| {
        out.extend_from_slice(bytes);
        true
    });
    (status == TDEFLStatus::Okay && read == piece.len()).then_some(())
}

/// Returns blocks that repeat the `len` bytes (3 to 257) at `distance` bytes back, and end on a byte boundary: one
/// match in fixed codes (RFC 1951 section 3.2.6), and an empty stored block.
#[must_use]
pub fn repeat(len: usize, distance: usize) -> Vec<u8> {
    debug_assert!((3..=257).contains(&len) && (1..=WINDOW).contains(&distance));
    let (symbol, extra, more) = symbol(len - 3, 2);
    let mut bits = Bits::default();
    bits.number(0b010, 3);
    // Of the symbols from 256 on, 24 have codes of seven bits, the rest of eight.
    match symbol + 1 {
        code @ ..24 => bits.code(code, 7),
        code => bits.code(0b1100_0000 + code - 24, 8),
    }
    bits.number(more, extra);
    let (symbol, extra, more) = self::symbol(distance - 1, 1);
    bits.code(symbol, 5);
    bits.number(more, extra);
    bits.code(0, 7);
    bits.number(0b000, 3);
    [&bits.bytes[..], &FLUSHED].concat()
}

/// Returns the symbol, the number of extra bits and their value for a length or distance, given less its minimum. The
/// number of extra bits grows every four symbols (`1 << 2`, lengths) or two (distances): RFC 1951 section 3.2.5.
fn symbol(value: usize, group: u32) -> (u32, u32, u32) {
    let value = value as u32;
    let extra = (value | 1).ilog2().saturating_sub(group);
    ((extra << group) + (value >> extra), extra, value & ((1 << extra) - 1))
}

/// Bit buffer, filled from the lowest bit of each byte (RFC 1951 section 3.1.1).
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    len: usize,
}

impl Bits {
    /// Appends a number, lowest bit first, as for everything but Huffman codes.
    fn number(&mut self, number: u32, bits: u32) {
        for bit in 0..bits {
            if self.len.is_multiple_of(8) {
                self.bytes.push(0);
            }
            self.bytes[self.len / 8] |= ((number >> bit & 1) << (self.len % 8)) as u8;
            self.len += 1;
        }
    }

    /// Appends a Huffman code, highest bit first.
    fn code(&mut self, code: u32, bits: u32) {
        self.number(code.reverse_bits() >> (32 - bits), bits);
    }
}

/// Reason why a message cannot be inflated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable<E> {
    /// Input that is not valid DEFLATE, or not complete.
    Corrupt,
    /// Message longer than the limit.
    TooLong,
    /// Error of `may_grow`.
    Refused(E),
}

/// Inflates a message (RFC 7692 section 7.2.2) of at most `max` bytes. Calls `may_grow` before every [`STEP`] bytes
/// beyond the first, so that a small message that becomes long is charged while it grows.
///
/// # Errors
/// [`Unreadable`] if the message is corrupt or longer than `max`, or if `may_grow` refuses.
pub fn inflate<E>(
    message: &[u8],
    max: usize,
    mut may_grow: impl FnMut() -> Result<(), E>,
) -> Result<Vec<u8>, Unreadable<E>> {
    const FLAGS: u32 = TINFL_FLAG_HAS_MORE_INPUT | TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let mut inflater = Box::<DecompressorOxide>::default();
    // One byte more than allowed shows that the message is too long.
    let limit = max.saturating_add(1);
    let mut out = vec![0; STEP.min(limit)];
    let mut len = 0;
    // A final block in the message itself is allowed; the byte after it begins the block that `END` completes (RFC 7692
    // section 7.2.3.4).
    for (mut rest, behind) in [(message, &[0][..]), (&END, &[])] {
        loop {
            let (status, read, written) = decompress(&mut inflater, rest, &mut out, len, FLAGS);
            rest = &rest[read..];
            len += written;
            if len > max {
                return Err(Unreadable::TooLong);
            }
            match status {
                TINFLStatus::Done if rest == behind => {
                    out.truncate(len);
                    return Ok(out);
                }
                TINFLStatus::NeedsMoreInput if rest.is_empty() => break,
                TINFLStatus::HasMoreOutput => {
                    may_grow().map_err(Unreadable::Refused)?;
                    out.reserve_exact(STEP.min(limit - len));
                    out.resize(out.capacity().min(limit), 0);
                }
                _ => return Err(Unreadable::Corrupt),
            }
        }
    }
    Err(Unreadable::Corrupt)
}

/// Inflater of messages that may refer to earlier ones (RFC 7692 section 7.2.2), for load generators and tests.
pub struct Inflater {
    state: Box<DecompressorOxide>,
    window: Box<[u8]>,
    at: usize,
}

impl Default for Inflater {
    fn default() -> Self {
        Self {
            state: Box::default(),
            window: vec![0; WINDOW].into(),
            at: 0,
        }
    }
}

impl Inflater {
    /// Appends the text of the next message to `out`; returns `None` if the message is not valid DEFLATE.
    #[must_use]
    pub fn inflate(&mut self, message: &[u8], out: &mut Vec<u8>) -> Option<()> {
        for mut rest in [message, &FLUSHED] {
            loop {
                let (status, read, written) = decompress(
                    &mut self.state,
                    rest,
                    &mut self.window,
                    self.at,
                    TINFL_FLAG_HAS_MORE_INPUT,
                );
                rest = &rest[read..];
                out.extend_from_slice(&self.window[self.at..self.at + written]);
                self.at = (self.at + written) % WINDOW;
                match status {
                    TINFLStatus::NeedsMoreInput if rest.is_empty() => break,
                    TINFLStatus::HasMoreOutput => {}
                    // A final block does not end the context.
                    TINFLStatus::Done => *self.state = DecompressorOxide::default(),
                    _ => return None,
                }
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(message: &[u8], max: usize) -> Result<Vec<u8>, Unreadable<()>> {
        inflate(message, max, || Ok(()))
    }

    /// Returns hex digits, the most common content of node messages.
    fn hex(len: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let mut digit = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            b"0123456789abcdef"[(state >> 60) as usize]
        };
        (0..len).map(|_| digit()).collect()
    }

    #[test]
    fn the_rfcs_own_examples() {
        // RFC 7692 sections 7.2.3.1 (fixed codes), 7.2.3.3 (stored), 7.2.3.4 (a final block), 7.2.3.5 (two blocks) and
        // 7.2.3.6.
        for message in [
            &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00][..],
            &[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00],
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00],
            &[
                0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00,
            ],
        ] {
            assert_eq!(read(message, 5), Ok(b"Hello".to_vec()));
            assert_eq!(read(message, 4), Err(Unreadable::TooLong));
        }
        assert_eq!(read(&[0], 5), Ok(Vec::new()));
    }

    #[test]
    fn what_is_not_whole_or_not_deflate_is_corrupt() {
        let text = hex(1000);
        let message = compress(&[&text]).unwrap();
        for end in 0..message.len() {
            assert_eq!(read(&message[..end], 2000), Err(Unreadable::Corrupt), "{end} bytes");
        }
        for wrong in [
            &[0xff; 5][..],
            // A final block with a byte after it, and without the byte that should follow it.
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0xf3],
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00],
            // A reference to data of an earlier message.
            &[0xf2, 0x00, 0x11, 0x00, 0x00],
        ] {
            assert_eq!(read(wrong, 1000), Err(Unreadable::Corrupt), "{wrong:x?}");
        }
        assert_eq!(read(&message, 1000), Ok(text), "nothing of these is left behind");
    }

    #[test]
    fn a_bomb_costs_what_is_allowed_and_asks_before_it_grows() {
        let message = compress(&[&vec![0; 64 << 20]]).unwrap();
        assert!(message.len() < 400_000, "{}", message.len());
        let mut asked = 0;
        let inflated = inflate(&message, 5 << 20, || {
            asked += 1;
            Ok::<(), ()>(())
        });
        assert_eq!((inflated, asked), (Err(Unreadable::TooLong), (5 << 20) / STEP));
        assert_eq!(inflate(&message, 5 << 20, || Err("no")), Err(Unreadable::Refused("no")));
        assert_eq!(inflate(&message, STEP - 1, || Err("no")), Err(Unreadable::TooLong));
    }

    #[test]
    fn hex_becomes_not_much_more_than_half() {
        let text = hex(10_000);
        assert!(compress(&[&text]).unwrap().len() < 6_000, "half, and the codes' table");
        assert_eq!(compress(&[&[7, 200, 3, 150]]), None);
        assert_eq!(compress(&[]), None);
    }

    #[test]
    fn an_inflater_goes_on_behind_a_final_block() {
        let mut inflater = Inflater::default();
        let mut out = Vec::new();
        // RFC 7692 sections 7.2.3.2 (the second message refers to the first) and 7.2.3.4.
        for message in [
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00][..],
            &[0xf2, 0x00, 0x11, 0x00, 0x00],
        ] {
            inflater.inflate(message, &mut out).unwrap();
        }
        assert_eq!(out, b"HelloHello");
        assert_eq!(inflater.inflate(&[0xff; 5], &mut out), None);
    }

    proptest! {
        #[test]
        fn what_was_compressed_is_inflated(len in prop_oneof![0usize..300, 65_000usize..66_000, 131_000usize..132_000], at in 0.0..1.0, max in 0usize..140_000) {
            let text = hex(len);
            let (head, tail) = text.split_at((len as f64 * at) as usize);
            if let Some(message) = compress(&[head, b"", tail]) {
                prop_assert!(message.len() < len);
                let expect = if len <= max { Ok(text) } else { Err(Unreadable::TooLong) };
                prop_assert_eq!(read(&message, max), expect);
            } else {
                prop_assert!(len < 150);
            }
        }

        #[test]
        fn what_was_said_is_said_again(len in 3usize..258, distance in prop_oneof![1usize..600, 1usize..=WINDOW], behind in "[a-z]{0,9}") {
            let mut inflater = Inflater::default();
            let mut out = Vec::new();
            let said = hex(WINDOW);
            inflater.inflate(&compress(&[&said]).unwrap(), &mut out).unwrap();
            let message = [repeat(len, distance), compress_series(b"", std::iter::once(behind.as_bytes())).unwrap().remove(0)].concat();
            inflater.inflate(&message, &mut out).unwrap();
            let mut expect = said;
            for _ in 0..len {
                expect.push(expect[expect.len() - distance]);
            }
            expect.extend_from_slice(behind.as_bytes());
            prop_assert_eq!(out, expect);
        }
    }
}
