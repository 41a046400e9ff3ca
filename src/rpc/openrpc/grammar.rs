//! The notation of the tables: types of JSON values in one line, and the JSON schema of each.
//!
//! ```text
//! type    = "null" | "boolean" | "integer" | "number" | "string" | "object"
//!         | NAME             a schema of the document
//!         | "Map<" type ">"  an object whose members have this type
//!         | type "[]"
//!         | type " | " type  either
//! field   = NAME ["?"] ": " type
//! fields  = [field {", " field}]
//! method  = NAME "(" fields ")" " -> " type
//! ```

use std::collections::BTreeSet;

use serde_json::{Value, json};

/// Place of the schemas in the document.
pub(super) const SCHEMAS: &str = "#/components/schemas/";

/// Signature of a method.
#[derive(Debug)]
pub(super) struct Signature {
    pub name: &'static str,
    pub params: Vec<Field>,
    pub result: Value,
}

/// Named value: a parameter, or a member of an object.
#[derive(Debug)]
pub(super) struct Field {
    pub name: &'static str,
    pub required: bool,
    pub schema: Value,
}

impl Field {
    /// Returns the field as a parameter of a method.
    pub(super) fn descriptor(&self) -> Value {
        json!({ "name": self.name, "required": self.required, "schema": self.schema })
    }
}

/// Reads a signature; `None` if the text is none.
pub(super) fn signature(text: &'static str) -> Option<Signature> {
    let (call, result) = text.split_once(" -> ")?;
    let (name, params) = call.strip_suffix(')')?.split_once('(')?;
    Some(Signature {
        name,
        params: fields(params)?,
        result: schema(result),
    })
}

/// Reads fields; `None` if one of them has no type.
pub(super) fn fields(text: &'static str) -> Option<Vec<Field>> {
    let field = |text: &'static str| {
        let (name, of) = text.split_once(": ")?;
        let (name, required) = match name.strip_suffix('?') {
            Some(name) => (name, false),
            None => (name, true),
        };
        let schema = schema(of);
        Some(Field { name, required, schema })
    };
    text.split(", ").filter(|text| !text.is_empty()).map(field).collect()
}

/// Returns the schema of a type.
pub(super) fn schema(text: &str) -> Value {
    let either: Vec<&str> = text.split(" | ").collect();
    if either.len() > 1 {
        return json!({ "anyOf": either.into_iter().map(schema).collect::<Vec<_>>() });
    }
    if let Some(item) = text.strip_suffix("[]") {
        return json!({ "type": "array", "items": schema(item) });
    }
    if let Some(member) = text.strip_prefix("Map<").and_then(|rest| rest.strip_suffix('>')) {
        return json!({ "type": "object", "additionalProperties": schema(member) });
    }
    match text {
        "null" | "boolean" | "integer" | "number" | "string" | "object" => json!({ "type": text }),
        name => json!({ "$ref": format!("{SCHEMAS}{name}") }),
    }
}

/// Adds the names of the schemas that a value refers to.
pub(super) fn collect_names(value: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            if let Some(name) = members.get("$ref").and_then(Value::as_str) {
                names.extend(name.strip_prefix(SCHEMAS).map(str::to_owned));
            }
            members.values().for_each(|member| collect_names(member, names));
        }
        Value::Array(items) => items.iter().for_each(|item| collect_names(item, names)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_becomes_its_schema() {
        let reference = |name: &str| json!({ "$ref": format!("{SCHEMAS}{name}") });
        for (text, expect) in [
            ("boolean", json!({ "type": "boolean" })),
            ("Hash", reference("Hash")),
            ("Hash[]", json!({ "type": "array", "items": reference("Hash") })),
            (
                "Hash[][]",
                json!({ "type": "array", "items": { "type": "array", "items": reference("Hash") } }),
            ),
            (
                "Map<Log[]>",
                json!({ "type": "object", "additionalProperties": { "type": "array", "items": reference("Log") } }),
            ),
            (
                "Hash | Hash[] | null",
                json!({ "anyOf": [reference("Hash"), { "type": "array", "items": reference("Hash") }, { "type": "null" }] }),
            ),
        ] {
            assert_eq!(schema(text), expect, "{text}");
        }
    }

    #[test]
    fn a_signature_has_a_name_parameters_and_a_result() {
        let read = signature("eth_getBalance(address: Address, block?: BlockId) -> Uint").unwrap();
        assert_eq!((read.name, read.result), ("eth_getBalance", schema("Uint")));
        let params: Vec<_> = read.params.iter().map(|param| (param.name, param.required)).collect();
        assert_eq!(params, [("address", true), ("block", false)]);
        assert_eq!(read.params[1].schema, schema("BlockId"));
        assert!(signature("eth_chainId() -> Uint").unwrap().params.is_empty());
        for wrong in [
            "",
            "eth_call",
            "eth_call -> Uint",
            "eth_call(address) -> Uint",
            "eth_call() Uint",
        ] {
            assert!(signature(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn names_are_found_at_any_depth() {
        let mut names = BTreeSet::new();
        collect_names(
            &json!([schema("Map<A[]>"), { "x": schema("B | null") }, { "$ref": "#/other" }]),
            &mut names,
        );
        assert_eq!(Vec::from_iter(names), ["A", "B"]);
    }
}
