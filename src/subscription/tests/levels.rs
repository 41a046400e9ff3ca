//! Streams of a level of finality that resume, and join those who are at the level.

use std::sync::Arc;

use serde_json::json;

use super::{Desk, all_logs, header, words};
use crate::chain::{Cursor, Page};
use crate::clock::Moment;
use crate::subscription::replay_group::GroupKey;
use crate::subscription::{Level, LogFilter, Stream};

/// Plays a story to a client of heads and logs that resumes behind a block, of whose logs `told` is the last that it has,
/// and returns what it is told. The parts of the story are what happens before, what happens after, and what is told.
async fn resumed(depth: u64, told: Option<u64>, behind: u64, story: &str) -> String {
    let desk = Desk::new(8);
    let other = desk.client(&Arc::default()).await;
    let _logs_of_all_blocks = desk.subscribe(&other, all_logs());
    let mut client = desk.client(&Arc::default()).await;
    let (mut stories, level) = (story.split(" | "), Level::Confirmations(depth));
    desk.play(stories.next().unwrap());
    let filter = LogFilter::parse(&json!({})).unwrap();
    let streams = [(Stream::Heads, None), (Stream::Logs(filter.into()), told)];
    let _subscriptions = streams.map(|(stream, told)| {
        let cursor = Cursor::behind(header(behind).block, told);
        let subscription = desk.registry.resume(Some(level), stream, Some(cursor), &client.writer);
        subscription.recipient.release(Moment::START);
        subscription
    });
    let key = GroupKey::new(client.writer.id(), Some(level));
    for word in std::iter::once("").chain(stories.next().unwrap().split(' ')) {
        desk.play(word);
        desk.registry.advance_trails();
        desk.registry.replay(key, &Page::default());
        client.writer.flush();
    }
    let count = stories.next().unwrap().split(' ').count();
    words(&client.told(count).await)
}

#[tokio::test]
async fn heads_of_a_level_wait_for_the_logs_of_a_client_that_resumes() {
    for (depth, told, behind, story) in [
        // The logs of older blocks are being fetched.
        (2, None, 1, "h1 l1 h2 h3 h4 | l2 l3 h5 l4 l5 | h2 l2 h3 l3 h4 l4"),
        // Those of the newest block.
        (1, None, 1, "h1 l1 h2 | h3 l2 l3 | h2 l2 h3 l3"),
        // The rest of the newest block's.
        (1, Some(0), 2, "h1 l1 h2 | h3 h4 l2 l3 l4 | h3 l3 h4 l4"),
    ] {
        let expected = story.rsplit(" | ").next().unwrap();
        assert_eq!(resumed(depth, told, behind, story).await, expected, "{story}");
    }
}
