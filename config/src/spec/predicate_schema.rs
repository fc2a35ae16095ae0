//! The JSON Schema of the `when` tree.

use serde_json::{Value as Json, json};

/// The reference that represents the tree in the spec's schema.
pub(crate) fn reference() -> Json {
    json!({ "$ref": "#/$defs/predicate" })
}

/// The definitions that [`reference()`] points to.
pub(crate) fn definitions() -> Json {
    let value = json!({ "type": ["string", "number", "boolean"] });
    let number = json!({ "type": "number" });
    let partition = json!({ "type": "integer", "minimum": 0, "maximum": i32::MAX });
    let some = |items: &Json| json!({ "type": "array", "items": items, "minItems": 1, "maxItems": 10_000 });
    let tests = json!({
        "equals": value, "in": some(&value), "exists": { "type": "boolean" },
        "prefix": value, "suffix": value, "regex": { "type": "string", "format": "regex" },
        "lt": number, "le": number, "gt": number, "ge": number,
    });
    let partition_tests = json!({
        "equals": partition, "in": some(&partition),
        "lt": partition, "le": partition, "gt": partition, "ge": partition,
    });
    let marker = json!({ "enum": [true, null] });
    let atom = |subject: &str, marker: &Json, tests: &Json| {
        let mut properties = tests.clone();
        properties[subject] = marker.clone();
        json!({
            "type": "object", "properties": properties, "required": [subject],
            "minProperties": 2, "additionalProperties": false,
        })
    };
    let branch = |subject: &str, below: Json| {
        json!({
            "type": "object", "properties": { subject: below }, "required": [subject],
            "additionalProperties": false,
        })
    };
    let predicates = json!({ "type": "array", "items": reference(), "minItems": 1 });
    json!({
        "predicate": {
            "description": "A condition on one record.",
            "oneOf": [
                branch("all", predicates.clone()),
                branch("any", predicates),
                branch("not", reference()),
                atom("header", &json!({ "type": ["string", "number"] }), &tests),
                atom("key", &marker, &tests),
                atom("partition", &marker, &partition_tests),
            ],
        },
    })
}
