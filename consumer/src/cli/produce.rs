//! `sluicegate produce FILE --topic T --brokers B`.

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};
use sluicegate_admin::logging;

use super::failure::Failure;
use super::output;
use crate::load;
use crate::load::input::Format;
use crate::load::{Job, ProduceError, Progress, Summary};

/// Arguments of `produce`.
///
/// A record's value is the row as a JSON object: numbers as numbers, empty cells and `NA` as null. Key and headers keep
/// the file's text.
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// CSV or NDJSON, also in gzip or zip; `-` for standard input
    file: PathBuf,
    /// Target topic
    #[arg(long)]
    topic: String,
    /// Create the topic with this number of partitions if it does not exist
    #[arg(long, value_name = "PARTITIONS", value_parser = clap::value_parser!(i32).range(1..=100_000))]
    create_topic: Option<i32>,
    /// Field used as the record's key; a null field gives a null key
    #[arg(long, value_name = "FIELD")]
    key: Option<String>,
    /// Field added as a header of the same name, omitted where it is null; can be repeated
    #[arg(long = "header", value_name = "FIELD")]
    headers: Vec<String>,
    /// Field delimiter of a CSV, one character or `tab`; defaults to a comma
    #[arg(long, value_name = "C", value_parser = delimiter)]
    delimiter: Option<u8>,
    /// CSV cell that means null; defaults to an empty cell and NA; can be repeated
    #[arg(long = "null", value_name = "TEXT")]
    nulls: Vec<String>,
    /// Records per second; unlimited by default
    #[arg(long, value_name = "N", value_parser = positive)]
    rate: Option<f64>,
    /// Stop after this number of records
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Bootstrap servers, comma separated
    #[arg(long, value_name = "B")]
    brokers: String,
    /// Format of the file; detected by default
    #[arg(long, value_enum)]
    format: Option<Format>,
}

/// Parses a number above zero. As of every parser here, the error is the text that clap prints.
pub(super) fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok(number),
        _ => Err("a number above 0 is needed".to_owned()),
    }
}

/// Parses the delimiter between fields, one byte.
fn delimiter(text: &str) -> Result<u8, String> {
    match text.as_bytes() {
        b"tab" | b"\\t" => Ok(b'\t'),
        [byte] if !byte.is_ascii_alphanumeric() && !b"\"\r\n".contains(byte) => Ok(*byte),
        _ => Err("one character such as ; or |, or `tab`, is needed".to_owned()),
    }
}

/// Produces, with a progress bar on a terminal, and prints a summary line.
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let job = Job {
        file: arguments.file.clone(),
        format: arguments.format,
        topic: arguments.topic.clone(),
        brokers: arguments.brokers.clone(),
        create_topic: arguments.create_topic,
        key: arguments.key.clone(),
        headers: arguments.headers.clone(),
        delimiter: arguments.delimiter,
        nulls: (!arguments.nulls.is_empty()).then(|| arguments.nulls.clone()),
        rate: arguments.rate,
        limit: arguments.limit,
    };
    let bar = io::stderr().is_terminal().then(bar);
    let result = load::run(&job, logging::say, &mut |progress| {
        if let Some(bar) = &bar {
            show(bar, progress);
        }
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    match result {
        Ok(summary) => output::show(&summary_line(&job.topic, &summary)),
        Err(
            error @ (ProduceError::UnknownField { .. }
            | ProduceError::Input(_)
            | ProduceError::NotCsv { .. }),
        ) => Err(Failure::bad_input(error)),
        Err(error) => Err(Failure::other(error)),
    }
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{bar:30} {percent:>3} %  {msg}  {elapsed} elapsed, {eta} left",
    )
    .expect("the template is fixed and correct");
    ProgressBar::new(0).with_style(style)
}

fn show(bar: &ProgressBar, progress: Progress) {
    bar.set_length(progress.total_bytes.unwrap_or(0));
    bar.set_position(progress.bytes);
    let seconds = bar.elapsed().as_secs_f64().max(0.001);
    bar.set_message(format!(
        "{} records, {:.0}/s",
        progress.records,
        progress.records as f64 / seconds
    ));
}

fn summary_line(topic: &str, summary: &Summary) -> String {
    let seconds = summary.elapsed.as_secs_f64().max(0.001);
    format!(
        "{} records to `{topic}` in {seconds:.1} s: {:.0} records/s, {:.1} MB/s of values, {} without a key",
        summary.records,
        summary.records as f64 / seconds,
        summary.bytes as f64 / 1e6 / seconds,
        summary.null_keys,
    )
}
