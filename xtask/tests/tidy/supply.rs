//! Checks third-party dependencies against `deny.toml` without `cargo deny`: licences, sources, bans. Advisories need
//! `cargo deny` and its database, which is not available everywhere; they are not checked here.

use serde_json::Value;
use spdx::{Expression, ParseMode};

use crate::dependencies::metadata;
use crate::sources::{assert_none, read};

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Crates that take long to compile or have process-wide state: only one version of each.
const ONCE: [&str; 12] = [
    "aws-lc-sys",
    "axum",
    "hyper",
    "libsqlite3-sys",
    "prometheus",
    "rdkafka-sys",
    "ring",
    "rustls",
    "sqlx-core",
    "tokio",
    "tonic",
    "tracing-core",
];

/// The text between `start` and `end` in `deny.toml`.
fn part(start: &str, end: &str) -> String {
    let deny = read("deny.toml");
    let part = deny.split(start).nth(1);
    let part = part.and_then(|rest| rest.split(end).next());
    part.unwrap_or_else(|| panic!("deny.toml has {start:?} and then {end:?}"))
        .to_owned()
}

fn quoted(text: &str) -> Vec<&str> {
    text.split('"').skip(1).step_by(2).collect()
}

/// All third-party packages.
fn foreign() -> Vec<Value> {
    let metadata = metadata(&["--locked"]);
    let packages = metadata["packages"].as_array().expect("a list of packages");
    let foreign = packages
        .iter()
        .filter(|package| !package["source"].is_null());
    foreign.cloned().collect()
}

fn text<'a>(package: &'a Value, field: &str) -> &'a str {
    package[field].as_str().unwrap_or_default()
}

/// Whether a licence expression can be satisfied with the allowed licences.
fn is_met(expression: &str, allowed: &[&str]) -> bool {
    let parsed = Expression::parse_mode(expression, ParseMode::LAX);
    parsed.is_ok_and(|parsed| {
        parsed.evaluate(|asked| {
            let id = asked.license.id();
            id.is_some_and(|id| allowed.contains(&id.name))
        })
    })
}

#[test]
fn every_dependency_has_an_allowed_licence() {
    let (allowed, exceptions) = (part("\nallow = [", "]"), part("exceptions = [", "\n]"));
    let allowed = quoted(&allowed);
    let packages = foreign();
    let named = |package: &&Value| exceptions.contains(&format!("\"{}\"", text(package, "name")));
    let broken: Vec<String> = packages
        .iter()
        .filter(|package| !is_met(text(package, "license"), &allowed) && !named(package))
        .map(|package| format!("{}: {:?}", text(package, "name"), text(package, "license")))
        .collect();
    assert_none("not allowed by deny.toml:", &broken);
}

#[test]
fn licences_are_parsed_as_expressions() {
    let is_met = |expression| is_met(expression, &["MIT", "Apache-2.0", "Unicode-3.0"]);
    assert!(is_met("MIT OR GPL-3.0-only"));
    assert!(is_met("MIT/GPL-3.0"));
    assert!(is_met("(MIT OR GPL-3.0-only) AND Unicode-3.0"));
    assert!(is_met("Apache-2.0 WITH LLVM-exception"));
    assert!(!is_met("MIT AND GPL-3.0-only"));
    assert!(!is_met("MPL-2.0"));
    assert!(!is_met(""));
}

#[test]
fn third_party_crates_come_from_one_registry_and_none_is_banned() {
    let bans = part("\ndeny = [", "\n]");
    let packages = foreign();
    let mut broken = Vec::new();
    for package in &packages {
        let name = text(package, "name");
        if text(package, "source") != CRATES_IO {
            broken.push(format!("{name} comes from {}", text(package, "source")));
        }
        // With wrappers it is allowed as their dependency; `dependencies.rs` checks who may depend on it.
        let is_banned = |line: &&str| {
            line.contains(&format!("crate = \"{name}\"")) && !line.contains("wrappers")
        };
        if let Some(ban) = bans.lines().find(is_banned) {
            broken.push(format!("{name} is banned: {}", ban.trim()));
        }
    }
    for once in ONCE {
        let of_it = packages
            .iter()
            .filter(|package| text(package, "name") == once);
        let versions: Vec<&str> = of_it.map(|package| text(package, "version")).collect();
        if versions.len() != 1 {
            broken.push(format!(
                "{once} in {} versions: {versions:?}",
                versions.len()
            ));
        }
    }
    assert_none("violations of sources, bans or single versions:", &broken);
}
