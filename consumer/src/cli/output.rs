//! Where results go: tables for people, JSON for programs.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use serde::Serialize;
use sluicegate_config::escape::escape_lines;

use super::failure::Failure;

/// The form of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Form {
    /// For programs
    Json,
    /// For people
    Table,
}

/// The argument that chooses it.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(super) struct Output {
    /// Form of the result; a table on a terminal and JSON elsewhere unless set
    #[arg(long, value_enum)]
    output: Option<Form>,
}

impl Output {
    /// Whether results are for programs.
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

    /// Prints `value` as JSON, or what `table` makes of it.
    pub(super) fn print<T: Serialize>(
        self,
        value: &T,
        table: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        match self.form() {
            Form::Table => show(&table(value)),
            Form::Json => {
                let text = serde_json::to_string_pretty(value);
                print(
                    &text.map_err(|error| {
                        Failure::other(format!("the result is no JSON: {error}"))
                    })?,
                )
            }
        }
    }
}

/// Prints what people read: lines whose texts can come from anywhere, and cannot act on the terminal.
pub(super) fn show(text: &str) -> Result<(), Failure> {
    print(&escape_lines(text))
}

/// Prints a text as it is, and a line end. A reader that has gone away (`| head`) is no failure.
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
