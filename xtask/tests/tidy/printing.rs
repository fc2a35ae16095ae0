//! Nobody in the service writes to stdout or stderr past the two places that do it safely: the log's writer, which never
//! waits for the other end, and the command line's output, which takes a closed pipe for an end and not for a fault. A print
//! macro waits, and panics when the other end is gone.

use syn::visit::{self, Visit};

use crate::sources::{assert_none, is_test_module, rust};

/// What runs inside the service or the command line.
const HELD: &[&str] = &[
    "config/src/",
    "consumer/src/",
    "handler-sdk/src/",
    "handler-sdk/abi/src/",
    "handlers/",
    "runtimes/",
];

/// Files that may take hold of stdout or stderr.
const WRITERS: &[(&str, &str)] = &[
    (
        "consumer/src/logging.rs",
        "the log, and the program's last words",
    ),
    ("consumer/src/cli/output.rs", "results of commands"),
    (
        "consumer/src/cli/produce.rs",
        "asks whether there is a terminal for a progress bar",
    ),
    ("consumer/src/demo/display.rs", "the demo's picture"),
];

/// Checks that tests call; they say how long each took.
const CHECKS: &[&str] = &[
    "config/src/source/conformance.rs",
    "config/src/store/conformance.rs",
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
        let held = HELD.iter().any(|folder| path.starts_with(folder));
        if !held
            || path.ends_with("_tests.rs")
            || CHECKS.contains(&path)
            || path.contains("/templates/")
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
                "{path}: writes nothing; take it off the list of writers"
            ));
        }
    }
    assert!(
        read > 100,
        "only {read} files read: the rule would hold of nothing"
    );
    assert_none("use `logging::say`, `tracing`, or `cli::output`:", &broken);
}
