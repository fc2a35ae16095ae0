//! Dead-letter topics: templates, and the source topics of a dead-letter topic.

use super::DeadLetter;

/// Placeholder for the record's topic.
const TOPIC: &str = "{topic}";

impl DeadLetter {
    /// The dead-letter topic of records of `topic`.
    pub fn topic_for(&self, topic: &str) -> String {
        dead_letter_topic(&self.topic, topic)
    }
}

/// Expands the template of a [`DeadLetter`] for records of `topic`.
pub fn dead_letter_topic(template: &str, topic: &str) -> String {
    template.replace(TOPIC, topic)
}

/// The source topics of a dead-letter topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadLetterSource<'t> {
    /// Every topic: the template has no placeholder.
    Any,
    /// This topic.
    Topic(&'t str),
}

/// The source topics for which `template` expands to `topic`; `None` if there are none. The whole name must match.
pub fn dead_letter_source<'t>(template: &str, topic: &'t str) -> Option<DeadLetterSource<'t>> {
    let Some((before, _)) = template.split_once(TOPIC) else {
        return (template == topic).then_some(DeadLetterSource::Any);
    };
    let placeholders = template.matches(TOPIC).count();
    let literal = template.len() - placeholders * TOPIC.len();
    let rest = topic
        .len()
        .checked_sub(literal)
        .filter(|rest| *rest > 0 && rest % placeholders == 0)?;
    let source = topic.get(before.len()..before.len() + rest / placeholders)?;
    (dead_letter_topic(template, source) == topic).then_some(DeadLetterSource::Topic(source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_matches_only_whole_names() {
        use DeadLetterSource::{Any, Topic};
        let table = [
            ("{topic}.dlt", "orders.dlt", Some(Topic("orders"))),
            ("{topic}.dlt", "orders.dlt.dlt", Some(Topic("orders.dlt"))),
            ("{topic}.dlt", ".dlt", None),
            ("{topic}.dlt", "orders", None),
            ("dead-{topic}", "dead-orders", Some(Topic("orders"))),
            ("dead-{topic}", "dead-", None),
            ("dead", "dead", Some(Any)),
            ("dead", "dead-or-alive-or-dead", None),
            ("dead", "deaddead", None),
            ("a{topic}a", "aba", Some(Topic("b"))),
            ("a{topic}a", "aa", None),
            ("{topic}.{topic}", "x.x", Some(Topic("x"))),
            ("{topic}.{topic}", "x.y", None),
            ("{topic}.{topic}", "a.b.a.b", Some(Topic("a.b"))),
            ("{topic}.{topic}.dlt", "é.é.dlt", Some(Topic("é"))),
            ("x{topic}", "é", None),
        ];
        for (template, topic, sources) in table {
            assert_eq!(
                dead_letter_source(template, topic),
                sources,
                "{template} {topic}"
            );
        }
    }
}
