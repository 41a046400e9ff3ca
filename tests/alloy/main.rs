//! alloy's provider through the proxy, in front of a real node (anvil): every answer and notification equals the
//! node's own.

// In a test a panic is the report.
#![allow(clippy::unwrap_used)]

mod geth;
mod node;
mod proxy;

use std::time::Duration;

use alloy_primitives::{Address, B256, U256};
use alloy_provider::network::TransactionResponse;
use alloy_provider::{DynProvider, Provider};
use alloy_rpc_types_eth::{BlockId, Filter, Header, Log, Transaction, TransactionRequest};
use headwater::chain::Verify;
use serde_json::json;
use serde_json::value::RawValue;

use node::{ACCOUNT, Emitter, NOTE, Node, Story, TRANSFER};
use proxy::{Events, Proxy, connect, until, within};

/// Filters by address and topics in every form that alloy builds: one value, several values, and open positions.
fn filters(node: &Node) -> [Filter; 4] {
    let receiver = |n: u8| B256::with_last_byte(n);
    let here = Filter::new().address(node.contract);
    [
        here.clone().event_signature(TRANSFER),
        here.clone().event_signature(vec![TRANSFER, NOTE]),
        Filter::new()
            .address(vec![node.contract, Address::with_last_byte(1)])
            .event_signature(TRANSFER)
            .topic2(vec![receiver(1), receiver(2)]),
        Filter::new().address(Address::with_last_byte(7)),
    ]
}

async fn heads(of: &DynProvider) -> Events<Header> {
    Events::of("heads", of.subscribe_blocks()).await
}

async fn logs(of: &DynProvider, filter: &Filter) -> Events<Log> {
    Events::of("logs", of.subscribe_logs(filter)).await
}

fn hashes(heads: &[Header]) -> Vec<B256> {
    heads.iter().map(|head| head.hash).collect()
}

async fn all_logs(of: &DynProvider, filters: &[Filter]) -> Vec<Events<Log>> {
    let mut all = Vec::new();
    for filter in filters {
        all.push(logs(of, filter).await);
    }
    all
}

async fn pending_hashes(of: &DynProvider) -> Events<B256> {
    Events::of("pending", of.subscribe_pending_transactions()).await
}

async fn full_pending(of: &DynProvider) -> Events<Transaction> {
    Events::of("full pending", of.subscribe_full_pending_transactions()).await
}

/// Sends transactions without events until one is announced: the proxy subscribes at the node in the background.
async fn flowing(node: &Node, pending: &mut Events<B256>) {
    until("pending transactions flow", async || {
        let sent = node.emit(0).await;
        pending.drain().await.contains(&sent)
    })
    .await;
}

/// Applies the removals and returns the remaining logs; fails if a removal has no log or a log is delivered twice.
fn left(received: &[Log]) -> Vec<Log> {
    let mut left: Vec<Log> = Vec::new();
    for log in received {
        let added = Log {
            removed: false,
            ..log.clone()
        };
        let known = left.iter().position(|other| *other == added);
        match (log.removed, known) {
            (true, Some(at)) => drop(left.remove(at)),
            (false, None) => left.push(added),
            _ => panic!("out of turn: {log:?}"),
        }
    }
    left
}

async fn compare_logs(received: &mut [Events<Log>], story: &Story<'_>) {
    for (events, expected) in received.iter_mut().zip(&story.logs) {
        assert_eq!(events.exactly(expected.len()).await, *expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_come_in_order() {
    let node = Node::start().await;
    let proxy = Proxy::start(&node.ws()).await;
    let client = proxy.connect().await;
    let (mut received, mut direct) = (heads(&client).await, heads(node.provider()).await);
    let mut story = Story::begin(&node, &[]).await;
    for _ in 0..7 {
        story.mine(&[]).await;
    }
    story.burst(3).await;
    let received = received.exactly(10).await;
    assert_eq!(hashes(&received), hashes(&story.heads));
    assert_eq!(received, direct.exactly(10).await);
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_are_those_that_the_node_has() {
    for verify in [Verify::Bloom, Verify::Receipts] {
        let node = Node::start().await;
        let proxy = Proxy::verifying(&node.ws(), verify).await;
        let client = proxy.connect().await;
        let filters = filters(&node);
        let mut received = all_logs(&client, &filters).await;
        let mut story = Story::begin(&node, &filters).await;
        for block in [&[4_u64][..], &[1, 5, 2], &[], &[6, 6]] {
            story.mine(block).await;
        }
        story.burst(2).await;
        story.mine(&[3]).await;
        assert_eq!(story.logs.iter().map(Vec::len).collect::<Vec<_>>(), [27, 40, 18, 0]);
        compare_logs(&mut received, &story).await;
        assert_eq!(story.remaining().await, story.logs);
        assert_eq!(
            proxy.metric("headwater_log_retries_total{reason=\"receipts\"}").await,
            0
        );
        proxy.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pending_transactions_come_as_hashes_and_in_full() {
    let node = Node::start().await;
    let proxy = Proxy::start(&node.ws()).await;
    let client = proxy.connect().await;
    let (mut hashes, mut full) = (pending_hashes(&client).await, full_pending(&client).await);
    until("full pending transactions flow", async || {
        let sent = node.emit(0).await;
        full.drain().await.iter().any(|received| received.tx_hash() == sent)
    })
    .await;
    flowing(&node, &mut hashes).await;
    full.drain().await;
    for _ in 0..6 {
        let sent = node.emit(1).await;
        assert_eq!(hashes.next().await, sent);
        let transaction = node.provider().get_transaction_by_hash(sent).await.unwrap();
        assert_eq!(Some(full.next().await), transaction);
    }
    node.mine().await;
    hashes.nothing_more().await;
    full.nothing_more().await;
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_sent_after_the_answer_is_not_missed() {
    let node = Node::start().await;
    let distant = node.behind(Duration::from_millis(50)).await;
    let proxy = Proxy::start(&distant).await;
    for (what, client) in [
        ("the node", connect(&distant).await),
        ("the proxy", proxy.connect().await),
    ] {
        let (mut hashes, mut full) = (pending_hashes(&client).await, full_pending(&client).await);
        let sent = node.emit(0).await;
        assert_eq!(hashes.soon().await, Some(sent), "from {what}");
        assert_eq!(
            full.soon().await.map(|received| received.tx_hash()),
            Some(sent),
            "from {what}"
        );
    }
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_unsubscribed_is_silent_and_the_rest_goes_on() {
    let node = Node::start().await;
    let proxy = Proxy::start(&node.ws()).await;
    let (client, other) = (proxy.connect().await, proxy.connect().await);
    let filters = [filters(&node)[0].clone()];
    let mut stays = heads(&client).await;
    let mut leaves = logs(&client, &filters[0]).await;
    let mut pending = pending_hashes(&client).await;
    let mut others = logs(&other, &filters[0]).await;
    flowing(&node, &mut pending).await;
    let mut story = Story::begin(&node, &filters).await;
    story.mine(&[2]).await;
    leaves.exactly(2).await;
    pending.exactly(1).await;
    others.exactly(2).await;

    // alloy sends both with the id 1, forgets them at once and reads no answer, so the test checks the proxy's
    // metrics.
    let open = async |kind| {
        proxy
            .metric(&format!("headwater_subscriptions{{kind=\"{kind}\"}}"))
            .await
    };
    assert_eq!((open("logs").await, open("newPendingTransactions").await), (2, 1));
    let sent = proxy.metric("headwater_deliveries_total{kind=\"logs\"}").await;
    client.unsubscribe(leaves.id()).await.unwrap();
    client.unsubscribe(pending.id()).await.unwrap();
    until("the proxy knows of it", async || {
        open("logs").await == 1 && open("newPendingTransactions").await == 0
    })
    .await;
    story.mine(&[3]).await;
    story.mine(&[1]).await;
    assert_eq!(others.exactly(4).await, story.logs[0][2..]);
    assert_eq!(
        proxy.metric("headwater_deliveries_total{kind=\"logs\"}").await,
        sent + 4
    );
    leaves.nothing_more().await;
    pending.nothing_more().await;
    assert_eq!(hashes(&stays.exactly(3).await), hashes(&story.heads));
    assert_eq!(client.get_block_number().await.unwrap(), node.number().await);
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reorg_is_told_in_full() {
    let node = Node::start().await;
    let proxy = Proxy::start(&node.ws()).await;
    let client = proxy.connect().await;
    let filters = filters(&node);
    let mut told_heads = heads(&client).await;
    let mut told_logs = all_logs(&client, &filters).await;
    let mut story = Story::begin(&node, &filters).await;
    for block in [&[2_u64][..], &[3, 1], &[4]] {
        story.mine(block).await;
    }
    // Logs that were not delivered before the reorg need no removal, so wait for them first.
    let mut so_far = Vec::new();
    for (events, expected) in told_logs.iter_mut().zip(&story.logs) {
        so_far.push(events.take(expected.len()).await);
    }
    story.reorg(&[&[5], &[], &[1, 2]]).await;
    story.mine(&[3]).await;
    assert_eq!(hashes(&told_heads.exactly(7).await), hashes(&story.heads));
    let remaining = story.remaining().await;
    for (at, events) in told_logs.iter_mut().enumerate() {
        let received = &mut so_far[at];
        received.extend(events.exactly(story.logs[at].len() - received.len()).await);
        assert_eq!(*received, story.logs[at]);
        assert_eq!(left(received), remaining[at]);
    }
    assert!(so_far[0].iter().any(|log| log.removed));
    assert_eq!(proxy.metric("headwater_reorged_blocks_total").await, 3);
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_answered_as_by_the_node() {
    let node = Node::start().await;
    let hash = node.emit(3).await;
    node.mine().await;
    let proxy = Proxy::start(&node.ws()).await;
    let (client, direct) = (proxy.connect().await, node.provider());
    let call = |what: Emitter| {
        TransactionRequest::default()
            .from(ACCOUNT)
            .to(node.contract)
            .input(what.data().into())
    };

    let latest = BlockId::latest();
    let block = client.get_block(latest).full().await.unwrap();
    assert_eq!(block, direct.get_block(latest).full().await.unwrap());
    let block = block.expect("a block");
    assert_eq!(
        client.get_block_by_hash(block.header.hash).await.unwrap(),
        direct.get_block_by_hash(block.header.hash).await.unwrap()
    );
    assert_eq!(
        client.get_balance(ACCOUNT).await.unwrap(),
        direct.get_balance(ACCOUNT).await.unwrap()
    );
    let doubled = client.call(call(Emitter::Double(21))).await.unwrap();
    assert_eq!(doubled, direct.call(call(Emitter::Double(21))).await.unwrap());
    assert_eq!(U256::from_be_slice(&doubled), U256::from(42));
    assert_eq!(
        client.estimate_gas(call(Emitter::EmitMany(0, 2))).await.unwrap(),
        direct.estimate_gas(call(Emitter::EmitMany(0, 2))).await.unwrap()
    );
    let receipt = client.get_transaction_receipt(hash).await.unwrap();
    assert_eq!(receipt, direct.get_transaction_receipt(hash).await.unwrap());
    assert_eq!(receipt.expect("a receipt").logs().len(), 4);

    // Compared byte by byte, since a value that was parsed and serialised again may be equal for alloy.
    let number = U256::from(block.header.number);
    for (method, params) in [
        ("eth_chainId", json!([])),
        ("eth_getBlockByNumber", json!([number, true])),
        ("eth_getBlockByNumber", json!(["0xffffff", false])),
        ("eth_getBlockReceipts", json!([number])),
        ("eth_getTransactionByHash", json!([hash])),
        ("eth_getTransactionReceipt", json!([hash])),
        ("eth_getTransactionCount", json!([ACCOUNT, "pending"])),
        ("eth_getCode", json!([node.contract, "latest"])),
        (
            "eth_getLogs",
            json!([{"blockHash": block.header.hash, "topics": [[TRANSFER, NOTE]]}]),
        ),
        ("eth_feeHistory", json!(["0x2", number, [10, 50]])),
    ] {
        let ask = async |of: &DynProvider| -> Box<RawValue> {
            within(method, of.raw_request(method.into(), params.clone()))
                .await
                .unwrap()
        };
        assert_eq!(ask(&client).await.get(), ask(direct).await.get(), "{method} {params}");
    }

    for what in [Emitter::Refuse(5), Emitter::RefusePlainly] {
        let refusal = async |of: &DynProvider| {
            let error = of.call(call(what)).await.unwrap_err();
            let error = error.as_error_resp().expect("the node's error").clone();
            (error.code, error.message, error.data.map(|data| data.get().to_owned()))
        };
        let got = refusal(&client).await;
        assert_eq!(got, refusal(direct).await);
        assert!(got.0 == 3 && got.2.is_some(), "{got:?}");
    }
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_outlive_a_restart_of_the_node() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state.json");
    let arguments = ["--state", state.to_str().unwrap()];
    let mut node = Node::start_with(&arguments).await;
    let proxy = Proxy::start(&node.ws()).await;
    let client = proxy.connect().await;
    let filters = filters(&node);
    let mut told_heads = heads(&client).await;
    let mut told_logs = all_logs(&client, &filters).await;
    let mut pending = pending_hashes(&client).await;
    flowing(&node, &mut pending).await;
    let mut story = Story::begin(&node, &filters).await;
    story.mine(&[2]).await;
    story.mine(&[3]).await;
    assert_eq!(hashes(&told_heads.exactly(2).await), hashes(&story.heads));
    compare_logs(&mut told_logs, &story).await;
    pending.exactly(2).await;
    let last = story.heads[1].hash;

    node.stop();
    node.start_again(&arguments).await;
    let known = node.provider().get_block_by_hash(last).await.unwrap();
    assert!(known.is_some(), "anvil has kept its chain");
    // Mined before the proxy has reconnected: none of these blocks was announced to the proxy, yet all must be
    // delivered.
    let mut story = Story::begin(&node, &filters).await;
    story.mine(&[1, 4]).await;
    story.burst(2).await;
    story.mine(&[5]).await;
    assert_eq!(hashes(&told_heads.exactly(4).await), hashes(&story.heads));
    compare_logs(&mut told_logs, &story).await;
    flowing(&node, &mut pending).await;
    // alloy would resubscribe on a new connection too; the test checks that there was none.
    assert_eq!(proxy.metric("headwater_connections_total").await, 1);
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_outlive_a_node_that_starts_anew() {
    let mut node = Node::start().await;
    let proxy = Proxy::start(&node.ws()).await;
    let client = proxy.connect().await;
    let filter = Filter::new().event_signature(TRANSFER);
    let (mut told_heads, mut told_logs) = (heads(&client).await, logs(&client, &filter).await);
    for _ in 0..3 {
        node.mine().await;
    }
    told_heads.exactly(3).await;

    node.kill();
    node.start_anew().await;
    // The proxy cannot restore continuity and closes the connection; alloy reconnects and resubscribes by itself.
    until("heads of the new chain", async || {
        node.mine().await;
        let received = told_heads.drain().await;
        received.last().map(|head| head.hash) == Some(node.head().await)
    })
    .await;
    let mut story = Story::begin(&node, &[filter]).await;
    story.mine(&[2]).await;
    story.burst(2).await;
    story.mine(&[3]).await;
    assert_eq!(hashes(&told_heads.exactly(4).await), hashes(&story.heads));
    assert_eq!(told_logs.exactly(5).await, story.logs[0]);
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_node_may_be_an_ipc_socket() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("anvil.ipc");
    let node = Node::start_with(&["--ipc", socket.to_str().unwrap()]).await;
    let proxy = Proxy::start(socket.to_str().unwrap()).await;
    everything_over(&node, &proxy).await;
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_node_may_be_polled_over_http() {
    let node = Node::start().await;
    let proxy = Proxy::start(&node.http()).await;
    everything_over(&node, &proxy).await;
    proxy.stop().await;
}

/// Checks heads, logs, pending transactions and calls over another transport to the node.
async fn everything_over(node: &Node, proxy: &Proxy) {
    let client = proxy.connect().await;
    let filters = filters(node);
    let mut told_heads = heads(&client).await;
    let mut told_logs = all_logs(&client, &filters).await;
    let mut pending = pending_hashes(&client).await;
    let mut story = Story::begin(node, &filters).await;
    for block in [&[2_u64][..], &[3, 1], &[]] {
        story.mine(block).await;
    }
    story.burst(4).await;
    assert_eq!(hashes(&told_heads.exactly(7).await), hashes(&story.heads));
    compare_logs(&mut told_logs, &story).await;
    let sent = node.emit(1).await;
    while pending.next().await != sent {}
    let double = TransactionRequest::default()
        .to(node.contract)
        .input(Emitter::Double(4).data().into());
    assert_eq!(U256::from_be_slice(&client.call(double).await.unwrap()), U256::from(8));
    assert_eq!(client.get_block_number().await.unwrap(), node.number().await);
}
