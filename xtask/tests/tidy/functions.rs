//! The maximum length of a function.

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use crate::sources::{assert_none, is_test_module, rust};

const LONGEST_FUNCTION: usize = 70;

struct Lengths {
    found: Vec<(String, usize, usize)>,
}

impl Lengths {
    fn measure(&mut self, name: &syn::Ident, block: &syn::Block) {
        let (start, end) = (block.span().start().line, block.span().end().line);
        self.found.push((name.to_string(), start, end - start + 1));
    }
}

impl<'ast> Visit<'ast> for Lengths {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.measure(&function.sig.ident, &function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.measure(&function.sig.ident, &function.block);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if !is_test_module(module) {
            visit::visit_item_mod(self, module);
        }
    }
}

#[test]
fn no_function_is_too_long() {
    let mut broken = Vec::new();
    let mut measured = 0;
    for source in rust().iter().filter(|source| !source.is_test()) {
        // Files that must not compile (fixtures of UI tests) are under tests/ and excluded above.
        let file = syn::parse_file(&source.text)
            .unwrap_or_else(|error| panic!("{}: {error}", source.path));
        let mut lengths = Lengths { found: Vec::new() };
        lengths.visit_file(&file);
        measured += lengths.found.len();
        for (name, line, length) in lengths.found {
            if length > LONGEST_FUNCTION {
                broken.push(format!("{}:{line}: {name} has {length} lines", source.path));
            }
        }
    }
    assert!(
        measured > 50,
        "only {measured} functions found: the rule would check nothing"
    );
    assert_none(
        &format!("split functions longer than {LONGEST_FUNCTION} lines:"),
        &broken,
    );
}
