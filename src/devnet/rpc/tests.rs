use super::{
    super::{Config, Faults},
    *,
};

fn ask(node: &SimulatedNode, method: &str, params: Value) -> Value {
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    serde_json::from_str(&node.serve_http(request.to_string().as_bytes()).unwrap()).unwrap()
}

#[test]
fn a_number_without_a_block_is_answered_as_is_set() {
    let node = SimulatedNode::new(&Config {
        holes: 2,
        initial_blocks: 40,
        ..Config::manual()
    });
    let (hole, below, head) = {
        let chain = &node.lock().chain;
        let head = chain.head().number();
        let hole = (1..head).find(|number| chain.block_at(*number).is_none()).unwrap();
        (hole, chain.block_at_or_below(hole).unwrap().number(), head)
    };
    for (answer, expected) in [
        (HoleAnswer::Null, json!(null)),
        (HoleAnswer::Error, json!(format!("no block was made in round {hole}"))),
        (HoleAnswer::Before, json!(Quantity(below))),
    ] {
        node.lock().faults.hole_answer = answer;
        let by_number = ask(&node, "eth_getBlockByNumber", json!([Quantity(hole), false]));
        let found = [&by_number["result"]["number"], &by_number["error"]["message"]];
        assert_eq!(
            found.into_iter().find(|one| !one.is_null()).unwrap_or(&Value::Null),
            &expected
        );
        let above = ask(&node, "eth_getBlockByNumber", json!([Quantity(head + 1), false]));
        assert_eq!(above["result"], json!(null), "{answer:?}");
        for tag in ["safe", "finalized", "earliest", "latest"] {
            let block = ask(&node, "eth_getBlockByNumber", json!([tag, false]));
            assert!(block["result"]["hash"].is_string(), "{answer:?} {tag} {block}");
        }
        let range = json!([{"fromBlock": Quantity(hole), "toBlock": Quantity(hole)}]);
        assert_eq!(ask(&node, "eth_getLogs", range)["result"], json!([]));
    }
}

#[test]
fn announcements_lie_and_blocks_do_not() {
    let block = Chain::new(&Config::manual()).mine();
    let read = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let truth = read(&shape::head(&block));
    let other = read(&shape::announcement(
        &block,
        &Faults {
            announce_other_hash: true,
            ..Faults::default()
        },
    ));
    let bare = read(&shape::announcement(
        &block,
        &Faults {
            announce_without_bloom: true,
            ..Faults::default()
        },
    ));
    assert!(truth["hash"] == json!(block.hash()) && other["hash"] != truth["hash"]);
    assert!(other["parentHash"] == truth["parentHash"] && other["logsBloom"] == truth["logsBloom"]);
    assert!(bare.get("logsBloom").is_none() && bare["hash"] == truth["hash"]);
}
