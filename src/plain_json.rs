//! Reading of plain JSON: without white space between tokens and without escapes, as nodes write their answers.
//!
//! Texts that are not plain are none of this reader's business: each function returns `None`, and the caller parses the
//! text with `serde_json`. A plain text is read in one pass, at a quarter of the instructions: strings end at the next
//! quote, and members that decide nothing are stepped over. Whatever is read is valid JSON.

use memchr::memchr;

/// Most levels of nesting; deeper texts are not plain.
const LEVELS: u32 = 16;

/// Reader at a position of a plain text.
#[derive(Clone, Debug)]
pub(crate) struct PlainJson<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> PlainJson<'a> {
    /// Creates a reader at the start of a text; `None` if the text is not UTF-8, or has escapes or control characters.
    pub(crate) fn new(text: &'a [u8]) -> Option<Self> {
        // One comparison less per byte than a search that stops: most texts are plain.
        let is_odd = |odd: bool, byte: &u8| odd | (*byte < b' ') | (*byte == b'\\');
        if text.chunks(4096).any(|chunk| chunk.iter().fold(false, is_odd)) {
            return None;
        }
        let text = std::str::from_utf8(text).ok()?;
        Some(Self { text, at: 0 })
    }

    /// Checks if the whole text was read.
    pub(crate) fn is_at_end(&self) -> bool {
        self.at == self.text.len()
    }

    /// Returns the position of the next byte.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn take(&mut self, expected: u8) -> Option<()> {
        let is_next = self.peek() == Some(expected);
        self.at += usize::from(is_next);
        is_next.then_some(())
    }

    fn take_text(&mut self, expected: &str) -> Option<()> {
        self.text.as_bytes()[self.at..]
            .starts_with(expected.as_bytes())
            .then(|| self.at += expected.len())
    }

    /// Reads a string and returns it without its quotes.
    pub(crate) fn string(&mut self) -> Option<&'a str> {
        self.take(b'"')?;
        let start = self.at;
        let end = start + memchr(b'"', &self.text.as_bytes()[start..])?;
        self.at = end + 1;
        self.text.get(start..end)
    }

    /// Reads an object. `member` is called after each key with the key, and reads the value.
    pub(crate) fn object(&mut self, mut member: impl FnMut(&mut Self, &'a str) -> Option<()>) -> Option<()> {
        self.take(b'{')?;
        if self.take(b'}').is_some() {
            return Some(());
        }
        loop {
            let key = self.string()?;
            self.take(b':')?;
            member(self, key)?;
            if self.take(b',').is_none() {
                return self.take(b'}');
            }
        }
    }

    /// Reads an array. `item` is called before each item, and reads it.
    pub(crate) fn array(&mut self, mut item: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.take(b'[')?;
        if self.take(b']').is_some() {
            return Some(());
        }
        loop {
            item(self)?;
            if self.take(b',').is_none() {
                return self.take(b']');
            }
        }
    }

    /// Reads any value and returns its text.
    pub(crate) fn value(&mut self) -> Option<&'a str> {
        let start = self.at;
        self.skip(LEVELS)?;
        self.text.get(start..self.at)
    }

    fn skip(&mut self, levels: u32) -> Option<()> {
        match self.peek()? {
            b'"' => self.string().map(drop),
            b'{' => {
                let below = levels.checked_sub(1)?;
                self.object(|own, _| own.skip(below))
            }
            b'[' => {
                let below = levels.checked_sub(1)?;
                self.array(|own| own.skip(below))
            }
            b'n' => self.take_text("null"),
            b't' => self.take_text("true"),
            b'f' => self.take_text("false"),
            _ => self.integer(),
        }
    }

    /// Reads an integer; a number with a fraction or an exponent is not plain.
    fn integer(&mut self) -> Option<()> {
        let _has_sign = self.take(b'-');
        let digits = self.text.as_bytes()[self.at..].iter();
        let length = digits.take_while(|byte| byte.is_ascii_digit()).count();
        let is_padded = length > 1 && self.peek() == Some(b'0');
        self.at += length;
        (length > 0 && !is_padded && !matches!(self.peek(), Some(b'.' | b'e' | b'E'))).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::value::RawValue;

    use super::*;

    fn whole(text: &[u8]) -> Option<&str> {
        let mut json = PlainJson::new(text)?;
        json.value().filter(|_| json.is_at_end())
    }

    #[test]
    fn plain_values_are_read_and_others_are_left() {
        for plain in [
            "null",
            "true",
            "false",
            "0",
            "-0",
            "7",
            "-17",
            r#""""#,
            r#""é""#,
            "{}",
            "[]",
            "[[],{}]",
            r#"{"a":{"b":[1,"2",null]},"c":""}"#,
        ] {
            assert_eq!(whole(plain.as_bytes()), Some(plain));
        }
        let deep = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        assert!(whole(deep(LEVELS as usize).as_bytes()).is_some());
        let deeper = deep(LEVELS as usize + 1);
        for other in [
            // JSON, but not plain.
            "1.5",
            "1e3",
            " 1",
            "1 ",
            "[1, 2]",
            "{\"a\": 1}",
            "[\n]",
            r#""\n""#,
            r#""\u0041""#,
            &deeper,
            // Not JSON.
            "",
            "-",
            "01",
            "-01",
            "+1",
            "nul",
            "nulll",
            "tru",
            "[",
            "[1",
            "[1,",
            "[1,]",
            "[,1]",
            "]",
            "{",
            r#"{"a"}"#,
            r#"{"a":}"#,
            r#"{"a":1"#,
            r#"{"a":1,}"#,
            "{1:2}",
            r#"""#,
            r#""a"#,
            "\"a\tb\"",
            "\"\0\"",
            "1]",
            "[1]]",
            "{}{}",
            "1,2",
        ] {
            assert_eq!(whole(other.as_bytes()), None, "{other}");
        }
        assert_eq!(whole(b"\"\xff\""), None);
    }

    proptest! {
        /// Texts of few letters are often JSON, or nearly.
        #[test]
        fn what_is_read_is_json(text in r#"[\[\]{}",:0-2a\-\\ \t.enulltrue]{0,12}"#) {
            if let Some(value) = whole(text.as_bytes()) {
                prop_assert_eq!(value, &text);
                prop_assert!(serde_json::from_str::<&RawValue>(&text).is_ok(), "{}", text);
            }
        }
    }
}
