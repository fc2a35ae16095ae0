//! Where `unsafe` is allowed. Files are read as tokens, so that comments and strings do not count and macro bodies do.

use proc_macro2::{TokenStream, TokenTree};

use crate::sources::{assert_none, rust};

/// Allowed folders, and single files with the reason.
fn may_be_unsafe(path: &str) -> bool {
    path.starts_with("handler-sdk/abi/")
        || path.starts_with("runtimes/native/")
        // One module, with one file per part of the C library that it calls.
        || path.starts_with("consumer/kafka/src/ffi")
        // The expansion of the export macro is the plugin's side of the ABI.
        || path.starts_with("handler-sdk/src/export")
        // The misbehaving test plugin breaks the contract on purpose.
        || path.starts_with("tests/misbehave/")
}

fn unsafe_lines(tokens: TokenStream, found: &mut Vec<usize>) {
    for token in tokens {
        match token {
            TokenTree::Group(group) => unsafe_lines(group.stream(), found),
            TokenTree::Ident(name) if name == "unsafe" => found.push(name.span().start().line),
            _ => {}
        }
    }
}

#[test]
fn unsafe_is_used_only_at_the_boundaries() {
    let mut broken = Vec::new();
    for source in rust() {
        let Ok(tokens) = source.text.parse::<TokenStream>() else {
            continue;
        };
        let mut lines = Vec::new();
        unsafe_lines(tokens, &mut lines);
        if lines.is_empty() || may_be_unsafe(&source.path) {
            continue;
        }
        broken.push(format!("{}: lines {lines:?}", source.path));
    }
    assert_none(
        "move unsafe code to handler-sdk/abi, runtimes/native or the module `ffi` of consumer/kafka:",
        &broken,
    );
}
