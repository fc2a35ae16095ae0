//! Derives a config from a JSON Schema, as far as the schema determines it.

use serde_json::{Map, Value, json};

/// JSON text with every required field of the schema.
pub(super) fn config(schema: &str) -> String {
    let schema: Value = serde_json::from_str(schema).unwrap_or(Value::Null);
    value(&schema, &schema, 0).to_string()
}

fn value(schema: &Value, root: &Value, depth: u32) -> Value {
    // A schema that refers to itself would recurse forever.
    if depth > 16 {
        return Value::Null;
    }
    for key in ["default", "const"] {
        if let Some(given) = schema.get(key) {
            return given.clone();
        }
    }
    if let Some(first) = schema.get("enum").and_then(|list| list.get(0)) {
        return first.clone();
    }
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let target = reference
            .strip_prefix('#')
            .and_then(|pointer| root.pointer(pointer));
        return target.map_or(Value::Null, |target| value(target, root, depth + 1));
    }
    for key in ["oneOf", "anyOf", "allOf"] {
        if let Some(first) = schema.get(key).and_then(|list| list.get(0)) {
            return value(first, root, depth + 1);
        }
    }
    match kind(schema) {
        "string" => json!("conformance"),
        "integer" | "number" => schema.get("minimum").cloned().unwrap_or(json!(1)),
        "boolean" => json!(false),
        "array" => json!([]),
        "null" => Value::Null,
        _ => object(schema, root, depth),
    }
}

fn kind(schema: &Value) -> &str {
    let kind = schema.get("type");
    kind.and_then(Value::as_str)
        .or_else(|| kind.and_then(|list| list.get(0)).and_then(Value::as_str))
        .unwrap_or("object")
}

fn object(schema: &Value, root: &Value, depth: u32) -> Value {
    let required = schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let fields: Map<String, Value> = required
        .filter_map(Value::as_str)
        .map(|name| {
            let field = schema
                .get("properties")
                .and_then(|fields| fields.get(name))
                .unwrap_or(&Value::Null);
            (name.to_string(), value(field, root, depth + 1))
        })
        .collect();
    Value::Object(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn required_fields_are_filled_by_their_type() {
        let schema = json!({
            "type": "object",
            "required": ["a", "b", "c", "d", "e"],
            "properties": {
                "a": { "type": "string" }, "b": { "type": "integer", "minimum": 5 }, "c": { "$ref": "#/$defs/mode" },
                "d": { "type": ["array", "null"] }, "e": { "type": "boolean", "default": true }, "f": { "type": "string" }
            },
            "$defs": { "mode": { "oneOf": [{ "const": "fast" }, { "const": "slow" }] } }
        });
        let made: Value = serde_json::from_str(&config(&schema.to_string())).unwrap();
        assert_eq!(
            made,
            json!({ "a": "conformance", "b": 5, "c": "fast", "d": [], "e": true })
        );
        let endless = json!({ "required": ["x"], "properties": { "x": { "$ref": "#" } } });
        assert!(config(&endless.to_string()).starts_with("{\"x\":"));
    }
}
