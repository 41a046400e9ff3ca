//! Streams of a level of finality that resume, and join those who are at the level.

use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::B256;
use serde_json::json;

use super::{Desk, all_logs, header, words};
use crate::chain::{BlockRef, ContentKind, Cursor, Page, Tag, Tagged};
use crate::clock::Moment;
use crate::subscription::block_filter::{BlockFilter, Include};
use crate::subscription::replay_group::{GroupKey, WaitFor};
use crate::subscription::{Level, LogFilter, ReceiptFilter, Start, Stream, Topic};

/// Plays a story to a client of heads and logs that resumes behind a block, of whose logs `received` is the last that it has,
/// and returns what it receives. The parts of the story are what happens before, what happens after, and what it receives.
async fn resumed(depth: u64, received: Option<u64>, behind: u64, story: &str) -> String {
    let desk = Desk::new(8);
    let other = desk.client(&Arc::default()).await;
    let _logs_of_all_blocks = desk.subscribe(&other, all_logs());
    let mut client = desk.client(&Arc::default()).await;
    let (mut stories, level) = (story.split(" | "), Level::Confirmations(depth));
    desk.play(stories.next().unwrap());
    let filter = LogFilter::parse(&json!({})).unwrap();
    let streams = [(Stream::Heads, None), (Stream::Logs(filter.into()), received)];
    let _subscriptions = streams.map(|(stream, received)| {
        let cursor = Cursor::behind(header(behind).block, received);
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
    words(&client.received(count).await)
}

#[tokio::test]
async fn heads_of_a_level_wait_for_the_logs_of_a_client_that_resumes() {
    for (depth, received, behind, story) in [
        // The logs of older blocks are being fetched.
        (2, None, 1, "h1 l1 h2 h3 h4 | l2 l3 h5 l4 l5 | h2 l2 h3 l3 h4 l4"),
        // Those of the newest block.
        (1, None, 1, "h1 l1 h2 | h3 l2 l3 | h2 l2 h3 l3"),
        // The rest of the newest block's.
        (1, Some(0), 2, "h1 l1 h2 | h3 h4 l2 l3 l4 | h3 l3 h4 l4"),
    ] {
        let expected = story.rsplit(" | ").next().unwrap();
        assert_eq!(resumed(depth, received, behind, story).await, expected, "{story}");
    }
}

#[tokio::test]
async fn a_stream_behind_a_block_that_memory_does_not_know_joins_no_walk_by_its_number() {
    // The block of the client's is of another branch, or of this one, below the blocks in memory.
    for (own, level, is_found) in [
        (of_another_branch(2), Level::Head, false),
        (of_another_branch(2), Level::Confirmations(1), false),
        (header(2).block, Level::Head, true),
        (header(2).block, Level::Confirmations(1), true),
        (of_another_branch(3), Level::Head, false),
    ] {
        let desk = Desk::new(8);
        let (other, client) = (desk.client(&Arc::default()).await, desk.client(&Arc::default()).await);
        let stream = || {
            Stream::Blocks(BlockFilter {
                logs: LogFilter::default(),
                include: Include::default(),
            })
        };
        let _walk = desk.subscribe(&other, Topic::Trailing(level, stream(), Start::Live));
        desk.play("h1 l1");
        desk.registry.advance_trails();
        desk.play("h2 l2 h3 l3");
        desk.registry.advance_trails();
        let cursor = Cursor::behind(own, None);
        let subscription = desk
            .registry
            .resume(Some(level), stream(), Some(cursor), &client.writer);
        subscription.recipient.release(Moment::START);
        let key = GroupKey::new(client.writer.id(), Some(level));
        let step = |story: &str| {
            desk.play(story);
            desk.registry.advance_trails();
            desk.registry.replay(key, &Page::default()).until
        };
        let until = [step(""), step("h4 l4")];
        let is_lost = |until: &WaitFor| matches!(until, WaitFor::Located(_, lost) if lost.block == own);
        if is_found {
            assert!(
                until.iter().any(|until| matches!(until, WaitFor::Done)),
                "{level:?}: {until:?}"
            );
        } else {
            assert!(is_lost(&until[1]), "{level:?} {own:?}: {until:?}");
        }
    }
}

#[tokio::test]
async fn a_tag_above_the_published_head_counts_once_the_chain_has_that_block() {
    for (tagged, story, expected) in [
        (header(3).block, "", 2),
        (header(3).block, "h3", 3),
        (header(3).block, "h3 h4", 3),
        (of_another_branch(3), "h3 h4", 2),
    ] {
        let desk = Desk::new(8);
        let client = desk.client(&Arc::default()).await;
        let safe = Level::Tag(Tag::Safe);
        let _subscription = desk.subscribe(&client, Topic::Trailing(safe, Stream::Heads, Start::Live));
        desk.play("h1 h2");
        for block in [header(2).block, tagged] {
            desk.registry.note_tag(Tag::Safe, Tagged::Block(block), 0);
            desk.registry.advance_trails();
        }
        for word in story.split_whitespace() {
            desk.play(word);
            desk.registry.advance_trails();
        }
        let [level] = &desk.registry.levels()[..] else {
            panic!("one level is in use");
        };
        assert_eq!(level.number, Some(expected), "{tagged:?} {story}");
    }
}

#[tokio::test]
async fn a_level_whose_next_block_lacks_contents_is_late() {
    let desk = Desk::new(8);
    let client = desk.client(&Arc::default()).await;
    let receipts = Stream::Receipts(ReceiptFilter::at_most(Vec::new()).unwrap());
    let _subscription = desk.subscribe(&client, Topic::Trailing(Level::Confirmations(1), receipts, Start::Live));
    let late = || {
        let (kinds, _) = desk.registry.late();
        let late = kinds.into_iter().filter(|late| late.age > Duration::ZERO);
        late.map(|late| late.kind).collect::<Vec<_>>()
    };
    for (story, expected) in [
        ("h1", &[][..]),
        ("h2 h3", &[ContentKind::Receipts]),
        ("c2 c3", &[]),
        ("h4", &[ContentKind::Receipts]),
        ("c4 c3", &[]),
    ] {
        desk.play(story);
        desk.registry.advance_trails();
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(late(), expected, "{story}");
    }
}

/// Returns a block of this number that no desk knows.
fn of_another_branch(number: u64) -> BlockRef {
    BlockRef {
        number,
        hash: B256::repeat_byte(0xee),
    }
}
