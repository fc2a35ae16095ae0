//! Topics that a handler declares to emit to, checked against its own route: a match would be an endless loop.
//!
//! A plugin marks the fields of its config that name such topics in the config's JSON Schema, with the keyword
//! [`KEYWORD`]; unmarked topics are not checked.

use serde_json::Value;
use sluicegate_config::HandlerSpec;
use sluicegate_config::spec::{TopicMatcher, TopicPattern, dead_letter_source};
use sluicegate_runtime::HandlerInfo;

/// Marks a field of a config's schema whose string, or each string of its array, names a topic that the handler emits to.
const KEYWORD: &str = "x-sluicegate-emits-to";

/// Maximum depth of traversal, since a schema may refer to itself.
const MAX_DEPTH: usize = 16;

/// Why the spec cannot be applied: the handler's route matches a topic that it emits to. `None` if it does not.
pub(super) fn refusal(info: &HandlerInfo, spec: &HandlerSpec) -> Option<String> {
    if !info.config_schema.contains(KEYWORD) {
        return None;
    }
    let schema: Value = serde_json::from_str(&info.config_schema).ok()?;
    let mut outputs = Vec::new();
    collect(
        &schema,
        &schema,
        Some(spec.config.expose()),
        0,
        &mut outputs,
    );
    let matcher = TopicMatcher::new(&spec.route.topics);
    outputs.into_iter().find_map(|output| {
        let pattern = matcher.matching(output).find(|pattern| reads(spec, pattern, output))?;
        // A topic given by a reference may be a secret, and is not shown.
        let shown = spec.config.declared().to_string().contains(output);
        let output = if shown { format!("`{output}`") } else { "a topic of its config".to_owned() };
        Some(format!(
            "it emits to {output}, which `{pattern}` of its own route matches: each emitted record would be handled again; \
             emit to another topic, or narrow the route"
        ))
    })
}

/// Whether the handler reads `topic`, which `pattern` matches: globs and regexes exclude dead-letter topics.
fn reads(spec: &HandlerSpec, pattern: &TopicPattern, topic: &str) -> bool {
    let exact = matches!(pattern, TopicPattern::Exact(_));
    let is_dead_letter = || dead_letter_source(&spec.dead_letter.topic, topic).is_some();
    exact || !is_dead_letter()
}

/// Collects the marked strings of `config`, or of the schema's default if `config` has no value.
fn collect<'v>(
    root: &'v Value,
    schema: &'v Value,
    config: Option<&'v Value>,
    depth: usize,
    out: &mut Vec<&'v str>,
) {
    if depth > MAX_DEPTH {
        return;
    }
    let config = config.or_else(|| schema.get("default"));
    if schema.get(KEYWORD) == Some(&Value::Bool(true)) {
        match config {
            Some(Value::String(topic)) => out.push(topic),
            Some(Value::Array(topics)) => out.extend(topics.iter().filter_map(Value::as_str)),
            _ => {}
        }
        return;
    }
    let mut visit = |schema, config| collect(root, schema, config, depth + 1, out);
    let reference = schema.get("$ref").and_then(Value::as_str);
    if let Some(target) = reference.and_then(|path| root.pointer(path.strip_prefix('#')?)) {
        visit(target, config);
    }
    for branches in ["allOf", "anyOf", "oneOf"] {
        for branch in schema
            .get(branches)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            visit(branch, config);
        }
    }
    let properties = schema.get("properties").and_then(Value::as_object);
    for (name, property) in properties.into_iter().flatten() {
        visit(property, config.and_then(|config| config.get(name)));
    }
    if let (Some(items), Some(Value::Array(values))) = (schema.get("items"), config) {
        values.iter().for_each(|value| visit(items, Some(value)));
    }
    if let (Some(more @ Value::Object(_)), Some(Value::Object(values))) =
        (schema.get("additionalProperties"), config)
    {
        let named = |name: &String| properties.is_some_and(|known| known.contains_key(name));
        let others = values.iter().filter(|(name, _)| !named(name));
        others.for_each(|(_, value)| visit(more, Some(value)));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use sluicegate_config::{Environment, read_spec};

    use super::*;

    fn info(schema: &Value) -> HandlerInfo {
        HandlerInfo::new("h", &schema.to_string())
    }

    fn refused(topics: &str, schema: &Value, config: &Value) -> Option<String> {
        let text =
            format!("name: h\nplugin: p\nroute: {{ topics: [{topics}] }}\nconfig: {config}\n");
        let spec = read_spec(&text, None, &Environment::default()).expect("a good spec");
        refusal(&info(schema), &spec)
    }

    #[test]
    fn an_output_topic_matched_by_the_own_route_is_refused() {
        let marked = json!({ "type": "string", KEYWORD: true });
        let schema = json!({ "properties": { "topic": marked } });
        let to = |topic: &str| json!({ "topic": topic });
        for (topics, output, expected) in [
            ("\"*\"", "copy", true),
            ("\"orders-*\"", "orders-copy", true),
            ("/^orders/", "orders", true),
            ("orders", "orders", true),
            ("\"orders-*\"", "copy", false),
            ("orders", "orders-copy", false),
            // Topics that patterns exclude do not loop.
            ("\"*\"", "__state", false),
            ("\"*\"", "orders.dlt", false),
            ("\"*\", orders.x", "orders.x", true),
        ] {
            let found = refused(topics, &schema, &to(output));
            assert_eq!(found.is_some(), expected, "{topics} {output}: {found:?}");
        }
        let text = refused("\"*\"", &schema, &to("copy")).expect("a refusal");
        assert!(text.contains("it emits to `copy`, which `*`"), "{text}");
    }

    #[test]
    fn marked_fields_are_found_in_all_schema_constructs() {
        let marked = json!({ "type": "string", KEYWORD: true });
        let many = json!({ "type": "array", "items": { "type": "string" }, KEYWORD: true });
        let table = [
            (
                json!({ "properties": { "a": { "$ref": "#/$defs/T" } }, "$defs": { "T": marked } }),
                json!({ "a": "t" }),
            ),
            (
                json!({ "properties": { "a": many } }),
                json!({ "a": ["x", "t"] }),
            ),
            (
                json!({ "properties": { "a": { "items": marked } } }),
                json!({ "a": ["x", "t"] }),
            ),
            (
                json!({ "properties": { "a": { "anyOf": [{ "type": "null" }, marked] } } }),
                json!({ "a": "t" }),
            ),
            (
                json!({ "properties": { "a": { "additionalProperties": marked } } }),
                json!({ "a": { "b": "t" } }),
            ),
            (
                json!({ "properties": { "a": { "type": "string", "default": "t", KEYWORD: true } } }),
                json!({}),
            ),
        ];
        for (schema, config) in table {
            assert!(refused("t", &schema, &config).is_some(), "{schema}");
            assert!(refused("u", &schema, &config).is_none(), "{schema}");
        }
        let endless = json!({ "properties": { "a": { "$ref": "#" } }, KEYWORD: false });
        assert_eq!(refused("t", &endless, &json!({ "a": { "a": {} } })), None);
    }
}
