//! Text of others, made safe for a terminal.
//!
//! Anyone can emit a log with any string in it, a node can answer anything, and a client chooses what it sends: control characters would move the
//! cursor, change the title or paste into the shell, and marks of direction would reorder what is read.

use std::fmt::{self, Write as _};

/// Longest text of a node in an error message, in characters.
const MAX_SHORT: usize = 200;

/// Checks if a terminal could act on this character, or show it as nothing.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            // Soft hyphen, marks of direction, joiners, separators of lines, invisible operators, byte order mark.
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Text with each unsafe character as an escape, such as `\u{1b}`.
pub struct Printable<'a>(pub &'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '\n' => f.write_str("\\n")?,
                c if is_unsafe(c) => write!(f, "\\u{{{:x}}}", u32::from(c))?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// Returns the text for an error message: printable, and at most 200 characters of it.
pub fn short(text: &str) -> String {
    match text.char_indices().nth(MAX_SHORT) {
        Some((end, _)) => format!("{}…", Printable(&text[..end])),
        None => Printable(text).to_string(),
    }
}

/// Escapes the unsafe characters of a JSON text of several lines; the serializer writes line feeds between the lines alone.
pub fn escape_json_lines(json: &str) -> String {
    let lines: Vec<String> = json.split('\n').map(|line| escape_json(line.to_owned())).collect();
    lines.join("\n")
}

/// Escapes the unsafe characters of a JSON text. They occur in strings alone: outside of them JSON has only ASCII, and
/// a serializer writes no control characters there.
pub fn escape_json(json: String) -> String {
    if !json.contains(is_unsafe) {
        return json;
    }
    let mut escaped = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if is_unsafe(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a String cannot fail.
                let _ = write!(escaped, "\\u{unit:04x}");
            }
        } else {
            escaped.push(c);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_a_terminal_acts_on_are_escaped() {
        for (text, printable, json) in [
            ("plain, ünïcode 🙂", "plain, ünïcode 🙂", "plain, ünïcode 🙂"),
            ("\u{1b}[2J", "\\u{1b}[2J", "\\u001b[2J"),
            ("a\nb\r", "a\\nb\\u{d}", "a\\u000ab\\u000d"),
            ("\u{9b}31m\u{7f}", "\\u{9b}31m\\u{7f}", "\\u009b31m\\u007f"),
            ("\u{202e}cba", "\\u{202e}cba", "\\u202ecba"),
            ("\u{e0041}", "\\u{e0041}", "\\udb40\\udc41"),
        ] {
            assert_eq!(Printable(text).to_string(), printable);
            assert_eq!(escape_json(text.to_owned()), json);
        }
    }

    #[test]
    fn escaped_json_means_the_same() {
        let text = "\u{1b}]0;title\u{7}\u{9b}\u{202e}\u{e0041}\"\\";
        let escaped = escape_json(serde_json::to_string(text).unwrap());
        assert!(escaped.is_ascii() && !escaped.contains(is_unsafe), "{escaped}");
        assert_eq!(serde_json::from_str::<String>(&escaped).unwrap(), text);
        let list = [text, "\n"];
        let escaped = escape_json_lines(&serde_json::to_string_pretty(&list).unwrap());
        assert!(
            escaped.lines().count() == 4 && !escaped.replace('\n', "").contains(is_unsafe),
            "{escaped}"
        );
        assert_eq!(serde_json::from_str::<Vec<String>>(&escaped).unwrap(), list);
    }

    #[test]
    fn texts_for_errors_are_short() {
        assert_eq!(short("short"), "short");
        let long = short(&"ä".repeat(1_000));
        assert_eq!(long.chars().count(), MAX_SHORT + 1);
    }
}
