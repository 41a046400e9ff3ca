use tokio::time::Instant;

use serde_json::{Value, json};

use super::*;
use crate::devnet::{Config, Devnet};

/// A node's answers about one block.
#[derive(Clone)]
struct Block {
    header: Value,
    receipts: Value,
    logs: Value,
}

impl Block {
    /// Reads the answers of a real node to `eth_getBlockByHash`, `eth_getBlockReceipts` and `eth_getLogs`:
    /// transactions of three types (two from geth), with several logs, one or none; one of them failed.
    fn of(fixture: &str) -> Self {
        let mut fixture: Value = serde_json::from_str(fixture).unwrap();
        Self {
            header: fixture["header"].take(),
            receipts: fixture["receipts"].take(),
            logs: fixture["logs"].take(),
        }
    }

    fn anvil() -> Self {
        Self::of(include_str!("../../../tests/fixtures/receipts-anvil.json"))
    }

    fn geth() -> Self {
        Self::of(include_str!("../../../tests/fixtures/receipts-geth.json"))
    }

    async fn devnet(transactions: usize) -> Self {
        let devnet = Devnet::start(Config {
            transactions_per_block: transactions,
            initial_blocks: 0,
            ..Config::manual()
        });
        let devnet = devnet.await.unwrap();
        let hash = devnet.handle().mine().hash();
        Self {
            header: ask(&devnet, "eth_getHeaderByHash", json!([hash])).await,
            receipts: ask(&devnet, "eth_getBlockReceipts", json!([hash])).await,
            logs: ask(&devnet, "eth_getLogs", json!([{ "blockHash": hash }])).await,
        }
    }

    fn verify(&self) -> Result<(), BadReceipts> {
        let header = Header::parse(self.header.to_string().into(), Instant::now()).unwrap();
        let logs = BlockLogs::parse(header.block, &self.logs.to_string().into(), header.seen).unwrap();
        verify(&header, self.receipts.to_string().as_bytes(), &logs)
    }

    fn verify_hash(&self) -> Result<(), BadHash> {
        verify_hash(self.header.to_string().as_bytes())
    }

    /// Returns the logs of the first receipt, which has some in each of these blocks.
    fn receipt_logs(&mut self) -> &mut Vec<Value> {
        self.receipts[0]["logs"].as_array_mut().unwrap()
    }

    fn answered_logs(&mut self) -> &mut Vec<Value> {
        self.logs.as_array_mut().unwrap()
    }

    /// Makes the same forgery in both answers.
    fn forge_log(&mut self, member: &str, value: Value) {
        self.receipt_logs()[0][member] = value.clone();
        self.answered_logs()[0][member] = value;
    }

    #[track_caller]
    fn refused(&self, forge: impl FnOnce(&mut Self)) -> String {
        let mut forged = self.clone();
        forge(&mut forged);
        forged.verify().unwrap_err().to_string()
    }
}

type Forgery = fn(&mut Block);

async fn ask(devnet: &Devnet, method: &str, params: Value) -> Value {
    // The crate is built without a TLS provider; plain HTTP needs none, but the client requires one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    let request = reqwest::Client::new().post(devnet.http_url()).body(request.to_string());
    let answer = request.send().await.unwrap().bytes().await.unwrap();
    serde_json::from_slice::<Value>(&answer).unwrap()["result"].take()
}

async fn nodes() -> [(&'static str, Block); 3] {
    [
        ("anvil", Block::anvil()),
        ("geth", Block::geth()),
        ("devnet", Block::devnet(3).await),
    ]
}

#[tokio::test]
async fn what_real_nodes_answer_is_right() {
    for (node, block) in nodes().await {
        block.verify_hash().expect(node);
        block.verify().expect(node);
    }
}

/// The trie's keys are RLP integers, which get a second byte at 128, and a third at 256.
#[tokio::test]
async fn blocks_of_any_size_are_right() {
    for transactions in [0, 1, 2, 127, 128, 129, 256, 257] {
        let block = Block::devnet(transactions).await;
        assert_eq!(block.receipts.as_array().unwrap().len(), transactions);
        block.verify_hash().unwrap();
        block.verify().unwrap();
    }
}

#[tokio::test]
async fn logs_that_are_not_the_receipts_are_refused() {
    for (node, block) in nodes().await {
        let (bytes, word) = (json!("0xbad0"), json!(B256::repeat_byte(9)));
        let count = block.logs.as_array().unwrap().len();
        let missing = block.refused(|block| drop(block.answered_logs().pop()));
        assert_eq!(
            missing,
            format!("{} logs were answered, the receipts have {count}", count - 1),
            "{node}"
        );
        let first = "the log at position 0 is not the one in the receipts";
        for (member, forged) in [
            ("data", &bytes),
            ("address", &json!(Address::repeat_byte(9))),
            ("topics", &json!([word])),
            ("transactionIndex", &json!("0x1")),
            ("transactionHash", &word),
        ] {
            let refusal = block.refused(|block| block.answered_logs()[0][member] = forged.clone());
            assert_eq!(refusal, first, "{node}: {member}");
        }
        // The index ascends, as `BlockLogs` requires, but with a hole; or the logs are swapped under their
        // indices.
        let hole = block.refused(|block| block.answered_logs()[count - 1]["logIndex"] = json!("0xff"));
        assert_eq!(hole, first.replace('0', &(count - 1).to_string()), "{node}");
        let moved = block.refused(|block| {
            let logs = block.answered_logs();
            logs.swap(0, 1);
            logs[0]["logIndex"] = json!("0x0");
            logs[1]["logIndex"] = json!("0x1");
        });
        assert_eq!(moved, first, "{node}");
    }
}

#[tokio::test]
async fn forged_receipts_are_refused() {
    for (node, block) in nodes().await {
        let bloom = "the logs of the receipt at position 0 do not add up to its logsBloom";
        let word = json!([B256::repeat_byte(9)]);
        assert_eq!(block.refused(|block| block.forge_log("topics", word)), bloom, "{node}");
        let address = json!(Address::repeat_byte(9));
        assert_eq!(
            block.refused(|block| block.forge_log("address", address)),
            bloom,
            "{node}"
        );
        assert_eq!(
            block.refused(|block| drop(block.receipt_logs().remove(0))),
            bloom,
            "{node}: a log is missing"
        );
        // Forgeries that no bloom shows are detected by the root.
        let forgeries: [(&str, Forgery); 7] = [
            ("data", |block| block.forge_log("data", json!("0xbad0"))),
            ("a log and its bloom", |block| {
                block.receipts[0]["logs"] = json!([]);
                block.receipts[0]["logsBloom"] = json!(Bloom::ZERO);
            }),
            ("status", |block| {
                block.receipts[0]["status"] = json!("0x0");
            }),
            ("gas", |block| {
                block.receipts[0]["cumulativeGasUsed"] = json!("0x1");
            }),
            ("a receipt is missing", |block| {
                block.receipts.as_array_mut().unwrap().pop();
            }),
            ("receipts in another order", |block| {
                block.receipts.as_array_mut().unwrap().swap(0, 1);
            }),
            ("all are missing", |block| {
                block.receipts = json!([]);
                block.logs = json!([]);
            }),
        ];
        for (what, forge) in forgeries {
            let refusal = block.refused(forge);
            assert!(
                refusal.starts_with("the receipts add up to the root 0x"),
                "{node}: {what}: {refusal}"
            );
        }
    }
}

/// geth's block has two logs of one contract with the same topic: without the second the bloom is the same.
#[test]
fn a_missing_log_that_no_bloom_shows_is_missed() {
    let mut block = Block::geth();
    let missing = block.receipt_logs().pop().unwrap();
    block
        .answered_logs()
        .retain(|log| log["logIndex"] != missing["logIndex"]);
    let header = Header::parse(block.header.to_string().into(), Instant::now()).unwrap();
    let logs = BlockLogs::parse(header.block, &block.logs.to_string().into(), header.seen).unwrap();
    assert_eq!(logs.bloom(), **header.bloom.as_ref().unwrap());
    assert!(matches!(block.verify(), Err(BadReceipts::Root { .. })));
}

/// An upstream that changes the root to match its receipts must change the hash too, and then it is another
/// block.
#[tokio::test]
async fn a_header_with_another_root_has_another_hash() {
    for (node, block) in nodes().await {
        let mut forged = block.clone();
        forged.forge_log("data", json!("0xbad0"));
        let Err(BadReceipts::Root { computed, .. }) = forged.verify() else {
            panic!("{node}: the root shows it");
        };
        forged.header["receiptsRoot"] = json!(computed);
        forged.verify().expect("the forgery suits its root");
        assert!(
            matches!(forged.verify_hash(), Err(BadHash::Mismatch { said, .. }) if json!(said) == block.header["hash"]),
            "{node}"
        );
    }
}

#[test]
fn each_member_of_the_header_counts_but_null_is_absent() {
    let block = Block::geth();
    let not_hashed = ["hash", "size", "transactions", "uncles", "withdrawals"];
    for member in block.header.as_object().unwrap().keys() {
        let mut forged = block.clone();
        forged.header[member] = Value::Null;
        assert_eq!(
            forged.verify_hash().is_ok(),
            not_hashed[1..].contains(&member.as_str()),
            "{member}"
        );
    }
    let mut announced = block;
    announced.header["slotNumber"] = Value::Null;
    announced.header["blockAccessListHash"] = Value::Null;
    announced.verify_hash().unwrap();
    announced.header["slotNumber"] = json!("0x1");
    assert!(matches!(announced.verify_hash(), Err(BadHash::Mismatch { .. })));
}

#[test]
fn answers_that_are_no_receipts_are_refused() {
    let block = Block::anvil();
    let refused = |forge: Forgery| block.refused(forge);
    assert!(refused(|block| block.receipts = Value::Null).starts_with("not an array of receipts"));
    assert!(refused(|block| block.receipts = json!([{}])).starts_with("not an array of receipts"));
    assert!(refused(|block| block.header["receiptsRoot"] = Value::Null).starts_with("the header has no receiptsRoot"));
    assert_eq!(
        refused(|block| block.receipts[1]["status"] = Value::Null),
        "the receipt at position 1 has neither status nor root"
    );
}

/// A chain with its own receipt encoding must not be reported as a lying node.
#[test]
fn a_type_that_is_not_known_is_named() {
    let refusal = Block::anvil().refused(|block| block.receipts[1]["type"] = json!("0x7b"));
    assert!(refusal.contains("one is of the type 0x7b"), "{refusal}");
}

#[track_caller]
fn encodes(members: Value, parts: &[&[u8]]) {
    let mut receipt = json!({
        "cumulativeGasUsed": "0xb741", "logsBloom": Bloom::ZERO, "logs": [], "transactionHash": B256::ZERO,
    });
    receipt
        .as_object_mut()
        .unwrap()
        .extend(members.as_object().unwrap().clone());
    let receipt: ProvedReceipt = serde_json::from_value(receipt).unwrap();
    let mut encoded = Vec::new();
    receipt.encode(&mut encoded);
    assert_eq!(Bytes::from(encoded), Bytes::from(parts.concat()));
}

#[test]
fn receipts_are_encoded_as_their_time_and_type_asks() {
    // The gas, the bloom and the empty list of logs.
    let rest = [&[0x82, 0xb7, 0x41, 0xb9, 0x01, 0x00][..], &[0; 256], &[0xc0]].concat();
    let root = B256::repeat_byte(7);
    let legacy: &[&[u8]] = &[&[0xf9, 0x01, 0x08, 0x01], &rest];
    encodes(json!({"status": "0x1"}), legacy);
    encodes(json!({"status": "0x1", "type": "0x0", "root": null}), legacy);
    encodes(json!({"status": "0x0"}), &[&[0xf9, 0x01, 0x08, 0x80], &rest]);
    let before_byzantium: &[&[u8]] = &[&[0xf9, 0x01, 0x28, 0xa0], root.as_slice(), &rest];
    encodes(json!({ "root": root }), before_byzantium);
    encodes(json!({"root": root, "status": "0x0"}), before_byzantium);
    let typed: &[&[u8]] = &[&[0x7e], &[0xf9, 0x01, 0x08, 0x01], &rest];
    let mut deposit = json!({"type": "0x7e", "status": "0x1", "depositNonce": "0x3d3bbf"});
    encodes(deposit.clone(), typed);
    deposit["depositReceiptVersion"] = json!("0x1");
    let since_canyon = [0x83, 0x3d, 0x3b, 0xbf, 0x01];
    encodes(deposit, &[&[0x7e], &[0xf9, 0x01, 0x0d, 0x01], &rest, &since_canyon]);
}
