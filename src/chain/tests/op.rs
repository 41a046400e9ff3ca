//! Random step of a test.

use proptest::prelude::*;
use proptest::sample::Index;

/// One step of a test.
#[derive(Clone, Debug)]
pub(super) enum Op {
    /// An upstream announces a head; upstream 0 is the one in use.
    Tell(u8, Index),
    /// Another upstream comes into use.
    Switch,
    /// An answer arrives: true, empty, or about another block.
    Answer(Index, Manner, Index),
    /// A block's logs arrive that live subscriptions await.
    Logs(Index),
    /// This many events are published.
    Publish(u8),
    /// A stream resumes after a block, or after one of its logs.
    Resume(Index, Option<u64>),
    /// A stream of heads resumes after a block.
    ResumeHeads(Index),
    /// A resumed stream is advanced by this many steps.
    Step(Index, u8),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Manner {
    Right,
    Nothing,
    Wrong,
}

pub(super) fn op() -> impl Strategy<Value = Op> {
    let manner = prop_oneof![4 => Just(Manner::Right), 1 => Just(Manner::Nothing), 1 => Just(Manner::Wrong)];
    prop_oneof![
        6 => (0u8..3, any::<Index>()).prop_map(|(who, block)| Op::Tell(who, block)),
        1 => Just(Op::Switch),
        8 => (any::<Index>(), manner, any::<Index>()).prop_map(|(ask, manner, other)| Op::Answer(ask, manner, other)),
        6 => (1u8..8).prop_map(Op::Publish),
        6 => any::<Index>().prop_map(Op::Logs),
        1 => (any::<Index>(), prop::option::of(0u64..3)).prop_map(|(block, log)| Op::Resume(block, log)),
        1 => any::<Index>().prop_map(Op::ResumeHeads),
        3 => (any::<Index>(), 1u8..6).prop_map(|(stream, steps)| Op::Step(stream, steps)),
    ]
}
