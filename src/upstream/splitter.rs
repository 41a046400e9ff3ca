//! Splitting of a stream without frames (geth's IPC) into JSON values.

use bytes::{Buf, Bytes, BytesMut};

/// Collects bytes and returns whole JSON objects and arrays. Each byte is read once, in whatever pieces it arrives.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    buffer: BytesMut,
    /// Bytes of the buffer that were read already.
    at: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Splitter {
    /// Returns the buffer to read into.
    pub(super) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Returns the number of bytes of the incomplete value.
    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Returns the next whole value; bytes between values (newlines) are skipped.
    pub(super) fn next(&mut self) -> Option<Bytes> {
        if self.depth == 0 && self.at == 0 {
            let skip = self
                .buffer
                .iter()
                .position(|byte| matches!(byte, b'{' | b'['))
                .unwrap_or(self.buffer.len());
            self.buffer.advance(skip);
        }
        while let Some(&byte) = self.buffer.get(self.at) {
            self.at += 1;
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(self.buffer.split_to(std::mem::take(&mut self.at)).freeze());
                    }
                }
                _ => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_out_whole_however_they_arrive() {
        let values = [r#"{"a":"}]\"{\\"}"#, r#"[1,[2,{"b":[]}]]"#, "{}"];
        let stream = format!("\n{}\n{}{}\n", values[0], values[1], values[2]);
        for chunk in 1..stream.len() {
            let mut splitter = Splitter::default();
            let mut out = Vec::new();
            for piece in stream.as_bytes().chunks(chunk) {
                splitter.buffer().extend_from_slice(piece);
                while let Some(value) = splitter.next() {
                    out.push(value);
                }
            }
            assert_eq!(out, values.map(str::as_bytes), "in chunks of {chunk}");
            assert!(splitter.len() <= 1);
        }
    }
}
