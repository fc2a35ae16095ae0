//! Rows of CSV or NDJSON as records: the row as a JSON object, and the fields that become key and headers.

use std::io::{BufRead, Read};

use serde_json::{Map, Value};

use super::cell;
use super::input::Format;

/// The fields that become key and headers.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    /// The key's field.
    pub key: Option<String>,
    /// The headers' fields.
    pub headers: Vec<String>,
}

/// One row; its memory is used again for the next.
#[derive(Debug, Default)]
pub struct Row {
    /// The row as a JSON object.
    pub value: Vec<u8>,
    key: Slot,
    headers: Vec<Slot>,
}

/// A text that may be null.
#[derive(Debug, Default)]
struct Slot {
    text: String,
    set: bool,
}

impl Slot {
    fn set(&mut self, text: Option<&str>) {
        self.text.clear();
        self.set = text.is_some();
        self.text.push_str(text.unwrap_or_default());
    }

    fn get(&self) -> Option<&str> {
        self.set.then_some(self.text.as_str())
    }
}

impl Row {
    /// The key; `None` where the field is null.
    pub fn key(&self) -> Option<&str> {
        self.key.get()
    }

    /// The headers that are not null, with their names.
    pub fn headers<'a>(&'a self, names: &'a [String]) -> impl Iterator<Item = (&'a str, &'a str)> {
        let values = self.headers.iter().map(Slot::get);
        names
            .iter()
            .zip(values)
            .filter_map(|(name, value)| Some((name.as_str(), value?)))
    }
}

/// Why a row is not taken.
#[derive(Debug)]
pub enum RowError {
    /// A field that was asked for is not in the header line.
    UnknownField {
        /// What was asked for.
        field: String,
        /// What there is, comma separated.
        known: String,
    },
    /// The row is not what the format asks for.
    Bad {
        /// Line, from 1.
        line: u64,
        /// What is wrong.
        reason: String,
    },
}

impl RowError {
    /// The line and the reason.
    pub fn place(self) -> (u64, String) {
        match self {
            Self::UnknownField { field, known } => {
                (1, format!("no field `{field}`; there are: {known}"))
            }
            Self::Bad { line, reason } => (line, reason),
        }
    }
}

/// Rows, one after another.
pub trait Rows {
    /// Reads the next row into `row`; `false` at the end.
    ///
    /// # Errors
    /// When the row is not what the format asks for; nothing can be read after that.
    fn next(&mut self, row: &mut Row) -> Result<bool, RowError>;
}

/// Starts reading rows of `format`.
///
/// # Errors
/// When the header line is bad, or lacks a field of `fields`.
pub fn open<'a>(
    format: Format,
    reader: &'a mut dyn BufRead,
    fields: Fields,
) -> Result<Box<dyn Rows + 'a>, RowError> {
    Ok(match format {
        Format::Csv => Box::new(CsvRows::open(reader, &fields)?),
        Format::Ndjson => Box::new(NdjsonRows {
            reader,
            fields,
            line: 0,
            buffer: String::new(),
        }),
    })
}

struct CsvRows<R> {
    reader: csv::Reader<R>,
    record: csv::StringRecord,
    /// `{"name":` or `,"name":` for each column.
    prefixes: Vec<Vec<u8>>,
    key: Option<usize>,
    headers: Vec<usize>,
}

impl<R: Read> CsvRows<R> {
    fn open(reader: R, fields: &Fields) -> Result<Self, RowError> {
        let mut reader = csv::Reader::from_reader(reader);
        let header = reader.headers().map_err(bad_csv)?.clone();
        let known: Vec<&str> = header.iter().collect();
        if known.iter().all(|name| name.is_empty()) {
            let reason = "no header line with the names of the fields".to_owned();
            return Err(RowError::Bad { line: 1, reason });
        }
        if let Some(name) = repeated(&known) {
            let reason = format!("two fields are named `{name}`");
            return Err(RowError::Bad { line: 1, reason });
        }
        let place = |field: &String| {
            let found = known.iter().position(|name| name == field);
            found.ok_or_else(|| RowError::UnknownField {
                field: field.clone(),
                known: known.join(", "),
            })
        };
        let prefixes = known.iter().enumerate().map(|(column, name)| {
            let mut prefix = vec![if column == 0 { b'{' } else { b',' }];
            cell::write_string(name, &mut prefix);
            prefix.push(b':');
            prefix
        });
        Ok(Self {
            key: fields.key.as_ref().map(place).transpose()?,
            headers: fields.headers.iter().map(place).collect::<Result<_, _>>()?,
            prefixes: prefixes.collect(),
            record: csv::StringRecord::new(),
            reader,
        })
    }
}

fn repeated<'a>(names: &[&'a str]) -> Option<&'a str> {
    let seen = |(place, name): &(usize, &&str)| names[..*place].contains(*name);
    names.iter().enumerate().find(seen).map(|(_, name)| *name)
}

fn bad_csv(error: csv::Error) -> RowError {
    let line = error.position().map_or(1, csv::Position::line);
    let reason = match error.kind() {
        csv::ErrorKind::UnequalLengths {
            expected_len, len, ..
        } => {
            format!("{len} fields where the header line has {expected_len}")
        }
        csv::ErrorKind::Utf8 { err, .. } => format!("field {} is not UTF-8", err.field() + 1),
        _ => error.to_string(),
    };
    RowError::Bad { line, reason }
}

impl<R: Read> Rows for CsvRows<R> {
    fn next(&mut self, row: &mut Row) -> Result<bool, RowError> {
        if !self.reader.read_record(&mut self.record).map_err(bad_csv)? {
            return Ok(false);
        }
        row.value.clear();
        for (prefix, text) in self.prefixes.iter().zip(&self.record) {
            row.value.extend_from_slice(prefix);
            cell::write_json(text, &mut row.value);
        }
        row.value.push(b'}');
        let text = |column: usize| self.record.get(column).filter(|text| !cell::is_null(text));
        row.key.set(self.key.and_then(text));
        row.headers.resize_with(self.headers.len(), Slot::default);
        for (slot, column) in row.headers.iter_mut().zip(&self.headers) {
            slot.set(text(*column));
        }
        Ok(true)
    }
}

struct NdjsonRows<'a> {
    reader: &'a mut dyn BufRead,
    fields: Fields,
    line: u64,
    buffer: String,
}

impl Rows for NdjsonRows<'_> {
    fn next(&mut self, row: &mut Row) -> Result<bool, RowError> {
        let text = loop {
            self.buffer.clear();
            self.line += 1;
            match self.reader.read_line(&mut self.buffer) {
                Ok(0) => return Ok(false),
                Ok(_) if self.buffer.trim().is_empty() => {}
                Ok(_) => break self.buffer.trim().trim_start_matches('\u{feff}'),
                Err(error) => return Err(self.bad(error.to_string())),
            }
        };
        let object: Map<String, Value> = match serde_json::from_str(text) {
            Ok(object) => object,
            Err(error) => return Err(self.bad(format!("not a JSON object: {error}"))),
        };
        row.value.clear();
        row.value.extend_from_slice(text.as_bytes());
        row.key.set(
            self.fields
                .key
                .as_ref()
                .and_then(|name| field_text(&object, name))
                .as_deref(),
        );
        row.headers
            .resize_with(self.fields.headers.len(), Slot::default);
        for (slot, name) in row.headers.iter_mut().zip(&self.fields.headers) {
            slot.set(field_text(&object, name).as_deref());
        }
        Ok(true)
    }
}

impl NdjsonRows<'_> {
    fn bad(&self, reason: String) -> RowError {
        RowError::Bad {
            line: self.line,
            reason,
        }
    }
}

/// A field's text: a string as it is, anything else as JSON; `None` where it is null or missing.
fn field_text(object: &Map<String, Value>, name: &str) -> Option<String> {
    match object.get(name)? {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Seen = (Option<String>, Vec<(String, String)>, String);

    fn all(
        format: Format,
        text: &str,
        key: &str,
        headers: &[&str],
    ) -> Result<Vec<Seen>, (u64, String)> {
        let names: Vec<String> = headers.iter().map(|name| (*name).to_owned()).collect();
        let fields = Fields {
            key: Some(key.to_owned()),
            headers: names.clone(),
        };
        let mut bytes = text.as_bytes();
        let mut rows = open(format, &mut bytes, fields).map_err(RowError::place)?;
        let mut row = Row::default();
        let mut seen = Vec::new();
        while rows.next(&mut row).map_err(RowError::place)? {
            let headers = row
                .headers(&names)
                .map(|(n, v)| (n.to_owned(), v.to_owned()))
                .collect();
            let value = String::from_utf8(row.value.clone()).expect("JSON is UTF-8");
            seen.push((row.key().map(str::to_owned), headers, value));
        }
        Ok(seen)
    }

    #[test]
    fn csv_rows_become_objects_with_key_and_headers() {
        let text =
            "\u{feff}year,tailnum,origin,note\n2013,N14228,EWR,\"a \"\"b\"\"\"\n2013,NA,,x\n";
        let seen = all(Format::Csv, text, "tailnum", &["origin", "year"]).expect("rows");
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            seen,
            [
                (
                    Some("N14228".to_owned()),
                    vec![pair("origin", "EWR"), pair("year", "2013")],
                    r#"{"year":2013,"tailnum":"N14228","origin":"EWR","note":"a \"b\""}"#
                        .to_owned()
                ),
                (
                    None,
                    vec![pair("year", "2013")],
                    r#"{"year":2013,"tailnum":null,"origin":null,"note":"x"}"#.to_owned()
                ),
            ]
        );
    }

    #[test]
    fn ndjson_rows_pass_as_they_are() {
        let text = "{\"id\": 7, \"at\": \"x\"}\n\n  {\"id\":null,\"b\":{\"c\":1}}\n";
        let seen = all(Format::Ndjson, text, "id", &["at", "b"]).expect("rows");
        assert_eq!(seen[0].0.as_deref(), Some("7"));
        assert_eq!(seen[0].2, r#"{"id": 7, "at": "x"}"#);
        assert_eq!(seen[1].0, None);
        assert_eq!(seen[1].1, [("b".to_owned(), r#"{"c":1}"#.to_owned())]);
    }

    #[test]
    fn bad_rows_are_named_by_line_and_reason() {
        for (format, text, line, words) in [
            (
                Format::Csv,
                "a,b\n1,2\n3\n",
                3,
                "1 fields where the header line has 2",
            ),
            (Format::Csv, "a,a\n1,2\n", 1, "two fields are named `a`"),
            (Format::Csv, "", 1, "no header line"),
            (
                Format::Csv,
                "b,c\n1,2\n",
                1,
                "no field `a`; there are: b, c",
            ),
            (
                Format::Ndjson,
                "{\"a\":1}\n[1]\n",
                2,
                "not a JSON object: invalid type",
            ),
            (
                Format::Ndjson,
                "{\"a\":1}\n\n{\"a\":\n",
                3,
                "not a JSON object: EOF",
            ),
        ] {
            let (found, reason) = all(format, text, "a", &[]).expect_err("it is bad");
            assert_eq!(found, line, "{text:?}: {reason}");
            assert!(reason.contains(words), "{text:?}: {reason}");
        }
        let mut latin: &[u8] = b"a,b\n1,caf\xe9\n";
        let mut rows = CsvRows::open(&mut latin, &Fields::default()).expect("a header line");
        let error = rows
            .next(&mut Row::default())
            .expect_err("it is not UTF-8")
            .place();
        assert_eq!(error, (2, "field 2 is not UTF-8".to_owned()));
    }
}
