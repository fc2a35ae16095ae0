//! Converts rows of CSV or NDJSON to records: the row as a JSON object, and the fields used as key and headers.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{BufRead, Chain, Cursor, Read};
use std::rc::Rc;

use serde_json::value::RawValue;

use super::cell;
use super::input::Format;

/// Maximum length of a row in bytes.
const MAX_ROW_BYTES: usize = 16 << 20;
/// Appended to the input, so that a quote that is still open there is detected. Made of letters and digits, which
/// cannot be delimiters.
const END: &str = "sluicegate0end0of0input0c3f1a97e5b";
/// Common delimiters other than a comma.
const SEPARATORS: [(char, &str); 3] = [(';', "';'"), ('\t', "tab"), ('|', "'|'")];

/// The fields used as key and headers, and how a CSV is written.
#[derive(Clone, Debug)]
pub struct Fields {
    /// The field used as the key.
    pub key: Option<String>,
    /// The fields used as headers.
    pub headers: Vec<String>,
    /// Delimiter between the fields of a CSV.
    pub delimiter: u8,
    /// Cells of a CSV that stand for null.
    pub nulls: Vec<String>,
}

impl Default for Fields {
    fn default() -> Self {
        Self {
            key: None,
            headers: Vec::new(),
            delimiter: b',',
            nulls: vec![String::new(), "NA".to_owned()],
        }
    }
}

/// One row; its memory is reused for the next.
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
    /// The key; `None` if the field is null.
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

/// Why a row is rejected.
#[derive(Debug)]
pub enum RowError {
    /// A requested field is not in the header line.
    UnknownField {
        /// The requested field.
        field: String,
        /// The existing fields, comma separated.
        known: String,
    },
    /// The row does not match the format.
    Bad {
        /// Line, from 1.
        line: u64,
        /// The error.
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

/// A sequence of rows.
pub trait Rows {
    /// Reads the next row into `row`; `false` at the end.
    ///
    /// # Errors
    /// If the row does not match the format; nothing can be read after that.
    fn next(&mut self, row: &mut Row) -> Result<bool, RowError>;

    /// The line, from 1, at which the last row read starts.
    fn line(&self) -> u64;
}

/// Starts reading rows of `format`.
///
/// # Errors
/// If the header line is invalid, or lacks a field of `fields`.
pub fn open<'a>(
    format: Format,
    reader: &'a mut dyn BufRead,
    fields: Fields,
) -> Result<Box<dyn Rows + 'a>, RowError> {
    Ok(match format {
        Format::Csv => Box::new(CsvRows::open(reader, fields)?),
        Format::Ndjson => Box::new(NdjsonRows {
            reader,
            fields,
            line: 0,
            buffer: String::new(),
        }),
    })
}

struct CsvRows<R> {
    reader: csv::Reader<Bounded<Chain<R, Cursor<String>>>>,
    /// Bytes that may still be read for the current row.
    left: Rc<Cell<usize>>,
    record: csv::StringRecord,
    line: u64,
    /// `{"name":` or `,"name":` for each column.
    prefixes: Vec<Vec<u8>>,
    key: Option<usize>,
    headers: Vec<usize>,
    nulls: Vec<String>,
}

impl<R: Read> CsvRows<R> {
    fn open(reader: R, fields: Fields) -> Result<Self, RowError> {
        let left = Rc::new(Cell::new(MAX_ROW_BYTES));
        let bounded = Bounded {
            inner: reader.chain(Cursor::new(format!("\n{END}"))),
            left: Rc::clone(&left),
        };
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(fields.delimiter)
            // The fields are counted here, to tell the end and an open quote from a row with missing fields.
            .flexible(true)
            .from_reader(bounded);
        let header = reader
            .headers()
            .map_err(|error| bad_csv(&error, 1))?
            .clone();
        let bad = |reason: String| RowError::Bad { line: 1, reason };
        let known: Vec<&str> = header.iter().collect();
        if known.iter().all(|name| name.is_empty() || *name == END) {
            return Err(bad("no header line with field names".to_owned()));
        }
        refuse_open_quote(&header, 1)?;
        if let [only] = known[..]
            && fields.delimiter == b','
            && let Some((_, name)) = SEPARATORS
                .iter()
                .find(|(separator, _)| only.contains(*separator))
        {
            return Err(bad(format!(
                "the header line is one field, `{only}`; if its fields are separated by {name}, set --delimiter {name}"
            )));
        }
        if let Some(name) = repeated(&known) {
            return Err(bad(format!("two fields are named `{name}`")));
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
            line: 1,
            nulls: fields.nulls,
            left,
            reader,
        })
    }
}

/// A reader that fails if a row is too long: an unclosed quote would otherwise read the whole file.
struct Bounded<R> {
    inner: R,
    left: Rc<Cell<usize>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let left = self.left.get();
        if count > left {
            return Err(std::io::Error::other(too_long()));
        }
        self.left.set(left - count);
        Ok(count)
    }
}

fn too_long() -> String {
    format!(
        "the row is longer than {} MiB; check for an unclosed quote or a missing line break",
        MAX_ROW_BYTES >> 20
    )
}

fn refuse_open_quote(record: &csv::StringRecord, line: u64) -> Result<(), RowError> {
    match record.iter().next_back() {
        Some(last) if last.ends_with(END) => Err(RowError::Bad {
            line,
            reason: "a quote opened in this row is never closed".to_owned(),
        }),
        _ => Ok(()),
    }
}

fn repeated<'a>(names: &[&'a str]) -> Option<&'a str> {
    let seen = |(place, name): &(usize, &&str)| names[..*place].contains(*name);
    names.iter().enumerate().find(seen).map(|(_, name)| *name)
}

/// `line` is used for an error that has none of its own.
fn bad_csv(error: &csv::Error, line: u64) -> RowError {
    let line = error.position().map_or(line, csv::Position::line);
    let reason = match error.kind() {
        csv::ErrorKind::Utf8 { err, .. } => format!("field {} is not UTF-8", err.field() + 1),
        csv::ErrorKind::Io(error) => error.to_string(),
        _ => error.to_string(),
    };
    RowError::Bad { line, reason }
}

impl<R: Read> Rows for CsvRows<R> {
    fn next(&mut self, row: &mut Row) -> Result<bool, RowError> {
        self.left.set(MAX_ROW_BYTES);
        let read = self.reader.read_record(&mut self.record);
        let is_row = read.map_err(|error| bad_csv(&error, self.reader.position().line()))?;
        if !is_row || (self.record.len() == 1 && &self.record[0] == END) {
            return Ok(false);
        }
        let next = self.reader.position().line();
        self.line = self.record.position().map_or(next, csv::Position::line);
        refuse_open_quote(&self.record, self.line)?;
        let (wanted, found) = (self.prefixes.len(), self.record.len());
        if found != wanted {
            return Err(RowError::Bad {
                line: self.line,
                reason: format!("{found} fields where the header line has {wanted}"),
            });
        }
        let set = |text: &str| self.nulls.iter().all(|null| null != text);
        row.value.clear();
        for (prefix, text) in self.prefixes.iter().zip(&self.record) {
            row.value.extend_from_slice(prefix);
            cell::write_json(Some(text).filter(|text| set(text)), &mut row.value);
        }
        row.value.push(b'}');
        let text = |column: usize| self.record.get(column).filter(|text| set(text));
        row.key.set(self.key.and_then(text));
        row.headers.resize_with(self.headers.len(), Slot::default);
        for (slot, column) in row.headers.iter_mut().zip(&self.headers) {
            slot.set(text(*column));
        }
        Ok(true)
    }

    fn line(&self) -> u64 {
        self.line
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
            let mut limited = (&mut *self.reader).take(MAX_ROW_BYTES as u64 + 1);
            match limited.read_line(&mut self.buffer) {
                Ok(0) => return Ok(false),
                Ok(count) if count > MAX_ROW_BYTES => return Err(self.bad(too_long())),
                Ok(_) if self.buffer.trim().is_empty() => {}
                Ok(_) => break self.buffer.trim().trim_start_matches('\u{feff}'),
                Err(error) => return Err(self.bad(error.to_string())),
            }
        };
        let object: BTreeMap<String, &RawValue> = match serde_json::from_str(text) {
            Ok(object) => object,
            Err(error) => return Err(self.bad(format!("not a JSON object: {error}"))),
        };
        row.value.clear();
        row.value.extend_from_slice(text.as_bytes());
        let field = |name: &String| field_text(object.get(name.as_str()).copied());
        row.key
            .set(self.fields.key.as_ref().and_then(field).as_deref());
        row.headers
            .resize_with(self.fields.headers.len(), Slot::default);
        for (slot, name) in row.headers.iter_mut().zip(&self.fields.headers) {
            slot.set(field(name).as_deref());
        }
        Ok(true)
    }

    fn line(&self) -> u64 {
        self.line
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

/// A field's text: the content of a string, anything else as the file writes it, so that `1.50` and a number of 20
/// digits are unchanged; `None` if it is null or missing.
fn field_text(value: Option<&RawValue>) -> Option<String> {
    let text = value?.get();
    match text.as_bytes().first() {
        Some(b'n') => None,
        Some(b'"') => serde_json::from_str(text).ok(),
        _ => Some(text.to_owned()),
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
            ..Fields::default()
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
    fn keys_and_headers_are_written_as_the_file_has_them() {
        let numbers = [
            "1.50",
            "9007199254740993",
            "12345678901234567890",
            "12345678901234567891",
            "1e2",
        ];
        let pair = |text: &str| {
            (
                Some(text.to_owned()),
                vec![("a".to_owned(), text.to_owned())],
            )
        };
        let expected: Vec<_> = numbers.iter().map(|number| pair(number)).collect();
        let csv: String = numbers
            .iter()
            .map(|number| format!("{number},x\n"))
            .collect();
        let json: String = numbers
            .iter()
            .map(|number| format!("{{ \"a\": {number} }}\n"))
            .collect();
        for (format, text) in [(Format::Csv, format!("a,b\n{csv}")), (Format::Ndjson, json)] {
            let seen = all(format, &text, "a", &["a"]).expect("rows");
            let seen: Vec<_> = seen
                .into_iter()
                .map(|(key, headers, _)| (key, headers))
                .collect();
            assert_eq!(seen, expected, "{format:?}");
        }
        let texts = "{\"a\": \"1.50\"}\n{\"a\": \"null\"}\n{\"a\": null}\n{\"a\": \"\\u00e4\"}\n";
        let seen = all(Format::Ndjson, texts, "a", &[]).expect("rows");
        let keys: Vec<_> = seen.iter().map(|(key, _, _)| key.as_deref()).collect();
        assert_eq!(keys, [Some("1.50"), Some("null"), None, Some("ä")]);
    }

    #[test]
    fn a_given_delimiter_and_given_nulls_are_used() {
        let fields = Fields {
            key: Some("a".to_owned()),
            delimiter: b';',
            nulls: vec!["\\N".to_owned()],
            ..Fields::default()
        };
        let mut bytes: &[u8] = b"a;b\nNA;\n\\N;1,5";
        let mut rows = open(Format::Csv, &mut bytes, fields).expect("a header line");
        let mut row = Row::default();
        let mut seen = Vec::new();
        while rows.next(&mut row).expect("a row") {
            let value = String::from_utf8(row.value.clone()).expect("UTF-8");
            seen.push((row.key().map(str::to_owned), value, rows.line()));
        }
        assert_eq!(
            seen,
            [
                (Some("NA".to_owned()), r#"{"a":"NA","b":""}"#.to_owned(), 2),
                (None, r#"{"a":null,"b":"1,5"}"#.to_owned(), 3),
            ]
        );
    }

    #[test]
    fn every_delimiter_ends_where_the_file_ends() {
        let usable = |byte: &u8| !byte.is_ascii_alphanumeric() && !b"\"\r\n".contains(byte);
        for delimiter in (1..=127u8).filter(usable) {
            let fields = Fields {
                delimiter,
                ..Fields::default()
            };
            let between = char::from(delimiter);
            let text = format!("id{between}name\nx{between}a\n");
            let mut bytes = text.as_bytes();
            let mut rows = open(Format::Csv, &mut bytes, fields).expect("a header line");
            let mut row = Row::default();
            assert!(rows.next(&mut row).expect("a row"), "{between:?}");
            assert_eq!(row.value, br#"{"id":"x","name":"a"}"#, "{between:?}");
            assert!(!rows.next(&mut row).expect("the end"), "{between:?}");
        }
    }

    #[test]
    fn an_endless_row_is_rejected_before_it_is_read_completely() {
        for (format, head) in [
            (Format::Csv, "a\n1\n\""),
            (Format::Ndjson, "{\"a\":1}\n{\"a\":\""),
        ] {
            let endless = std::io::repeat(b'x').take(1 << 40);
            let mut input = std::io::BufReader::new(Cursor::new(head).chain(endless));
            let mut rows = open(format, &mut input, Fields::default()).expect("a header line");
            let mut row = Row::default();
            assert!(rows.next(&mut row).expect("a row"));
            let (line, reason) = rows.next(&mut row).expect_err("it is too long").place();
            assert!(reason.contains("longer than 16 MiB"), "{reason}");
            assert_eq!(line, if format == Format::Csv { 3 } else { 2 });
        }
    }

    #[test]
    fn ndjson_rows_pass_unchanged() {
        let text = "{\"id\": 7, \"at\": \"x\"}\n\n  {\"id\":null,\"b\":{\"c\":1}}\n";
        let seen = all(Format::Ndjson, text, "id", &["at", "b"]).expect("rows");
        assert_eq!(seen[0].0.as_deref(), Some("7"));
        assert_eq!(seen[0].2, r#"{"id": 7, "at": "x"}"#);
        assert_eq!(seen[1].0, None);
        assert_eq!(seen[1].1, [("b".to_owned(), r#"{"c":1}"#.to_owned())]);
    }

    #[test]
    fn invalid_rows_are_reported_with_line_and_reason() {
        for (format, text, line, words) in [
            (
                Format::Csv,
                "a,b\n1,2\n3\n",
                3,
                "1 fields where the header line has 2",
            ),
            (Format::Csv, "a,a\n1,2\n", 1, "two fields are named `a`"),
            (
                Format::Csv,
                "a,b\n1,2\n3,\"4\n5,6\n",
                3,
                "a quote opened in this row is never closed",
            ),
            (Format::Csv, "a,\"b\n1,2\n", 1, "is never closed"),
            (Format::Csv, "a;b\n1;2\n", 1, "--delimiter ';'"),
            (Format::Csv, "a\tb\n1\t2\n", 1, "--delimiter tab"),
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
            let (found, reason) = all(format, text, "a", &[]).expect_err("it is invalid");
            assert_eq!(found, line, "{text:?}: {reason}");
            assert!(reason.contains(words), "{text:?}: {reason}");
        }
        let mut latin: &[u8] = b"a,b\n1,caf\xe9\n";
        let mut rows = CsvRows::open(&mut latin, Fields::default()).expect("a header line");
        let error = rows
            .next(&mut Row::default())
            .expect_err("it is not UTF-8")
            .place();
        assert_eq!(error, (2, "field 2 is not UTF-8".to_owned()));
    }
}
