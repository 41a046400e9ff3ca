//! Invariants of any story.

use std::time::Duration;

use proptest::prelude::*;

use super::{LAG_TOLERANCE, block, four};
use crate::upstream::UpstreamId;

#[derive(Clone, Debug)]
enum Event {
    Up(usize, u64),
    Down(usize),
    /// Head of an upstream; `true` for a branch of its own.
    Head(usize, bool, u64),
    /// Begin or end of a cordon.
    Cordon(usize, bool),
    /// Removal of one, and the others in an order that begins with this one.
    Arrange(usize, usize),
    Wait(u64),
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => (0..4usize, 0..3u64).prop_map(|(id, ahead)| Event::Up(id, ahead)),
        1 => (0..4usize).prop_map(Event::Down),
        9 => (0..4usize, prop::bool::weighted(0.1), 0..3u64).prop_map(|(id, own, ahead)| Event::Head(id, own, ahead)),
        1 => (0..4usize, prop::bool::ANY).prop_map(|(id, begins)| Event::Cordon(id, begins)),
        1 => (0..5usize, 0..4usize).prop_map(|(without, first)| Event::Arrange(without, first)),
        6 => (50..3_000u64).prop_map(Event::Wait),
    ]
}

proptest! {
    /// Checks the invariants of any story: an upstream is in use exactly while one is connected that is not cordoned, and
    /// switches are as rare as their causes. A failback improves the priority, so between two other switches there are at most three.
    #[test]
    fn one_that_stands_is_in_use_and_nothing_flaps(events in prop::collection::vec(any_event(), 1..200)) {
        let mut ranking = four();
        let (mut now, mut causes, mut switches) = (Duration::ZERO, 1, 0);
        let mut heads = [10u64; 4];
        for event in events {
            match event {
                Event::Up(id, ahead) => {
                    heads[id] += ahead;
                    ranking.announced(UpstreamId(id), block(&format!("a{}", heads[id])));
                    ranking.up(UpstreamId(id));
                    causes += 1;
                }
                Event::Down(id) => {
                    ranking.down(UpstreamId(id));
                    causes += 1;
                }
                Event::Head(id, own, ahead) => {
                    heads[id] += ahead;
                    let branch = if own { char::from(b'b' + id as u8) } else { 'a' };
                    ranking.announced(UpstreamId(id), block(&format!("{branch}{}", heads[id])));
                }
                Event::Cordon(id, begins) => {
                    ranking.cordon(UpstreamId(id), begins);
                    causes += 1;
                }
                Event::Arrange(without, first) => {
                    let order = (0..4).map(|at| (first + at) % 4).filter(|id| *id != without);
                    ranking.arrange(&Vec::from_iter(order.map(UpstreamId)));
                    causes += 1;
                }
                Event::Wait(millis) => now += Duration::from_millis(millis),
            }
            switches += u128::from(ranking.decide(now).is_some());
            let active = ranking.active;
            prop_assert_eq!(active.is_some(), ranking.connected().next().is_some());
            prop_assert!(active.is_none_or(|id| ranking.members[id].is_available()));
            prop_assert!(ranking.decide(now).is_none(), "one look is enough");
        }
        let slow = now.as_millis() / (LAG_TOLERANCE.as_millis() / 2);
        prop_assert!(switches <= 4 * (causes + slow), "{switches} switches, {causes} causes, {slow} patiences");
    }

    /// Checks that an upstream that reports every block first and has the best priority is never left.
    #[test]
    fn who_leads_is_not_left(events in prop::collection::vec(any_event(), 1..200)) {
        let mut ranking = four();
        let (mut now, mut head) = (Duration::ZERO, 10);
        ranking.announced(UpstreamId(0), block("a10"));
        ranking.up(UpstreamId(0));
        ranking.decide(now);
        for event in events {
            head += 1;
            ranking.announced(UpstreamId(0), block(&format!("a{head}")));
            match event {
                Event::Up(id, back) if id > 0 => {
                    ranking.announced(UpstreamId(id), block(&format!("a{}", head - back)));
                    ranking.up(UpstreamId(id));
                }
                Event::Down(id) if id > 0 => ranking.down(UpstreamId(id)),
                Event::Head(id, own, back) if id > 0 => {
                    let branch = if own { char::from(b'b' + id as u8) } else { 'a' };
                    ranking.announced(UpstreamId(id), block(&format!("{branch}{}", head - back)));
                }
                Event::Cordon(id, begins) if id > 0 => drop(ranking.cordon(UpstreamId(id), begins)),
                Event::Wait(millis) => now += Duration::from_millis(millis),
                _ => {}
            }
            prop_assert_eq!(ranking.decide(now), None);
            prop_assert_eq!(ranking.active, Some(UpstreamId(0)));
        }
    }
}
