//! Content codings of HTTP bodies (RFC 9110 section 8.4): gzip and zstd, chosen by `Accept-Encoding`.
//!
//! A long text that many bodies contain is packed once ([`Packed`]), and each body is put together around it without
//! touching it again: both formats have blocks of bytes as they are, which take the rest of the body.

pub mod pack;
pub mod unpack;

pub use pack::{Packed, body, pack};

/// A coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ContentCoding {
    /// RFC 1952.
    Gzip,
    /// RFC 8878, with a window of at most 8 MiB (RFC 9659).
    Zstd,
}

impl ContentCoding {
    /// All codings; of codings with equal weight the first is chosen.
    pub const ALL: [Self; 2] = [Self::Zstd, Self::Gzip];

    /// Returns the name in `Content-Encoding`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    /// Returns the coding of this name, in any case; `x-gzip` is gzip, too.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let is = |own: &str| name.eq_ignore_ascii_case(own);
        match () {
            () if is("gzip") || is("x-gzip") => Some(Self::Gzip),
            () if is("zstd") => Some(Self::Zstd),
            () => None,
        }
    }

    /// Chooses the coding of a response by the values of `Accept-Encoding`; `None` for a body as it is, which is
    /// acceptable always: a client that refuses it gets it nevertheless, rather than no answer. Members that are not
    /// well-formed are ignored.
    #[must_use]
    pub fn accepted<'a>(values: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        // The weights of zstd, gzip, and all others; the last one counts.
        let (mut named, mut others) = ([None; 2], None);
        for member in values.into_iter().flat_map(|value| value.split(',')) {
            let mut parts = member.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default();
            let Some(weight) = parts.try_fold(1000, |_, parameter| weight(parameter)) else {
                continue;
            };
            if name == "*" {
                others = Some(weight);
            } else if let Some(at) = Self::named(name).and_then(|own| Self::ALL.iter().position(|all| *all == own)) {
                named[at] = Some(weight);
            }
        }
        let weighed = Self::ALL.into_iter().zip(named);
        let weighed = weighed.map(|(coding, own)| (coding, own.or(others).unwrap_or(0)));
        let mut best = None;
        for (coding, weight) in weighed.filter(|(_, weight)| *weight > 0) {
            if best.is_none_or(|(_, most)| weight > most) {
                best = Some((coding, weight));
            }
        }
        best.map(|(coding, _)| coding)
    }
}

/// Parses `q=0.123` in thousandths.
fn weight(parameter: &str) -> Option<u32> {
    let value = parameter.strip_prefix("q=").or_else(|| parameter.strip_prefix("Q="))?;
    let (whole, rest) = value.split_once('.').unwrap_or((value, ""));
    if rest.len() > 3 || !rest.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let thousandths = format!("{rest:0<3}").parse::<u32>().ok()?;
    match whole {
        "0" => Some(thousandths),
        "1" if thousandths == 0 => Some(1000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_welcome_coding_is_chosen() {
        let (gzip, zstd) = (Some(ContentCoding::Gzip), Some(ContentCoding::Zstd));
        for (values, expect) in [
            (&[][..], None),
            (&[""], None),
            (&["identity"], None),
            (&["br"], None),
            (&["deflate, gzip"], gzip),
            (&["gzip, deflate, br, zstd"], zstd),
            (&["GZip"], gzip),
            (&["x-gzip"], gzip),
            (&["gzip;q=1.0, zstd;q=0.5"], gzip),
            (&["gzip; q=0.5 , zstd ; q=0.501"], zstd),
            (&["gzip;q=0"], None),
            (&["gzip;q=0.000, *"], zstd),
            (&["*"], zstd),
            (&["*;q=0"], None),
            (&["zstd;q=0, *;q=0.1"], gzip),
            (&["gzip;q=0.001"], gzip),
            (&["identity;q=0"], None),
            // Several headers are one list.
            (&["br", "gzip"], gzip),
            // Members that are not well-formed are ignored.
            (&["gzip;q=2"], None),
            (&["gzip;q=1.001, zstd;q=0.1"], zstd),
            (&["gzip;q=0.1234"], None),
            (&["gzip;q=, zstd;q=x, gzip;level=9"], None),
            (&[";;;,,,;q=1,gzip"], gzip),
            (&["gzip;q=-1"], None),
            (&["gzip;q=0.5;q=1"], gzip),
        ] {
            assert_eq!(ContentCoding::accepted(values.iter().copied()), expect, "{values:?}");
        }
    }
}
