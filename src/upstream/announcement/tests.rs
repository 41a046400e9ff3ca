use expect_test::{Expect, expect};

use super::*;

fn block(branch: &str, number: u64, bloom: &str) -> Bytes {
    let hash = |name: &str| alloy_primitives::keccak256(name);
    let parent = hash(&format!("a{}", number.wrapping_sub(1)));
    let own = hash(&format!("{branch}{number}"));
    format!(r#"{{"hash":"{own}","parentHash":"{parent}","number":"{number:#x}",{bloom}"stateRoot":"0x01"}}"#).into()
}

/// Runs a connection on which heads are announced, one a word, and answers arrive at once: `5` as its block, `x5`
/// under another hash, `r5` and replaced by a reorg before the request, `l5` without a bloom, `n5` before the
/// node has it, `u5` if the node never has it, `?` unreadable, `+` time passes; `(` and `)`: answers arrive only
/// at the end of the group.
#[track_caller]
fn check(words: &str, expect: Expect) {
    let bloom = r#""logsBloom":"0xff","#;
    let start = Instant::now();
    let mut now = start;
    let mut own = Announcements::new(Duration::from_secs(1));
    let mut story = Vec::new();
    let mut kinds: HashMap<u64, char> = HashMap::new();
    let mut open: VecDeque<(u64, HeaderLookup)> = VecDeque::new();
    let mut is_open = false;
    let note = |acts: Vec<Act>, open: &mut VecDeque<(u64, HeaderLookup)>, story: &mut Vec<String>| {
        for act in acts {
            story.push(match act {
                Act::Deliver(json) => format!("{}", place_of(&json).unwrap().number),
                Act::Ring(Goal::Height(number)) => format!("ring{number}"),
                Act::Ring(goal) => format!("ring:{goal:?}"),
                Act::Found(heads, _) => format!("[{}]", heads.label()),
                Act::Ask(question, seek) => {
                    open.push_back((question, seek));
                    continue;
                }
            });
        }
    };
    for word in words.split_whitespace() {
        let kind = word.chars().next().unwrap();
        match kind {
            '+' => now += AGAIN,
            '(' => is_open = true,
            ')' => is_open = false,
            '?' => note(own.announced("{}".into(), now), &mut open, &mut story),
            _ => {
                let number: u64 = word.trim_start_matches(char::is_alphabetic).parse().unwrap();
                kinds.insert(number, kind);
                let announced = match kind {
                    'x' => block("x", number, bloom),
                    'l' => block("a", number, ""),
                    _ => block("a", number, bloom),
                };
                note(own.announced(announced, now), &mut open, &mut story);
            }
        }
        if is_open {
            continue;
        }
        loop {
            if let Some((question, seek)) = open.pop_front() {
                let answer = kinds.iter().find_map(|(&number, kind)| {
                    let has = match kind {
                        'u' => return None,
                        'n' if now < start + Duration::from_millis(100) => return None,
                        'r' => block("b", number, bloom),
                        _ => block("a", number, bloom),
                    };
                    let place = place_of(&has).unwrap();
                    let asked = match seek {
                        HeaderLookup::Hash(hash) => place.hash == hash,
                        HeaderLookup::Number(asked) => place.number == asked,
                    };
                    asked.then_some(has)
                });
                note(own.answered(question, answer.as_ref(), now), &mut open, &mut story);
            } else if let Some(due) = own.due() {
                now = now.max(due);
                note(own.turn(now), &mut open, &mut story);
            } else {
                break;
            }
        }
    }
    expect.assert_eq(&story.join(" "));
}

#[test]
fn an_announcement_is_held_until_its_block_came() {
    check("1 2 3", expect!["[header] 1 2 3"]);
    check("( 1 2 3 ) 4", expect!["[header] 1 2 3 4"]);
    check("n1 2", expect!["[header] 1 2"]);
}

#[test]
fn where_hashes_are_not_the_blocks_announcements_ring() {
    check("x1 x2 x3", expect!["ring1 [ring] ring2 ring3"]);
    check("( x1 x2 x3 ) x4", expect!["ring1 [ring] ring3 ring4"]);
    check("x1 x2 3", expect!["ring1 [ring] ring2 ring3"]);
}

#[test]
fn a_reorg_between_announcement_and_question_is_no_lie() {
    check("r1 2 3 r4", expect!["ring1 [header] 2 3 4"]);
    check("( r1 2 3 ) 4", expect!["ring1 [header] 3 4"]);
}

#[test]
fn where_a_member_is_missing_announcements_ring() {
    check("l1 2", expect!["[ring] ring1 ring2"]);
    check("( l1 2 ) 3", expect!["[ring] ring2 ring3"]);
    check("? ?", expect!["ring:Change [ring] ring:Change"]);
    check("( 1 ? ) 2", expect!["ring:Change [header] 1 2"]);
}

#[test]
fn headers_are_compared_again_now_and_then() {
    check("1 x2 + 3 x4", expect!["[header] 1 2 3 [header] 4"]);
    check("1 + x2 x3", expect!["[header] 1 2 ring2 [ring] ring3"]);
    check("1 + l2 3", expect!["[header] 1 2 [ring] ring2 ring3"]);
    check("1 + r2 3", expect!["[header] 1 2 ring2 [header] 3"]);
}

#[test]
fn a_node_that_never_has_its_blocks_is_believed() {
    check("u1 u2 u3", expect!["1 2 3"]);
    check("( u1 u2 ) u3 4", expect!["1 2 3 4 [header]"]);
}

#[test]
fn announcements_that_wait_are_bounded() {
    let many: Vec<String> = (1..=70).map(|number| number.to_string()).collect();
    let expect = format!("[header] 1 {}", many[6..].join(" "));
    let words = format!("( {} ) ", many.join(" "));
    let data = expect.clone();
    check(
        &words,
        Expect {
            data: Box::leak(data.into_boxed_str()),
            ..expect![""]
        },
    );
}

#[test]
fn members_that_verification_needs() {
    let zero = r#""logsBloom":"0x00","#;
    for (announced, has, expect) in [
        (r#""logsBloom":"0xff","#, r#""logsBloom":"0xFF","#, None),
        ("", "", None),
        ("", zero, Some("logsBloom")),
        (zero, zero, None),
        (zero, r#""logsBloom":"0xff","#, Some("logsBloom")),
        (r#""logsBloom":null,"#, zero, Some("logsBloom")),
        (r#""logsBloom":"0x","#, zero, Some("logsBloom")),
        (r#""logsBloom":"0xff","#, zero, None),
        (r#""logsBloom":"0xfe","#, r#""logsBloom":"0xff","#, Some("logsBloom")),
        (
            r#""receiptsRoot":"0x00","#,
            r#""receiptsRoot":"0x01","#,
            Some("receiptsRoot"),
        ),
        (r#""extra":1,"#, r#""size":"0x5","#, None),
    ] {
        let (one, other) = (block("a", 1, announced), block("a", 1, has));
        assert_eq!(lacks(&one, &other), expect, "{announced} {has}");
    }
}

#[test]
fn a_ring_is_answered_by_the_head_that_was_announced() {
    let now = Instant::now();
    let mut ring = Ring::default();
    assert!(ring.ring(Goal::Height(5)));
    assert!(!ring.ring(Goal::Height(6)), "one at a time");
    assert!(ring.answered(Some(5), true, now), "the second is still to come");
    assert!(!ring.answered(Some(6), true, now) && ring.due().is_none());
    // A late head is fetched again, a bounded number of times.
    assert!(ring.ring(Goal::Height(7)));
    let mut asked = 1;
    assert!(!ring.answered(Some(6), false, now));
    while let Some(due) = ring.due() {
        assert!(ring.turn(due));
        asked += 1;
        assert!(!ring.answered(None, false, due));
    }
    assert_eq!(asked, MAX_RINGS + 1);
    assert!(ring.ring(Goal::Change));
    assert!(!ring.answered(Some(6), false, now) && ring.due().is_some());
    assert!(ring.turn(now + HEAD.nth(u32::MAX)));
    assert!(!ring.answered(Some(6), true, now) && ring.due().is_none());
    assert!(ring.ring(Goal::Any));
    assert!(!ring.answered(Some(6), false, now) && ring.due().is_none());
}
