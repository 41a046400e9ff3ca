//! The framing of geth's IPC: JSON values one after the other, with or without newlines between them.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

/// Splits incoming bytes into JSON objects and arrays; ends outgoing messages with a newline.
///
/// The codec only counts brackets. The parser checks if a value is well-formed.
#[derive(Debug)]
pub(super) struct JsonCodec {
    max_bytes: usize,
    /// Number of buffered bytes that were scanned, so that a value in many pieces is scanned once.
    scanned: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl JsonCodec {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self {
            max_bytes,
            scanned: 0,
            depth: 0,
            in_string: false,
            escaped: false,
        }
    }

    /// Checks if the value ends with this byte.
    fn ends_with(&mut self, byte: u8) -> bool {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return false;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            // A value that is neither object nor array ends with its line and is refused later.
            b'\n' => return self.depth == 0,
            _ => {}
        }
        false
    }
}

impl Decoder for JsonCodec {
    type Item = Bytes;
    type Error = io::Error;

    fn decode(&mut self, buffer: &mut BytesMut) -> io::Result<Option<Bytes>> {
        if self.scanned == 0 {
            let blank = buffer.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            buffer.advance(blank);
        }
        while let Some(byte) = buffer.get(self.scanned).copied() {
            self.scanned += 1;
            if self.ends_with(byte) {
                let value = buffer.split_to(self.scanned).freeze();
                *self = Self::new(self.max_bytes);
                return Ok(Some(value));
            }
        }
        if buffer.len() > self.max_bytes {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "message too large"));
        }
        Ok(None)
    }
}

impl Encoder<String> for JsonCodec {
    type Error = io::Error;

    fn encode(&mut self, message: String, buffer: &mut BytesMut) -> io::Result<()> {
        buffer.reserve(message.len() + 1);
        buffer.put_slice(message.as_bytes());
        buffer.put_u8(b'\n');
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes the input in pieces of each size and compares the values.
    #[track_caller]
    fn check(input: &str, values: &[&str]) {
        for size in 1..=input.len() {
            let (mut codec, mut buffer, mut out) = (JsonCodec::new(100), BytesMut::new(), Vec::new());
            for piece in input.as_bytes().chunks(size) {
                buffer.extend_from_slice(piece);
                while let Some(value) = codec.decode(&mut buffer).unwrap() {
                    out.push(String::from_utf8(value.to_vec()).unwrap());
                }
            }
            assert_eq!(out, values, "in pieces of {size}");
        }
    }

    #[test]
    fn values_need_nothing_between_them() {
        check(r#"{"a":[1]}{"b":2}"#, &[r#"{"a":[1]}"#, r#"{"b":2}"#]);
        check("  [1]\n\n {}\n", &["[1]", "{}"]);
    }

    #[test]
    fn brackets_in_strings_do_not_count() {
        check(r#"{"a":"}\"]\\"}[]"#, &[r#"{"a":"}\"]\\"}"#, "[]"]);
    }

    #[test]
    fn a_line_that_is_no_value_comes_out_to_be_refused() {
        check("hello\n{}", &["hello\n", "{}"]);
    }

    #[test]
    fn endless_values_are_refused() {
        let mut codec = JsonCodec::new(10);
        assert!(codec.decode(&mut BytesMut::from(&b"[1,2,3,4,5,6,7,"[..])).is_err());
    }
}
