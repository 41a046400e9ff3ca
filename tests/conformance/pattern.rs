//! Lines with gaps: `${name:kind}` matches text of this kind and names it, `${:kind}` only matches, and `${name}`
//! stands for the text with this name. All other text stands for itself.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// The text of a name.
#[derive(Clone, Debug)]
pub struct Named {
    pub text: String,
    /// `true` for subscription ids, which differ between targets by nature.
    differs: bool,
}

impl From<String> for Named {
    fn from(text: String) -> Self {
        Self { text, differs: false }
    }
}

pub type Names = BTreeMap<String, Named>;

/// A parsed line.
#[derive(Clone, Debug)]
pub struct Pattern(Vec<Part>);

#[derive(Clone, Debug)]
enum Part {
    Text(String),
    Known(String),
    Gap { name: String, kind: Kind },
}

#[derive(Clone, Debug)]
enum Kind {
    /// A subscription id in geth's form (PROTOCOL 1.6).
    Id,
    Hash,
    /// `0x` and hex digits.
    Hex,
    /// Any JSON value.
    Json,
    /// A JSON object with exactly these members in this order; members marked `?` are optional. The string names the
    /// list.
    Members(String),
    /// Any text up to the text that follows.
    Any,
}

/// A successful match.
pub struct Match {
    /// The text with values that differ by nature replaced by their names, for comparing two targets.
    pub masked: String,
}

impl Pattern {
    pub fn parse(line: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = line;
        while let Some((text, after)) = rest.split_once("${") {
            let (gap, after) = after.split_once('}').ok_or_else(|| format!("no end of ${{{after}"))?;
            if !text.is_empty() {
                parts.push(Part::Text(text.to_owned()));
            }
            parts.push(match gap.split_once(':') {
                None => Part::Known(gap.to_owned()),
                Some((name, kind)) => Part::Gap {
                    name: name.to_owned(),
                    kind: Kind::parse(kind)?,
                },
            });
            rest = after;
        }
        if !rest.is_empty() || parts.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self(parts))
    }

    /// Returns the line's text; fails if it has unnamed gaps or unknown names.
    pub fn fill(&self, names: &Names) -> Result<String, String> {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Text(part) => text.push_str(part),
                Part::Known(name) => text.push_str(&look_up(name, names)?.text),
                Part::Gap { name, .. } => return Err(format!("nothing to fill ${{{name}:…}} with")),
            }
        }
        Ok(text)
    }

    /// Formats the line for a reader, with known names filled in.
    pub fn show(&self, names: &Names) -> String {
        let show = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Known(name) => look_up(name, names).map_or_else(|why| why, |known| known.text),
            Part::Gap { kind, .. } => format!("<{}>", kind.word()),
        };
        self.0.iter().map(show).collect()
    }

    /// Matches `text` and adds the named gaps to `names`; the error is the byte offset of the first mismatch.
    pub fn take(&self, text: &str, names: &mut Names) -> Result<Match, usize> {
        let mut masked = String::new();
        let mut at = 0;
        for (i, part) in self.0.iter().enumerate() {
            let rest = &text[at..];
            let (len, shown) = match part {
                Part::Text(part) => (common(rest, part).map_err(|len| at + len)?, part.clone()),
                Part::Known(name) => {
                    let known = look_up(name, names).map_err(|_| at)?;
                    let len = common(rest, &known.text).map_err(|len| at + len)?;
                    (len, if known.differs { format!("<{name}>") } else { known.text })
                }
                Part::Gap { name, kind } => {
                    let len = kind.len(rest, self.0.get(i + 1), names).ok_or(at)?;
                    let differs = matches!(kind, Kind::Id);
                    let found = rest[..len].to_owned();
                    let shown = if differs { format!("<{name}>") } else { found.clone() };
                    if !name.is_empty() {
                        names.insert(name.clone(), Named { text: found, differs });
                    }
                    (len, shown)
                }
            };
            masked.push_str(&shown);
            at += len;
        }
        if at == text.len() {
            Ok(Match { masked })
        } else {
            Err(at)
        }
    }
}

/// Returns the length of `wanted` if `text` begins with it, otherwise the length of the common beginning as an error.
fn common(text: &str, wanted: &str) -> Result<usize, usize> {
    if text.starts_with(wanted) {
        return Ok(wanted.len());
    }
    let pairs = text.char_indices().zip(wanted.chars());
    let first = pairs.into_iter().find(|((_, a), b)| a != b);
    Err(first.map_or(text.len().min(wanted.len()), |((at, _), _)| at))
}

/// Returns the text of a name: `log.blockHash` is a member of `log`, and `log.undone` the same log with
/// `removed: true`.
fn look_up(name: &str, names: &Names) -> Result<Named, String> {
    if let Some(known) = names.get(name) {
        return Ok(known.clone());
    }
    let unknown = || format!("${{{name}}} has no value");
    let (base, member) = name.rsplit_once('.').ok_or_else(unknown)?;
    let base = look_up(base, names)?;
    if member == "undone" {
        return Ok(base.text.replace("\"removed\":false", "\"removed\":true").into());
    }
    let members: Map<String, Value> = serde_json::from_str(&base.text).map_err(|_| unknown())?;
    let found = members.get(member).ok_or_else(unknown)?;
    Ok(found.as_str().map_or_else(|| found.to_string(), str::to_owned).into())
}

impl Kind {
    fn parse(word: &str) -> Result<Self, String> {
        Ok(match word {
            "id" => Self::Id,
            "hash" => Self::Hash,
            "hex" => Self::Hex,
            "json" => Self::Json,
            "any" => Self::Any,
            _ => match word.strip_prefix("members ") {
                Some(list) => Self::Members(list.to_owned()),
                None => return Err(format!("no kind {word:?}")),
            },
        })
    }

    fn word(&self) -> String {
        match self {
            Self::Id => "id".into(),
            Self::Hash => "hash".into(),
            Self::Hex => "hex".into(),
            Self::Json => "json".into(),
            Self::Any => "any".into(),
            Self::Members(list) => format!("members {list}"),
        }
    }

    /// Returns the length of the prefix of `text` that matches this kind, in bytes.
    fn len(&self, text: &str, next: Option<&Part>, names: &Names) -> Option<usize> {
        let digits = |digit: fn(&u8) -> bool| -> Option<usize> {
            Some(2 + text.strip_prefix("0x")?.bytes().take_while(digit).count())
        };
        let lower = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        match self {
            Self::Id => {
                let len = digits(lower)?;
                let number = &text[2..len];
                (number == "0" || (1..=32).contains(&number.len()) && !number.starts_with('0')).then_some(len)
            }
            Self::Hash => digits(lower).filter(|len| *len == 66),
            Self::Hex => digits(u8::is_ascii_hexdigit),
            Self::Json => value(text).map(str::len),
            Self::Members(list) => {
                let value = value(text)?;
                let list = &names.get(list)?.text;
                has_members(value, list).then_some(value.len())
            }
            Self::Any => match next {
                Some(Part::Text(end)) => text.find(end.as_str()),
                _ => Some(text.len()),
            },
        }
    }
}

fn value(text: &str) -> Option<&str> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
    Some(values.next()?.ok()?.get())
}

fn has_members(object: &str, list: &str) -> bool {
    struct Keys(Vec<String>);
    impl<'de> serde::Deserialize<'de> for Keys {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Read;
            impl<'de> serde::de::Visitor<'de> for Read {
                type Value = Keys;

                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("an object")
                }

                fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                    let mut keys = Vec::new();
                    while let Some((key, _)) = map.next_entry::<String, serde::de::IgnoredAny>()? {
                        keys.push(key);
                    }
                    Ok(Keys(keys))
                }
            }
            deserializer.deserialize_map(Read)
        }
    }
    let Ok(Keys(keys)) = serde_json::from_str(object) else {
        return false;
    };
    let mut keys = keys.iter().map(String::as_str).peekable();
    let in_order = list
        .split(',')
        .map(str::trim)
        .all(|wanted| match wanted.strip_suffix('?') {
            Some(optional) => {
                keys.next_if_eq(&optional);
                true
            }
            None => keys.next_if_eq(&wanted).is_some(),
        });
    in_order && keys.next().is_none()
}

/// Tests the properties of patterns that the suite relies on.
pub fn check() -> Result<(), String> {
    let mut names = Names::from([("head".to_owned(), "number, hash, size?".to_owned().into())]);
    let mut take = |pattern: &str, text: &str| {
        let taken = Pattern::parse(pattern)?.take(text, &mut names);
        Ok::<_, String>(taken.map(|taken| taken.masked))
    };
    for (pattern, text, expected) in [
        ("", "", Ok("")),
        ("abc", "abd", Err(2)),
        ("abc", "ab", Err(2)),
        ("ab", "abc", Err(2)),
        (r#"{"id":"${a:id}"}"#, r#"{"id":"0x1f"}"#, Ok(r#"{"id":"<a>"}"#)),
        ("[${a}]", "[0x1f]", Ok("[<a>]")),
        ("[${a}]", "[0x1e]", Err(4)),
        ("${:id}", "0x01", Err(0)),
        ("${:id}", "0x0", Ok("<>")),
        ("${:id}", "0xA", Err(0)),
        ("${b:any}!", "what!", Ok("what!")),
        (
            r#"${l:json}}"#,
            r#"{"at":5,"removed":false}}"#,
            Ok(r#"{"at":5,"removed":false}}"#),
        ),
        ("${l.at}", "5", Ok("5")),
        (
            "${l.undone}",
            r#"{"at":5,"removed":true}"#,
            Ok(r#"{"at":5,"removed":true}"#),
        ),
        (
            "${:members head}",
            r#"{"number":1,"hash":2}"#,
            Ok(r#"{"number":1,"hash":2}"#),
        ),
        ("${:members head}", r#"{"hash":2,"number":1}"#, Err(0)),
        ("${:members head}", r#"{"number":1,"hash":2,"more":3}"#, Err(0)),
    ] {
        let got = take(pattern, text)?;
        if got.as_deref().map_err(|at| *at) != expected {
            return Err(format!("{pattern} on {text}: expected {expected:?}, got {got:?}"));
        }
    }
    Ok(())
}
