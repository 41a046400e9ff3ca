use std::time::Duration;

use tokio::sync::mpsc;

use super::super::subscriptions::tests::{answers, asked, heard, message, said, says, serving, want_pending};
use super::super::subscriptions::{HASHES, WHOLE};
use super::*;
use crate::upstream::BestEffortEvent;

/// Returns the pending transactions that were passed on, each as its form and JSON.
fn pending(passed_on: &mut mpsc::Receiver<BestEffortEvent>) -> Vec<String> {
    let mut all = Vec::new();
    while let Ok(BestEffortEvent::Pending { form, json, .. }) = passed_on.try_recv() {
        all.push(format!("{form:?} {}", text(&json)));
    }
    all
}

/// Returns a hash as JSON.
fn hash(of: u8) -> String {
    format!("\"{}\"", alloy_primitives::B256::repeat_byte(of))
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_pending_transactions_is_kept_where_it_is_for_good() {
    for (error, kept) in [
        (
            r#"{"code":-32601,"message":"no \"newPendingTransactions\" subscription in eth namespace"}"#,
            true,
        ),
        (r#"{"code":-32602,"message":"invalid"}"#, true),
        (r#"{"code":-32004,"message":"not supported"}"#, true),
        (r#"{"code":-32000,"message":"busy"}"#, false),
        (r#""no""#, false),
    ] {
        let (mut serving, wants) = serving(|_| {});
        want_pending(&wants, true, false);
        serving.reconcile();
        asked(&mut serving);
        answers(&mut serving, "error", error).await;
        assert_eq!(said(&serving, &HASHES), error);
        serving.reconcile();
        assert!(asked(&mut serving).is_empty());
        want_pending(&wants, false, false);
        serving.reconcile();
        assert_eq!(said(&serving, &HASHES), "nothing", "nobody asks");
        want_pending(&wants, true, false);
        serving.reconcile();
        assert_eq!(asked(&mut serving).is_empty(), kept, "{error}");
        assert_eq!(said(&serving, &HASHES) == error, kept);
        // Whole transactions cannot be fetched without announced hashes.
        if kept {
            want_pending(&wants, true, true);
            serving.reconcile();
            assert_eq!(
                asked(&mut serving),
                [r#"eth_subscribe ["newPendingTransactions",true]"#]
            );
            answers(&mut serving, "error", error).await;
            assert!(asked(&mut serving).is_empty());
            assert_eq!(said(&serving, &WHOLE), error);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_does_not_answer_for_pending_transactions_refuses_them() {
    let (mut serving, wants) = serving(|_| {});
    want_pending(&wants, true, true);
    serving.reconcile();
    assert_eq!(asked(&mut serving).len(), 2);
    tokio::time::advance(serving.shared.settings.request_timeout).await;
    serving.expire().expect("it stands");
    for of in [HASHES, WHOLE] {
        assert!(said(&serving, &of).contains("request timed out"), "{of:?}");
    }
}

/// Whole transactions that are not announced are fetched, if the node refuses them or announces hashes instead.
#[tokio::test]
async fn whole_transactions_are_fetched_where_only_hashes_are_announced() {
    let (first, whole) = (hash(1), r#"{"hash":"0x1","from":"0x2"}"#);
    let with_flag = r#"eth_subscribe ["newPendingTransactions",true]"#;
    let without = r#"eth_subscribe ["newPendingTransactions"]"#;
    for (refusal, also_hashes) in [
        (
            Some(r#"{"code":-32602,"message":"too many arguments, want at most 1"}"#),
            false,
        ),
        (Some(r#"{"code":-32000,"message":"?"}"#), true),
        (None, false),
        (None, true),
    ] {
        let (mut serving, wants, mut passed_on) = heard(|_| {});
        if also_hashes {
            want_pending(&wants, true, false);
            serving.reconcile();
            assert_eq!(asked(&mut serving), [without]);
            answers(&mut serving, "result", r#""0xa""#).await;
        }
        want_pending(&wants, also_hashes, true);
        serving.reconcile();
        assert_eq!(asked(&mut serving), [with_flag]);
        let mut of_hashes = r#""0xa""#;
        match refusal {
            Some(error) => {
                answers(&mut serving, "error", error).await;
                if !also_hashes {
                    assert_eq!(asked(&mut serving), [without]);
                    answers(&mut serving, "result", of_hashes).await;
                }
            }
            None => {
                answers(&mut serving, "result", r#""0xb""#).await;
                assert_eq!(said(&serving, &WHOLE), "stands");
                says(&mut serving, &message(r#""0xb""#, "result", &hash(9))).await;
                let end: &[&str] = if also_hashes {
                    &[r#"eth_unsubscribe ["0xb"]"#]
                } else {
                    &[]
                };
                let fetch = format!("eth_getTransactionByHash [{}]", hash(9));
                let mut expected = end.to_vec();
                expected.push(&fetch);
                assert_eq!(asked(&mut serving), expected);
                answers(&mut serving, "result", "null").await;
                assert_eq!(pending(&mut passed_on), [format!("Hash {}", hash(9))]);
                if !also_hashes {
                    of_hashes = r#""0xb""#;
                }
            }
        }
        assert_eq!(said(&serving, &WHOLE), "stands", "{refusal:?} {also_hashes}");
        says(&mut serving, &message(of_hashes, "result", &first)).await;
        assert_eq!(asked(&mut serving), [format!("eth_getTransactionByHash [{first}]")]);
        answers(&mut serving, "result", whole).await;
        assert_eq!(
            pending(&mut passed_on),
            [format!("Hash {first}"), format!("Full {whole}")]
        );
        // Without subscribers to whole transactions, the subscription to hashes is kept for its own subscribers, or
        // ended.
        want_pending(&wants, also_hashes, false);
        serving.reconcile();
        let ended = asked(&mut serving);
        assert_eq!(ended.is_empty(), also_hashes, "{ended:?}");
    }
}

#[tokio::test]
async fn whole_transactions_in_place_of_hashes_are_reduced() {
    let (mut serving, wants, mut passed_on) = heard(|_| {});
    want_pending(&wants, true, false);
    serving.reconcile();
    asked(&mut serving);
    answers(&mut serving, "result", r#""0xa""#).await;
    for json in [
        r#"{"from":"0x2","hash":"0x1"}"#,
        r#"{"hash":null}"#,
        "{}",
        "null",
        "[]",
        r#""0x3""#,
        r#"["0x4",{"transactionHash":"0x5"},7]"#,
    ] {
        says(&mut serving, &message(r#""0xa""#, "result", json)).await;
    }
    let hashes = ["0x1", "0x3", "0x4", "0x5"].map(|hash| format!("Hash \"{hash}\""));
    assert_eq!(pending(&mut passed_on), hashes);
    let dropped = serving
        .shared
        .best_effort_dropped
        .load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(dropped, 4, "they are counted");
}

#[tokio::test(start_paused = true)]
async fn fetches_are_bounded_and_end_where_the_node_knows_no_such_method() {
    let (mut serving, wants, mut passed_on) = heard(|_| {});
    want_pending(&wants, false, true);
    serving.reconcile();
    answers(
        &mut serving,
        "error",
        r#"{"code":-32602,"message":"too many arguments"}"#,
    )
    .await;
    answers(&mut serving, "result", r#""0xa""#).await;
    asked(&mut serving);
    for n in 0..=255 {
        says(&mut serving, &message(r#""0xa""#, "result", &hash(n))).await;
    }
    assert_eq!(asked(&mut serving).len(), 16);
    let last = serving.next_id;
    // Rate-limited: no requests for a while, then one for each answer.
    says(&mut serving, &format!(r#"{{"id":{last},"error":{{"code":429}}}}"#)).await;
    says(&mut serving, &format!(r#"{{"id":{},"result":{{}}}}"#, last - 1)).await;
    assert!(asked(&mut serving).is_empty());
    tokio::time::advance(Duration::from_secs(1)).await;
    serving.reconcile();
    assert_eq!(asked(&mut serving).len(), 2);
    let no = r#"{"code":-32601,"message":"no such method"}"#;
    says(&mut serving, &format!(r#"{{"id":{},"error":{no}}}"#, last - 2)).await;
    assert_eq!(said(&serving, &WHOLE), no);
    assert_eq!(asked(&mut serving), [r#"eth_unsubscribe ["0xa"]"#]);
    let received = pending(&mut passed_on);
    assert_eq!(
        received.iter().filter(|one| one.starts_with("Full")).count(),
        1,
        "{received:?}"
    );
}
