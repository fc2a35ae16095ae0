//! Opens or closes a gate in the text of a spec: only the `enabled` scalar changes, comments and layout stay.

use sluicegate_config::document::{Entry, Node, Plain, Style, Value, parse};

/// The name in a spec's text, if it can be parsed.
pub(crate) fn name_in(text: &str) -> Option<String> {
    name_of(&parse(text, None).root?)
}

fn name_of(root: &Node) -> Option<String> {
    match &entry(root, "name")?.value.value {
        Value::Scalar(scalar) => Some(scalar.text.clone()),
        _ => None,
    }
}

/// Handler name and gate of a rejected spec text. Text that is not YAML is scanned line by line: a syntax error elsewhere must
/// not keep open a gate that an operator has closed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RefusedText {
    pub(crate) name: Option<String>,
    /// The text has `enabled: false` as its only `enabled` key. `enabled: true` of a rejected text never opens a gate.
    pub(super) closes_gate: bool,
}

impl RefusedText {
    pub(crate) fn read(text: &str) -> Self {
        let parsed = parse(text, None);
        let Some(root) = parsed.root else {
            return Self::by_lines(text);
        };
        let twice = parsed.problems.iter().any(|one| one.path == "enabled");
        let enabled = entry(&root, "enabled").map(|entry| &entry.value.value);
        let is_false = matches!(enabled, Some(Value::Scalar(scalar)) if matches!(scalar.plain(), Plain::Flag(false)));
        Self {
            name: name_of(&root),
            closes_gate: is_false && !twice,
        }
    }

    fn by_lines(text: &str) -> Self {
        // Only a key at the start of a line is a top-level key.
        let values = |key: &str| -> Vec<&str> {
            let behind = |line: &'_ str| line.strip_prefix(key)?.strip_prefix(':').map(str::len);
            text.lines()
                .filter_map(|line| {
                    let value = &line[line.len() - behind(line)?..];
                    Some(value.split('#').next().unwrap_or_default().trim())
                })
                .collect()
        };
        let name = match values("name")[..] {
            [name] if !name.is_empty() => Some(name.trim_matches(['"', '\'']).to_owned()),
            _ => None,
        };
        Self {
            name,
            closes_gate: values("enabled") == ["false"],
        }
    }
}

/// Why the gate in a text cannot be edited. Terminal until the text is corrected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GateEditError {
    #[error("it is not valid YAML; correct it first")]
    NotYaml,
    #[error("it has no `name`; add one first")]
    NoName,
    #[error("`enabled` is not a plain true or false; write `enabled: {open}` by hand")]
    NotPlain { open: bool },
    #[error("its layout cannot be edited safely; write `enabled: {open}` by hand")]
    Layout { open: bool },
}

/// The text with the gate set; `None` if it already has that state.
pub(crate) fn with_gate(text: &str, open: bool) -> Result<Option<String>, GateEditError> {
    let root = parse(text, None).root.ok_or(GateEditError::NotYaml)?;
    let edited = match entry(&root, "enabled") {
        Some(enabled) => match replaced(text, enabled, open)? {
            Some(edited) => edited,
            None => return Ok(None),
        },
        None if open => return Ok(None),
        None => inserted(text, &root)?,
    };
    let wanted = if open { "true" } else { "false" };
    let check = parse(&edited, None).root;
    let took = check.as_ref().is_some_and(|after| {
        let enabled = entry(after, "enabled").map(|entry| &entry.value.value);
        let is_set = matches!(enabled, Some(Value::Scalar(scalar)) if scalar.text == wanted);
        is_set && same_but_gate(&root, after)
    });
    if took {
        Ok(Some(edited))
    } else {
        Err(GateEditError::Layout { open })
    }
}

fn replaced(text: &str, enabled: &Entry, open: bool) -> Result<Option<String>, GateEditError> {
    let Value::Scalar(scalar) = &enabled.value.value else {
        return Err(GateEditError::NotPlain { open });
    };
    let span = enabled.value.place.span.clone();
    match scalar.plain() {
        Plain::Flag(now) if now == open => Ok(None),
        Plain::Flag(_)
            if scalar.style == Style::Plain
                && text.get(span.clone()) == Some(scalar.text.as_str()) =>
        {
            let (before, after) = (&text[..span.start], &text[span.end..]);
            Ok(Some(format!("{before}{open}{after}")))
        }
        _ => Err(GateEditError::NotPlain { open }),
    }
}

/// Inserts `enabled: false` after the name.
fn inserted(text: &str, root: &Node) -> Result<String, GateEditError> {
    let name = entry(root, "name").ok_or(GateEditError::NoName)?;
    let key_at = name.key_place.span.start;
    let flow = text
        .get(root.place.span.start..)
        .is_some_and(|from| from.starts_with('{'));
    if flow {
        let quote = if text[key_at..].starts_with('"') {
            "\""
        } else {
            ""
        };
        return Ok(format!(
            "{}{quote}enabled{quote}: false, {}",
            &text[..key_at],
            &text[key_at..]
        ));
    }
    let line_break = if text.contains("\r\n") { "\r\n" } else { "\n" };
    let indent = " ".repeat(name.key_place.column.saturating_sub(1) as usize);
    let behind = name.value.place.span.end;
    Ok(match text[behind..].find('\n') {
        Some(at) => {
            let (before, after) = text.split_at(behind + at + 1);
            format!("{before}{indent}enabled: false{line_break}{after}")
        }
        None => format!("{text}{line_break}{indent}enabled: false{line_break}"),
    })
}

fn entry<'n>(root: &'n Node, key: &str) -> Option<&'n Entry> {
    match &root.value {
        Value::Map(entries) => entries.iter().find(|entry| entry.key == key),
        _ => None,
    }
}

/// Whether two documents are equal except for the gate.
fn same_but_gate(before: &Node, after: &Node) -> bool {
    let rest = |root: &Node| -> Option<Vec<String>> {
        let Value::Map(entries) = &root.value else {
            return None;
        };
        let others = entries.iter().filter(|entry| entry.key != "enabled");
        Some(
            others
                .map(|entry| format!("{}={}", entry.key, content(&entry.value)))
                .collect(),
        )
    };
    rest(before) == rest(after)
}

/// Content of a node, without positions.
fn content(node: &Node) -> String {
    match &node.value {
        Value::Scalar(scalar) => format!("{scalar:?}"),
        Value::List(items) => format!("{:?}", items.iter().map(content).collect::<Vec<_>>()),
        Value::Map(entries) => {
            let members = entries
                .iter()
                .map(|entry| format!("{:?}: {}", entry.key, content(&entry.value)));
            format!("{{{}}}", members.collect::<Vec<_>>().join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed(text: &str) -> String {
        with_gate(text, false).unwrap().unwrap()
    }

    #[test]
    fn only_the_scalar_changes() {
        let text = "# head\nname: a   # who\nenabled:   true  # gate\nroute: { topics: [\"ä\", enabled] }\n";
        let edited = closed(text);
        assert_eq!(edited, text.replace("true", "false"));
        assert_eq!(with_gate(&edited, true).unwrap().unwrap(), text);
        assert_eq!(with_gate(text, true).unwrap(), None);
    }

    #[test]
    fn a_missing_scalar_is_inserted_after_the_name() {
        assert_eq!(
            closed("# head\nname: a # who\nplugin: p\n"),
            "# head\nname: a # who\nenabled: false\nplugin: p\n"
        );
        assert_eq!(
            closed("plugin: p\r\nname: a"),
            "plugin: p\r\nname: a\r\nenabled: false\r\n"
        );
        assert_eq!(
            closed("{\"name\": \"a\"}"),
            "{\"enabled\": false, \"name\": \"a\"}"
        );
        assert_eq!(
            closed("{ name: a, plugin: p }"),
            "{ enabled: false, name: a, plugin: p }"
        );
        assert_eq!(with_gate("name: a\n", true).unwrap(), None);
    }

    #[test]
    fn a_rejected_text_has_a_name_and_may_close_the_gate() {
        let of = |text: &str| {
            let RefusedText { name, closes_gate } = RefusedText::read(text);
            (name.unwrap_or_default(), closes_gate)
        };
        let named = |closes_gate| ("a".to_owned(), closes_gate);
        for text in [
            "name: a\nenabled: false\nroutes: 1\n",
            "name: a\nenabled: false # off\nroute: { topics: [t }\n",
            "{\"name\": \"a\", \"enabled\": false, \"x\": 1}",
            "enabled:   false\r\nname: \"a\"\r\nroute: [\r\n",
        ] {
            assert_eq!(of(text), named(true), "{text}");
        }
        for text in [
            "name: a\nenabled: true\nroutes: 1\n",
            "name: a\nenabled: \"false\"\nroutes: 1\n",
            "name: a\nenabled: false\nenabled: true\n",
            "name: a\nenabled: true\nenabled: false\n",
            "name: a\nenabled: false\nenabled: true\nroute: [\n",
            "name: a\nconfig:\n  enabled: false\nroute: [\n",
            "name: a\nenabled: falsehood\nroute: [\n",
            "name: a\nroute: [\n",
        ] {
            assert_eq!(of(text), named(false), "{text}");
        }
        assert_eq!(of(""), (String::new(), false));
        assert_eq!(of("- enabled: false\n"), (String::new(), false));
    }

    #[test]
    fn a_nested_enabled_is_not_changed() {
        let text = "config:\n  enabled: true\nname: a\n";
        assert_eq!(
            closed(text),
            "config:\n  enabled: true\nname: a\nenabled: false\n"
        );
    }

    #[test]
    fn a_text_that_cannot_be_edited_safely_is_left_unchanged() {
        for text in [
            "name: a\nenabled: [true]\n",
            "name: a\nenabled: \"true\"\n",
            "name: [a\n",
            "enabled: &x true\nname: *x\n",
        ] {
            if let Ok(Some(edited)) = with_gate(text, false) {
                panic!("{text} became {edited}");
            }
        }
    }
}
