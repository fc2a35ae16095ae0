//! Command failure: a message on stderr and an exit code.

use std::fmt;
use std::process::ExitCode;

use sluicegate_admin::logging;
use sluicegate_config::Problems;

/// A failed command.
#[derive(Debug)]
pub(super) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// Bad arguments, config or spec: exit code 2.
    pub(super) fn bad_input(message: impl fmt::Display) -> Self {
        Self {
            code: 2,
            message: message.to_string(),
        }
    }

    /// All problems of a config or spec, one per line: exit code 2.
    pub(super) fn problems(problems: Problems) -> Self {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        Self::bad_input(lines.join("\nerror: "))
    }

    /// Anything else: exit code 1.
    pub(super) fn other(message: impl fmt::Display) -> Self {
        Self {
            code: 1,
            message: message.to_string(),
        }
    }

    /// Prints the message on stderr and returns the exit code.
    pub(super) fn report(&self) -> ExitCode {
        logging::say(&format!("error: {}", self.message));
        ExitCode::from(self.code)
    }
}
