use super::*;

/// Builds an event. Heads are `number branch<parent's branch`, such as `7b<a`; logs `number branch.index`, with `-`
/// before a removal.
fn body(word: &str) -> String {
    let (removed, word) = word.strip_prefix('-').map_or((false, word), |word| (true, word));
    let at = word.find(|c: char| !c.is_ascii_digit()).unwrap();
    let number: u64 = word[..at].parse().unwrap();
    match word[at..].split_once('<') {
        Some((branch, parent)) => format!(
            r#"{{"number":"{number:#x}","hash":"{}","parentHash":"{}"}}"#,
            hash(number, branch),
            hash(number - 1, parent)
        ),
        None => {
            let (branch, index) = word[at..].split_once('.').unwrap();
            let index: u64 = index.parse().unwrap();
            format!(
                r#"{{"blockNumber":"{number:#x}","blockHash":"{}","logIndex":"{index:#x}","removed":{removed}}}"#,
                hash(number, branch)
            )
        }
    }
}

fn hash(number: u64, branch: &str) -> B256 {
    let mut hash = B256::repeat_byte(branch.as_bytes()[0]);
    hash[31] = number as u8;
    hash
}

/// Delivers a line to each client, all in the same window, and compares lost, doubled and disordered of each. The
/// order of the clients must not matter.
#[track_caller]
fn check(kind: Kind, lines: &[&str], expected: &[(u64, u64, u64)]) {
    for rotation in 0..lines.len() {
        let mut stream = Stream::new(kind, lines.len());
        let mut feeds: Vec<Feed> = lines.iter().map(|_| Feed::new(0)).collect();
        for at in 0..lines.len() {
            let client = (at + rotation) % lines.len();
            for word in lines[client].split_whitespace() {
                stream
                    .take(&mut feeds[client], body(word).as_bytes(), Instant::now())
                    .unwrap();
            }
        }
        let end = stream.len();
        let found: Vec<_> = feeds
            .iter()
            .map(|feed| (stream.lost(feed, 0, end), feed.doubled, feed.disordered))
            .collect();
        assert_eq!(found, expected, "rotation {rotation}");
    }
}

#[test]
fn a_walk_with_reorgs_is_sound() {
    // The chain returns to the first branch, so head 2 is announced again.
    let walk = "1a<a 2a<a 2b<a 3b<b 2a<a 3a<a 4a<a";
    check(Kind::Heads, &[walk, walk], &[(0, 0, 0); 2]);
}

#[test]
fn faults_of_heads_are_told_apart() {
    let sound = "1a<a 2a<a 3a<a 4a<a";
    check(Kind::Heads, &[sound, "1a<a 3a<a 4a<a"], &[(0, 0, 0), (1, 0, 0)]);
    check(
        Kind::Heads,
        &[sound, "1a<a 2a<a 2a<a 3a<a 4a<a"],
        &[(0, 0, 0), (0, 1, 0)],
    );
    check(Kind::Heads, &[sound, "1a<a 3a<a 2a<a 4a<a"], &[(0, 0, 0), (0, 0, 1)]);
    check(Kind::Heads, &[sound, "1a<a 2a<a 3a<a"], &[(0, 0, 0), (1, 0, 0)]);
    check(Kind::Heads, &[sound, ""], &[(0, 0, 0), (4, 0, 0)]);
    // Back on the first branch, but not at the fork.
    check(Kind::Heads, &["1a<a 2a<a 2b<a 3b<b 3a<a 4a<a"], &[(1, 0, 0)]);
    // No client received 3a, as after a reorg whose tip alone was announced.
    check(Kind::Heads, &["1a<a 2a<a 4a<a", "1a<a 2a<a 4a<a"], &[(1, 0, 0); 2]);
}

#[test]
fn logs_with_removals_are_sound() {
    let line = "5a.0 5a.1 6a.0 -5a.0 -5a.1 -6a.0 5b.3 6b.0 -5b.3 -6b.0 5a.0 5a.1 6a.0 7a.2";
    check(Kind::Logs, &[line, line, line], &[(0, 0, 0); 3]);
}

#[test]
fn faults_of_logs_are_told_apart() {
    let sound = "5a.0 5a.1 6a.0 7a.0";
    check(Kind::Logs, &[sound, "5a.0 6a.0 7a.0"], &[(0, 0, 0), (1, 0, 0)]);
    check(
        Kind::Logs,
        &[sound, "5a.0 5a.1 5a.1 6a.0 7a.0"],
        &[(0, 0, 0), (0, 1, 0)],
    );
    check(Kind::Logs, &[sound, "5a.0 6a.0 5a.1 7a.0"], &[(0, 0, 0), (0, 0, 1)]);
    // The second client began with block 5, so it lacks block 4 and its removal, but block 4b is in order.
    check(
        Kind::Logs,
        &["4a.0 5a.0 -4a.0 -5a.0 4b.0 5b.0", "5a.0 -5a.0 4b.0 5b.0"],
        &[(0, 0, 0), (2, 0, 0)],
    );
    check(Kind::Logs, &["4a.0 5a.0 -5a.0 4b.0 5b.0"], &[(0, 0, 1)]);
    // A branch that was abandoned without removals.
    check(Kind::Logs, &["5a.0 5b.1 6b.0"], &[(0, 0, 1)]);
    check(Kind::Logs, &["5a.0 -5a.0 -5a.0 5b.0"], &[(0, 1, 0)]);
}

#[test]
fn who_comes_late_owes_nothing_of_before() {
    let mut stream = Stream::new(Kind::Heads, 2);
    let mut first = Feed::new(0);
    let take = |stream: &mut Stream, feed: &mut Feed, word: &str| {
        stream.take(feed, body(word).as_bytes(), Instant::now()).unwrap()
    };
    take(&mut stream, &mut first, "1a<a");
    let mut second = Feed::new(stream.len());
    take(&mut stream, &mut first, "2a<a");
    // 2a was already in flight when the second client subscribed.
    assert!(matches!(take(&mut stream, &mut second, "3a<a"), Receipt::First));
    assert!(matches!(take(&mut stream, &mut first, "3a<a"), Receipt::Last(_)));
    let window = stream.len();
    take(&mut stream, &mut first, "4a<a");
    let end = stream.len();
    assert_eq!(
        (stream.lost(&first, window, end), stream.lost(&second, window, end)),
        (0, 1)
    );
}
