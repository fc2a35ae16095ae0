//! The service writes to stdout and stderr only in two places that do it safely: the log writer, which never blocks on the
//! reader, and the command line's output, which treats a closed pipe as the end and not as an error. A print macro blocks, and
//! panics when the reader is gone.

use syn::visit::{self, Visit};

use crate::sources::{assert_none, is_test_module, rust};

/// Code that runs inside the service or the command line.
const CHECKED: &[&str] = &[
    "config/",
    "consumer/",
    "handler-sdk/src/",
    "handler-sdk/abi/src/",
    "handlers/",
    "runtimes/",
];

/// Files that may use stdout or stderr, with the reason.
const WRITERS: &[(&str, &str)] = &[
    (
        "consumer/admin/src/logging.rs",
        "the log, and final error messages",
    ),
    ("consumer/src/cli/output.rs", "results of commands"),
    (
        "consumer/src/cli/produce.rs",
        "checks for a terminal before showing a progress bar",
    ),
    ("consumer/src/demo/display.rs", "the demo's display"),
    (
        "consumer/plugins/src/trial.rs",
        "the answer of a process that tries a plugin",
    ),
];

/// Conformance checks called by tests; they print their durations.
const CHECKS: &[&str] = &[
    "tests/kit/src/source_conformance.rs",
    "tests/kit/src/store_conformance.rs",
];

const MACROS: [&str; 5] = ["print", "println", "eprint", "eprintln", "dbg"];

#[derive(Default)]
struct Printing {
    found: Vec<String>,
    takes_hold: bool,
}

impl<'ast> Visit<'ast> for Printing {
    fn visit_macro(&mut self, called: &'ast syn::Macro) {
        if let Some(name) = called.path.segments.last()
            && MACROS.iter().any(|print| name.ident == print)
        {
            let line = name.ident.span().start().line;
            self.found.push(format!("{line}: {}!", name.ident));
        }
        visit::visit_macro(self, called);
    }

    fn visit_expr_call(&mut self, call: &'ast syn::ExprCall) {
        if let syn::Expr::Path(path) = &*call.func
            && let Some(name) = path.path.segments.last()
        {
            self.takes_hold |= name.ident == "stdout" || name.ident == "stderr";
        }
        visit::visit_expr_call(self, call);
    }

    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if !is_test_module(module) {
            visit::visit_item_mod(self, module);
        }
    }
}

#[test]
fn the_service_prints_nothing_past_its_writers() {
    let mut broken = Vec::new();
    let mut read = 0;
    for source in rust().iter().filter(|source| !source.is_test()) {
        let path = source.path.as_str();
        let checked = CHECKED.iter().any(|folder| path.starts_with(folder));
        if !checked
            || path.ends_with("_tests.rs")
            || CHECKS.contains(&path)
            || path.contains("/templates/")
            || path.contains("/examples/")
            || path.ends_with("/build.rs")
        {
            continue;
        }
        read += 1;
        let file = syn::parse_file(&source.text).unwrap_or_else(|error| panic!("{path}: {error}"));
        let mut printing = Printing::default();
        printing.visit_file(&file);
        broken.extend(printing.found.iter().map(|found| format!("{path}:{found}")));
        let may = WRITERS.iter().any(|(writer, _reason)| *writer == path);
        if printing.takes_hold && !may {
            broken.push(format!("{path}: stdout() or stderr()"));
        }
        if may && !printing.takes_hold {
            broken.push(format!(
                "{path}: writes nothing; remove it from the list of writers"
            ));
        }
    }
    assert!(
        read > 100,
        "only {read} files read: the rule would check nothing"
    );
    assert_none("use `logging::say`, `tracing`, or `cli::output`:", &broken);
}
