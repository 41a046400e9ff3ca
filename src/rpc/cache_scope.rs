//! Anchors: the state that an answer depends on, and so the time for which it is valid. No I/O, no clock.
//!
//! ```text
//! chain      the era: until continuity is lost, or a command changes a development chain
//! software   one node, for a while
//! branch     the era and its reorgs: a block by number that is not final yet
//! head       as branch, and the number of the head
//! ```
//!
//! The anchor is part of the cache key. So a new head or a reorg needs no search for answers to invalidate: nothing
//! looks up the old keys any more.

use std::time::Duration;

use super::method::Basis;
use super::params::BlockName;
use crate::chain::View;
use crate::upstream::{MinHead, UpstreamId};

/// State that an answer depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum CacheScope {
    /// Valid as long as the chain is the same.
    Chain {
        /// See [`ChainSnapshot::epoch`].
        epoch: u64,
    },
    /// Valid as long as this node runs the same software.
    Software {
        /// See [`ChainSnapshot::epoch`].
        epoch: u64,
        /// Node in use; `None` before the first.
        node: Option<UpstreamId>,
    },
    /// Valid until the next reorg or rewind.
    Branch {
        /// See [`ChainSnapshot::epoch`].
        epoch: u64,
        /// See [`View::branch`].
        branch: u64,
    },
    /// Valid until the next head.
    Head {
        /// See [`ChainSnapshot::epoch`].
        epoch: u64,
        /// See [`View::branch`].
        branch: u64,
        /// Number of the head.
        number: u64,
    },
}

impl CacheScope {
    /// Returns the anchor as numbers: its kind, then its fields, then zeros.
    #[must_use]
    pub(super) fn parts(&self) -> [u64; 4] {
        match *self {
            Self::Chain { epoch } => [0, epoch, 0, 0],
            Self::Software { epoch, node } => [1, epoch, node.map_or(0, |id| id.0 as u64 + 1), 0],
            Self::Branch { epoch, branch } => [2, epoch, branch, 0],
            Self::Head { epoch, branch, number } => [3, epoch, branch, number],
        }
    }

    /// Returns the time after which an answer is requested again even if its anchor is still valid.
    #[must_use]
    pub(super) fn lifetime(&self) -> Duration {
        const MINUTE: Duration = Duration::from_secs(60);
        match self {
            // Some chains complete a block later on (zkSync's batch numbers).
            Self::Chain { .. } => 60 * MINUTE,
            // A node may be restarted with another version.
            Self::Software { .. } => 10 * MINUTE,
            Self::Branch { .. } => 30 * MINUTE,
            // The state of an idle development chain can be changed at the node itself, between its blocks.
            Self::Head { .. } => Duration::from_secs(5),
        }
    }
}

/// State of the chain and of the nodes at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChainSnapshot {
    /// Published chain.
    pub view: View,
    /// Number of the era; a new one begins when all that was known of the chain is void.
    pub epoch: u64,
    /// Block number beyond the published head that a node has reported: the published head is not the newest.
    pub unpublished_head: Option<u64>,
    /// Node in use, or the last one that was.
    pub node: Option<UpstreamId>,
    /// Number of the block that the call names by its hash, if the block is in memory. Any other block is taken to be
    /// old: memory reaches back from the head, and a node reports a block that it does not know.
    pub named: Option<u64>,
}

/// Condition on which an answer with a scope is cached. Equal calls in flight share one answer either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// Cached at once: other clients are likely to ask for the same, as for a new head's block.
    AtOnce,
    /// Cached when the question comes for the second time: most questions of its kind come once.
    SecondTime,
}

/// Routing and caching of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// Anchor of the answer; `None` if the answer is neither cached nor shared.
    pub scope: Option<CacheScope>,
    /// Condition on which it is cached.
    pub admission: Admission,
    /// Block that a node must have reached to answer.
    pub min_head: MinHead,
    /// `true` if the answer is in the memory of one node and not of the others: the node in use is asked.
    pub of_node: bool,
    /// `true` if the state is so old that only archives have it.
    pub archive: bool,
}

/// Distance from the head, in blocks, up to which a block is new to nodes.
pub(super) const FRESH: u64 = 16;

/// Number of recent blocks whose state all nodes have; older state is in archives only (geth `core/state/pruner`,
/// `TriesInMemory`).
const STATE_KEPT: u64 = 128;

impl ChainSnapshot {
    /// Plans a call. `block` is the block that the parameter names: `None` without the parameter, `Some(None)` for a
    /// parameter that is not understood.
    #[must_use]
    pub(super) fn plan(&self, basis: Basis, block: Option<Option<BlockName>>) -> Route {
        let anywhere = |scope| Route {
            scope: Some(scope),
            admission: Admission::AtOnce,
            min_head: MinHead::Any,
            of_node: false,
            archive: false,
        };
        let (epoch, node) = (self.epoch, self.node);
        match basis {
            Basis::Chain => anywhere(CacheScope::Chain { epoch }),
            Basis::Software => Route {
                of_node: true,
                ..anywhere(CacheScope::Software { epoch, node })
            },
            Basis::Head | Basis::Mined => self.at_head(),
            Basis::Sought => Route {
                of_node: true,
                ..self.at_head()
            },
            Basis::Recent(_) => match block.flatten() {
                pending @ Some(BlockName::Pending) => self.of_block(pending, false),
                Some(_) => self.at_head(),
                None => self.unkept(),
            },
            Basis::Work => Route {
                archive: true,
                ..self.unkept()
            },
            Basis::Hash(_) | Basis::Block(_) => self.of_block(block.flatten(), false),
            Basis::State(_) => self.of_state(block.unwrap_or(Some(BlockName::Latest))),
            Basis::Account(_) if block.is_none() => self.of_state(Some(BlockName::Pending)),
            Basis::Account(_) => self.of_state(block.flatten()),
        }
    }

    fn of_state(&self, block: Option<BlockName>) -> Route {
        Route {
            admission: Admission::SecondTime,
            ..self.of_block(block, true)
        }
    }

    /// Plans a call for the logs up to this block; near the head a node may not have indexed all of them yet.
    #[must_use]
    pub(super) fn plan_logs(&self, last: BlockName) -> Route {
        match (last, self.view.head) {
            (BlockName::Number(last), Some(head)) if last <= head.number && last + FRESH > head.number => {
                self.at_head()
            }
            _ => self.of_block(Some(last), false),
        }
    }

    fn of_block(&self, block: Option<BlockName>, state: bool) -> Route {
        let Some(block) = block else { return self.unkept() };
        let epoch = self.epoch;
        let number = match block {
            BlockName::Latest | BlockName::Moving => return self.at_head(),
            BlockName::Pending => {
                return Route {
                    of_node: true,
                    ..self.unkept()
                };
            }
            // A block that is named by its hash never changes.
            BlockName::Hash(_) => {
                return Route {
                    scope: Some(CacheScope::Chain { epoch }),
                    archive: state && self.is_old(self.named),
                    ..self.at_head()
                };
            }
            BlockName::Canonical(_) => {
                return Route {
                    archive: state && self.is_old(self.named),
                    ..self.unkept()
                };
            }
            BlockName::Number(number) => number,
        };
        let Some(head) = self.view.head else {
            return self.unkept();
        };
        let branch = self.view.branch;
        if number > head.number {
            return Route {
                min_head: MinHead::PreferAbove(number),
                ..self.unkept()
            };
        }
        let is_final = number == 0 || self.view.final_block.is_some_and(|newest| number <= newest);
        Route {
            scope: Some(if is_final {
                CacheScope::Chain { epoch }
            } else {
                CacheScope::Branch { epoch, branch }
            }),
            // Whoever reads the past walks over it once.
            admission: if self.is_old(Some(number)) {
                Admission::SecondTime
            } else {
                Admission::AtOnce
            },
            // A recent block must be on the branch that clients know; an old one is on the branch of every node that
            // has reached it.
            min_head: if self.is_old(Some(number)) {
                MinHead::Number(number)
            } else {
                MinHead::Published
            },
            of_node: false,
            archive: state && self.is_old(Some(number)),
        }
    }

    /// Checks if only archives have the state of a block of this number; a block of unknown number (`None`) counts as
    /// old.
    fn is_old(&self, number: Option<u64>) -> bool {
        let head = self.view.head.map_or(0, |head| head.number);
        number.is_none_or(|number| head.saturating_sub(number) >= STATE_KEPT)
    }

    fn at_head(&self) -> Route {
        let head = self.view.head.filter(|_| self.unpublished_head.is_none());
        Route {
            scope: head.map(|head| CacheScope::Head {
                epoch: self.epoch,
                branch: self.view.branch,
                number: head.number,
            }),
            ..self.unkept()
        }
    }

    fn unkept(&self) -> Route {
        Route {
            scope: None,
            admission: Admission::AtOnce,
            min_head: self.unpublished_head.map_or(MinHead::Published, MinHead::PreferAbove),
            of_node: false,
            archive: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use alloy_primitives::B256;

    use super::*;
    use crate::chain::BlockRef;

    fn snapshot() -> ChainSnapshot {
        ChainSnapshot {
            view: View {
                head: Some(BlockRef {
                    number: 1000,
                    hash: B256::repeat_byte(1),
                }),
                branch: 3,
                epoch: 5,
                final_block: Some(900),
                is_settled: true,
            },
            epoch: 5,
            unpublished_head: None,
            node: Some(UpstreamId(0)),
            named: None,
        }
    }

    #[track_caller]
    fn check(snapshot: ChainSnapshot, basis: Basis, block: Option<BlockName>, expect: &str) {
        let plan = snapshot.plan(basis, block.map(Some));
        let scope = match plan.scope {
            None => "nothing",
            Some(CacheScope::Chain { epoch: 5 }) => "chain",
            Some(CacheScope::Software { epoch: 5, .. }) => "software",
            Some(CacheScope::Branch { epoch: 5, branch: 3 }) => "branch",
            Some(CacheScope::Head {
                epoch: 5,
                branch: 3,
                number: 1000,
            }) => "head",
            other => panic!("{other:?}"),
        };
        let of_node = if plan.of_node { " of node" } else { "" };
        let archive = if plan.archive { " archive" } else { "" };
        let again = match (plan.scope, plan.admission) {
            (Some(_), Admission::SecondTime) => " again",
            _ => "",
        };
        assert_eq!(format!("{scope}{again}, {:?}{of_node}{archive}", plan.min_head), expect);
    }

    #[test]
    fn how_long_an_answer_holds() {
        use BlockName::{Hash, Latest, Moving, Number, Pending};
        let hash = Some(Hash(B256::ZERO));
        check(snapshot(), Basis::Chain, None, "chain, Any");
        check(snapshot(), Basis::Head, None, "head, Published");
        check(snapshot(), Basis::Mined, None, "head, Published");
        check(snapshot(), Basis::Sought, None, "head, Published of node");
        check(snapshot(), Basis::Software, None, "software, Any of node");
        check(snapshot(), Basis::Recent(1), Some(Number(5)), "head, Published");
        check(
            snapshot(),
            Basis::Recent(1),
            Some(Pending),
            "nothing, Published of node",
        );
        check(snapshot(), Basis::Recent(1), None, "nothing, Published");
        check(snapshot(), Basis::Work, None, "nothing, Published archive");
        check(snapshot(), Basis::Hash(0), hash, "chain, Published");
        check(snapshot(), Basis::Hash(0), None, "nothing, Published");
        check(snapshot(), Basis::Block(0), None, "nothing, Published");
        check(snapshot(), Basis::Block(0), hash, "chain, Published");
        check(snapshot(), Basis::Block(0), Some(Latest), "head, Published");
        check(snapshot(), Basis::Block(0), Some(Moving), "head, Published");
        check(snapshot(), Basis::Block(0), Some(Pending), "nothing, Published of node");
        check(snapshot(), Basis::Block(0), Some(Number(0)), "chain again, Number(0)");
        check(
            snapshot(),
            Basis::Block(0),
            Some(Number(872)),
            "chain again, Number(872)",
        );
        check(snapshot(), Basis::Block(0), Some(Number(873)), "chain, Published");
        check(snapshot(), Basis::Block(0), Some(Number(900)), "chain, Published");
        check(snapshot(), Basis::Block(0), Some(Number(901)), "branch, Published");
        check(snapshot(), Basis::Block(0), Some(Number(1000)), "branch, Published");
        check(
            snapshot(),
            Basis::Block(0),
            Some(Number(1001)),
            "nothing, PreferAbove(1001)",
        );
        check(snapshot(), Basis::State(1), None, "head again, Published");
        check(snapshot(), Basis::Account(1), Some(Latest), "head again, Published");
        check(
            snapshot(),
            Basis::State(1),
            Some(Number(872)),
            "chain again, Number(872) archive",
        );
        check(snapshot(), Basis::State(1), Some(Number(873)), "chain again, Published");
        check(snapshot(), Basis::Account(1), None, "nothing, Published of node");
    }

    #[test]
    fn old_state_is_the_archives_also_where_its_block_is_named_by_hash() {
        for (number, old) in [(None, true), (Some(872), true), (Some(873), false), (Some(1000), false)] {
            let snapshot = ChainSnapshot {
                named: number,
                ..snapshot()
            };
            let archive = if old { " archive" } else { "" };
            let (hash, canonical) = (BlockName::Hash(B256::ZERO), BlockName::Canonical(B256::ZERO));
            check(
                snapshot,
                Basis::State(1),
                Some(hash),
                &format!("chain again, Published{archive}"),
            );
            check(
                snapshot,
                Basis::Account(1),
                Some(canonical),
                &format!("nothing, Published{archive}"),
            );
            check(snapshot, Basis::Block(0), Some(hash), "chain, Published");
            check(snapshot, Basis::Block(0), Some(canonical), "nothing, Published");
        }
    }

    #[test]
    fn where_nothing_is_known_nothing_is_kept() {
        let mut unknown = snapshot();
        unknown.view.final_block = None;
        check(
            unknown,
            Basis::Block(0),
            Some(BlockName::Number(5)),
            "branch again, Number(5)",
        );
        let unpublished_head = ChainSnapshot {
            unpublished_head: Some(1001),
            ..snapshot()
        };
        check(unpublished_head, Basis::Head, None, "nothing, PreferAbove(1001)");
        check(
            unpublished_head,
            Basis::Block(0),
            Some(BlockName::Number(1000)),
            "branch, Published",
        );
        let before = ChainSnapshot {
            view: View::default(),
            ..snapshot()
        };
        check(before, Basis::Head, None, "nothing, Published");
        check(
            before,
            Basis::Block(0),
            Some(BlockName::Number(5)),
            "nothing, Published",
        );
        check(before, Basis::Chain, None, "chain, Any");
    }
}
