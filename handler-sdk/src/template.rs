//! The files of a new handler crate.
//!
//! [`files`] fills the placeholders; the resulting crate builds and passes its tests without editing.

use std::fmt;

/// A file of a new crate: path inside it, and text.
pub type TemplateFile = (&'static str, String);

const FILES: [(&str, &str); 6] = [
    (
        "Cargo.toml",
        include_str!("../templates/rust/Cargo.toml.in"),
    ),
    ("src/lib.rs", include_str!("../templates/rust/lib.rs.in")),
    ("tests/kit.rs", include_str!("../templates/rust/kit.rs.in")),
    ("README.md", include_str!("../templates/rust/README.md.in")),
    (
        "handler.yaml",
        include_str!("../templates/rust/handler.yaml.in"),
    ),
    (".gitignore", "/target\n"),
];

/// The files of a handler crate called `name`. `sdk` is the value of `sluicegate-sdk = …` in its `Cargo.toml`, such as
/// `"0.1"` (with the quotes) or `{ path = "…" }`.
///
/// # Errors
/// [`NameError`] when `name` is not valid for both a handler and a crate.
pub fn files(name: &str, sdk: &str) -> Result<Vec<TemplateFile>, NameError> {
    check_name(name)?;
    let library = name.replace('-', "_");
    let mut type_name: String = name.split('-').map(capitalised).collect();
    if TAKEN_TYPES.contains(&type_name.as_str()) {
        type_name.push_str("Handler");
    }
    let fill = |text: &str| {
        text.replace("{{name}}", name)
            .replace("{{library}}", &library)
            .replace("{{type}}", &type_name)
            .replace("{{sdk}}", sdk)
    };
    Ok(FILES
        .iter()
        .map(|(path, text)| (*path, fill(text)))
        .collect())
}

/// Type names used by the template or Rust's prelude; the handler type then gets the suffix `Handler`.
const TAKEN_TYPES: [&str; 27] = [
    "Box",
    "Clone",
    "Config",
    "Context",
    "Copy",
    "Debug",
    "Default",
    "Deserialize",
    "Drop",
    "Emit",
    "Err",
    "Fn",
    "From",
    "Handler",
    "HandlerError",
    "Into",
    "JsonSchema",
    "Kit",
    "None",
    "Ok",
    "Option",
    "Outcome",
    "Record",
    "Result",
    "Self",
    "Setup",
    "String",
];

/// Names that Cargo or Rust reserve, or that collide with the crate's dependencies.
const RESERVED: [&str; 61] = [
    "abstract",
    "alloc",
    "as",
    "async",
    "await",
    "become",
    "box",
    "break",
    "const",
    "continue",
    "core",
    "crate",
    "do",
    "dyn",
    "else",
    "enum",
    "extern",
    "false",
    "final",
    "fn",
    "for",
    "gen",
    "if",
    "impl",
    "in",
    "let",
    "loop",
    "macro",
    "match",
    "mod",
    "move",
    "mut",
    "override",
    "priv",
    "proc-macro",
    "pub",
    "ref",
    "return",
    "schemars",
    "self",
    "serde",
    "serde-json",
    "sluicegate-sdk",
    "static",
    "std",
    "struct",
    "super",
    "test",
    "trait",
    "true",
    "try",
    "type",
    "typeof",
    "unsafe",
    "unsized",
    "use",
    "virtual",
    "where",
    "while",
    "yield",
    "some",
];

/// Why a crate cannot be created under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameError {
    /// The name.
    pub name: String,
    /// The rule that it violates, as an instruction.
    pub reason: &'static str,
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, reason } = self;
        write!(f, "`{name}` cannot be a handler's name: {reason}")
    }
}

impl std::error::Error for NameError {}

/// Names that no spec may have: their control keys belong to the service's own settings.
const RESERVED_BY_SERVICE: [&str; 2] = ["logging", "metrics"];

/// Checks that the name is valid for both a handler in a spec and a crate.
fn check_name(name: &str) -> Result<(), NameError> {
    let refused = |reason: &'static str| {
        let name = name.to_owned();
        Err(NameError { name, reason })
    };
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let begins = name.starts_with(|c: char| c.is_ascii_lowercase());
    if !begins || name.ends_with('-') || !name.chars().all(fits) || name.len() > 63 {
        return refused(
            "use 1 to 63 lower-case letters, digits and `-`, beginning with a letter and not ending with `-`",
        );
    }
    if RESERVED_BY_SERVICE.contains(&name) {
        return refused("it is reserved for the service's own settings");
    }
    if RESERVED.contains(&name) {
        return refused("it is reserved by Rust or one of the crate's dependencies");
    }
    Ok(())
}

fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_ascii_uppercase().to_string() + letters.as_str()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_placeholder_is_filled() {
        for (path, text) in files("my-handler", "\"0.1\"").unwrap() {
            assert!(
                !text.contains("{{"),
                "{path} has a placeholder left:\n{text}"
            );
        }
        assert!(
            files("my-handler", "\"0.1\"").unwrap()[1]
                .1
                .contains("struct MyHandler")
        );
    }

    #[test]
    fn no_handler_type_shadows_another_type() {
        for name in [
            "record", "emit", "config", "result", "option", "string", "handler", "context", "setup",
        ] {
            let files = files(name, "\"0.1\"").unwrap();
            let type_name = capitalised(name) + "Handler";
            assert!(
                files[1].1.contains(&format!("struct {type_name} ")),
                "{name}"
            );
        }
    }

    #[test]
    fn names_that_are_invalid_for_a_crate_are_refused() {
        let long = "x".repeat(64);
        for bad in [
            "",
            "1st",
            "Big",
            "a b",
            "../up",
            "self",
            "ü",
            "my_handler",
            "a-",
            "-a",
            "match",
            "serde",
            "logging",
            &long,
        ] {
            assert!(files(bad, "\"0.1\"").is_err(), "{bad}");
        }
    }
}
