//! Random and damaged text: parsing always ends with a value or with problems, never with a panic.

use proptest::prelude::*;
use sluicegate_config::service::read_service_config;
use sluicegate_config::{Environment, read_spec};

fn read_all(text: &str) {
    let none = Environment::default();
    if let Err(problems) = read_service_config(text, None, &none, &[]) {
        assert!(!problems.is_empty() && !problems.to_string().is_empty());
    }
    if let Err(problems) = read_spec(text, None, &none) {
        assert!(!problems.is_empty() && !problems.to_string().is_empty());
    }
}

/// Fragments with meaning in YAML or our schemas, so that random texts get past the first byte.
fn piece() -> impl Strategy<Value = String> {
    let known = [
        "name",
        "kafka",
        "route",
        "topics",
        "when",
        "all",
        "header",
        "equals",
        "config",
        "client",
        ": ",
        ":",
        "- ",
        "\n",
        "\n  ",
        "\n    ",
        "\t",
        "[",
        "]",
        "{",
        "}",
        ", ",
        "\"",
        "'",
        "|",
        ">",
        "&a ",
        "*a",
        "!t ",
        "---\n",
        "...\n",
        "# c",
        "? ",
        "${env:X}",
        "${",
        "$${",
        "1",
        "-1",
        "1.5e9",
        ".nan",
        "0x",
        "true",
        "~",
        "1s",
        "1MiB",
        "é",
        "\u{feff}",
        "\0",
        "<<",
        "%YAML 1.2\n",
        "\r\n",
        "\r",
        "\u{2028}",
        "\\u12",
        "\\",
        "@",
        "`",
        "%",
    ];
    prop_oneof![
        8 => prop::sample::select(known.to_vec()).prop_map(str::to_owned),
        1 => ".{0,4}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn random_yaml_is_accepted_or_rejected(pieces in prop::collection::vec(piece(), 0..60)) {
        read_all(&pieces.concat());
    }

    #[test]
    fn random_text_is_accepted_or_rejected(text in any::<String>()) {
        read_all(&text);
    }

    #[test]
    fn random_bytes_are_accepted_or_rejected(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        read_all(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn a_damaged_spec_is_accepted_or_rejected(at in 0..500_usize, length in 0..8_usize, scar in piece()) {
        let mut text: Vec<char> = GOOD.chars().collect();
        let at = at.min(text.len());
        let end = (at + length).min(text.len());
        text.splice(at..end, scar.chars());
        read_all(&text.into_iter().collect::<String>());
    }
}

const GOOD: &str = r#"
name: fraud-detector
plugin: fraud-detector
version: "1.2"
route:
  topics: [user_events, "orders.*"]
  when:
    all:
      - { header: processing_mode, equals: realtime }
      - { header: tenant, in: [acme, globex] }
      - any: [{ key: true, prefix: N }, { not: { partition: true, ge: 3 } }]
retry: { max_attempts: 5, backoff: { delay: 100ms, multiplier: 2, max_delay: 30s, jitter: 0.2 } }
dead_letter: { topic: "{topic}.dlt" }
config:
  threshold: 0.95
  list: &l
    - one
    - two
  again: *l
  text: |
    several
    lines
"#;
