use figment::value::Dict;
use figment::{Profile, Provider};

use super::*;

fn defaults() -> Dict {
    let provider = Serialized::defaults(typed::Config::default());
    provider
        .data()
        .ok()
        .and_then(|mut data| data.remove(&Profile::Default))
        .unwrap_or_default()
}

fn leaves(dict: &Dict, prefix: &str, out: &mut Vec<String>) {
    for (key, value) in dict {
        match value {
            // A table whose keys the operator chooses.
            Value::Dict(..) if keys().any(|known| known == format!("{prefix}{key}")) => {
                out.push(format!("{prefix}{key}"));
            }
            Value::Dict(_, inner) => leaves(inner, &format!("{prefix}{key}."), out),
            _ => out.push(format!("{prefix}{key}")),
        }
    }
}

#[test]
fn every_key_has_words_and_every_word_a_key() {
    let mut have = Vec::new();
    leaves(&defaults(), "", &mut have);
    let mut described: Vec<_> = keys().map(str::to_owned).collect();
    have.sort();
    described.sort();
    assert_eq!(have, described);
}

#[test]
fn the_example_is_the_default() {
    let read: typed::Config = toml::from_str(&example()).expect("the example parses");
    assert_eq!(read, typed::Config::default());
}

/// `UPDATE_EXPECT=1 cargo test` writes both files again.
#[test]
fn the_files_people_read_are_true() {
    expect_test::expect_file!["../../../config/example.toml"].assert_eq(&example());
    expect_test::expect_file!["../../../docs/configuration.md"].assert_eq(&reference());
}
