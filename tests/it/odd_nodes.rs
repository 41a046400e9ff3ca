//! The scripted node as an ordinary one: the baseline for the tables of odd nodes.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::bystander::Bystander;
use crate::harness::{Client, eventually};
use crate::scripted::{Answer, Hole, Made, Mine, Scripted, address, word};
use crate::wire::{CHAIN_ID, CHAIN_ID_ANSWER, http};

/// Heads and logs of an ordinary chain, with a reorg of one block, over each transport.
#[tokio::test]
async fn an_ordinary_chain_reaches_clients_over_both_transports() {
    for over_http in [false, true] {
        let node = Scripted::start().await;
        node.grow(5);
        let proxy = match over_http {
            true => node.polling_proxy(|_| {}).await,
            false => node.proxy(|_| {}).await,
        };
        let bystander = Bystander::join(&proxy).await;
        let mut watcher = proxy.watcher().await;
        let mut heads = node.mine_many(3, 2);
        watcher.expect(heads.iter().flat_map(Made::adopted).collect()).await;
        let [.., parent, dropped] = &heads[..] else {
            unreachable!()
        };
        let sibling = node.mine(Mine::logs(1).on_block(parent).tag("b"));
        watcher.expect([dropped.dropped(), sibling.adopted()].concat()).await;
        let next = node.mine(Mine::logs(1));
        watcher.expect(next.adopted()).await;
        heads.extend([sibling, next]);
        bystander.saw_only(&heads).await;
        let mut client = proxy.client().await;
        let range = json!([{"fromBlock": "0x6", "toBlock": "latest"}]);
        let logs = client.call("eth_getLogs", range).await["result"].clone();
        let canonical = node.canonical();
        let expected: Vec<&Value> = canonical.iter().flat_map(|made| &made.logs).collect();
        assert_eq!(logs, json!(expected));
    }
}

/// The features of the scripted node on which the tables rely.
#[tokio::test]
async fn a_scripted_node_does_as_it_is_told() {
    let node = Scripted::start().await;
    node.grow(5);
    node.mine(Mine::default().number(8));
    let url = node.ws_url();
    let mut client = Client::connect(&url).await;
    for (hole, answer) in [
        (Hole::Null, json!(null)),
        (Hole::Before, json!(node.block(5).unwrap().hash())),
        (Hole::Error, json!(null)),
    ] {
        node.holes(hole);
        let found = client.call("eth_getBlockByNumber", json!(["0x7", false])).await;
        assert_eq!(found["result"]["hash"], answer, "{hole:?}");
        assert_eq!(found["error"].is_object(), hole == Hole::Error);
    }
    // A branch that forks below the hole, then back to the first branch.
    let (fork, first) = (node.block(5).unwrap(), node.block(8).unwrap());
    node.mine(Mine::default().on_block(&fork).tag("b").number(7));
    assert!(node.block(8).is_none() && node.block(7).is_some());
    node.mine(Mine::default().on_block(&first));
    let numbers: Vec<u64> = node.canonical().iter().map(Made::number).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 8, 9]);
    // A withheld answer does not delay the others.
    node.hold("eth_blockNumber");
    client
        .send(r#"{"jsonrpc":"2.0","id":1,"method":"eth_blockNumber"}"#)
        .await;
    client.call("eth_syncing", json!([])).await;
    node.release("eth_blockNumber");
    assert!(client.next().await.contains("0x9"));
    node.answer("eth_syncing", |ask| match ask.count {
        2 => Answer::error(-32004, "not supported"),
        3 => Answer::Raw(format!(r#"{{"id":{},"result":1}}"#, ask.id)),
        _ => Answer::Close,
    });
    assert_eq!(client.call("eth_syncing", json!([])).await["error"]["code"], -32004);
    assert_eq!(client.call("eth_syncing", json!([])).await["result"], 1);
    client.send(r#"{"jsonrpc":"2.0","id":1,"method":"eth_syncing"}"#).await;
    client.ends().await;
    assert_eq!(
        (node.calls("eth_syncing"), node.params("eth_blockNumber").len()),
        (4, 1)
    );
    let mut client = Client::connect(&url).await;
    let id = client.subscribe(json!(["newHeads"])).await;
    node.announce(&json!({"odd": true}), "newHeads");
    assert_eq!(client.event().await.payload, r#"{"odd":true}"#);
    node.end_subscriptions("newHeads", &json!({"code": -32000, "message": "over"}));
    let end: Value = serde_json::from_str(&client.next().await).unwrap();
    assert_eq!(
        end["params"],
        json!({"subscription": id, "error": {"code": -32000, "message": "over"}})
    );
    assert_eq!(node.subscribed("newHeads"), 0);
}

/// The same for blocks, for their announcements, and for messages that are not answers.
#[tokio::test]
async fn a_scripted_node_announces_what_it_is_told_to() {
    let node = Scripted::start().await;
    let mut client = Client::connect(&node.ws_url()).await;
    let id = client.subscribe(json!(["newHeads"])).await;
    let made = node.mine(
        Mine::logs(2)
            .with("timestamp", json!(null))
            .without("logsBloom")
            .edit(|header| header["gasUsed"] = json!(7))
            .announced(|header| header["hash"] = json!(word("another")))
            .edit_logs(|index, log| log["logIndex"] = json!(format!("{:#x}", 9 - index))),
    );
    let (announced, block) = (client.event().await.json(), made.block(false));
    assert_eq!(
        (&announced["timestamp"], &announced["gasUsed"]),
        (&json!(null), &json!(7))
    );
    assert_eq!(
        (&announced["hash"], &block["hash"]),
        (&json!(word("another")), &json!(made.hash()))
    );
    assert!(block.get("logsBloom").is_none() && block["transactions"].as_array().unwrap().len() == 2);
    assert_eq!(
        made.adopted()[1..]
            .iter()
            .map(|line| &line[line.len() - 3..])
            .collect::<Vec<_>>(),
        ["0x9", "0x8"]
    );
    let by_address = json!([{"fromBlock": "0x0", "address": address("token"), "topics": [null, [word("from1")]]}]);
    assert_eq!(
        client.call("eth_getLogs", by_address).await["result"],
        json!([made.logs[1]])
    );
    node.notify("newHeads", |id| format!("of {id}"));
    assert_eq!(client.next().await, format!("of {id}"));
    node.send_all("to all");
    assert_eq!(client.next().await, "to all");
    node.answer("eth_chainId", |ask| match ask.is_http() {
        true => ask.edited(|id| *id = json!(1)),
        false => Answer::After(Duration::from_millis(1), Box::new(ask.usual())),
    });
    let post = "POST /a HTTP/1.1\r\ncontent-type: application/json";
    let address = node.http_url()[7..].parse().unwrap();
    assert_eq!(
        http(address, post, CHAIN_ID).await.body,
        r#"{"jsonrpc":"2.0","id":1,"result":1}"#
    );
    assert_eq!(client.ask(CHAIN_ID).await, CHAIN_ID_ANSWER);
    node.answer_as_usual("eth_chainId");
    assert_eq!(http(address, post, CHAIN_ID).await.body, CHAIN_ID_ANSWER);
    assert!(node.requests()[1].starts_with("POST /a"));
    // The answer to the later call shows that this one is never answered.
    node.answer("eth_syncing", |_| Answer::Never);
    client.send(r#"{"jsonrpc":"2.0","id":2,"method":"eth_syncing"}"#).await;
    assert_eq!(client.ask(CHAIN_ID).await, CHAIN_ID_ANSWER);
    node.disconnect();
    client.ends().await;
    node.stop();
    eventually("it listens no more", async || {
        TcpStream::connect(address).await.is_err()
    })
    .await;
}
