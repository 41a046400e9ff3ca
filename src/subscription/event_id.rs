//! Position of a stream as text: the `id` of server-sent events, which a client sends back to resume behind it. No I/O.
//!
//! ```text
//! b<block>                               behind the block: its events, or those of a quiet block, are sent
//! l<block>.<index>                       behind this log
//! n<number>                              before the block of this number
//! r<ancestor>.<number>,<tip>[.<index>],<block>.<index>
//!                                        within a removal of all logs up to the tip: those up to the block's are
//!                                        taken back; the stream goes on behind the ancestor
//! ```
//!
//! Hashes are 43 characters of base64, numbers and indices are hex. Clients must not look into it.

use std::sync::Arc;

use alloy_primitives::B256;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::Start;
use crate::chain::{BlockRef, Removal};

/// Length of a hash in an id, in bytes.
const HASH_LEN: usize = 43;

/// Longest id, in bytes: three hashes, three numbers, and what separates them.
const MAX_LEN: usize = 1 + 3 * HASH_LEN + 3 * 17 + 2;

fn hash(hash: B256) -> String {
    URL_SAFE_NO_PAD.encode(hash)
}

/// Returns the position behind a block.
pub(super) fn behind(block: B256) -> Arc<str> {
    format!("b{}", hash(block)).into()
}

/// Positions behind the logs of one block.
pub(super) struct BehindLogs(String);

impl BehindLogs {
    pub(super) fn of(block: B256) -> Self {
        Self(format!("l{}.", hash(block)))
    }

    /// Returns the position behind the log of this index.
    pub(super) fn log(&self, index: u64) -> Arc<str> {
        format!("{}{index:x}", self.0).into()
    }
}

/// Branch that is being taken back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Branch {
    /// Block behind which the stream goes on.
    pub ancestor: BlockRef,
    /// Last block that was delivered, and the index of its last delivered log; `None` for all.
    pub tip: (B256, Option<u64>),
}

impl Branch {
    /// Returns the positions behind removed logs of this block.
    pub(super) fn within(self, block: B256) -> BehindLogs {
        let BlockRef { number, hash: ancestor } = self.ancestor;
        let (tip, up_to) = self.tip;
        let up_to = up_to.map_or_else(String::new, |index| format!(".{index:x}"));
        let (ancestor, tip, block) = (hash(ancestor), hash(tip), hash(block));
        BehindLogs(format!("r{ancestor}.{number:x},{tip}{up_to},{block}."))
    }
}

/// Ids that the events of replayed blocks get.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ids {
    /// None: the client gets no server-sent events.
    None,
    /// Positions behind events.
    Behind,
    /// Positions behind events, within the removal of this branch.
    Within(Branch),
}

impl Ids {
    /// Returns the positions behind logs of this block.
    pub(super) fn of_logs(self, block: B256) -> Option<BehindLogs> {
        match self {
            Self::None => None,
            Self::Behind => Some(BehindLogs::of(block)),
            Self::Within(branch) => Some(branch.within(block)),
        }
    }

    /// Returns the position behind this block.
    pub(super) fn of_block(self, block: B256) -> Option<Arc<str>> {
        match self {
            Self::None => None,
            Self::Behind | Self::Within(_) => Some(behind(block)),
        }
    }
}

/// Returns the id of a start; `None` for one that is not known before it is found.
pub(super) fn of(start: Start) -> Option<Arc<str>> {
    match start {
        Start::Live => None,
        Start::After { block, log: None } => Some(behind(block)),
        Start::After {
            block,
            log: Some(index),
        } => Some(BehindLogs::of(block).log(index)),
        Start::From(number) => Some(format!("n{number:x}").into()),
        Start::Within(removal) => {
            let Removal {
                ancestor,
                tip,
                up_to,
                block,
                index,
            } = removal;
            let branch = Branch {
                ancestor,
                tip: (tip, up_to),
            };
            Some(branch.within(block).log(index))
        }
    }
}

/// Reads an id.
pub(super) fn parse(text: &str) -> Option<Start> {
    if text.len() > MAX_LEN || !text.is_ascii() {
        return None;
    }
    let (form, rest) = text.split_at_checked(1)?;
    match form {
        "b" => Some(Start::After {
            block: read_hash(rest)?,
            log: None,
        }),
        "l" => {
            let (block, index) = read_indexed(rest)?;
            Some(Start::After {
                block,
                log: Some(index?),
            })
        }
        "n" => Some(Start::From(read_number(rest)?)),
        "r" => {
            let mut parts = rest.split(',').map(read_indexed);
            let (ancestor, number) = parts.next()??;
            let (tip, up_to) = parts.next()??;
            let (block, index) = parts.next()??;
            if parts.next().is_some() {
                return None;
            }
            let ancestor = BlockRef {
                number: number?,
                hash: ancestor,
            };
            let index = index?;
            Some(Start::Within(Removal {
                ancestor,
                tip,
                up_to,
                block,
                index,
            }))
        }
        _ => None,
    }
}

/// Place at which a stream goes on, as far as a block says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResumePoint {
    /// In or behind the block with this hash.
    Behind(B256),
    /// Before the block of this number.
    Before(u64),
}

/// Returns the place of an id; `None` if it is none.
#[must_use]
pub fn resume_point(id: &str) -> Option<ResumePoint> {
    match parse(id)? {
        Start::Live => None,
        Start::From(number) => Some(ResumePoint::Before(number)),
        Start::After { block, .. } | Start::Within(Removal { block, .. }) => Some(ResumePoint::Behind(block)),
    }
}

fn read_hash(text: &str) -> Option<B256> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    B256::try_from(bytes.as_slice()).ok()
}

fn read_number(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    plain.then(|| u64::from_str_radix(text, 16).ok())?
}

/// Reads a hash, and the number behind it if there is one.
fn read_indexed(text: &str) -> Option<(B256, Option<u64>)> {
    match text.split_once('.') {
        None => Some((read_hash(text)?, None)),
        Some((hash, number)) => Some((read_hash(hash)?, Some(read_number(number)?))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hash() -> impl Strategy<Value = B256> {
        any::<[u8; 32]>().prop_map(B256::from)
    }

    fn start() -> impl Strategy<Value = Start> {
        let within = (hash(), any::<u64>(), hash(), any::<Option<u64>>(), hash(), any::<u64>());
        prop_oneof![
            (hash(), any::<Option<u64>>()).prop_map(|(block, log)| Start::After { block, log }),
            any::<u64>().prop_map(Start::From),
            within.prop_map(|(ancestor, number, tip, up_to, block, index)| {
                let ancestor = BlockRef { number, hash: ancestor };
                Start::Within(Removal {
                    ancestor,
                    tip,
                    up_to,
                    block,
                    index,
                })
            }),
        ]
    }

    proptest! {
        #[test]
        fn an_id_is_read_as_it_was_written(start in start()) {
            let id = of(start).unwrap();
            prop_assert!(id.len() <= MAX_LEN, "{}", id);
            // It stands in a header, a URL and a line of text.
            prop_assert!(id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.,".contains(&byte)));
            prop_assert_eq!(parse(&id), Some(start));
        }

        #[test]
        fn anything_else_is_refused(text in "\\PC{0,60}|[blnr][A-Za-z0-9_.,-]{0,220}") {
            if let Some(start) = parse(&text) {
                prop_assert_eq!(of(start).map(|id| parse(&id)), Some(Some(start)));
            }
        }
    }
}
