//! Whether a block's receipts and header are those that its hash stands for (E7): the optional level above the bloom.
//!
//! ```text
//! hash         = keccak(rlp(header))                    verify_hash
//! receiptsRoot = root of the trie of all its receipts   verify
//! the receipts' logs = the answer to eth_getLogs        verify
//! ```
//!
//! With both, an upstream can neither forge nor omit a log of a block whose hash is right. Three things stay on trust:
//! that the hash is canonical, which is the consensus layer's to say; the hash of the transaction that a log belongs to,
//! which `transactionsRoot` covers and not this root (its index is proven); and a log's optional `blockTimestamp`.

use alloy_consensus::Header as ConsensusHeader;
use alloy_consensus::proofs::ordered_trie_root_with_encoder;
use alloy_primitives::{Address, B64, B256, Bloom, Bytes, Log, U8, U64, U256};
use alloy_rlp::Encodable;
use serde::Deserialize;

use super::{BlockLogs, Header};

/// The receipts are not this block's, or the logs are not the receipts'.
#[derive(Debug, thiserror::Error)]
pub enum BadReceipts {
    /// The header names no root to hold the receipts against.
    #[error("the header has no receiptsRoot: {0}")]
    Header(#[source] serde_json::Error),
    /// Not an array of receipts: also where the node does not know the block and says `null`.
    #[error("not an array of receipts: {0}")]
    Shape(#[source] serde_json::Error),
    /// A receipt with neither `status` nor `root`.
    #[error("the receipt at position {0} has neither status nor root")]
    Outcome(usize),
    /// A receipt whose bloom is not that of its logs. Where each block has some, the chain leaves them empty.
    #[error("the logs of the receipt at position {0} do not add up to its logsBloom")]
    Bloom(usize),
    /// A receipt is missing, forged or out of its place.
    #[error("the receipts add up to the root {computed}, the header's receiptsRoot is {said}")]
    Root {
        /// Of the receipts in the answer.
        computed: B256,
        /// By the header.
        said: B256,
    },
    /// The same, but the chain may be at fault rather than the node: it has transactions of a type of its own, whose
    /// receipts need not be encoded in the standard form. A node that lies can claim such a type, too: one answer is no
    /// ground for switching the verification off.
    #[error(
        "the receipts do not add up to the header's receiptsRoot; one is of the type {0:#x}, which this chain may encode \
         in a form of its own: if this goes on, its receipts cannot be verified"
    )]
    UnknownType(u8),
    /// More or fewer logs than the receipts have.
    #[error("{answered} logs were answered, the receipts have {proven}")]
    Count {
        /// By `eth_getLogs`.
        answered: usize,
        /// In the receipts.
        proven: usize,
    },
    /// A log that differs from the one in the receipts.
    #[error("the log at position {0} is not the one in the receipts")]
    Log(usize),
}

/// The header is not what its hash stands for.
#[derive(Debug, thiserror::Error)]
pub enum BadHash {
    /// Members are missing or malformed that each Ethereum header has.
    #[error("not a whole header: {0}")]
    Shape(#[from] serde_json::Error),
    /// A forged header; or, if it is so for every block and by every upstream, a chain whose headers have other members
    /// than Ethereum's.
    #[error("the header's members hash to {computed}, it says {said}")]
    Mismatch {
        /// From the members.
        computed: B256,
        /// By the header.
        said: B256,
    },
}

/// Holds the node's answer to `eth_getBlockReceipts` against the header's `receiptsRoot`, and the block's logs against
/// the receipts. The root is worth as much as the header that it stands in: see [`verify_hash`].
///
/// The trie is that of the Yellow Paper ("Holistic Validity"): each receipt under the RLP of its index. A receipt that
/// is missing, changed or moved gives another root.
///
/// # Errors
/// [`BadReceipts`], which says what differs.
pub fn verify(header: &Header, receipts_answer: &[u8], logs: &BlockLogs) -> Result<(), BadReceipts> {
    same_logs(&proven(header, receipts_answer)?, logs)
}

/// As [`verify`], without the answer to `eth_getLogs`: for receipts that are to be told themselves. What the root does not
/// cover stays on trust: the hashes of their transactions, and what nodes derive (addresses, prices, gas of each).
///
/// # Errors
/// [`BadReceipts`], which says what differs.
pub fn verify_root(header: &Header, receipts_answer: &[u8]) -> Result<(), BadReceipts> {
    proven(header, receipts_answer).map(drop)
}

/// The receipts, which have the header's root.
fn proven(header: &Header, receipts_answer: &[u8]) -> Result<Vec<Receipt>, BadReceipts> {
    let Roots { receipts_root: said } = serde_json::from_slice(&header.json).map_err(BadReceipts::Header)?;
    let receipts: Vec<Receipt> = serde_json::from_slice(receipts_answer).map_err(BadReceipts::Shape)?;
    for (position, receipt) in receipts.iter().enumerate() {
        receipt.check(position)?;
    }
    let computed = ordered_trie_root_with_encoder(&receipts, Receipt::encode);
    if computed != said {
        let unknown = receipts.iter().find_map(Receipt::unknown_type);
        return Err(unknown.map_or(BadReceipts::Root { computed, said }, BadReceipts::UnknownType));
    }
    Ok(receipts)
}

/// Recomputes the header's hash from its members, of an announced header or of a whole block (Yellow Paper,
/// "Serialisation"). A member that is announced as `null` is absent, as those of forks are that the chain has not had.
///
/// # Errors
/// [`BadHash`]: where it comes with every block, the chain's headers cannot be verified.
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

/// What consensus knows of a receipt, and the hash of its transaction.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Receipt {
    /// Nodes from before EIP-2718 leave it out.
    #[serde(default, rename = "type")]
    kind: U8,
    /// Since Byzantium (EIP-658).
    status: Option<U64>,
    /// Before Byzantium: the state after the transaction. Nethermind sends a `status` along with it.
    root: Option<B256>,
    cumulative_gas_used: U64,
    logs_bloom: Bloom,
    logs: Vec<Log>,
    deposit_nonce: Option<U64>,
    deposit_receipt_version: Option<U64>,
    transaction_hash: B256,
}

/// EIP-2718's legacy transactions, whose receipts have no type before them.
const LEGACY: u8 = 0;
/// The newest of Ethereum's types, EIP-7702's.
const NEWEST: u8 = 4;
/// Optimism's deposits.
const DEPOSIT: u8 = 0x7e;

impl Receipt {
    /// What the root does not need, but what tells which receipt is wrong.
    fn check(&self, position: usize) -> Result<(), BadReceipts> {
        if self.status.is_none() && self.root.is_none() {
            return Err(BadReceipts::Outcome(position));
        }
        if self.logs.iter().collect::<Bloom>() != self.logs_bloom {
            return Err(BadReceipts::Bloom(position));
        }
        Ok(())
    }

    /// `type || rlp([status or root, cumulative gas, bloom, logs])` (EIP-2718; Yellow Paper, "Transaction Receipt").
    /// Types that are not known here are taken to have this form too, as most chains' own have.
    fn encode(&self, out: &mut Vec<u8>) {
        let status = self.status.unwrap_or_default();
        let outcome: &dyn Encodable = match &self.root {
            Some(root) => root,
            None => &status,
        };
        let mut members = vec![outcome, &self.cumulative_gas_used, &self.logs_bloom, &self.logs];
        let nonce = self.deposit_nonce.unwrap_or_default();
        // Since Canyon, which brought the version; before, the nonce was announced but not hashed.
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

/// What the answer to `eth_getLogs` says of a log besides its address, topics and index.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rest {
    data: Bytes,
    transaction_index: U64,
    transaction_hash: B256,
}

/// The index counts across the block's receipts, from zero and without holes.
fn same_logs(receipts: &[Receipt], logs: &BlockLogs) -> Result<(), BadReceipts> {
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

/// A header's members as nodes send them, and the hash that they are to have.
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

/// Without `..Default::default()`: a member that alloy learns of must not be forgotten here.
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
        /// What a real node sent to `eth_getBlockByHash`, `eth_getBlockReceipts` and `eth_getLogs`: transactions of three
        /// types (of two by geth), with several logs, one or none; one of them failed.
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

        /// The logs of the first receipt, which in each of these blocks has some.
        fn receipt_logs(&mut self) -> &mut Vec<Value> {
            self.receipts[0]["logs"].as_array_mut().unwrap()
        }

        fn answered_logs(&mut self) -> &mut Vec<Value> {
            self.logs.as_array_mut().unwrap()
        }

        /// The same forgery in both answers.
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
        // The crate is built without a TLS provider, which plain HTTP does not ask for but the client does.
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
            // The index grows, as it must in `BlockLogs`, but with a hole; or the logs change places beneath it.
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
            // What no bloom shows, the root does.
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

    /// geth's block has two notes of one contract with one tag: without the second the bloom is the same.
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

    /// An upstream that alters the root to suit its receipts must alter the hash as well, and then it is another block.
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

    /// A chain whose receipts have a form of their own must not read as one that is lied about.
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
        let receipt: Receipt = serde_json::from_value(receipt).unwrap();
        let mut encoded = Vec::new();
        receipt.encode(&mut encoded);
        assert_eq!(Bytes::from(encoded), Bytes::from(parts.concat()));
    }

    #[test]
    fn receipts_are_encoded_as_their_time_and_type_asks() {
        // The gas, the bloom and no logs.
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
