//! Unpacking of a body that arrives in parts, into a sink that bounds the text.

use std::io::{self, Write};

use flate2::write::MultiGzDecoder;

use super::ContentCoding;
use super::pack::ZSTD_WINDOW;

/// Most packed bytes that are unpacked in one step: a step's text is bounded by what the format can express.
pub const STEP: usize = 1 << 10;

/// A body that is being unpacked into `W`. gzip needs some 40 KiB besides; zstd a window as long as the text, of 8 MiB at
/// most (a frame that wants more is an error), which is used only as far as the text goes.
pub enum Unpack<W: Write> {
    /// Text as it is.
    Identity(W),
    /// See [`ContentCoding::Gzip`].
    Gzip(Box<MultiGzDecoder<W>>),
    /// See [`ContentCoding::Zstd`].
    Zstd(Box<zstd::stream::write::Decoder<'static, W>>),
}

impl<W: Write> Unpack<W> {
    /// Begins a body in this coding; `None` for a body as it is.
    ///
    /// # Errors
    /// Returns an error where zstd has no memory.
    pub fn new(coding: Option<ContentCoding>, sink: W) -> io::Result<Self> {
        Ok(match coding {
            None => Self::Identity(sink),
            Some(ContentCoding::Gzip) => Self::Gzip(Box::new(MultiGzDecoder::new(sink))),
            Some(ContentCoding::Zstd) => {
                let mut decoder = zstd::stream::write::Decoder::new(sink)?;
                decoder.window_log_max(ZSTD_WINDOW)?;
                Self::Zstd(Box::new(decoder))
            }
        })
    }

    /// Unpacks a part, of [`STEP`] bytes at most unless the text comes as it is.
    ///
    /// # Errors
    /// Returns the sink's error, or that of a body that is not well-formed.
    pub fn write(&mut self, part: &[u8]) -> io::Result<()> {
        match self {
            Self::Identity(sink) => sink.write_all(part),
            Self::Gzip(decoder) => decoder.write_all(part),
            Self::Zstd(decoder) => decoder.write_all(part),
        }
    }

    /// Returns the sink.
    pub fn sink(&mut self) -> &mut W {
        match self {
            Self::Identity(sink) => sink,
            Self::Gzip(decoder) => decoder.get_mut(),
            Self::Zstd(decoder) => decoder.get_mut(),
        }
    }

    /// Ends the body.
    ///
    /// # Errors
    /// Returns an error where the body is cut off or its check value is wrong, or the sink's error.
    pub fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Identity(_) => Ok(()),
            Self::Gzip(decoder) => decoder.try_finish(),
            Self::Zstd(decoder) => decoder.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::{body, pack};
    use super::*;

    fn packed(coding: ContentCoding, text: &[Bytes]) -> Vec<u8> {
        body(b"[", &pack(coding, text).unwrap(), b"]").concat()
    }

    /// Unpacks a body that comes in parts of this many bytes.
    fn unpacked<W: Write>(coding: ContentCoding, body: &[u8], part: usize, sink: W) -> (io::Result<()>, Unpack<W>) {
        let mut unpack = Unpack::new(Some(coding), sink).unwrap();
        let written = body.chunks(part).try_for_each(|part| unpack.write(part));
        let ended = written.and_then(|()| unpack.finish());
        (ended, unpack)
    }

    /// A sink with room for so many bytes.
    struct Bounded {
        text: Vec<u8>,
        most: usize,
    }

    impl Write for Bounded {
        fn write(&mut self, part: &[u8]) -> io::Result<usize> {
            if self.text.len() + part.len() > self.most {
                return Err(io::Error::other("full"));
            }
            self.text.extend_from_slice(part);
            Ok(part.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_body_comes_back_whatever_its_parts() {
        let text: Vec<u8> = (0..30_000u32).flat_map(|at| (at / 9).to_le_bytes()).collect();
        for coding in ContentCoding::ALL {
            let body = packed(coding, &[text.clone().into()]);
            for part in [1, 7, STEP, usize::MAX] {
                let (ended, mut unpack) = unpacked(coding, &body, part, Vec::new());
                ended.unwrap();
                assert!(
                    *unpack.sink() == [b"[", &text[..], b"]"].concat(),
                    "{coding:?} in {part}"
                );
            }
        }
    }

    #[test]
    fn a_body_that_unpacks_to_too_much_ends_at_the_bound() {
        let zeros = vec![Bytes::from(vec![0; 1 << 20]); 64];
        for coding in ContentCoding::ALL {
            let body = packed(coding, &zeros);
            assert!(body.len() < 1 << 20, "{coding:?}: {}", body.len());
            let most = 100_000;
            let sink = Bounded { text: Vec::new(), most };
            let (ended, mut unpack) = unpacked(coding, &body, STEP, sink);
            assert_eq!(ended.unwrap_err().to_string(), "full", "{coding:?}");
            assert!(unpack.sink().text.len() <= most);
        }
    }

    #[test]
    fn a_window_above_the_bound_is_refused() {
        let frame = |window| {
            let mut packer = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
            packer.window_log(window).unwrap();
            packer.write_all(b"text").unwrap();
            packer.flush().unwrap();
            packer.finish().unwrap()
        };
        let (ended, mut unpack) = unpacked(ContentCoding::Zstd, &frame(ZSTD_WINDOW), STEP, Vec::new());
        assert!(ended.is_ok() && *unpack.sink() == b"text");
        assert!(
            unpacked(ContentCoding::Zstd, &frame(ZSTD_WINDOW + 1), STEP, Vec::new())
                .0
                .is_err()
        );
    }

    #[test]
    fn a_gzip_body_that_is_cut_off_or_altered_is_an_error() {
        let body = packed(ContentCoding::Gzip, &[Bytes::from_static(b"text")]);
        let is_ok = |body: &[u8]| unpacked(ContentCoding::Gzip, body, STEP, Vec::new()).0.is_ok();
        assert!(is_ok(&body));
        for cut in 1..body.len() {
            assert!(!is_ok(&body[..cut]), "{cut} of {}", body.len());
        }
        let mut altered = body.clone();
        altered[body.len() - 8] ^= 1;
        assert!(!is_ok(&altered), "the check value");
    }
}
