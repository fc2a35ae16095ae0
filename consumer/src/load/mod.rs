//! Writes the rows of a file to a topic: `sluicegate produce`, and the demo's flights.
//!
//! ```text
//!  file, gzip, zip, stdin ─► input ─► rows (CSV, NDJSON) ─► Row { key, headers, value } ─► sender (idempotent)
//! ```

pub mod cell;
pub mod input;
pub mod rows;
pub mod sender;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use input::{Format, Input};
use rows::{Fields, Row, RowError, Rows};
use sender::{SendError, Sender};

/// What to write, and where.
#[derive(Clone, Debug)]
pub struct Job {
    /// The file; `-` is the standard input.
    pub file: PathBuf,
    /// The file's format; `None` detects it from the name or the first bytes.
    pub format: Option<Format>,
    /// Target topic.
    pub topic: String,
    /// Bootstrap servers, comma separated.
    pub brokers: String,
    /// Creates the topic with this number of partitions if it is missing.
    pub create_topic: Option<i32>,
    /// Field used as the record's key.
    pub key: Option<String>,
    /// Fields used as headers of the same name; a null field is omitted.
    pub headers: Vec<String>,
    /// Delimiter between the fields of a CSV; `None` means a comma.
    pub delimiter: Option<u8>,
    /// Cells of a CSV that stand for null; `None` means the empty cell and `NA`.
    pub nulls: Option<Vec<String>>,
    /// Records per second; `None` means unlimited.
    pub rate: Option<f64>,
    /// Stops after this number of records.
    pub limit: Option<u64>,
}

/// Progress of a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Records queued.
    pub records: u64,
    /// Input bytes read.
    pub bytes: u64,
    /// Total input bytes, if known.
    pub total_bytes: Option<u64>,
}

/// Result of a job.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Summary {
    /// Records that the cluster acknowledged.
    pub records: u64,
    /// Acknowledged records without a key.
    pub null_keys: u64,
    /// Bytes of their values.
    pub bytes: u64,
    /// Time from the first to the last acknowledgement.
    pub elapsed: Duration,
}

/// Why a job failed.
#[derive(Debug, thiserror::Error)]
pub enum ProduceError {
    /// The input cannot be read.
    #[error("{0}")]
    Input(#[from] input::InputError),
    /// A requested field does not exist.
    #[error("`{file}` has no field `{field}`; it has: {known}")]
    UnknownField {
        /// The file.
        file: String,
        /// The requested field.
        field: String,
        /// The existing fields, comma separated.
        known: String,
    },
    /// A row does not match the format.
    #[error("{file}:{line}: {reason}; the {written} records before it are written")]
    Row {
        /// The file.
        file: String,
        /// Line, from 1.
        line: u64,
        /// The error.
        reason: String,
        /// Records acknowledged.
        written: u64,
    },
    /// An option applies to CSV only.
    #[error("`{file}` is NDJSON, and {option} is for CSV; omit it, or set --format csv")]
    NotCsv {
        /// The file.
        file: String,
        /// The option.
        option: &'static str,
    },
    /// The cluster rejects a row.
    #[error("{file}:{line}: {reason}; {written} other records are written")]
    Refused {
        /// The file.
        file: String,
        /// Line, from 1.
        line: u64,
        /// The error of the client or the cluster.
        reason: String,
        /// Records acknowledged.
        written: u64,
    },
    /// The cluster does not accept the records.
    #[error("{0}")]
    Send(#[from] SendError),
}

impl ProduceError {
    /// `error` of `file`, after `written` records.
    pub(crate) fn bad_row(file: String, error: RowError, written: u64) -> Self {
        let (line, reason) = error.place();
        Self::Row {
            file,
            line,
            reason,
            written,
        }
    }
}

/// Records between two progress reports.
const PROGRESS_INTERVAL_RECORDS: u64 = 2_048;

/// Runs the job. `progress` is called now and then; `tell` gets a message if no broker answers for a while.
///
/// # Errors
/// [`ProduceError`]; records queued before are acknowledged, or else the error says that they were not.
pub fn run(
    job: &Job,
    tell: fn(&str),
    progress: &mut dyn FnMut(Progress),
) -> Result<Summary, ProduceError> {
    input::open(&job.file, job.format, |input| {
        write_all(job, input, tell, progress)
    })?
}

fn write_all(
    job: &Job,
    mut input: Input<'_>,
    tell: fn(&str),
    progress: &mut dyn FnMut(Progress),
) -> Result<Summary, ProduceError> {
    let file = input.name.clone();
    let fields = fields(job, &input)?;
    let position = std::rc::Rc::clone(&input.position);
    let total_bytes = input.total_bytes;
    let mut rows = open_rows(&mut input, fields)?;
    let sender = Sender::connect(&job.brokers, &job.topic, job.create_topic, tell)?;
    let started = Instant::now();
    let mut summary = Summary::default();
    let mut row = Row::default();
    let limit = job.limit.unwrap_or(u64::MAX);
    let mut bad_row = None;
    let mut refused = None;
    while summary.records < limit {
        match rows.next(&mut row) {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => {
                bad_row = Some(error);
                break;
            }
        }
        pace(job.rate, summary.records, started);
        let headers = row.headers(&job.headers);
        if let Err(error) = sender.send(row.key(), headers, &row.value, rows.line()) {
            refused = Some(error);
            break;
        }
        summary.records += 1;
        summary.null_keys += u64::from(row.key().is_none());
        summary.bytes += row.value.len() as u64;
        if summary.records.is_multiple_of(PROGRESS_INTERVAL_RECORDS) || job.rate.is_some() {
            progress(Progress {
                records: summary.records,
                bytes: position.get(),
                total_bytes,
            });
        }
    }
    // Records read before are written, whatever ends the job.
    let finished = sender.finish();
    summary.elapsed = started.elapsed();
    match refused.or(finished.err()) {
        Some(SendError::Refused { line, reason, .. }) if line > 0 => Err(ProduceError::Refused {
            file,
            line,
            reason,
            written: sender.acknowledged(),
        }),
        Some(error) => Err(error.into()),
        None => match bad_row {
            None => Ok(summary),
            Some(error) => Err(ProduceError::bad_row(file, error, summary.records)),
        },
    }
}

/// The fields that the job uses.
fn fields(job: &Job, input: &Input<'_>) -> Result<Fields, ProduceError> {
    let given = [
        ("--delimiter", job.delimiter.is_some()),
        ("--null", job.nulls.is_some()),
    ];
    if input.format != Format::Csv
        && let Some((option, _)) = given.iter().find(|(_, given)| *given)
    {
        let file = input.name.clone();
        return Err(ProduceError::NotCsv { file, option });
    }
    let plain = Fields::default();
    Ok(Fields {
        key: job.key.clone(),
        headers: job.headers.clone(),
        delimiter: job.delimiter.unwrap_or(plain.delimiter),
        nulls: job.nulls.clone().unwrap_or(plain.nulls),
    })
}

/// Starts reading the rows of `input`.
///
/// # Errors
/// [`ProduceError::UnknownField`] and [`ProduceError::Row`].
pub fn open_rows<'a>(
    input: &'a mut Input<'_>,
    fields: Fields,
) -> Result<Box<dyn Rows + 'a>, ProduceError> {
    let file = input.name.clone();
    rows::open(input.format, &mut *input.reader, fields).map_err(|error| match error {
        RowError::UnknownField { field, known } => {
            ProduceError::UnknownField { file, field, known }
        }
        error => ProduceError::bad_row(file, error, 0),
    })
}

/// Waits until record number `count` is due.
pub fn pace(rate: Option<f64>, count: u64, started: Instant) {
    let Some(rate) = rate else { return };
    let due = Duration::try_from_secs_f64(count as f64 / rate).unwrap_or(Duration::MAX);
    let early = due.saturating_sub(started.elapsed());
    if early > Duration::from_millis(1) {
        std::thread::sleep(early);
    }
}
