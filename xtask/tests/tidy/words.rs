//! One term per concept (docs/glossary.md): rejects the alternatives that can be recognized automatically.

use regex::Regex;

use crate::sources::{all, assert_none};

/// Pattern of a forbidden word, and its replacement.
const FORBIDDEN: &[(&str, &str)] = &[
    (r"(?i)watermark", "frontier"),
    (r"(?i)\btracker\b|Tracker|_tracker", "ledger"),
    (r"(?i)\bstash", "ledger"),
    (r"(?i)\bshards?\b|Shard|_shard", "lane"),
    (r"(?i)poison.?queue", "dead letter"),
    (r"(?i)dead.?letter.?queue\b", "dead letter"),
    (
        r"[a-z]Manager\b|\bManager[A-Z]|_manager\b",
        "a noun that says what it does",
    ),
    (r"(?i)feature.?flag|handler.?flag", "gate"),
    (r"(?i)roll-out", "rollout"),
    (r"(?i)\bseam\b", "interface, trait"),
    (r"(?i)\bborders?\b|_border\b|border_", "boundary"),
    (r"(?i)\bpapers\b", "docs"),
    (
        r"(?i)\bchores\b|\bthe house\b",
        "developer tasks, repository",
    ),
    (r"(?i)\bplanted\b|track.record", "mutant, mutation report"),
    (
        r"\bprocessing\.missing_offset\b|\bmissing_offset:|MissingOffset",
        "offset_out_of_range",
    ),
    (r"\bnotes_prefix\b", "state_prefix"),
    (r"(?i)\bin force\b", "active, applied"),
    (
        r"(?i)\bill\b|\billness|\bis(_|\b).?not(_|.)well\b",
        "unhealthy",
    ),
    (r"(?i)\banew\b", "again"),
    (r"(?i)\bmeanwhile\b", "concurrently"),
    (
        r"(?i)\b(whoever|somebody|nobody)\b",
        "the component that acts",
    ),
    (r"(?i)\bpatience\b", "timeout"),
    (r"(?i)\bover(run|ran)s?\b|Overrun", "timed out"),
    (r"(?i)\bgoes on\b|\bgo on\b|\bgo_on\b", "continues"),
    (r"(?i)\bstrangers\b", "unrecognized keys"),
    (r"(?i)\bshipped dark\b", "deployed disabled"),
    (
        r"\bGate::Shut\b|\b(is|stays|held) shut([^ a-z]|$| [^d])",
        "closed",
    ),
    (
        r"(?i)\blook(s|ed|ing)?(\b|_)|_look\b",
        "query, resolve, check",
    ),
    (r"(?i)\bis(_|\b).?no\b", "is not a"),
    (
        r"(?i)\ba(_| )second(_|\b)",
        "another, twice, per second, 1 s",
    ),
    (
        r"(?i)\bauthority\b|_authority\b",
        "CA, host and port, preferred side",
    ),
    (r"\bsilent_pumps\b", "unresponsive_pumps"),
    (r"\bFlightKey\b|\bNO_FLIGHT\b", "BatchId"),
    (r"\bEntryKey\b", "RecordId"),
    (
        r"(?i)\b(give[ns]?|gave|giving|take[ns]?|took|taking)( \w+){0,3} back\b|\b(give[ns]?|gave|giving|taken)[ _-]up(\b|_)|(?-i)[0-9] ?(ns|µs|ms|bytes|KiB|MiB) a (record|partition|call|key|lane)\b",
        "abandoned, returned, reverted",
    ),
    (r"(?i)\bbeside\b", "next to"),
    (r"\b[bB]oard\b|[a-z]Board\b", "progress"),
    (r"(?i)\b(spend|spent)(\b|_)|_spent\b", "poisoned"),
    (
        r"(?i)\b(seats?|crew|errands?)(\b|_)",
        "slot, thread pool, command",
    ),
    (
        r"(?i)\b(heard|strays?|rehearsed|doubt(ed|ful|s)?)\b",
        "received, suspect, dry run",
    ),
    (
        r"\bplace_again\b|\bkeep_in_hand\b|\bincarnations?\b",
        "requeue, defer, id",
    ),
    (
        r"\b(Workshop|Unfit|Tally|Desk|Crossing|Rehearsed|Collision|Follower|EmitGroup|ServiceFacts|PlanIx)\b",
        "the name in the table of docs/adr/0027-terms-of-the-ecosystem.md",
    ),
];

/// Names in third-party code, which cannot be changed.
const ALLOWED: &[(&str, &str)] = &[
    (
        "fetch_watermarks",
        "rdkafka's function for a partition's first and end offset",
    ),
    ("query_watermark_offsets", "librdkafka's function"),
    ("get_watermark_offsets", "librdkafka's function"),
];

/// Pages that have to name the old words.
const RECORDS: &[&str] = &[
    "CHANGELOG.md",
    "docs/glossary.md",
    "docs/adr/0027-terms-of-the-ecosystem.md",
];

/// Whether the rule is for this file: code, pages and configs.
fn is_held(path: &str) -> bool {
    let kinds = [
        ".rs", ".md", ".yaml", ".yml", ".toml", ".c", ".h", ".go", ".java", ".sh",
    ];
    kinds.iter().any(|kind| path.ends_with(kind))
        && !path.starts_with("xtask/tests/tidy/")
        && !RECORDS.contains(&path)
}

#[test]
fn one_word_is_used_for_one_thing() {
    let forbidden: Vec<(Regex, &str)> = FORBIDDEN
        .iter()
        .map(|(word, instead)| (Regex::new(word).expect("a regex"), *instead))
        .collect();
    let mut broken = Vec::new();
    for source in all().iter().filter(|source| is_held(&source.path)) {
        for (number, line) in (1..).zip(source.text.lines()) {
            let own = ALLOWED
                .iter()
                .fold(line.to_owned(), |line, (name, _reason)| {
                    line.replace(name, "")
                });
            // For a regex an underscore is part of a word: names are also read as words.
            let words = own.replace('_', " ");
            let is_there = |word: &Regex| word.is_match(&own) || word.is_match(&words);
            for (word, instead) in forbidden.iter().filter(|(word, _)| is_there(word)) {
                broken.push(format!("{}:{number}: {word} → {instead}", source.path));
            }
        }
    }
    assert_none("use the term of the glossary:", &broken);
}
