//! The files of a new handler crate.
//!
//! Placeholders are filled by [`files`]; what comes out builds and passes its tests without editing.

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

/// The files of a handler crate called `name`, which depends on the SDK as `sdk` says: the right side of
/// `sluicegate-sdk = …` in its `Cargo.toml`, such as `"0.1"` (with the quotes) or `{ path = "…" }`.
///
/// # Errors
/// When `name` cannot be a crate's name; the text says why.
pub fn files(name: &str, sdk: &str) -> Result<Vec<TemplateFile>, String> {
    check_name(name)?;
    let library = name.replace('-', "_");
    let type_name: String = name.split(['-', '_']).map(capitalised).collect();
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

fn check_name(name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    let first = name
        .chars()
        .next()
        .ok_or("a handler's name cannot be empty")?;
    if !first.is_ascii_lowercase() || !name.chars().all(fits) || name.len() > 63 {
        return Err(format!(
            "`{name}` cannot be a handler's name: use up to 63 lower-case letters, digits, `-` and `_`, beginning \
             with a letter"
        ));
    }
    if matches!(
        name,
        "test" | "core" | "std" | "alloc" | "proc-macro" | "self" | "super" | "crate"
    ) {
        return Err(format!(
            "`{name}` cannot be a handler's name: it is reserved by Rust"
        ));
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
    fn names_that_are_no_crate_names_are_refused() {
        for bad in ["", "1st", "Big", "a b", "../up", "self", "ü"] {
            assert!(files(bad, "\"0.1\"").is_err(), "{bad}");
        }
    }
}
