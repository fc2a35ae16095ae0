//! Validates a service config together with every spec of its source, reporting all problems at once.

use std::path::Path;

use sluicegate_config::document::read_given_text;
use sluicegate_config::service::examine;
use sluicegate_config::{Environment, Problems};

use crate::source::open_source_read_only;

/// Checks the service config in `file` and every spec of its source, even if other parts of the config are invalid.
///
/// Starts nothing and loads no plugin. An empty result means that `run` would accept everything.
pub fn validate_everything(file: &Path, environment: &Environment, sets: &[String]) -> Problems {
    let text = match read_given_text(file) {
        Ok(text) => text,
        Err(problems) => return problems,
    };
    let examined = examine(&text, Some(file), environment, sets);
    let mut problems = examined.problems;
    let source_is_bad = problems
        .iter()
        .any(|problem| problem.path.starts_with("handlers"));
    if source_is_bad {
        return problems;
    }
    let Some(handlers) = examined.handlers else {
        return problems;
    };
    match open_source_read_only(&handlers, environment) {
        Ok(mut source) => {
            if let Err(found) = source.snapshot() {
                problems.merge(found.into_problems());
            }
        }
        Err(error) => problems.merge(Problems::of_file(None, error.to_string())),
    }
    problems
}
