//! JSON Schemas (draft 2020-12) of the service config and the handler spec, generated from the tables that the parser uses.

use serde_json::{Map, Value as Json, json};

use crate::document::{Field, FieldType, Presence, SectionFields, SectionType};
use crate::service::ServiceConfig;
use crate::spec::{HandlerSpec, definitions};

const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";
/// Pattern of a `${…}` reference.
const REFERENCE: &str = r"\$\{(env|file):[^}]+\}";
const DURATION: &str = r"^([0-9]+(\.[0-9]+)? *(d|h|m|s|ms|us|ns))+$";
const SIZE: &str = r"^[0-9]+(\.[0-9]+)? *([kKMGT]i?)?B?$";

/// Schema of the service config.
pub fn config_schema() -> Json {
    let mut schema = object(ServiceConfig::TYPE, true);
    head(&mut schema, "sluicegate service config");
    schema
}

/// Schema of the handler spec.
pub fn handler_schema() -> Json {
    let mut schema = object(HandlerSpec::TYPE, false);
    head(&mut schema, "sluicegate handler spec");
    schema["$defs"] = definitions();
    schema
}

fn head(schema: &mut Json, title: &str) {
    schema["$schema"] = json!(DRAFT);
    schema["title"] = json!(title);
}

/// `references`: whether `${…}` may replace any value.
fn object(object: &SectionType, references: bool) -> Json {
    let properties: Map<String, Json> = object
        .fields
        .iter()
        .map(|field| (field.name.to_owned(), property(field, references)))
        .collect();
    let required: Vec<&str> = object
        .fields
        .iter()
        .filter(|field| matches!(field.need, Presence::Required))
        .map(|field| field.name)
        .collect();
    let mut schema = json!({
        "type": "object",
        "description": object.doc,
        "properties": properties,
        "additionalProperties": false,
    });
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

fn property(field: &Field, references: bool) -> Json {
    let mut schema = value(&field.kind, references);
    let is_text = matches!(
        field.kind,
        FieldType::Text(_)
            | FieldType::Object(_)
            | FieldType::Custom { .. }
            | FieldType::Texts { .. }
    );
    if references && !is_text {
        schema = json!({ "anyOf": [schema, { "type": "string", "pattern": REFERENCE }] });
    }
    schema["description"] = json!(field.doc);
    if let Presence::Default(text) = field.need {
        schema["default"] = default(&field.kind, text);
    }
    schema
}

fn value(kind: &FieldType, references: bool) -> Json {
    match kind {
        FieldType::Flag => json!({ "type": "boolean" }),
        FieldType::Count { min, max } => {
            json!({ "type": "integer", "minimum": min, "maximum": max })
        }
        FieldType::Number { min, max } => {
            json!({ "type": "number", "minimum": min, "maximum": max })
        }
        FieldType::Text(rule) => text(rule.pattern, rule.numbers, references),
        FieldType::Choice { words, .. } => json!({ "enum": words() }),
        FieldType::Duration { .. } => json!({ "type": "string", "pattern": DURATION }),
        FieldType::Size { min, max } => json!({
            "anyOf": [
                { "type": "integer", "minimum": min, "maximum": max },
                { "type": "string", "pattern": SIZE },
            ],
        }),
        FieldType::Texts { rule, min, max } => json!({
            "type": "array",
            "items": text(rule.pattern, rule.numbers, references),
            "minItems": min,
            "maxItems": max,
        }),
        FieldType::Object(inner) => object(inner, references),
        FieldType::Custom { schema } => schema(),
    }
}

fn text(pattern: Option<&str>, numbers: bool, references: bool) -> Json {
    let mut schema = if numbers {
        json!({ "type": ["string", "number"] })
    } else {
        json!({ "type": "string" })
    };
    if let Some(pattern) = pattern {
        schema["pattern"] = if references {
            json!(format!("({pattern})|({REFERENCE})"))
        } else {
            json!(pattern)
        };
    }
    schema
}

/// The default as JSON. Empty for objects, whose fields have their own defaults.
fn default(kind: &FieldType, text: &str) -> Json {
    match kind {
        FieldType::Flag => json!(text == "true"),
        FieldType::Count { .. } => text.parse::<u64>().map_or(Json::Null, Json::from),
        FieldType::Number { .. } => text.parse::<f64>().map_or(Json::Null, Json::from),
        FieldType::Object(_) | FieldType::Custom { .. } => json!({}),
        FieldType::Texts { .. } => json!([]),
        FieldType::Text(_)
        | FieldType::Choice { .. }
        | FieldType::Duration { .. }
        | FieldType::Size { .. } => {
            json!(text)
        }
    }
}
