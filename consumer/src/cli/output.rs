//! Output of results: tables for people, JSON for programs.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use serde::Serialize;
use sluicegate_config::escape::escape_lines;

use super::failure::Failure;

/// Output format of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Form {
    /// JSON, for programs
    Json,
    /// A table, for people
    Table,
}

/// The argument that selects the format.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(super) struct Output {
    /// Output format; defaults to a table on a terminal and JSON elsewhere
    #[arg(long, value_enum)]
    output: Option<Form>,
}

impl Output {
    /// Whether results are printed as JSON.
    pub(super) fn is_json(self) -> bool {
        self.form() == Form::Json
    }

    fn form(self) -> Form {
        self.output.unwrap_or_else(|| {
            if io::stdout().is_terminal() {
                Form::Table
            } else {
                Form::Json
            }
        })
    }

    /// Prints `value` as JSON, or as rendered by `table`.
    pub(super) fn print<T: Serialize>(
        self,
        value: &T,
        table: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        match self.form() {
            Form::Table => show(&table(value)),
            Form::Json => {
                let text = serde_json::to_string_pretty(value);
                print(&text.map_err(|error| {
                    Failure::other(format!("cannot encode the result as JSON: {error}"))
                })?)
            }
        }
    }
}

/// Prints text for people with control characters escaped, since parts of it may come from outside.
pub(super) fn show(text: &str) -> Result<(), Failure> {
    print(&escape_lines(text))
}

/// Prints `text` unchanged, with a final newline. A closed pipe (`| head`) is not an error.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| {
            if text.ends_with('\n') {
                Ok(())
            } else {
                stdout.write_all(b"\n")
            }
        })
        .and_then(|()| stdout.flush());
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::other(format!("cannot write the result: {error}")))
        }
        _ => Ok(()),
    }
}
