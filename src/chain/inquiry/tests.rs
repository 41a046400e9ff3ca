use super::*;

const BUDGET: Duration = Duration::from_secs(10);
const OTHER: AttemptError = AttemptError::Other(BadAnswer::NodeError);
const SILENCE: AttemptError = AttemptError::Other(BadAnswer::CallFailed);

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// The inquiry about one block, and the record of earlier blocks.
struct World {
    inquiry: Inquiry,
    record: Record,
    nodes: Vec<UpstreamId>,
    clock: Duration,
}

impl World {
    fn new(nodes: usize, ways: &'static [FetchWay]) -> Self {
        Self {
            inquiry: Inquiry::new(ways, BUDGET, false),
            record: Record::default(),
            nodes: (0..nodes).map(UpstreamId).collect(),
            clock: Duration::ZERO,
        }
    }

    fn block(&mut self, ways: &'static [FetchWay]) {
        self.inquiry = Inquiry::new(ways, BUDGET, false);
    }

    fn next(&mut self, now: Duration) -> Option<Question> {
        self.inquiry.next(now, &self.nodes, &self.record, self.clock + now)
    }

    fn fail(&mut self, question: Question, why: AttemptError, now: Duration) {
        self.inquiry.failed(question.node, question.way, why, now);
        self.record.failed(question.node, question.way, why, self.clock + now);
    }

    /// Asks until the inquiry ends. Each answer takes 1 ms; `None` is a timeout. Returns the questions as upstream
    /// and way, the reason of the end and its second.
    fn ask(&mut self, mut answer: impl FnMut(Question) -> Option<AttemptError>) -> String {
        let mut now = Duration::ZERO;
        let mut under_way: Vec<(Duration, Question, Option<AttemptError>)> = Vec::new();
        let mut received = String::new();
        for _ in 0..10_000 {
            while let Some(question) = self.next(now) {
                received += &format!("{}{} ", question.node.0, name(question.way));
                let fails = answer(question);
                let takes = fails.map_or(question.within, |_| ms(1));
                under_way.push((now + takes, question, fails));
            }
            if let Some(missing) = self.inquiry.over(now, &self.nodes) {
                return format!("{received}{missing:?} @{}", now.as_secs());
            }
            under_way.sort_by_key(|(at, ..)| *at);
            let wake = self.inquiry.wake(now);
            match under_way.first() {
                Some((at, ..)) if *at <= wake => {
                    let (at, question, fails) = under_way.remove(0);
                    now = at;
                    self.fail(question, fails.unwrap_or(OTHER), now);
                }
                _ => now = wake,
            }
        }
        panic!("it does not end: {received}");
    }
}

fn name(way: FetchWay) -> &'static str {
    match way {
        FetchWay::LogsByHash => "h",
        FetchWay::LogsByNumber => "n",
        FetchWay::ReceiptsByHash => "r",
        FetchWay::ReceiptsByNumber => "s",
        FetchWay::EachReceipt => "e",
        FetchWay::BlockByHash => "b",
        FetchWay::BlockByNumber => "c",
    }
}

/// Returns the first `count` questions if every one fails as `answer` says.
fn first(nodes: usize, ways: &'static [FetchWay], count: usize, answer: impl Fn(FetchWay) -> AttemptError) -> String {
    let mut world = World::new(nodes, ways);
    let received = world.ask(|question| Some(answer(question.way)));
    received.split_whitespace().take(count).collect::<Vec<_>>().join(" ")
}

#[test]
fn every_upstream_is_asked_in_one_way_before_the_next_way() {
    let logs = &FetchWay::LOGS;
    assert_eq!(first(2, logs, 6, |_| OTHER), "0h 1h 0n 1n 0r 1r");
    assert_eq!(first(1, logs, 5, |_| OTHER), "0h 0n 0r 0h 0n");
    assert_eq!(first(1, logs, 6, |_| AttemptError::NotServed), "0h 0n 0r 0s 0e 0h");
    // Too long for any single answer: request its parts.
    assert_eq!(first(1, logs, 2, |_| AttemptError::TooLong), "0h 0e");
    assert_eq!(
        first(1, &FetchWay::RECEIPTS, 3, |_| AttemptError::NotServed),
        "0r 0s 0e"
    );
    assert_eq!(first(2, &FetchWay::TRANSACTIONS, 4, |_| OTHER), "0b 1b 0c 1c");
}

#[test]
fn it_ends_whatever_is_answered() {
    for (nodes, fails, ends) in [
        (1, Some(AttemptError::NotServed), "NotServed @0"),
        (3, Some(AttemptError::NotServed), "NotServed @0"),
        (1, Some(AttemptError::Pruned), "Pruned @0"),
        (1, Some(AttemptError::Broken), "NotServed @"),
        (1, Some(AttemptError::Throttled), "Throttled @10"),
        (2, Some(OTHER), "NotServed @10"),
        (1, None, "NotServed @10"),
        (3, None, "NotServed @10"),
        (1, Some(SILENCE), "Unanswered @10"),
        (2, Some(AttemptError::NotNow), "Unanswered @10"),
    ] {
        for ways in [
            &FetchWay::LOGS[..],
            &FetchWay::RECEIPTS[..],
            &FetchWay::TRANSACTIONS[..],
        ] {
            let received = World::new(nodes, ways).ask(|_| fails);
            assert!(received.contains(ends), "{nodes} {fails:?}: {received}");
            let asked = received.split_whitespace().count() - 2;
            assert!(asked <= 30 * nodes * ways.len(), "{nodes} {fails:?}: {asked} questions");
        }
    }
    let long = World::new(1, &FetchWay::LOGS).ask(|question| {
        Some(if question.way == FetchWay::EachReceipt {
            OTHER
        } else {
            AttemptError::TooLong
        })
    });
    assert!(
        long.starts_with("0h 0e 0n 0r 0e "),
        "in parts, and three times in all: {long}"
    );
    let whole = long
        .split_whitespace()
        .filter(|asked| ["0h", "0n", "0r"].contains(asked));
    assert_eq!(whole.count(), 3, "{long}");
    // Pruned contents do not come back, even if another way reports another error.
    let pruned = |question: Question| {
        Some(if question.way == FetchWay::LogsByHash {
            AttemptError::Pruned
        } else {
            OTHER
        })
    };
    assert_eq!(World::new(1, &FetchWay::LOGS).ask(pruned), "0h 0n 0r Pruned @0");
    let broken = World::new(1, &FetchWay::RECEIPTS).ask(|_| Some(AttemptError::Broken));
    for way in ["0r", "0e"] {
        assert_eq!(broken.matches(way).count(), 3, "{broken}");
    }
    // An earlier rate limit is not the reason if no way is served.
    let mut count = 0;
    let received = World::new(1, &FetchWay::TRANSACTIONS).ask(|_| {
        count += 1;
        Some(if count == 1 {
            AttemptError::Throttled
        } else {
            AttemptError::NotServed
        })
    });
    assert!(received.contains("NotServed @"), "{received}");
}

#[test]
fn what_is_late_is_not_waited_for_and_not_doubled() {
    let mut world = World::new(1, &FetchWay::LOGS);
    let asked = world.next(ms(0)).expect("a question");
    assert_eq!((asked.way, world.next(ms(1_249))), (FetchWay::LogsByHash, None));
    assert_eq!(
        world.next(ms(1_250)).map(|question| question.way),
        Some(FetchWay::LogsByNumber)
    );
    assert_eq!(world.next(ms(1_250)), None);
    // A node that is usually slow does not get a second question for it.
    world.record.works(UpstreamId(0), FetchWay::LogsByHash, ms(600));
    world.block(&FetchWay::LOGS);
    assert!(world.next(ms(0)).is_some());
    assert_eq!(world.next(ms(2_399)), None);
    assert!(world.next(ms(2_400)).is_some());
}

#[test]
fn a_doubt_asks_a_second_voice_at_once() {
    for (nodes, second) in [(1, (0, FetchWay::LogsByNumber)), (2, (1, FetchWay::LogsByHash))] {
        let mut world = World::new(nodes, &FetchWay::LOGS);
        let asked = world.next(ms(0)).expect("a question");
        world.inquiry.doubted(asked.node, asked.way, ms(1));
        let voice = world.next(ms(1)).map(|question| (question.node.0, question.way));
        assert_eq!(voice, Some(second));
        assert!(world.next(ms(1)).is_some(), "and a third beside it");
        assert_eq!(world.next(ms(2)), None);
    }
}

#[test]
fn where_the_index_of_logs_may_be_behind_receipts_are_next_and_then_rest() {
    let mut world = World::new(1, &FetchWay::LOGS);
    let hash = world.next(ms(0)).expect("a question");
    world.inquiry.doubted(hash.node, hash.way, ms(1));
    world.inquiry.index_is_behind(hash.node, ms(1));
    let receipts = world.next(ms(1)).expect("a question");
    assert_eq!((receipts.way, world.next(ms(1))), (FetchWay::ReceiptsByHash, None));
    world.inquiry.doubted(receipts.node, receipts.way, ms(2));
    world.inquiry.listed(receipts.node, receipts.way, ms(2), ms(1000));
    assert_eq!(world.next(ms(1001)), None);
    assert_eq!(world.inquiry.wake(ms(2)), ms(1002));
    assert_eq!(
        world.next(ms(1002)).map(|question| question.way),
        Some(FetchWay::ReceiptsByHash)
    );
    assert_eq!(world.next(ms(1003)), None);
}

#[test]
fn time_without_a_node_is_not_asked_away() {
    let mut world = World::new(1, &FetchWay::LOGS);
    for at in 0..1_000 {
        let now = ms(at);
        if let Some(question) = world.next(now) {
            world.fail(question, AttemptError::Unavailable, now);
        }
        assert_eq!(world.inquiry.over(now, &world.nodes), None);
    }
    assert_eq!(world.inquiry.paths.iter().map(|path| path.tries).sum::<u32>(), 0);
}

#[test]
fn the_next_block_goes_straight_to_what_works() {
    let mut world = World::new(1, &FetchWay::LOGS);
    let received = world.ask(|question| (question.way != FetchWay::ReceiptsByHash).then_some(AttemptError::NotServed));
    assert!(received.starts_with("0h 0n 0r "), "{received}");
    let straight = |world: &mut World| {
        world.block(&FetchWay::LOGS);
        world.next(ms(0)).expect("a question").way
    };
    assert_eq!(straight(&mut world), FetchWay::ReceiptsByHash);
    // The way is tried again after one minute, and after two more.
    for (wait, again) in [(61, 119), (121, 239)] {
        world.clock += Duration::from_secs(wait);
        assert_eq!(straight(&mut world), FetchWay::LogsByHash);
        world.record.failed(
            UpstreamId(0),
            FetchWay::LogsByHash,
            AttemptError::NotServed,
            world.clock,
        );
        world.record.failed(
            UpstreamId(0),
            FetchWay::LogsByNumber,
            AttemptError::NotServed,
            world.clock,
        );
        world.clock += Duration::from_secs(again);
        assert_eq!(straight(&mut world), FetchWay::ReceiptsByHash);
        world.clock -= Duration::from_secs(again);
    }
    // A restarted node may serve the way.
    world.record.connected(UpstreamId(0), 1);
    world.record.connected(UpstreamId(0), 1);
    assert_eq!(straight(&mut world), FetchWay::ReceiptsByHash);
    world.record.connected(UpstreamId(0), 2);
    assert_eq!(straight(&mut world), FetchWay::LogsByHash);
}

#[test]
fn where_nothing_is_served_each_way_is_asked_once_a_block() {
    let mut world = World::new(1, &FetchWay::LOGS);
    let all = |_| Some(AttemptError::NotServed);
    assert_eq!(world.ask(all).split_whitespace().count(), 15 + 2);
    world.block(&FetchWay::LOGS);
    assert_eq!(world.ask(all), "0h 0n 0r 0s 0e NotServed @0");
}

#[test]
fn three_failures_in_a_row_put_a_way_off_and_a_reconnection_does_not_end_that() {
    let (node, way) = (UpstreamId(0), FetchWay::LogsByHash);
    let mut record = Record::default();
    record.connected(node, 1);
    for at in [0, 40] {
        assert!(!record.failed(node, way, AttemptError::Broken, ms(at)));
    }
    record.works(node, way, ms(5));
    // All calls on one connection end together.
    for at in [0, 0, 1, 29, 40, 41] {
        assert!(!record.failed(node, way, AttemptError::Broken, ms(at)));
    }
    assert!(record.offers(node, way, ms(0)));
    assert!(
        record.failed(node, way, AttemptError::Broken, ms(80)),
        "once, to be said aloud"
    );
    assert!(!record.failed(node, way, AttemptError::Broken, ms(120)));
    record.connected(node, 2);
    assert!(!record.offers(node, way, ms(60_079)));
    assert!(record.offers(node, way, ms(60_080)));
    // A rate limit passes sooner.
    assert!(record.failed(UpstreamId(1), way, AttemptError::Throttled, ms(0)));
    assert!(record.offers(UpstreamId(1), way, ms(1_000)));
    assert!(!record.failed(UpstreamId(1), way, AttemptError::Unavailable, ms(1_000)));
}

#[test]
fn time_is_added_while_no_node_answers() {
    let mut world = World::new(2, &FetchWay::LOGS);
    let nodes = world.nodes.clone();
    assert!(!world.inquiry.is_unanswered(&nodes), "none was asked");
    for (why, node, expected) in [
        (SILENCE, 0, false),
        (AttemptError::NotNow, 1, true),
        (OTHER, 0, false),
        (AttemptError::Unavailable, 0, true),
        (AttemptError::NotServed, 1, false),
        (SILENCE, 1, true),
        (AttemptError::TooLong, 1, false),
        (AttemptError::Broken, 1, true),
    ] {
        world.inquiry.failed(UpstreamId(node), FetchWay::LogsByHash, why, ms(1));
        assert_eq!(world.inquiry.is_unanswered(&nodes), expected, "{node} {why:?}");
    }
    world.inquiry.doubted(UpstreamId(0), FetchWay::LogsByHash, ms(1));
    assert!(!world.inquiry.is_unanswered(&nodes));
    let mut world = World::new(1, &FetchWay::LOGS);
    world.inquiry.extend(5 * BUDGET);
    assert!(world.ask(|_| Some(SILENCE)).ends_with("Unanswered @60"));
    let mut world = World::new(1, &FetchWay::LOGS);
    world.inquiry.extend(BUDGET);
    let asked = world.next(BUDGET).expect("a question");
    assert_eq!(asked.within, BUDGET / 2, "not what is left of the budget");
    let mut world = World::new(1, &FetchWay::LOGS);
    (0..1_000).for_each(|_| world.inquiry.extend(BUDGET));
    assert!(world.ask(|_| Some(SILENCE)).ends_with("Unanswered @610"), "it ends");
}

#[test]
fn a_way_without_an_answer_counts_once_the_node_answers_in_another() {
    let (node, other) = (UpstreamId(0), UpstreamId(1));
    let mut world = World::new(2, &FetchWay::LOGS);
    for (node, why) in [
        (node, SILENCE),
        (other, SILENCE),
        (node, AttemptError::NotNow),
        (other, AttemptError::Unavailable),
    ] {
        let asked = world.next(ms(0)).expect("a question");
        assert_eq!(asked.node, node);
        world.inquiry.failed(asked.node, asked.way, why, ms(1));
    }
    let late: Vec<_> = world.inquiry.late(node, ms(2)).collect();
    assert_eq!(late, [(node, FetchWay::LogsByHash)]);
    // The blocks that waited for a node that is back count as one, and those of a node that hangs do not.
    let (mut record, way) = (Record::default(), FetchWay::LogsByHash);
    for at in [0, 1, 2, 999, 1_000, 1_999] {
        assert!(!record.failed(node, way, SILENCE, ms(at)), "{at}");
    }
    assert!(record.failed(node, way, SILENCE, ms(2_000)));
    for at in 0..10 {
        assert!(
            !record.failed(other, way, AttemptError::NotNow, ms(at * 10_000)),
            "{at}"
        );
    }
}
