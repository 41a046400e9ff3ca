//! Verifies a block's receipts and header against its hash (E7): the optional level above the bloom.
//!
//! ```text
//! hash         = keccak(rlp(header))                    verify_hash
//! receiptsRoot = root of the trie of all its receipts   verify
//! the receipts' logs = the answer to eth_getLogs        verify
//! ```
//!
//! With both, an upstream can neither forge nor omit a log of a block whose hash is right. Three things remain on
//! trust: that the hash is canonical, which only the consensus layer can prove; the hash of the log's transaction,
//! which is covered by `transactionsRoot` and not by this root (its index is proven); and a log's optional
//! `blockTimestamp`.

use alloy_consensus::Header as ConsensusHeader;
use alloy_consensus::proofs::ordered_trie_root_with_encoder;
use alloy_primitives::{Address, B64, B256, Bloom, Bytes, Log, U8, U64, U256};
use alloy_rlp::Encodable;
use serde::Deserialize;

use super::{BlockLogs, Header};

/// Reason why the receipts are not this block's, or the logs are not in the receipts.
#[derive(Debug, thiserror::Error)]
pub enum BadReceipts {
    /// The header has no valid `receiptsRoot` to check the receipts against.
    #[error("the header has no receiptsRoot: {0}")]
    Header(#[source] serde_json::Error),
    /// Not an array of receipts; also for `null`, the answer of a node that does not know the block.
    #[error("not an array of receipts: {0}")]
    Shape(#[source] serde_json::Error),
    /// A receipt with neither `status` nor `root`.
    #[error("the receipt at position {0} has neither status nor root")]
    Outcome(usize),
    /// A receipt whose bloom does not match its logs. If every block has such receipts, the chain leaves receipt blooms
    /// empty.
    #[error("the logs of the receipt at position {0} do not add up to its logsBloom")]
    Bloom(usize),
    /// A receipt is missing, forged or out of order.
    #[error("the receipts add up to the root {computed}, the header's receiptsRoot is {said}")]
    Root {
        /// Root of the receipts in the answer.
        computed: B256,
        /// Root in the header.
        said: B256,
    },
    /// The roots differ, but the chain rather than the node may be at fault: it has transactions of its own type,
    /// whose receipts need not have the standard encoding. A lying node can claim such a type too, so one answer is
    /// no reason to switch the verification off.
    #[error(
        "the receipts do not add up to the header's receiptsRoot; one is of the type {0:#x}, which this chain may encode \
         in a form of its own: if this goes on, its receipts cannot be verified"
    )]
    UnknownType(u8),
    /// More or fewer logs than the receipts have.
    #[error("{answered} logs were answered, the receipts have {proven}")]
    Count {
        /// Number of logs in the answer to `eth_getLogs`.
        answered: usize,
        /// Number of logs in the receipts.
        proven: usize,
    },
    /// A log that differs from the receipts' log at the same position.
    #[error("the log at position {0} is not the one in the receipts")]
    Log(usize),
}

/// Reason why a header does not match its hash.
#[derive(Debug, thiserror::Error)]
pub enum BadHash {
    /// Members that every Ethereum header has are missing or malformed.
    #[error("not a whole header: {0}")]
    Shape(#[from] serde_json::Error),
    /// A forged header; or, if every block of every upstream fails, a chain whose headers have other members than
    /// Ethereum's.
    #[error("the header's members hash to {computed}, it says {said}")]
    Mismatch {
        /// Hash of the header's members.
        computed: B256,
        /// Hash that the header names.
        said: B256,
    },
}

/// Checks the node's answer to `eth_getBlockReceipts` against the header's `receiptsRoot`, and the block's logs
/// against the receipts. The root is only as trustworthy as its header: see [`verify_hash`].
///
/// The trie is that of the Yellow Paper ("Holistic Validity"): each receipt under the RLP of its index. A missing,
/// changed or moved receipt gives another root.
///
/// # Errors
/// [`BadReceipts`] if the receipts are malformed or do not match the header, or the logs do not match the receipts.
pub fn verify(header: &Header, receipts_answer: &[u8], logs: &BlockLogs) -> Result<(), BadReceipts> {
    same_logs(&proven(header, receipts_answer)?, logs)
}

/// Checks the receipts as [`verify`] does, but without logs: for receipts that are delivered themselves. The root
/// does not cover their transactions' hashes and the values that nodes derive (addresses, prices, gas of each); these
/// remain on trust.
///
/// # Errors
/// [`BadReceipts`] if the receipts are malformed or do not match the header.
pub fn verify_root(header: &Header, receipts_answer: &[u8]) -> Result<(), BadReceipts> {
    proven(header, receipts_answer).map(drop)
}

/// Parses the receipts and checks that their root is the header's.
fn proven(header: &Header, receipts_answer: &[u8]) -> Result<Vec<ProvedReceipt>, BadReceipts> {
    let Roots { receipts_root: said } = serde_json::from_slice(&header.json).map_err(BadReceipts::Header)?;
    let receipts: Vec<ProvedReceipt> = serde_json::from_slice(receipts_answer).map_err(BadReceipts::Shape)?;
    for (position, receipt) in receipts.iter().enumerate() {
        receipt.check(position)?;
    }
    let computed = ordered_trie_root_with_encoder(&receipts, ProvedReceipt::encode);
    if computed != said {
        let unknown = receipts.iter().find_map(ProvedReceipt::unknown_type);
        return Err(unknown.map_or(BadReceipts::Root { computed, said }, BadReceipts::UnknownType));
    }
    Ok(receipts)
}

/// Recomputes the hash of an announced header or a whole block from its members (Yellow Paper, "Serialisation"). A
/// `null` member counts as absent: nodes send `null` for members of forks that the chain has not had.
///
/// # Errors
/// [`BadHash`] if members are missing or the hash differs. If every block fails, the chain's headers cannot be
/// verified.
pub fn verify_hash(header_json: &[u8]) -> Result<(), BadHash> {
    let members: Members = serde_json::from_slice(header_json)?;
    let said = members.hash;
    let computed = ConsensusHeader::from(members).hash_slow();
    if computed == said {
        Ok(())
    } else {
        Err(BadHash::Mismatch { computed, said })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Roots {
    receipts_root: B256,
}

/// The members of a receipt that consensus covers, and its transaction's hash.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProvedReceipt {
    /// Nodes older than EIP-2718 omit the type.
    #[serde(default, rename = "type")]
    kind: U8,
    /// Present since Byzantium (EIP-658).
    status: Option<U64>,
    /// State root after the transaction, before Byzantium. Nethermind sends a `status` along with it.
    root: Option<B256>,
    cumulative_gas_used: U64,
    logs_bloom: Bloom,
    logs: Vec<Log>,
    deposit_nonce: Option<U64>,
    deposit_receipt_version: Option<U64>,
    transaction_hash: B256,
}

/// Type of legacy transactions (EIP-2718), whose encoded receipts have no type prefix.
const LEGACY: u8 = 0;
/// Newest type of Ethereum (EIP-7702).
const NEWEST: u8 = 4;
/// Type of Optimism's deposits.
const DEPOSIT: u8 = 0x7e;

impl ProvedReceipt {
    /// Checks one receipt by itself. The root would detect the same faults, but not show which receipt is wrong.
    fn check(&self, position: usize) -> Result<(), BadReceipts> {
        if self.status.is_none() && self.root.is_none() {
            return Err(BadReceipts::Outcome(position));
        }
        if self.logs.iter().collect::<Bloom>() != self.logs_bloom {
            return Err(BadReceipts::Bloom(position));
        }
        Ok(())
    }

    /// Appends `type || rlp([status or root, cumulative gas, bloom, logs])` (EIP-2718; Yellow Paper, "Transaction
    /// Receipt"). Unknown types are assumed to have this form too, as most chains' own types do.
    fn encode(&self, out: &mut Vec<u8>) {
        let status = self.status.unwrap_or_default();
        let outcome: &dyn Encodable = match &self.root {
            Some(root) => root,
            None => &status,
        };
        let mut members = vec![outcome, &self.cumulative_gas_used, &self.logs_bloom, &self.logs];
        let nonce = self.deposit_nonce.unwrap_or_default();
        // Hashed since Canyon, which added the version; before, nodes sent the nonce but it was not hashed.
        if let Some(version) = &self.deposit_receipt_version {
            members.extend([&nonce as &dyn Encodable, version]);
        }
        let kind = self.kind.to::<u8>();
        if kind != LEGACY {
            out.push(kind);
        }
        alloy_rlp::encode_list::<&dyn Encodable, dyn Encodable>(&members, out);
    }

    fn unknown_type(&self) -> Option<u8> {
        let kind = self.kind.to();
        (kind > NEWEST && kind != DEPOSIT).then_some(kind)
    }
}

/// Members of a log in the answer to `eth_getLogs`, besides its address, topics and index.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rest {
    data: Bytes,
    transaction_index: U64,
    transaction_hash: B256,
}

/// Compares the answered logs with the receipts' logs. Indices count across the block's receipts, from 0 without
/// holes.
fn same_logs(receipts: &[ProvedReceipt], logs: &BlockLogs) -> Result<(), BadReceipts> {
    let answered = logs.logs.len();
    let proven = receipts.iter().map(|receipt| receipt.logs.len()).sum();
    if answered != proven {
        return Err(BadReceipts::Count { answered, proven });
    }
    let placed = receipts
        .iter()
        .enumerate()
        .flat_map(|(place, receipt)| receipt.logs.iter().map(move |log| (place, receipt, log)));
    for (index, (answer, (place, receipt, log))) in logs.logs.iter().zip(placed).enumerate() {
        let same = answer.index == index as u64
            && answer.address == log.address
            && answer.topics == log.topics()
            && serde_json::from_slice(answer.json()).is_ok_and(|rest: Rest| {
                rest.data == log.data.data
                    && rest.transaction_index == U64::from(place)
                    && rest.transaction_hash == receipt.transaction_hash
            });
        if !same {
            return Err(BadReceipts::Log(index));
        }
    }
    Ok(())
}

/// A header's members as nodes send them, and the hash to check them against.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Members {
    parent_hash: B256,
    sha3_uncles: B256,
    miner: Address,
    state_root: B256,
    transactions_root: B256,
    receipts_root: B256,
    logs_bloom: Bloom,
    difficulty: U256,
    number: U64,
    gas_limit: U64,
    gas_used: U64,
    timestamp: U64,
    extra_data: Bytes,
    mix_hash: B256,
    nonce: B64,
    base_fee_per_gas: Option<U64>,
    withdrawals_root: Option<B256>,
    blob_gas_used: Option<U64>,
    excess_blob_gas: Option<U64>,
    parent_beacon_block_root: Option<B256>,
    requests_hash: Option<B256>,
    block_access_list_hash: Option<B256>,
    slot_number: Option<U64>,
    hash: B256,
}

/// Without `..Default::default()`, so that a member added by alloy cannot be forgotten here.
impl From<Members> for ConsensusHeader {
    fn from(members: Members) -> Self {
        let number = |quantity: U64| quantity.to::<u64>();
        Self {
            parent_hash: members.parent_hash,
            ommers_hash: members.sha3_uncles,
            beneficiary: members.miner,
            state_root: members.state_root,
            transactions_root: members.transactions_root,
            receipts_root: members.receipts_root,
            logs_bloom: members.logs_bloom,
            difficulty: members.difficulty,
            number: number(members.number),
            gas_limit: number(members.gas_limit),
            gas_used: number(members.gas_used),
            timestamp: number(members.timestamp),
            extra_data: members.extra_data,
            mix_hash: members.mix_hash,
            nonce: members.nonce,
            base_fee_per_gas: members.base_fee_per_gas.map(number),
            withdrawals_root: members.withdrawals_root,
            blob_gas_used: members.blob_gas_used.map(number),
            excess_blob_gas: members.excess_blob_gas.map(number),
            parent_beacon_block_root: members.parent_beacon_block_root,
            requests_hash: members.requests_hash,
            block_access_list_hash: members.block_access_list_hash,
            slot_number: members.slot_number.map(number),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

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
            Self::of(include_str!("../../tests/fixtures/receipts-anvil.json"))
        }

        fn geth() -> Self {
            Self::of(include_str!("../../tests/fixtures/receipts-geth.json"))
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
        logs.check_bloom(header.bloom.as_ref().unwrap())
            .expect("the bloom shows nothing");
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
        assert!(
            refused(|block| block.header["receiptsRoot"] = Value::Null).starts_with("the header has no receiptsRoot")
        );
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
}
