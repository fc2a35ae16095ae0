//! What `cargo xtask structure` counts in the text of one file.

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// The most lines of a function, as in the rule of `cargo xtask tidy`.
pub(super) const LONGEST_FUNCTION: usize = 70;

/// The name of the package that a manifest declares; `None` for a manifest that only declares a workspace.
pub(super) fn package_name(manifest: &str) -> Option<&str> {
    let mut lines = manifest.lines().map(str::trim);
    lines.find(|line| *line == "[package]")?;
    lines
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split_once('='))
        .find(|(key, _)| key.trim() == "name")
        .map(|(_, name)| name.trim().trim_matches('"'))
}

/// Whether a file, by its path below `src/`, contains only tests.
pub(super) fn is_test_file(path: &str) -> bool {
    let (folders, name) = path.rsplit_once('/').unwrap_or(("", path));
    folders.split('/').any(|folder| folder == "tests")
        || name == "tests.rs"
        || name.ends_with("_tests.rs")
        || name.ends_with("_properties.rs")
}

/// The text before the test modules, which are at the end of a file by convention.
pub(super) fn production(text: &str) -> &str {
    text.split_once("\n#[cfg(test)]\nmod ")
        .map_or(text, |(production, _)| production)
}

/// The lines of doc comments.
pub(super) fn doc_lines(production: &str) -> usize {
    let is_doc = |line: &&str| {
        let line = line.trim_start();
        line.starts_with("///") || line.starts_with("//!")
    };
    production.lines().filter(is_doc).count()
}

/// The occurrences of `Result<_, String>` outside comments.
pub(super) fn string_errors(production: &str) -> usize {
    let code: String = production
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| [line, "\n"])
        .collect();
    let is_string_error = |(at, name): &(usize, &str)| {
        let belongs_to_name = |before: char| before.is_alphanumeric() || before == '_';
        !code[..*at].ends_with(belongs_to_name)
            && matches!(
                generic_arguments(&code[at + name.len()..]).as_deref(),
                Some([_, "String"] | [_, "String", ""])
            )
    };
    code.match_indices("Result<")
        .filter(is_string_error)
        .count()
}

/// The arguments of a generic type, from the text after its `<`; the last is empty after a trailing comma.
fn generic_arguments(text: &str) -> Option<Vec<&str>> {
    let mut arguments = Vec::new();
    let (mut depth, mut start, mut before) = (0_usize, 0, ' ');
    for (at, character) in text.char_indices() {
        match character {
            '<' | '(' | '[' => depth += 1,
            // The arrow of a function type.
            '>' if before == '-' => {}
            '>' if depth == 0 => {
                arguments.push(text[start..at].trim());
                return Some(arguments);
            }
            '>' | ')' | ']' => depth = depth.checked_sub(1)?,
            ',' if depth == 0 => {
                arguments.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
        before = character;
    }
    None
}

/// The functions longer than [`LONGEST_FUNCTION`], counted as `xtask/tests/tidy/functions.rs` does: the lines of the body with
/// its braces, of functions and methods of `impl` blocks outside test modules.
pub(super) fn long_functions(text: &str) -> syn::Result<usize> {
    let mut long = LongFunctions { count: 0 };
    long.visit_file(&syn::parse_file(text)?);
    Ok(long.count)
}

struct LongFunctions {
    count: usize,
}

impl LongFunctions {
    fn measure(&mut self, block: &syn::Block) {
        let span = block.span();
        let lines = span.end().line - span.start().line + 1;
        self.count += usize::from(lines > LONGEST_FUNCTION);
    }
}

impl<'ast> Visit<'ast> for LongFunctions {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.measure(&function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.measure(&function.block);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if !is_test_module(module) {
            visit::visit_item_mod(self, module);
        }
    }
}

fn is_test_module(module: &syn::ItemMod) -> bool {
    module.attrs.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute
                .parse_args::<syn::Ident>()
                .is_ok_and(|name| name == "test")
    })
}

/// The value that `percent` of the values do not exceed (nearest rank); `None` without values.
pub(super) fn percentile(values: &[usize], percent: usize) -> Option<usize> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_the_packages_own() {
        let manifest = "[features]\nname = []\n\n[package]\nname = \"xtask\"\nversion = \"1\"\n";
        assert_eq!(package_name(manifest), Some("xtask"));
        assert_eq!(
            package_name("[package]\nedition = \"2024\"\n[lib]\nname = \"x\"\n"),
            None
        );
        assert_eq!(package_name("[workspace]\nmembers = []\n"), None);
    }

    #[test]
    fn files_of_tests_are_known_by_their_path() {
        for path in [
            "tests.rs",
            "flow/tests.rs",
            "tests/mod.rs",
            "flow/tests/rest.rs",
            "topics_tests.rs",
            "partition/ledger_properties.rs",
        ] {
            assert!(is_test_file(path), "{path}");
        }
        for path in ["lib.rs", "test/mod.rs", "contests.rs", "testing/mod.rs"] {
            assert!(!is_test_file(path), "{path}");
        }
    }

    #[test]
    fn production_ends_before_the_test_module() {
        let text = "//! A.\n#[cfg(test)]\nuse a;\nfn f() {}\n\n#[cfg(test)]\nmod tests {\n}\n";
        assert_eq!(production(text).lines().count(), 4);
        assert_eq!(production("fn f() {}\n"), "fn f() {}\n");
    }

    #[test]
    fn doc_comments_are_counted_at_any_indentation() {
        let text =
            "//! A.\n/// B.\nstruct B {\n    /// C.\n    c: u8, /// no line of its own\n}\n// D.\n";
        assert_eq!(doc_lines(text), 3);
    }

    #[test]
    fn string_errors_are_found_across_generics_and_lines() {
        for (text, count) in [
            ("fn f() -> Result<(), String> {", 1),
            ("fn f() -> std::result::Result<Vec<u8>, String>;", 1),
            ("Result<BTreeMap<Key, (u8, [u8; 2])>, String>", 1),
            ("Result<\n    Vec<u8>,\n    String,\n>", 1),
            ("Result<Result<(), String>, String>", 2),
            ("Result<Box<dyn Fn(u8) -> String>, String>", 1),
            (
                "fn f(g: fn() -> Result<(), String>) -> Result<u8, String>",
                2,
            ),
            ("Result<String>", 0),
            ("Result<String, Error>", 0),
            ("Result<Map<u8, String>, Error>", 0),
            ("Result<(), Option<String>>", 0),
            ("FfiResult<(), String>", 0),
            (
                "/// Was a Result<(), String>.\n    // Result<(), String>",
                0,
            ),
            ("Result<", 0),
        ] {
            assert_eq!(string_errors(text), count, "{text}");
        }
    }

    #[test]
    fn a_function_is_long_from_71_lines_of_its_body() {
        let function = |lines: usize| format!("fn f() {{{}}}\n", "\n".repeat(lines - 1));
        let long = |text: &str| long_functions(text).expect("it parses");
        assert_eq!(long(&function(70)), 0);
        assert_eq!(long(&function(71)), 1);
        assert_eq!(long(&format!("impl A {{ {} }}", function(71))), 1);
        assert_eq!(long(&format!("mod a {{ {} }}", function(71))), 1);
        assert_eq!(
            long(&format!("#[cfg(test)]\nmod a {{ {} }}", function(71))),
            0
        );
        assert!(long_functions("fn f( {").is_err());
    }

    #[test]
    fn percentiles_are_values_that_occur() {
        let hundred: Vec<usize> = (1..=100).rev().collect();
        assert_eq!(percentile(&hundred, 50), Some(50));
        assert_eq!(percentile(&hundred, 95), Some(95));
        assert_eq!(percentile(&[7], 95), Some(7));
        assert_eq!(percentile(&[1, 2], 50), Some(1));
        assert_eq!(percentile(&[], 50), None);
    }
}
