use proptest::prelude::*;
use serde_json::json;

use super::*;

fn who(n: u8) -> Address {
    Address::repeat_byte(n)
}

fn pending(options: Value) -> Result<TransactionFilter, String> {
    words(TransactionFilter::pending(&options, TransactionForm::Full))
}

fn mined(options: Value) -> Result<TransactionFilter, String> {
    words(TransactionFilter::mined(&options))
}

fn words(read: Result<TransactionFilter, ErrorObjectOwned>) -> Result<TransactionFilter, String> {
    read.map_err(|error| {
        assert_eq!(error.code(), -32602);
        let message = error.message().strip_prefix("invalid argument 1: ");
        message.expect("it says which argument").to_owned()
    })
}

#[track_caller]
fn refused(read: Result<TransactionFilter, String>, why: &str) {
    assert_eq!(read, Err(why.to_owned()));
}

#[test]
fn options_of_pending_transactions() {
    let (full, hash) = (TransactionForm::Full, TransactionForm::Hash);
    let everything = TransactionFilter::all(full);
    for all in [
        json!(null),
        json!({}),
        json!({"fromAddress": null, "hashesOnly": null}),
        json!({"fromAddress": [], "toAddress": []}),
        json!({"hashesOnly": false}),
    ] {
        assert_eq!(pending(all), Ok(everything.clone()));
    }
    assert_eq!(pending(json!({"hashesOnly": true})), Ok(TransactionFilter::all(hash)));
    let one = pending(json!({"fromAddress": who(0xab), "toAddress": [who(2), who(1)]}));
    let checksummed = who(0xab).to_checksum(None);
    let same = pending(json!({"toAddress": [who(1), who(2), who(1)], "fromAddress": [checksummed]}));
    assert_eq!(one, same);
    assert_eq!(
        one.map(|filter| filter.keys()),
        Ok(vec![Parties::From(who(0xab)), Parties::To(who(1)), Parties::To(who(2))])
    );
    let only_hashes = pending(json!({"fromAddress": who(1), "hashesOnly": true})).expect("options");
    assert_eq!((only_hashes.form, only_hashes.source()), (hash, full));
    assert_eq!(TransactionFilter::all(hash).source(), hash);
}

#[test]
fn what_makes_no_sense_is_said() {
    let zero = Address::ZERO;
    for (options, why) in [
        (json!("x"), "expected an object, got string"),
        (json!(true), "expected an object, got bool"),
        (
            json!({"from": zero}),
            r#"unknown option "from", expected fromAddress, toAddress, hashesOnly"#,
        ),
        (json!({"hashesOnly": "true"}), "hashesOnly: expected a bool, got string"),
        (
            json!({"fromAddress": 1}),
            "fromAddress: expected a string or an array, got number",
        ),
        (json!({"toAddress": ""}), "invalid toAddress: empty hex string"),
        (
            json!({"toAddress": "0x12"}),
            "invalid toAddress: hex has invalid length 1 after decoding; expected 20 for address",
        ),
        (
            json!({"fromAddress": [zero, "12"]}),
            "invalid fromAddress at index 1: hex string without 0x prefix",
        ),
        (
            json!({"fromAddress": [null]}),
            "invalid fromAddress at index 0: expected a string, got null",
        ),
    ] {
        refused(pending(options), why);
    }
    for (options, why) in [
        (json!([]), "expected an object, got array"),
        (
            json!({"fromAddress": zero}),
            r#"unknown option "fromAddress", expected addresses, includeRemoved, hashesOnly"#,
        ),
        (json!({"addresses": zero}), "addresses: expected an array, got string"),
        (
            json!({"includeRemoved": 1}),
            "includeRemoved: expected a bool, got number",
        ),
        (
            json!({"addresses": [{}]}),
            "invalid addresses at index 0: names neither from nor to",
        ),
        (
            json!({"addresses": [{"to": zero}, zero]}),
            "invalid addresses at index 1: expected an object, got string",
        ),
        (
            json!({"addresses": [{"to": [zero]}]}),
            "invalid addresses at index 0: invalid to: expected a string, got array",
        ),
        (
            json!({"addresses": [{"from": "0x"}]}),
            "invalid addresses at index 0: invalid from: hex has invalid length 0 after decoding; expected 20 for address",
        ),
        (
            json!({"addresses": [{"fromAddress": zero}]}),
            r#"invalid addresses at index 0: unknown member "fromAddress", expected from, to"#,
        ),
    ] {
        refused(mined(options), why);
    }
}

#[test]
fn addresses_up_to_the_limit_and_not_one_more() {
    let many = |range: std::ops::Range<usize>| -> Vec<Address> {
        range.map(|n| Address::left_padding_from(&n.to_be_bytes())).collect()
    };
    // An address that is both sender and recipient counts once.
    for (from, to) in [(0..1000, 0..0), (0..1000, 0..1000), (0..400, 300..1000)] {
        let options = json!({"fromAddress": many(from), "toAddress": many(to)});
        assert!(pending(options).is_ok());
    }
    for (from, to) in [(0..1001, 0..0), (0..500, 500..1001)] {
        let options = json!({"fromAddress": many(from), "toAddress": many(to)});
        refused(pending(options), "exceed max addresses: 1001 > 1000");
    }
    let entries = |count: usize, more: Value| {
        let mut entries: Vec<Value> = many(0..count)
            .iter()
            .map(|to| json!({"from": who(1), "to": to}))
            .collect();
        entries.push(more);
        json!({ "addresses": entries })
    };
    assert!(mined(entries(499, json!({"from": who(1), "to": who(2)}))).is_ok());
    assert!(
        mined(entries(500, json!({"from": who(1), "to": Address::ZERO}))).is_ok(),
        "twice is once"
    );
    refused(
        mined(entries(500, json!({"to": who(2)}))),
        "exceed max addresses: 1001 > 1000",
    );
}

#[test]
fn options_of_mined_transactions() {
    assert_eq!(mined(json!(null)), Ok(TransactionFilter::all(TransactionForm::Full)));
    let read = mined(json!({
        "addresses": [{"to": who(1), "from": who(2)}, {"to": who(3)}, {"from": who(4), "to": null}],
        "includeRemoved": true,
        "hashesOnly": true,
    }))
    .expect("options");
    assert_eq!((read.form, read.removed), (TransactionForm::Hash, true));
    assert_eq!(
        read.keys(),
        [
            Parties::From(who(4)),
            Parties::To(who(3)),
            Parties::Between(who(2), who(1))
        ]
    );
}

fn someone() -> impl Strategy<Value = Option<u8>> {
    prop::option::of(0u8..4)
}

proptest! {
    /// Alchemy's documentation, read literally: the sender is in the one list or the recipient in the other; of
    /// mined transactions, all members that any one entry names.
    #[test]
    fn the_index_finds_what_the_words_say(
        pendings in prop::collection::vec((prop::collection::vec(0u8..4, 0..3), prop::collection::vec(0u8..4, 0..3)), 0..12),
        mineds in prop::collection::vec(prop::collection::vec((someone(), someone()), 0..3), 0..12),
        gone in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        (from, to) in (someone(), someone()),
    ) {
        let mut index = Index::default();
        let mut alive = Vec::new();
        for (i, (froms, tos)) in pendings.iter().enumerate() {
            let [a, b] = [froms, tos].map(|all| all.iter().map(|n| who(*n)).collect::<Vec<_>>());
            let filter = pending(json!({"fromAddress": a, "toAddress": b})).expect("options");
            let wants = (froms.is_empty() && tos.is_empty())
                || from.is_some_and(|from| froms.contains(&from))
                || to.is_some_and(|to| tos.contains(&to));
            alive.push((index.insert(filter, i), i, wants));
        }
        for (i, entries) in mineds.iter().enumerate() {
            let entries: Vec<_> = entries.iter().filter(|entry| **entry != (None, None)).collect();
            let typed: Vec<_> = entries.iter().map(|(f, t)| json!({"from": f.map(who), "to": t.map(who)})).collect();
            let filter = mined(json!({"addresses": typed})).expect("options");
            let wants = entries.is_empty()
                || entries.iter().any(|(f, t)| f.is_none_or(|f| from == Some(f)) && t.is_none_or(|t| to == Some(t)));
            let i = i + pendings.len();
            alive.push((index.insert(filter, i), i, wants));
        }
        for at in gone {
            if !alive.is_empty() {
                let (slot, i, _) = alive.swap_remove(at.index(alive.len()));
                prop_assert_eq!(index.remove(slot), Some(i));
            }
        }
        let mut found: Vec<usize> = index
            .matching_entries(from.map(who), to.map(who))
            .into_iter()
            .flat_map(|entry| index.entry(entry).1.copied().collect::<Vec<_>>())
            .collect();
        found.sort_unstable();
        let mut expected: Vec<usize> = alive.iter().filter(|(.., wants)| *wants).map(|(_, i, _)| *i).collect();
        expected.sort_unstable();
        prop_assert_eq!(found, expected);
    }
}
