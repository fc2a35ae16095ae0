//! Parses the Prometheus text of `/metrics` and sums samples by name and labels.

use std::collections::BTreeMap;

/// One line of a Prometheus text.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The metric's name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// All samples of one scrape.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    samples: Vec<Sample>,
}

impl Metrics {
    /// Parses a Prometheus text; lines that are not samples are ignored.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Self {
            samples: lines.filter_map(parse_sample).collect(),
        }
    }

    /// The sum of all samples of `name` that have all of `labels`; 0 if there are none.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).map(|sample| sample.value).sum()
    }

    /// The samples of `name` that have all of `labels`.
    pub fn matching<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(key, value)| sample.labels.get(*key).map(String::as_str) == Some(*value))
        })
    }

    /// Whether any sample has this name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.samples.iter().any(|sample| sample.name == name)
    }
}

fn parse_sample(line: &str) -> Option<Sample> {
    let (head, rest) = match line.find('{') {
        Some(open) => {
            let close = line.rfind('}')?;
            (
                &line[..open],
                Some((&line[open + 1..close], &line[close + 1..])),
            )
        }
        None => (line.split_whitespace().next()?, None),
    };
    let (labels, value) = match rest {
        Some((labels, value)) => (parse_labels(labels)?, value),
        None => (BTreeMap::new(), &line[head.len()..]),
    };
    let value = value.split_whitespace().next()?.parse().ok()?;
    Some(Sample {
        name: head.to_owned(),
        labels,
        value,
    })
}

fn parse_labels(mut text: &str) -> Option<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    while !text.trim().is_empty() {
        let (key, rest) = text.split_once("=\"")?;
        let mut value = String::new();
        let mut characters = rest.char_indices();
        let end = loop {
            match characters.next()? {
                (at, '"') => break at,
                (_, '\\') => value.push(match characters.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, other) => value.push(other),
            }
        };
        labels.insert(key.trim().to_owned(), value);
        text = rest[end + 1..].trim_start().trim_start_matches(',');
    }
    Some(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_by_name_and_labels() {
        let text = "# TYPE a counter\na{h=\"x\",o=\"ack\"} 3\na{h=\"x\",o=\"drop\"} 4\na{h=\"y\",o=\"ack\"} 5\nb 1.5e3\n";
        let metrics = Metrics::parse(text);
        assert_eq!(metrics.sum("a", &[("h", "x")]), 7.0);
        assert_eq!(metrics.sum("a", &[("o", "ack")]), 8.0);
        assert_eq!(metrics.sum("b", &[]), 1500.0);
        assert_eq!(metrics.sum("c", &[]), 0.0);
        assert!(!metrics.has("c"));
    }

    #[test]
    fn label_values_may_contain_braces_quotes_and_commas() {
        let metrics = Metrics::parse("a{h=\"x\\\"},{\",o=\"1\"} 2\n");
        assert_eq!(metrics.sum("a", &[("h", "x\"},{"), ("o", "1")]), 2.0);
    }
}
