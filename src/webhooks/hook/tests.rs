//! Stories in small words: events come, the hook says what it does, and the receiver answers.

use expect_test::{Expect, expect};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A hook, its disk, and what it does, as a line for each word.
struct Story {
    hook: Hook,
    limits: HookLimits,
    disk: HookState,
    now: Instant,
    lines: String,
}

fn limits() -> HookLimits {
    HookLimits {
        events: 3,
        bytes: 100,
        retry_max: 60 * SECOND,
        retry_for: 600 * SECOND,
    }
}

impl Story {
    fn new(limits: HookLimits) -> Self {
        let mut disk = HookState::new("logs");
        disk.series = "s".into();
        let now = Instant::now();
        Self {
            hook: Hook::new(limits, disk.clone(), fastrand::Rng::with_seed(1), now),
            limits,
            disk,
            now,
            lines: String::new(),
        }
    }

    /// Acts until there is nothing to do.
    fn run(&mut self) -> Vec<String> {
        let mut done = Vec::new();
        loop {
            match self.hook.next(self.now, 0) {
                Act::Save => {
                    self.disk = self.hook.state().clone();
                    self.hook.saved(self.now);
                    let position = self.disk.position.as_deref().unwrap_or("-");
                    let batch = self
                        .disk
                        .batch
                        .as_ref()
                        .map_or(String::new(), |own| format!("+{}", own.sequence));
                    done.push(format!("save {position}{batch}"));
                }
                Act::Post => {
                    self.hook.sending(self.now);
                    let batch = self.hook.batch().unwrap();
                    let (_, data) = batch.body.split_once("\"data\":").unwrap();
                    done.push(format!("post {}:{}", self.hook.id(), data.trim_end_matches('}')));
                    return done;
                }
                Act::Bury => {
                    done.push(format!("bury {} after {}", self.hook.id(), self.hook.attempts()));
                    self.hook.buried();
                }
                Act::Wait(None) => return done,
                Act::Wait(Some(at)) => {
                    done.push(format!("wait {:?}", at - self.now));
                    return done;
                }
                Act::Disabled => {
                    done.push("disabled".into());
                    return done;
                }
            }
        }
    }

    fn answered(&mut self, answer: &Answer) {
        self.hook.answered(answer, self.now);
    }

    /// `7` is an event with its position, `b7` a position, `ok`, `500`, `410` and `429:9` are answers, `+9s` passes time,
    /// `kill` ends the process, `gap` is an event of headwater's.
    fn word(&mut self, word: &str) {
        let failed = |seconds: Option<u64>| Answer::Failed {
            retry_after: seconds.map(Duration::from_secs),
        };
        match word {
            "ok" => self.answered(&Answer::Accepted),
            "410" => self.answered(&Answer::Gone),
            "500" => self.answered(&failed(None)),
            "kill" => {
                self.hook = Hook::new(self.limits, self.disk.clone(), fastrand::Rng::with_seed(2), self.now);
                let position = self.hook.position().unwrap_or("-").to_owned();
                self.lines += &format!("resumes behind {position}\n");
            }
            "gap" => self.hook.announce("gap", "{}", Some("b9".into()), self.now, 0),
            _ if word.starts_with("429:") => {
                let seconds = word[4..].parse().unwrap();
                self.answered(&failed(Some(seconds)));
            }
            _ if word.starts_with('+') => self.now += humantime::parse_duration(&word[1..]).unwrap(),
            _ if word.starts_with('b') => self.hook.mark(word.to_owned()),
            _ => self.hook.take("logs", word, Some(format!("l{word}"))),
        }
    }

    /// Words between commas come together.
    fn tell(mut self, words: &str) -> String {
        for words in words.split_whitespace() {
            words.split(',').for_each(|word| self.word(word));
            let done = self.run().join("; ");
            self.lines += format!("{words}: {done}").trim_end();
            self.lines.push('\n');
        }
        self.lines
    }
}

#[track_caller]
fn check(words: &str, expect: Expect) {
    expect.assert_eq(&Story::new(limits()).tell(words));
}

#[test]
fn a_batch_is_on_the_disk_before_it_is_sent_and_its_position_before_the_next() {
    check(
        "b0 1 2,3 ok ok b3 +1s",
        expect![[r#"
            b0: save b0
            1: save b0+1; post msg_s_1:[1]
            2,3:
            ok: save l1+2; post msg_s_2:[2,3]
            ok: save l3
            b3: wait 1s
            +1s: save b3
        "#]],
    );
}

#[test]
fn a_killed_process_sends_the_same_batch_and_goes_on_behind_it() {
    check(
        "b0 1,2 3 kill ok 3,4 kill kill ok",
        expect![[r#"
            b0: save b0
            1,2: save b0+1; post msg_s_1:[1,2]
            3:
            resumes behind l2
            kill: post msg_s_1:[1,2]
            ok: save l2
            3,4: save l2+2; post msg_s_2:[3,4]
            resumes behind l4
            kill: post msg_s_2:[3,4]
            resumes behind l4
            kill: post msg_s_2:[3,4]
            ok: save l4
        "#]],
    );
}

#[test]
fn a_position_over_quiet_blocks_is_written_once_a_second_and_the_first_at_once() {
    check(
        "b0 b1 b2 b2 +500ms +500ms b3 b4,1 b5 ok",
        expect![[r#"
            b0: save b0
            b1: wait 1s
            b2: wait 1s
            b2: wait 1s
            +500ms: wait 500ms
            +500ms: save b2
            b3: wait 1s
            b4,1: save b4+1; post msg_s_1:[1]
            b5:
            ok: save b5
        "#]],
    );
}

#[test]
fn a_failed_batch_is_sent_again_with_growing_waits_and_then_given_up() {
    check(
        "b0 1 2 500 +1s 500 500 429:30 +29s +1s 429:9999 +600s 500 ok",
        expect![[r#"
            b0: save b0
            1: save b0+1; post msg_s_1:[1]
            2:
            500: wait 828.519756ms
            +1s: post msg_s_1:[1]
            500: wait 1.534615987s
            500: wait 1.23963517s
            429:30: wait 30s
            +29s: wait 1s
            +1s: post msg_s_1:[1]
            429:9999: wait 569s
            +600s: post msg_s_1:[1]
            500: bury msg_s_1 after 4; save l1+2; post msg_s_2:[2]
            ok: save l2
        "#]],
    );
}

#[test]
fn a_receiver_that_is_gone_disables_until_the_next_start() {
    check(
        "b0 1 410 2 +1h kill ok",
        expect![[r#"
            b0: save b0
            1: save b0+1; post msg_s_1:[1]
            410: disabled
            2: disabled
            +1h: disabled
            resumes behind l1
            kill: post msg_s_1:[1]
            ok: save l1
        "#]],
    );
}

#[test]
fn a_gap_is_a_batch_of_its_own_with_the_position_behind_it() {
    check(
        "b0 1 ok gap 10 kill ok ok",
        expect![[r#"
            b0: save b0
            1: save b0+1; post msg_s_1:[1]
            ok: save l1
            gap: save l1+2; post msg_s_2:{
            10:
            resumes behind b9
            kill: post msg_s_2:{
            ok: save b9
            ok: save b9
        "#]],
    );
}

#[test]
fn a_batch_is_complete_by_number_or_by_bytes() {
    let now = Instant::now();
    let mut hook = Hook::new(limits(), HookState::new("logs"), fastrand::Rng::with_seed(1), now);
    hook.take("logs", "1", None);
    hook.take("logs", "2", None);
    assert!(!hook.is_full());
    hook.take("logs", "3", None);
    assert!(hook.is_full());
    assert_eq!(hook.next(now, 0), Act::Save);
    assert!(!hook.is_full(), "one batch is gathered while one is sent");
    hook.take("logs", &"x".repeat(100), None);
    assert!(hook.is_full());
}

#[test]
fn the_body_is_that_of_the_specification() {
    let text = body("logs", 7, 1_700_000_000_123, "[{\"a\":1}]");
    assert_eq!(
        text,
        r#"{"type":"logs","timestamp":"2023-11-14T22:13:20.123Z","sequence":7,"data":[{"a":1}]}"#
    );
}

/// Random stories with kills between any two steps: the receiver has all events in order, and what comes twice has the
/// same id and the same bytes.
#[test]
fn no_event_is_lost_or_changes_whatever_ends_the_process() {
    for seed in 0..400 {
        let mut random = fastrand::Rng::with_seed(seed);
        let limits = limits();
        let mut disk = HookState::new("logs");
        let mut now = Instant::now();
        let mut hook = Hook::new(limits, disk.clone(), random.fork(), now);
        let mut received: Vec<(String, String)> = Vec::new();
        let mut next = 0;
        for _ in 0..300 {
            match random.u8(0..12) {
                0..5 if !hook.is_full() && next < 60 => {
                    next += 1;
                    hook.take("logs", &next.to_string(), Some(next.to_string()));
                }
                5 => {
                    hook = Hook::new(limits, disk.clone(), random.fork(), now);
                    next = hook.position().map_or(0, |position| position.parse().unwrap());
                }
                6 => now += SECOND,
                _ => match hook.next(now, 0) {
                    Act::Save => {
                        let is_lost = random.u8(0..8) == 0;
                        if !is_lost {
                            disk = hook.state().clone();
                            hook.saved(now);
                        }
                    }
                    Act::Post => {
                        hook.sending(now);
                        let failed = Answer::Failed { retry_after: None };
                        match random.u8(0..4) {
                            0 => {
                                hook.answered(&failed, now);
                            }
                            outcome => {
                                received.push((hook.id(), hook.batch().unwrap().body.clone()));
                                // The answer may be lost on its way.
                                let answer = if outcome == 1 { failed } else { Answer::Accepted };
                                hook.answered(&answer, now);
                            }
                        }
                    }
                    Act::Bury | Act::Disabled => panic!("seed {seed}"),
                    Act::Wait(_) => {}
                },
            }
        }
        let (mut seen, mut events) = (std::collections::HashMap::new(), Vec::new());
        let mut last = String::new();
        for (id, body) in received {
            if let Some(known) = seen.insert(id.clone(), body.clone()) {
                assert_eq!(
                    (&known, &id),
                    (&body, &last),
                    "seed {seed}: only the last batch comes again"
                );
                continue;
            }
            last = id;
            let body: serde_json::Value = serde_json::from_str(&body).unwrap();
            events.extend(body["data"].as_array().unwrap().iter().map(|own| own.as_u64().unwrap()));
        }
        let expected: Vec<u64> = (1..=events.len() as u64).collect();
        assert_eq!(events, expected, "seed {seed}");
        assert!(!events.is_empty());
    }
}
