//! Guarantees are cited by number: every cited number is defined in docs/guarantees.md.

use std::collections::BTreeSet;

use regex::Regex;

use crate::sources::{all, assert_none, read};

#[test]
fn every_cited_guarantee_is_defined() {
    let promised: BTreeSet<u32> = Regex::new(r"(?m)^- \*\*G(\d+) ")
        .expect("a regex")
        .captures_iter(&read("docs/guarantees.md"))
        .map(|found| found[1].parse().expect("digits"))
        .collect();
    assert!(
        promised.len() >= 14,
        "docs/guarantees.md defines {promised:?}"
    );
    let cited = Regex::new(r"\bG(\d{1,2})\b").expect("a regex");
    let mut broken = Vec::new();
    for source in all() {
        if !(source.path.ends_with(".rs") || source.path.ends_with(".md")) {
            continue;
        }
        for (number, line) in (1..).zip(source.text.lines()) {
            for found in cited.captures_iter(line) {
                let guarantee: u32 = found[1].parse().expect("digits");
                if !promised.contains(&guarantee) {
                    broken.push(format!("{}:{number}: G{guarantee}", source.path));
                }
            }
        }
    }
    assert_none("cite a guarantee that docs/guarantees.md defines:", &broken);
}
