//! One word for one thing (docs/glossary.md): the words that must not be used instead, as far as they can be told apart.

use regex::Regex;

use crate::sources::{assert_none, rust};

/// The word, what to say instead.
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
    (r"missing_offset:|MissingOffset", "offset_out_of_range"),
    (
        r"\blook_again\b|\bLOOK(_|\b)|_LOOK\b",
        "POLL_INTERVAL, resync_interval",
    ),
    (r"\bsilent_pumps\b", "unresponsive_pumps"),
    (
        r"\b(Workshop|Unfit|Tally|Desk|Crossing|Rehearsed|Collision|Follower|EmitGroup|ServiceFacts|PlanIx)\b",
        "the name in the table of docs/adr/0027-the-words-of-the-field.md",
    ),
];

/// Names of other people's code, which cannot be changed.
const ALLOWED: &[(&str, &str)] = &[
    (
        "fetch_watermarks",
        "rdkafka's function for a partition's first and end offset",
    ),
    ("query_watermark_offsets", "librdkafka's function"),
    ("get_watermark_offsets", "librdkafka's function"),
];

#[test]
fn one_word_is_used_for_one_thing() {
    let forbidden: Vec<(Regex, &str)> = FORBIDDEN
        .iter()
        .map(|(word, instead)| (Regex::new(word).expect("a regex"), *instead))
        .collect();
    let mut broken = Vec::new();
    for source in rust()
        .iter()
        .filter(|source| !source.path.starts_with("xtask/tests/tidy/"))
    {
        for (number, line) in (1..).zip(source.text.lines()) {
            let own = ALLOWED
                .iter()
                .fold(line.to_owned(), |line, (name, _reason)| {
                    line.replace(name, "")
                });
            for (word, instead) in forbidden.iter().filter(|(word, _)| word.is_match(&own)) {
                broken.push(format!("{}:{number}: {word} → {instead}", source.path));
            }
        }
    }
    assert_none("use the glossary's word:", &broken);
}
