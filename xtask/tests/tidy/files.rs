//! Rules for every file: a header line, a maximum length, a specific name, no machine-specific paths, nothing unfinished.

use regex::Regex;

use crate::sources::{Source, all, assert_none, rust};

const LONGEST_FILE: usize = 600;

/// The lines of a Rust file without its test modules, which are at its end by convention.
pub(crate) fn production_lines(source: &Source) -> usize {
    let before_tests = source
        .text
        .split("\n#[cfg(test)]\nmod ")
        .next()
        .unwrap_or_default();
    before_tests.lines().count()
}

#[test]
fn every_rust_file_starts_with_its_purpose() {
    let has_no_header = |source: &&Source| !source.text.starts_with("//! ");
    let broken: Vec<String> = rust()
        .iter()
        .filter(has_no_header)
        .map(|source| source.path.clone())
        .collect();
    assert_none(
        "start the file with a `//!` line that states its purpose:",
        &broken,
    );
}

#[test]
fn no_file_is_too_long() {
    let long = |source: &Source| {
        let lines = production_lines(source);
        (lines > LONGEST_FILE).then(|| format!("{}: {lines} lines", source.path))
    };
    let broken: Vec<String> = rust().iter().filter_map(long).collect();
    assert_none(
        &format!("split files of more than {LONGEST_FILE} lines before their tests:"),
        &broken,
    );
}

#[test]
fn no_file_has_a_generic_name() {
    let names = [
        "utils.rs",
        "util.rs",
        "common.rs",
        "types.rs",
        "helpers.rs",
        "misc.rs",
        "manager.rs",
    ];
    let is_generic = |source: &&Source| {
        source
            .path
            .rsplit('/')
            .next()
            .is_some_and(|name| names.contains(&name))
    };
    let broken: Vec<String> = rust()
        .iter()
        .filter(is_generic)
        .map(|source| source.path.clone())
        .collect();
    assert_none("name the file after its contents:", &broken);
}

#[test]
fn nothing_is_unfinished() {
    // Concatenated, so that this file does not match itself.
    let marks = [
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("dbg", "!("),
        concat!("#[", "ignore"),
        concat!("FIX", "ME"),
        concat!("XX", "X"),
    ];
    let mut broken = Vec::new();
    for source in rust() {
        for (number, line) in (1..).zip(source.text.lines()) {
            if marks.iter().any(|mark| line.contains(mark)) {
                broken.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    assert_none("finish it:", &broken);
}

#[test]
fn no_file_contains_a_machine_specific_path() {
    let paths =
        Regex::new(r"(^|[^a-zA-Z0-9_.\-}])/(work|tmp|farm|root|home/[a-z]+)/").expect("a regex");
    let mut broken = Vec::new();
    for source in all() {
        if source.path.ends_with(".lock") || source.path.starts_with("xtask/tests/tidy/") {
            continue;
        }
        for (number, line) in (1..)
            .zip(source.text.lines())
            .filter(|(_, line)| paths.is_match(line))
        {
            broken.push(format!("{}:{number}: {}", source.path, line.trim()));
        }
    }
    assert_none("make the path configurable or relative:", &broken);
}
