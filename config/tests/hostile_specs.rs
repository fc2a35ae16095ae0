//! Adversarial specs: the memory, time and message size that a text takes are bounded by its size (G16), valid or not.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::time::{Duration, Instant};

use sluicegate_config::control::{ControlKey, check_value};
use sluicegate_config::service::read_service_config;
use sluicegate_config::{Environment, Problems, read_spec};

/// Maximum memory for parsing one text.
const MAX_MEMORY: u64 = 200 << 20;
/// Maximum time; debug builds take several times as long.
const MAX_TIME: Duration = Duration::from_secs(if cfg!(debug_assertions) { 20 } else { 2 });
/// Maximum size of messages: 100 problems of a few lines.
const MAX_MESSAGE_BYTES: usize = 256 << 10;

const HEAD: &str = "name: a\nplugin: p\nroute: { topics: [t] }\n";

/// Peak memory of the process in bytes since [`reset_peak`].
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    let number = line.split_whitespace().nth(1).unwrap();
    number.parse::<u64>().unwrap() * 1024
}

fn reset_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

fn repeated(piece: impl Fn(usize) -> String, until: usize) -> String {
    let mut text = String::new();
    for index in 0.. {
        let piece = piece(index);
        if text.len() + piece.len() > until {
            break;
        }
        text.push_str(&piece);
    }
    text
}

/// Every hostile text with its expected result: `None` if valid, else a fragment of the rejection.
fn texts() -> Vec<(&'static str, String, Option<&'static str>)> {
    const SIZE: usize = 900_000;
    let long = "x".repeat(300_000);
    let config = |inside: String| format!("{HEAD}config:\n{inside}");
    vec![
        (
            "aliases of a long text",
            config(format!(
                "  a: &a \"{long}\"\n  b: [{}]\n",
                "*a,".repeat(1_500)
            )),
            Some("4194304 bytes"),
        ),
        (
            "aliases of long keys",
            config(format!(
                "  a: &a {{ {long}: 1 }}\n  b: [{}]\n",
                "*a,".repeat(1_500)
            )),
            Some("4194304 bytes"),
        ),
        (
            "anchors within anchors",
            config(format!(
                "  {}{}{}\n",
                (0..60).fold(String::from("a: "), |text, n| format!("{text}&a{n} [")),
                "1,".repeat(40_000),
                "]".repeat(60)
            )),
            Some("has more than 50000 values"),
        ),
        (
            "many keys",
            config(repeated(|n| format!("  key-{n}: {n}\n"), SIZE)),
            None,
        ),
        (
            "one key many times",
            config(repeated(|_| "  k: 1\n".to_owned(), SIZE / 4)),
            Some("is duplicated"),
        ),
        (
            "many unknown keys",
            format!(
                "{HEAD}{}",
                repeated(|n| format!("unknown-{n}: {n}\n"), SIZE)
            ),
            Some(" more"),
        ),
        (
            "unknown keys that are long",
            format!(
                "{HEAD}{}",
                repeated(|n| format!("{}-{n}: 1\n", "u".repeat(800)), SIZE)
            ),
            Some(" more"),
        ),
        (
            "many unknown conditions",
            format!(
                "name: a\nplugin: p\nroute:\n  topics: [t]\n  when:\n{}",
                repeated(|n| format!("    headers-{n}: {n}\n"), SIZE)
            ),
            Some(" more"),
        ),
        (
            "values below a long path",
            config(format!("  ? {long}\n  : [{}]\n", "\"${\",".repeat(40_000))),
            Some(" more"),
        ),
        (
            "deep and wide",
            config(format!(
                "  a: {}{}{}\n",
                "{ k: ".repeat(50),
                format_args!("[{}]", "1,".repeat(45_000)),
                " }".repeat(50)
            )),
            None,
        ),
        (
            "too deep",
            config(format!("  a: {}\n", "[".repeat(SIZE / 2))),
            Some("recursion limit"),
        ),
        (
            "many references that are missing",
            config(repeated(|n| format!("  k{n}: ${{env:NOT_SET}}\n"), SIZE)),
            Some(" more"),
        ),
        (
            "many regexes of topics",
            format!(
                "name: a\nplugin: p\nroute:\n  topics:\n{}",
                (0..999)
                    .map(|n| format!("    - /^\\w{{20}}{n}$/\n"))
                    .collect::<String>()
            ),
            Some("regexes of this spec exceed 8MiB"),
        ),
        (
            "many regexes of conditions",
            format!(
                "name: a\nplugin: p\nroute:\n  topics: [t]\n  when:\n    all:\n{}",
                (0..1000)
                    .map(|n| format!("      - {{ key: true, regex: '^\\w{{20}}{n}$' }}\n"))
                    .collect::<String>()
            ),
            Some("regexes of this spec exceed 8MiB"),
        ),
        (
            "dead letters among many topics",
            format!(
                "name: a\nplugin: p\nroute:\n  topics:\n{}{}dead_letter: {{ topic: \"{{topic}}.dlt\" }}\n",
                (0..500)
                    .map(|n| format!("    - t{n}.dlt\n"))
                    .collect::<String>(),
                (0..450)
                    .map(|n| format!("    - /^x{n}$/\n"))
                    .collect::<String>()
            ),
            None,
        ),
        (
            "topics that are not strings",
            format!(
                "name: a\nplugin: p\nroute:\n  topics: [{}]\n",
                "{},".repeat(49_000)
            ),
            Some(" more"),
        ),
        (
            "a text that never ends",
            format!("{HEAD}config: \"{}", "a\\n".repeat(SIZE / 3)),
            Some("YAML"),
        ),
        (
            "brackets that never close",
            format!("{HEAD}config: [{}", "a, ".repeat(40_000)),
            Some("YAML"),
        ),
        (
            "many documents",
            repeated(|_| "---\n".to_owned(), SIZE),
            Some("more than one document"),
        ),
        (
            "many tags",
            config(repeated(|n| format!("  k{n}: !t {n}\n"), SIZE)),
            Some(" more"),
        ),
        (
            "long comments",
            format!(
                "{HEAD}{}",
                repeated(|_| "# comment comment comment\n".to_owned(), SIZE)
            ),
            None,
        ),
        (
            "a long number",
            config(format!("  a: {}\n", "9".repeat(SIZE))),
            Some("is not a valid JSON number"),
        ),
    ]
}

fn check(what: &str, refused: Option<Problems>, expected: Option<&str>) {
    let said = refused.map_or_else(String::new, |problems| {
        let json = serde_json::to_string(&problems).unwrap();
        assert!(
            json.len() <= 2 * MAX_MESSAGE_BYTES,
            "{what}: {} bytes of JSON",
            json.len()
        );
        let lines = problems.iter().count();
        assert!(lines <= 100, "{what}: {lines} problems");
        problems.to_string()
    });
    assert!(
        said.len() <= MAX_MESSAGE_BYTES,
        "{what}: {} bytes of messages",
        said.len()
    );
    let shown: String = said.chars().take(2_000).collect();
    match expected {
        None => assert_eq!(shown, "", "{what}"),
        Some(words) => assert!(said.contains(words), "{what}: {shown}"),
    }
}

/// A single test, since peak memory is that of the whole process.
#[test]
fn the_cost_of_a_spec_is_bounded_by_its_size() {
    let none = Environment::default();
    let mut over = Vec::new();
    reset_peak();
    let before = peak();
    for (what, text, expected) in texts() {
        assert!(text.len() <= 1 << 20, "{what} exceeds the size limit");
        let readers: [(&str, &dyn Fn() -> Option<Problems>); 3] = [
            ("file", &|| read_spec(&text, None, &none).err()),
            ("key", &|| {
                let key = ControlKey::spec("a").unwrap();
                check_value(&key, "key", text.as_bytes()).err()
            }),
            ("service", &|| {
                read_service_config(&text, None, &none, &[]).err()
            }),
        ];
        for (reader, read) in readers {
            reset_peak();
            let start = Instant::now();
            let refused = read();
            let (took, used) = (start.elapsed(), peak().saturating_sub(before));
            println!("{what}, {reader}: {took:?}, {} KiB", used >> 10);
            if took > MAX_TIME || used > MAX_MEMORY {
                over.push(format!("{what}, {reader}: {took:?}, {} MiB", used >> 20));
            }
            match reader {
                // A syntax check of a key resolves no references, and the service config has other fields.
                "file" => check(what, refused, expected),
                _ => drop(refused.map(|problems| check(what, Some(problems), Some("")))),
            }
        }
    }
    assert!(over.is_empty(), "{over:#?}");
}

#[test]
fn a_config_key_is_json_within_the_same_bounds() {
    let key = ControlKey::config("a").unwrap();
    let says = |text: &str| {
        check_value(&key, "key", text.as_bytes())
            .err()
            .map_or_else(String::new, |problems| problems.to_string())
    };
    for good in [
        // Python's output for an emoji, tabs, and an integer beyond 64 bits.
        "{\"a\":\t\"\\ud83d\\ude00\", \"b\": 123456789012345678901234567890}",
        "{}",
    ] {
        assert_eq!(says(good), "");
    }
    let start = Instant::now();
    for (bad, words) in [
        (
            "{\"a\": &x 1}",
            "key:1:7: is not a JSON object: expected value",
        ),
        ("a: 1", "is not a JSON object"),
        ("[1]", "is not a JSON object"),
        ("{\"a\": 1, \"a\": 2}", "`a` is duplicated"),
        (&format!("{{\"a\": {}", "[".repeat(900_000)), "levels"),
        (
            &format!("{{\"a\": [{}1]}}", "1,".repeat(400_000)),
            "more than 50000 values",
        ),
    ] {
        let said = says(bad);
        assert!(said.contains(words) && said.len() < 1_000, "{said}");
    }
    assert!(start.elapsed() < MAX_TIME);
}
