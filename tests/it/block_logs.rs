//! `blockLogs`: one message for every block, and one that takes it back.

use std::sync::Arc;

use alloy_primitives::Address;
use headwater::devnet::{Block, Control};
use serde_json::{Value, json};

use crate::harness::{Client, Rig};

/// Returns a message as a line: the block, and the indices of its logs.
fn line(message: &Value) -> String {
    let sign = if message["removed"] == true { "-" } else { "+" };
    let block = &message["block"];
    let logs = message["logs"].as_array().unwrap();
    for log in logs {
        assert_eq!(
            (&log["blockHash"], &log["removed"]),
            (&block["hash"], &message["removed"])
        );
    }
    let logs: Vec<&str> = logs.iter().map(|log| log["logIndex"].as_str().unwrap()).collect();
    let hash = &block["hash"].as_str().unwrap()[..10];
    format!(
        "{sign}{} {hash} [{}]",
        block["number"].as_str().unwrap(),
        logs.join(" ")
    )
}

/// Returns the line of a block for a filter of this address; `None` matches all.
fn expected(sign: &str, block: &Block, address: Option<Address>) -> String {
    let logs = block.logs().enumerate();
    let matching = logs.filter(|(_, entry)| address.is_none_or(|address| entry.address == address));
    let indices: Vec<String> = matching.map(|(index, _)| format!("{index:#x}")).collect();
    let hash = &block.hash().to_string()[..10];
    format!("{sign}{:#x} {hash} [{}]", block.number(), indices.join(" "))
}

fn adopted(blocks: &[Arc<Block>], address: Option<Address>) -> Vec<String> {
    blocks.iter().map(|block| expected("+", block, address)).collect()
}

/// Returns the lines of blocks that are taken back; they are given newest first.
fn dropped(blocks: &[Arc<Block>], address: Option<Address>) -> Vec<String> {
    blocks.iter().map(|block| expected("-", block, address)).collect()
}

fn filter(address: Option<Address>) -> Value {
    address.map_or(json!({}), |address| json!({ "address": address }))
}

async fn subscribed(rig: &Rig, address: Option<Address>, options: Option<Value>) -> Client {
    let mut client = rig.client().await;
    let params: Vec<Value> = [json!("blockLogs"), filter(address)]
        .into_iter()
        .chain(options)
        .collect();
    client.subscribe(Value::Array(params)).await;
    client
}

async fn expect(client: &mut Client, lines: Vec<String>) {
    for (at, own) in lines.iter().enumerate() {
        assert_eq!(line(&client.event().await.json()), *own, "message {at} of {lines:?}");
    }
}

fn tokens(node: &Control) -> Vec<Address> {
    node.with_chain(|chain| chain.tokens().to_vec())
}

#[tokio::test]
async fn every_block_has_a_message_and_a_reorg_takes_blocks_back_newest_first() {
    let rig = Rig::start().await;
    let token = tokens(&rig.control)[0];
    // No log matches the last address.
    for address in [None, Some(token), Some(Address::repeat_byte(9))] {
        let mut client = subscribed(&rig, address, None).await;
        let mut same = subscribed(&rig, address, None).await;
        let blocks = rig.control.mine_many(5);
        expect(&mut client, adopted(&blocks, address)).await;
        let reorg = rig.control.reorg(3, 4).unwrap();
        let story = [dropped(&reorg.dropped, address), adopted(&reorg.adopted, address)].concat();
        expect(&mut client, story.clone()).await;
        expect(&mut same, [adopted(&blocks, address), story].concat()).await;
        // A block that was dropped before it was sent is not taken back from one that came later.
        let mut late = subscribed(&rig, address, None).await;
        let block = rig.control.mine();
        expect(&mut late, adopted(std::slice::from_ref(&block), address)).await;
        let reorg = rig.control.reorg(3, 3).unwrap();
        let story = [dropped(&[block], address), adopted(&reorg.adopted, address)].concat();
        expect(&mut late, story).await;
        // Those of the new branch came from the fork on, so all of them are taken back.
        let again = rig.control.reorg(3, 4).unwrap();
        let story = [dropped(&again.dropped, address), adopted(&again.adopted, address)].concat();
        expect(&mut late, story).await;
    }
}

#[tokio::test]
async fn it_resumes_behind_a_block_on_any_branch() {
    for history in [256, 8] {
        let rig = Rig::with(|config| config.history.blocks = history).await;
        let token = Some(tokens(&rig.control)[0]);
        let blocks = rig.control.mine_many(6);
        let reorg = rig.control.reorg(2, 3).unwrap();
        let more = rig.control.mine_many(12);
        rig.settled(&rig.control).await;
        let after = |block: &Block| Some(json!({"after": {"blockHash": block.hash()}}));
        for address in [None, token] {
            let mut client = subscribed(&rig, address, after(&blocks[1])).await;
            let kept = [&blocks[2..4], &reorg.adopted[..], &more[..]].concat();
            expect(&mut client, adopted(&kept, address)).await;
            let mut client = subscribed(&rig, address, after(&blocks[5])).await;
            let left = [blocks[5].clone(), blocks[4].clone()];
            let kept = [&reorg.adopted[..], &more[..]].concat();
            expect(&mut client, [dropped(&left, address), adopted(&kept, address)].concat()).await;
            let number = format!("{:#x}", more[2].number());
            let mut client = subscribed(&rig, address, Some(json!({ "fromBlock": number }))).await;
            expect(&mut client, adopted(&more[2..], address)).await;
        }
        let mut client = subscribed(&rig, None, after(more.last().unwrap())).await;
        let block = rig.control.mine();
        expect(&mut client, adopted(&[block], None)).await;
        // The client has the blocks before its start too.
        let reorg = rig.control.reorg(3, 4).unwrap();
        let story = [dropped(&reorg.dropped, None), adopted(&reorg.adopted, None)].concat();
        expect(&mut client, story).await;
    }
}

#[tokio::test]
async fn the_parts_are_the_nodes_own_and_of_the_matching_logs() {
    let rig = Rig::start().await;
    let token = tokens(&rig.control)[0];
    let options = json!({"include": ["header", "receipts", "transactions"]});
    let mut client = subscribed(&rig, Some(token), Some(options.clone())).await;
    let blocks = rig.control.mine_many(4);
    let mut with = 0;
    let mut messages = Vec::new();
    for block in &blocks {
        let message = client.event().await;
        let json = message.json();
        assert_eq!(line(&json), expected("+", block, Some(token)));
        let names: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(names.len(), 6, "{names:?}");
        let header = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_getBlockByHash", "params": [block.hash(), true]});
        let whole: Value = serde_json::from_str(&rig.ask_node(&header).await).unwrap();
        assert_eq!(json["header"]["stateRoot"], whole["result"]["stateRoot"]);
        assert_eq!(json["block"]["timestamp"], whole["result"]["timestamp"]);
        assert_eq!(json["block"]["parentHash"], whole["result"]["parentHash"]);
        let mut of: Vec<&Value> = json["logs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|log| &log["transactionHash"])
            .collect();
        of.dedup();
        let hashes = |list: &str, name: &str| -> Vec<Value> {
            json[list]
                .as_array()
                .unwrap()
                .iter()
                .map(|own| own[name].clone())
                .collect()
        };
        assert_eq!(hashes("receipts", "transactionHash").iter().collect::<Vec<_>>(), of);
        assert_eq!(hashes("transactions", "hash").iter().collect::<Vec<_>>(), of);
        with += of.len();
        messages.push(message.payload);
    }
    assert!(with > 0, "some blocks have such logs");
    // A resume brings the same bytes.
    let number = format!("{:#x}", blocks[0].number());
    let mut options = options;
    options["fromBlock"] = json!(number);
    let mut again = subscribed(&rig, Some(token), Some(options)).await;
    for message in messages {
        assert_eq!(again.event().await.payload, message);
    }
}

#[tokio::test]
async fn with_finality_it_trails_the_head_and_takes_nothing_back() {
    let rig = Rig::start().await;
    rig.control.mine_many(20);
    rig.settled(&rig.control).await;
    let head = rig.control.head().number();
    let mut client = subscribed(&rig, None, Some(json!({"confirmations": 5}))).await;
    rig.control.mine_many(2);
    rig.control.reorg(3, 6).unwrap();
    let newest = rig.control.head().number();
    let block = |number| rig.control.with_chain(|chain| chain.block_at(number).cloned().unwrap());
    let reached: Vec<Arc<Block>> = (head - 3..newest - 3).map(block).collect();
    expect(&mut client, adopted(&reached, None)).await;
}

#[tokio::test]
async fn its_options_are_read_strictly() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    let hash = rig.control.head().hash();
    for (params, words) in [
        (
            json!(["blockLogs", {}, {"include": ["logs"]}]),
            "invalid argument 2: unknown variant `logs`",
        ),
        (json!(["blockLogs", {}, {"include": "header"}]), "invalid argument 2: "),
        (json!(["blockLogs", {}, {"x": 1}]), "too many arguments, want at most 2"),
        (
            json!(["blockLogs", 1]),
            "invalid argument 1: json: cannot unmarshal number",
        ),
        (
            json!(["logs", {}, {"include": ["header"]}]),
            "include is an option of blockLogs alone",
        ),
        (
            json!(["blockLogs", {}, {"after": {"blockHash": hash, "logIndex": "0x0"}}]),
            "blockLogs continues behind a whole block",
        ),
    ] {
        let answer = client.call("eth_subscribe", params.clone()).await;
        assert_eq!(answer["error"]["code"], -32602, "{params} {answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.starts_with(words), "{params} {message}");
    }
}
