//! Tables of flags, logs, and what they decode to.

use alloy_primitives::{Address, Bytes, U256, keccak256};
use expect_test::{Expect, expect};

use super::*;
use crate::tail::value;

fn log(signature: &str, topics: &[u8], data: &[u8]) -> Log {
    let first = keccak256(signature);
    Log {
        block_number: 1,
        block_hash: B256::ZERO,
        transaction_hash: B256::ZERO,
        transaction_index: 0,
        log_index: 0,
        address: Address::ZERO,
        topics: [first]
            .into_iter()
            .chain(topics.iter().map(|byte| B256::with_last_byte(*byte)))
            .collect(),
        data: Bytes::copy_from_slice(data),
        removed: false,
    }
}

fn words(words: &[u64]) -> Vec<u8> {
    words
        .iter()
        .flat_map(|word| U256::from(*word).to_be_bytes::<32>())
        .collect()
}

fn text(decoded: Option<Decoded<'_>>) -> String {
    let Some(decoded) = decoded else {
        return "not decoded".to_owned();
    };
    let mut text = format!("{} {}", decoded.name, decoded.signature);
    for (name, argument) in decoded.arguments {
        text.push_str(&format!(" {name}="));
        match argument {
            Argument::Value(value) => value::write(&value, &mut text),
            Argument::Hash(hash) => text.push_str(&format!("hash {}", hash[31])),
        }
    }
    text.replace(&"0".repeat(38), "~")
}

/// Checks how a log is decoded by these flags.
#[track_caller]
fn check(flags: &[&str], log: &Log, expect: Expect) {
    let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
    let (events, _) = Events::new(&[], &flags).unwrap();
    expect.assert_eq(&text(events.decode(log)));
}

const TRANSFER: &str = "Transfer(address,address,uint256)";

#[test]
fn a_signature_decodes_with_or_without_indexed_and_names() {
    let erc20 = log(TRANSFER, &[1, 2], &words(&[300]));
    check(
        &[TRANSFER],
        &erc20,
        expect!["Transfer Transfer(address,address,uint256) =0x~01 =0x~02 =300"],
    );
    let full = "event Transfer(address indexed from, address indexed to, uint256 value)";
    check(
        &[full],
        &erc20,
        expect!["Transfer Transfer(address,address,uint256) from=0x~01 to=0x~02 value=300"],
    );
    // Solidity's short names of types are the long ones.
    let short = "Transfer(address,address,uint)";
    check(
        &[short],
        &erc20,
        expect!["Transfer Transfer(address,address,uint256) =0x~01 =0x~02 =300"],
    );
    // The indexed ones need not come first.
    let mixed = "Set(uint256 value, address indexed owner)";
    check(
        &[mixed],
        &log("Set(uint256,address)", &[7], &words(&[9])),
        expect!["Set Set(uint256,address) value=9 owner=0x~07"],
    );
}

#[test]
fn events_that_share_a_topic_are_told_apart_by_what_is_indexed() {
    let both = [
        "Transfer(address indexed from, address indexed to, uint256 value)",
        "Transfer(address indexed from, address indexed to, uint256 indexed tokenId)",
    ];
    check(
        &both,
        &log(TRANSFER, &[1, 2], &words(&[300])),
        expect!["Transfer Transfer(address,address,uint256) from=0x~01 to=0x~02 value=300"],
    );
    check(
        &both,
        &log(TRANSFER, &[1, 2, 3], &[]),
        expect!["Transfer Transfer(address,address,uint256) from=0x~01 to=0x~02 tokenId=3"],
    );
    check(&both, &log(TRANSFER, &[1], &words(&[2, 3])), expect!["not decoded"]);
    check(
        &[TRANSFER],
        &log(TRANSFER, &[1, 2, 3], &[]),
        expect!["Transfer Transfer(address,address,uint256) =0x~01 =0x~02 =3"],
    );
    check(
        &[TRANSFER],
        &log(TRANSFER, &[], &words(&[1, 2, 3])),
        expect!["Transfer Transfer(address,address,uint256) =0x~01 =0x~02 =3"],
    );
}

#[test]
fn an_indexed_string_is_its_hash_alone() {
    let event = "Named(string indexed name, string text)";
    let data = [words(&[32, 2]), b"hi".to_vec(), vec![0; 30]].concat();
    check(
        &[event],
        &log("Named(string,string)", &[5], &data),
        expect![[r#"Named Named(string,string) name=hash 5 text="hi""#]],
    );
}

#[test]
fn data_that_does_not_fit_is_not_decoded() {
    for (topics, data) in [(&[1, 2][..], &[][..]), (&[1, 2], &[0; 31]), (&[1, 2, 3, 4], &[])] {
        check(&[TRANSFER], &log(TRANSFER, topics, data), expect!["not decoded"]);
    }
    check(&[TRANSFER], &log("Other()", &[], &[]), expect!["not decoded"]);
    // A length and an offset beyond any memory.
    for word in [u64::MAX, 32] {
        let data = words(&[word, u64::MAX]);
        check(
            &["Bytes(bytes)"],
            &log("Bytes(bytes)", &[], &data),
            expect!["not decoded"],
        );
    }
}

/// Offsets of one array that all point at the same inner array: 3,000 words of data are two million of values.
#[test]
fn data_that_repeats_itself_is_refused_before_it_fills_memory() {
    let share = 60_000_u64;
    let data = [
        words(&[32, share]),
        words(&vec![share * 32; share as usize]),
        words(&[share]),
        vec![0; 32 * share as usize],
    ]
    .concat();
    check(
        &["Deep(uint256[][])"],
        &log("Deep(uint256[][])", &[], &data),
        expect!["not decoded"],
    );
    let small = words(&[32, 2, 64, 64, 1, 7]);
    check(
        &["Deep(uint256[][])"],
        &log("Deep(uint256[][])", &[], &small),
        expect!["Deep Deep(uint256[][]) =[[7], [7]]"],
    );
    // One level repeats nothing, whatever its length.
    let flat = [words(&[32, 100_000]), vec![0; 3_200_000]].concat();
    check(
        &["Flat(uint256[])"],
        &log("Flat(uint256[])", &[], &flat),
        expect!["Flat Flat(uint256[]) =[0, 0, 0, 0, 0, 0, 0, 0, … 100000 in all]"],
    );
}

/// Checks what is said of these files and flags.
#[track_caller]
fn refused(files: &[&str], flags: &[&str], expect: Expect) {
    let files: Vec<_> = files
        .iter()
        .map(|content| ("x.json".to_owned(), (*content).to_owned()))
        .collect();
    let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
    expect.assert_eq(
        &Events::new(&files, &flags).map_or_else(|why| why, |(_, topics)| format!("{} topics", topics.len())),
    );
}

const ABI: &str = r#"[
    {"type": "function", "name": "f", "inputs": [], "outputs": [], "stateMutability": "view"},
    {"type": "event", "name": "Transfer", "anonymous": false, "inputs": [
        {"name": "from", "type": "address", "indexed": true},
        {"name": "to", "type": "address", "indexed": true},
        {"name": "value", "type": "uint256", "indexed": false}]},
    {"type": "event", "name": "Point", "anonymous": false, "inputs": [
        {"name": "at", "type": "tuple", "indexed": false, "components": [
            {"name": "x", "type": "int8"}, {"name": "y", "type": "int8"}]}]},
    {"type": "event", "name": "Hidden", "anonymous": true, "inputs": []}]"#;

#[test]
fn a_file_is_an_abi_or_an_artefact_of_a_compiler() {
    for content in [ABI.to_owned(), format!(r#"{{"abi": {ABI}, "bytecode": "0x"}}"#)] {
        let files = [("x.json".to_owned(), content)];
        let (events, topics) = Events::new(&files, &[]).unwrap();
        assert!(topics.is_empty(), "a file alone filters nothing");
        let decoded = events.decode(&log(TRANSFER, &[1, 2], &words(&[3])));
        assert_eq!(decoded.unwrap().arguments[2].0, "value");
        let point = log("Point((int8,int8))", &[], &words(&[1, 2]));
        expect!["Point Point((int8,int8)) at=(1, 2)"].assert_eq(&text(events.decode(&point)));
        // By name or by signature, the file's names of the parameters are used.
        for flag in ["Transfer", TRANSFER] {
            let (events, topics) = Events::new(&files, &[flag.to_owned()]).unwrap();
            assert_eq!(topics, [keccak256(TRANSFER)]);
            let decoded = events.decode(&log(TRANSFER, &[1, 2], &words(&[3])));
            assert_eq!(decoded.unwrap().arguments[0].0, "from");
        }
    }
}

#[test]
fn mistakes_in_files_and_flags_are_said() {
    refused(&[], &[TRANSFER, TRANSFER, "Other()"], expect!["2 topics"]);
    refused(
        &[],
        &["Transfer"],
        expect![[
            r#"--event "Transfer" is not a signature such as 'Transfer(address,address,uint256)'; a name alone needs --abi"#
        ]],
    );
    refused(
        &[ABI],
        &["Transfers"],
        expect![[r#"--event "Transfers": no file of --abi has such an event"#]],
    );
    refused(
        &[ABI],
        &["Hidden"],
        expect![[r#"--event "Hidden": no file of --abi has such an event"#]],
    );
    refused(
        &[],
        &["Transfer(address"],
        expect![[
            r#"--event "Transfer(address" is not a signature; write it as 'Transfer(address indexed from, address indexed to, uint256 value)'"#
        ]],
    );
    refused(
        &[],
        &["Transfer(adress)"],
        expect![[r#"--event "Transfer(adress)": "adress" is not a type"#]],
    );
    refused(
        &[],
        &["A(uint256) anonymous"],
        expect![[r#"--event "A(uint256) anonymous": an anonymous event has no topic to filter by; use --topic"#]],
    );
    refused(
        &[],
        &["A(uint256[0][])"],
        expect![[
            r#"--event "A(uint256[0][])" is not a signature; write it as 'Transfer(address indexed from, address indexed to, uint256 value)'"#
        ]],
    );
    refused(
        &[],
        &["A(bool indexed,bool indexed,bool indexed,bool indexed)"],
        expect![[
            r#"--event "A(bool indexed,bool indexed,bool indexed,bool indexed)": at most 3 parameters can be indexed"#
        ]],
    );
    refused(
        &["{}"],
        &[],
        expect![[r#"x.json: neither an ABI (an array) nor an artefact with a member "abi""#]],
    );
    refused(
        &["[1]"],
        &[],
        expect!["x.json: not an ABI: invalid type: integer `1`, expected internally tagged enum AbiItem"],
    );
    refused(
        &["nothing"],
        &[],
        expect!["x.json: not JSON: expected ident at line 1 column 2"],
    );
}
