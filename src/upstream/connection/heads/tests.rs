use super::super::subscriptions::tests::{answers, asked, message, says, serving};
use super::*;
use crate::upstream::link::Inbound;

const ASK_HEADS: &str = r#"eth_subscribe ["newHeads"]"#;
const ASK_LATEST: &str = r#"eth_getBlockByNumber ["latest",false]"#;

/// Returns a block as JSON, a child of the block with the number below.
fn block(number: u8) -> String {
    let hash = alloy_primitives::B256::repeat_byte;
    let (own, parent) = (hash(number), hash(number - 1));
    format!(r#"{{"hash":"{own}","parentHash":"{parent}","number":{number}}}"#)
}

/// Sends a probe that finds this block.
async fn probe(serving: &mut Serving, number: u8) -> Result<(), End> {
    serving.ask_vital(Purpose::Probe);
    let answer = format!(r#"{{"id":{},"result":{}}}"#, serving.next_id, block(number));
    asked(serving);
    serving.apply(Inbound::Message(answer.into())).await
}

#[tokio::test(start_paused = true)]
async fn heads_that_the_node_ends_are_asked_for_at_once_and_twice_in_a_row_end_the_connection() {
    let (mut serving, _wants) = serving(|_| {});
    let heads = r#"eth_subscribe ["newHeads"]"#;
    let latest = r#"eth_getBlockByNumber ["latest",false]"#;
    serving.ask_vital(Purpose::Subscribe(FeedState::Heads));
    for round in 0..3 {
        assert_eq!(asked(&mut serving), [heads], "{round}");
        answers(&mut serving, "result", r#""0xa""#).await;
        // A block missed meanwhile is found by this fetch.
        assert_eq!(asked(&mut serving), [latest]);
        answers(&mut serving, "result", "{}").await;
        tokio::time::advance(serving.shared.settings.silence_timeout).await;
        says(&mut serving, &message(r#""0xa""#, "error", "{}")).await;
    }
    assert_eq!(asked(&mut serving), [heads]);
    answers(&mut serving, "result", r#""0xb""#).await;
    let end = Inbound::Message(message(r#""0xb""#, "error", "{}").into());
    assert!(matches!(serving.apply(end).await, Err(End::HeadsEnded(_))));
}

#[tokio::test(start_paused = true)]
async fn heads_that_are_never_announced_are_polled_until_they_are() {
    let (mut serving, _wants) = serving(|_| {});
    serving.ask_vital(Purpose::Subscribe(FeedState::Heads));
    answers(&mut serving, "result", r#""0xa""#).await;
    answers(&mut serving, "result", &block(1)).await;
    probe(&mut serving, 1).await.expect("the chain rests");
    assert!(!serving.heads.is_polled());
    probe(&mut serving, 2).await.expect("another connection is no better");
    assert!(serving.heads.is_polled());
    tokio::time::advance(serving.shared.settings.poll_interval).await;
    serving.heads_turn().await.expect("it stands");
    assert_eq!(asked(&mut serving), [ASK_LATEST]);
    answers(&mut serving, "result", &block(3)).await;
    // The node announces after all.
    says(&mut serving, &message(r#""0xa""#, "result", &block(4))).await;
    assert!(!serving.heads.is_polled());
    // A connection that announced heads before is closed, the first time.
    probe(&mut serving, 5).await.expect("once");
    assert!(matches!(probe(&mut serving, 6).await, Err(End::HeadsStalled)));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_deaf_as_the_one_before_it_is_polled() {
    for (stood, is_polled) in [(1, true), (599, true), (600, false), (100_000, false)] {
        let (mut serving, _wants) = serving(|_| {});
        serving.heads.follows_stalled();
        serving.ask_vital(Purpose::Subscribe(FeedState::Heads));
        answers(&mut serving, "result", r#""0xa""#).await;
        answers(&mut serving, "result", &block(1)).await;
        says(&mut serving, &message(r#""0xa""#, "result", &block(2))).await;
        tokio::time::advance(Duration::from_secs(stood)).await;
        probe(&mut serving, 3).await.expect("it stands");
        assert_eq!(serving.heads.is_polled(), is_polled, "{stood}");
        assert_eq!(probe(&mut serving, 4).await.is_ok(), is_polled, "{stood}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_subscription_to_heads_that_is_refused_for_a_limit_holds_up_no_handshake() {
    let limit = r#"{"code":429,"message":"slow down"}"#;
    for ready in [false, true] {
        let (mut serving, _wants) = serving(|_| {});
        serving.ready = ready;
        serving.ask_vital(Purpose::Subscribe(FeedState::Heads));
        asked(&mut serving);
        answers(&mut serving, "error", limit).await;
        if !ready {
            assert_eq!(asked(&mut serving), [ASK_LATEST]);
            answers(&mut serving, "result", &block(1)).await;
        }
        assert!(serving.ready && serving.heads.is_polled() && serving.postponed.is_none());
        // The back-off doubles each time.
        for wait in [1, 2, 4] {
            tokio::time::advance(Duration::from_millis(wait * 1000 - 500)).await;
            serving.heads_turn().await.expect("it stands");
            assert!(!asked(&mut serving).contains(&ASK_HEADS.to_owned()), "{wait}");
            tokio::time::advance(Duration::from_millis(500)).await;
            serving.heads_turn().await.expect("it stands");
            let questions = asked(&mut serving);
            assert_eq!(questions[0], ASK_HEADS, "{wait}");
            let id = serving.next_id + 1 - questions.len() as u64;
            says(&mut serving, &format!(r#"{{"id":{id},"error":{limit}}}"#)).await;
        }
        tokio::time::advance(Duration::from_secs(8)).await;
        serving.heads_turn().await.expect("it stands");
        let questions = asked(&mut serving);
        let id = serving.next_id + 1 - questions.len() as u64;
        says(&mut serving, &format!(r#"{{"id":{id},"result":"0xa"}}"#)).await;
        assert!(!serving.heads.is_polled());
    }
}
