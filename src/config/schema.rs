//! JSON Schema of the configuration file, for editors and for tools that check a file before headwater sees it.
//!
//! Types are found by asking: a value is put in place of the default, and the reader and the check of [`super`] accept it
//! or not. So the schema cannot say otherwise than they do, and a new setting needs no line here.

use std::sync::LazyLock;

use figment::Figment;
use figment::error::Kind;
use figment::providers::Serialized;
use figment::value::{Dict, Value};
use serde_json::{Map, Value as Json, json};

use super::describe::{KEYS, NAMED};
use super::{Config, changes, typed};

/// Address of the schema, which `config/example.toml` names for editors.
pub(super) const ADDRESS: &str =
    "https://raw.githubusercontent.com/headwater-rpc/headwater/main/config/headwater.schema.json";

/// Durations as humantime reads them.
const DURATION: &str = r"^(\d+\s*(nanos|nsec|ns|usec|us|µs|millis|msec|ms|seconds?|secs?|s|minutes?|mins?|m|hours?|hrs?|h|days?|d|weeks?|wks?|w|months?|M|years?|yrs?|y)\s*)+$|^0$";

/// Sizes as bytesize reads them.
const SIZE: &str = r"^\d+(\.\d+)?\s*([kKmMgGtTpPeE][iI]?)?[bB]?$";

/// Text that is no value of any setting with a grammar.
const NONSENSE: &str = "\u{1}";

/// Reader of one setting: takes a value, and returns the error's kind if it is not accepted.
type Reader<'a> = &'a dyn Fn(Value) -> Result<typed::Config, Kind>;

/// Returns the schema of the file, as JSON.
#[must_use]
pub fn schema() -> String {
    let defaults = serde_json::to_value(typed::Config::default()).unwrap_or_default();
    let mut top = Map::new();
    for (key, words) in KEYS {
        let pointer = format!("/{}", key.replace('.', "/"));
        let default = defaults.pointer(&pointer).cloned().unwrap_or_default();
        let mut own = schema_of(&read_as(key), &value_of(&default));
        if *key == "upstream" {
            own = one_or_many(&json!({"anyOf": [{"type": "string"}, table("upstream[].", "address")]}));
        }
        describe(&mut own, key, words);
        own["default"] = default;
        match key.split_once('.') {
            None => drop(top.insert((*key).to_owned(), own)),
            Some((section, name)) => {
                let section = top.entry(section).or_insert_with(|| object(Map::new()));
                section["properties"][name] = own;
            }
        }
    }
    top.insert("plans".into(), named("Plans of clients, by name.", &plan()));
    let key = table("keys.NAME.", "hash");
    top.insert("keys".into(), named("API keys, by the names of their owners.", &key));
    let hook = table("webhooks.NAME.", "url");
    top.insert("webhooks".into(), named("Webhooks, by names of your own.", &hook));
    let mut schema = object(top);
    schema["$schema"] = json!("http://json-schema.org/draft-07/schema#");
    schema["$id"] = json!(ADDRESS);
    schema["title"] = json!("Configuration of headwater");
    format!("{schema:#}\n")
}

fn object(properties: Map<String, Json>) -> Json {
    json!({"type": "object", "additionalProperties": false, "properties": properties})
}

fn named(words: &str, each: &Json) -> Json {
    json!({"type": "object", "description": words, "additionalProperties": each})
}

fn describe(schema: &mut Json, key: &str, words: &str) {
    let effect = if changes::is_live(key) {
        "A reload applies changes."
    } else {
        "Changes need a restart."
    };
    schema["description"] = json!(format!("{words} {effect}"));
}

/// Returns the schema of a table among [`NAMED`], one of whose keys is required.
fn table(prefix: &str, required: &str) -> Json {
    let mut properties = Map::new();
    for (key, example, words) in NAMED {
        let Some(name) = key.strip_prefix(prefix) else { continue };
        let read = |value: Value| {
            let table = Dict::from([(required.to_owned(), Value::from("x")), (name.to_owned(), value)]);
            match prefix {
                "upstream[]." => read("upstream", Value::from(vec![Value::from(table)])),
                "webhooks.NAME." => read("webhooks.x", Value::from(table)),
                _ => read("keys.x", Value::from(table)),
            }
        };
        let example: Value = example.parse().unwrap_or_else(|_| Value::from(*example));
        let mut own = schema_of(&read, &example);
        describe(&mut own, key, words);
        properties.insert(name.to_owned(), own);
    }
    let mut schema = object(properties);
    schema["required"] = json!([required]);
    schema
}

/// Returns the schema of a plan: those limits that a plan may have.
fn plan() -> Json {
    let defaults = serde_json::to_value(typed::Limits::default()).unwrap_or_default();
    let mut properties = Map::new();
    for (key, words) in KEYS {
        let Some(name) = key.strip_prefix("limits.") else {
            continue;
        };
        let default = value_of(&defaults[name]);
        let read = read_as(&format!("plans.x.{name}"));
        if read(default.clone()).is_ok() {
            let mut own = schema_of(&read, &default);
            describe(&mut own, "plans.", words);
            properties.insert(name.to_owned(), own);
        }
    }
    object(properties)
}

fn read_as(key: &str) -> impl Fn(Value) -> Result<typed::Config, Kind> + use<> {
    let key = key.to_owned();
    move |value| read(&key, value)
}

fn read(key: &str, value: Value) -> Result<typed::Config, Kind> {
    // Hundreds of values are asked about.
    static DEFAULTS: LazyLock<Figment> =
        LazyLock::new(|| Figment::from(Serialized::defaults(typed::Config::default())));
    let figment = DEFAULTS.clone().merge(Serialized::default(key, value));
    figment.extract().map_err(|error| error.kind)
}

fn value_of(json: &Json) -> Value {
    Value::serialize(json).unwrap_or_else(|_| Value::from(false))
}

/// Returns the schema of a setting with values like `example`.
fn schema_of(read: Reader<'_>, example: &Value) -> Json {
    match example {
        Value::Bool(..) => json!({"type": "boolean"}),
        Value::Num(..) if read(Value::from(0.5)).is_ok() => json!({"type": "number", "minimum": 0, "maximum": 1}),
        Value::Num(..) => number(read),
        Value::Dict(..) => json!({"type": "object", "additionalProperties": {"type": "integer", "minimum": 0}}),
        Value::Array(..) => {
            let each = match read(Value::from(vec![NONSENSE])) {
                Err(Kind::UnknownVariant(_, known)) => json!({"enum": known}),
                _ => json!({"type": "string"}),
            };
            match read(Value::from(NONSENSE)) {
                Ok(_) => one_or_many(&each),
                Err(_) => json!({"type": "array", "items": each}),
            }
        }
        _ => match read(Value::from(NONSENSE)) {
            Ok(_) => json!({"type": "string"}),
            Err(Kind::UnknownVariant(_, known)) => json!({"enum": known}),
            Err(_) if read(Value::from("1h")).is_ok() => json!({"type": "string", "pattern": DURATION}),
            Err(_) => json!({"anyOf": [{"type": "string", "pattern": SIZE}, {"type": "integer", "minimum": 0}]}),
        },
    }
}

fn one_or_many(each: &Json) -> Json {
    json!({"anyOf": [each, {"type": "array", "items": each}]})
}

/// Returns the schema of a whole number, with the bounds that the check knows.
fn number(read: Reader<'_>) -> Json {
    let fits = |number: u32| read(Value::from(number)).is_ok_and(|typed| Config::check(&typed).is_ok());
    let Some(least) = (0..=64).find(|least| fits(*least)) else {
        return json!({"type": "integer", "minimum": 0});
    };
    let mut schema = json!({"type": "integer", "minimum": least});
    // A small range such as 1 to 2; large ones depend on other settings.
    if !fits(256)
        && let Some(beyond) = (least..=256).find(|beyond| !fits(*beyond))
    {
        schema["maximum"] = json!(beyond.saturating_sub(1));
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    static SCHEMA: LazyLock<String> = LazyLock::new(schema);

    fn parts() -> Json {
        serde_json::from_str(&SCHEMA).unwrap()
    }

    #[test]
    fn types_are_those_of_the_reader() {
        let schema = parts();
        let of = |pointer: &str| {
            let mut own = schema.pointer(pointer).unwrap_or_else(|| panic!("{pointer}")).clone();
            own.as_object_mut().unwrap().remove("description");
            own.to_string()
        };
        for (pointer, expect) in [
            ("/properties/listen", r#"{"default":"127.0.0.1:9546","type":"string"}"#),
            (
                "/properties/calls/properties/hedge",
                r#"{"default":false,"type":"boolean"}"#,
            ),
            (
                "/properties/node/properties/lanes",
                r#"{"default":2,"maximum":2,"minimum":1,"type":"integer"}"#,
            ),
            (
                "/properties/log/properties/access_sample",
                r#"{"default":1.0,"maximum":1,"minimum":0,"type":"number"}"#,
            ),
            (
                "/properties/history/properties/verify",
                r#"{"default":"bloom","enum":["none","bloom","receipts"]}"#,
            ),
            (
                "/properties/auth/properties/accept/items",
                r#"{"enum":["bearer","header","path","query"]}"#,
            ),
            (
                "/properties/server/properties/subprotocols",
                r#"{"anyOf":[{"type":"string"},{"items":{"type":"string"},"type":"array"}],"default":[]}"#,
            ),
            (
                "/properties/plans/additionalProperties/properties/max_batch",
                r#"{"minimum":1,"type":"integer"}"#,
            ),
            (
                "/properties/keys/additionalProperties/properties/addresses",
                r#"{"items":{"type":"string"},"type":"array"}"#,
            ),
            ("/properties/keys/additionalProperties/required/0", r#""hash""#),
        ] {
            if pointer.ends_with("required/0") {
                assert_eq!(schema.pointer(pointer).unwrap().to_string(), expect);
            } else {
                assert_eq!(of(pointer), expect, "{pointer}");
            }
        }
        let pattern = |pointer: &str| schema.pointer(pointer).unwrap()["pattern"].as_str().unwrap().to_owned();
        assert_eq!(pattern("/properties/ready/properties/max_head_age"), DURATION);
        assert_eq!(pattern("/properties/cache/properties/max_bytes/anyOf/0"), SIZE);
        let plan = schema
            .pointer("/properties/plans/additionalProperties/properties")
            .unwrap();
        assert!(plan.get("max_connections").is_none(), "a limit of the whole process");
    }

    #[test]
    fn the_effect_of_a_change_is_described() {
        let schema = parts();
        let words = |pointer: &str| {
            schema.pointer(pointer).unwrap()["description"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        assert!(words("/properties/limits/properties/max_batch").ends_with("A reload applies changes."));
        assert!(words("/properties/listen").ends_with("Changes need a restart."));
    }

    /// `UPDATE_EXPECT=1 cargo test --lib schema` writes the file again.
    #[test]
    fn the_file_for_editors_is_true() {
        expect_test::expect_file!["../../config/headwater.schema.json"].assert_eq(&SCHEMA);
    }
}
