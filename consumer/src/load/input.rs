//! Opens the input of `produce`: a file, plain or compressed with gzip or zip, or the standard input.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::rc::Rc;

use flate2::read::MultiGzDecoder;
use zip::ZipArchive;

/// Format of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Comma separated, with a header line.
    Csv,
    /// One JSON object per line.
    Ndjson,
}

/// An open input.
pub struct Input<'a> {
    /// The name used in messages.
    pub name: String,
    /// Its format.
    pub format: Format,
    /// The bytes of its rows.
    pub reader: Box<dyn BufRead + 'a>,
    /// Bytes read so far, on the scale of `total_bytes`.
    pub position: Rc<Cell<u64>>,
    /// Total bytes, if known.
    pub total_bytes: Option<u64>,
}

/// Why an input cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// It cannot be opened or read.
    #[error("cannot read `{file}`: {reason}")]
    Unreadable {
        /// The file.
        file: String,
        /// The system's error.
        reason: io::Error,
    },
    /// It is not a zip archive, or is damaged.
    #[error("cannot read `{file}` as a zip archive: {reason}")]
    BadZip {
        /// The file.
        file: String,
        /// The error.
        reason: String,
    },
    /// It contains no file of rows, or several.
    #[error("`{file}` should contain one file of rows (csv, ndjson, jsonl), but contains: {found}")]
    NotOneFile {
        /// The archive.
        file: String,
        /// Its files, comma separated.
        found: String,
    },
}

/// Opens `file` (`-` is the standard input) and calls `work` with it.
///
/// # Errors
/// [`InputError`].
pub fn open<T>(
    file: &Path,
    format: Option<Format>,
    work: impl FnOnce(Input<'_>) -> T,
) -> Result<T, InputError> {
    let name = file.display().to_string();
    let unreadable = |reason| InputError::Unreadable {
        file: name.clone(),
        reason,
    };
    if name == "-" {
        let stdin = BufReader::with_capacity(1 << 16, io::stdin());
        return Ok(work(
            unpacked("(standard input)".to_owned(), stdin, None, format).map_err(unreadable)?,
        ));
    }
    let opened = File::open(file).map_err(unreadable)?;
    let metadata = opened.metadata().map_err(unreadable)?;
    if metadata.is_dir() {
        return Err(unreadable(io::Error::from(io::ErrorKind::IsADirectory)));
    }
    let mut reader = BufReader::with_capacity(1 << 16, opened);
    if reader
        .fill_buf()
        .map_err(unreadable)?
        .starts_with(b"PK\x03\x04")
    {
        return open_zip(name, reader, format, work);
    }
    let input = unpacked(name.clone(), reader, Some(metadata.len()), format).map_err(unreadable)?;
    Ok(work(input))
}

/// A plain or gzip stream; gzip is detected by its first bytes.
fn unpacked<'a>(
    name: String,
    mut reader: BufReader<impl Read + 'a>,
    total_bytes: Option<u64>,
    format: Option<Format>,
) -> io::Result<Input<'a>> {
    let gzip = reader.fill_buf()?.starts_with(&[0x1f, 0x8b]);
    let position = Rc::new(Cell::new(0));
    let counted = Counted {
        inner: reader,
        position: Rc::clone(&position),
    };
    let mut reader: Box<dyn BufRead + 'a> = if gzip {
        Box::new(BufReader::with_capacity(
            1 << 16,
            MultiGzDecoder::new(counted),
        ))
    } else {
        Box::new(BufReader::with_capacity(1 << 16, counted))
    };
    let format = match format.or_else(|| by_name(&name)) {
        Some(format) => format,
        None => by_content(reader.fill_buf()?),
    };
    Ok(Input {
        name,
        format,
        reader,
        position,
        total_bytes,
    })
}

fn open_zip<T>(
    name: String,
    reader: BufReader<File>,
    format: Option<Format>,
    work: impl FnOnce(Input<'_>) -> T,
) -> Result<T, InputError> {
    let bad_zip = |reason: String| InputError::BadZip {
        file: name.clone(),
        reason,
    };
    let mut archive = ZipArchive::new(reader).map_err(|error| bad_zip(error.to_string()))?;
    let files: Vec<String> = archive.file_names().map(str::to_owned).collect();
    let rows: Vec<&String> = files
        .iter()
        .filter(|file| by_name(file).is_some())
        .collect();
    let [file] = rows[..] else {
        return Err(InputError::NotOneFile {
            file: name,
            found: files.join(", "),
        });
    };
    let member = archive
        .by_name(file)
        .map_err(|error| bad_zip(error.to_string()))?;
    let total = member.size();
    let label = format!("{name}:{file}");
    let opened = unpacked(
        label.clone(),
        BufReader::with_capacity(1 << 16, member),
        Some(total),
        format,
    );
    let input = opened.map_err(|reason| InputError::Unreadable {
        file: label,
        reason,
    })?;
    Ok(work(input))
}

fn by_name(name: &str) -> Option<Format> {
    let name = name.to_ascii_lowercase();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    match name.rsplit_once('.')?.1 {
        "csv" => Some(Format::Csv),
        "ndjson" | "jsonl" | "json" => Some(Format::Ndjson),
        _ => None,
    }
}

fn by_content(start: &[u8]) -> Format {
    match start.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'{') => Format::Ndjson,
        _ => Format::Csv,
    }
}

struct Counted<R> {
    inner: R,
    position: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.position.set(self.position.get() + count as u64);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn read(path: &Path, format: Option<Format>) -> Result<(String, Format, u64), InputError> {
        open(path, format, |mut input| {
            let mut text = String::new();
            input.reader.read_to_string(&mut text).expect("it is text");
            (text, input.format, input.position.get())
        })
    }

    fn zip_of(path: &Path, members: &[(&str, &str)]) {
        let mut archive = zip::ZipWriter::new(File::create(path).expect("a file"));
        for (name, text) in members {
            let options = zip::write::SimpleFileOptions::default();
            archive.start_file(*name, options).expect("a member");
            archive.write_all(text.as_bytes()).expect("room");
        }
        archive.finish().expect("room");
    }

    #[test]
    fn plain_gzip_and_zip_give_the_same_rows() {
        let folder = tempfile::tempdir().expect("a folder");
        let text = "a,b\n1,2\n";
        let plain = folder.path().join("rows.csv");
        std::fs::write(&plain, text).expect("room");
        assert_eq!(
            read(&plain, None).expect("rows"),
            (text.to_owned(), Format::Csv, 8)
        );

        let gzip = folder.path().join("rows.csv.gz");
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).expect("room");
        let packed = encoder.finish().expect("room");
        std::fs::write(&gzip, &packed).expect("room");
        let expected = (text.to_owned(), Format::Csv, packed.len() as u64);
        assert_eq!(read(&gzip, None).expect("rows"), expected);

        let zipped = folder.path().join("rows.zip");
        zip_of(&zipped, &[("README.md", "hello"), ("rows.csv", text)]);
        assert_eq!(
            read(&zipped, None).expect("rows"),
            (text.to_owned(), Format::Csv, 8)
        );
    }

    #[test]
    fn the_format_is_given_or_detected_by_name_or_content() {
        let folder = tempfile::tempdir().expect("a folder");
        let nameless = folder.path().join("rows");
        std::fs::write(&nameless, " {\"a\": 1}\n").expect("room");
        assert_eq!(read(&nameless, None).expect("rows").1, Format::Ndjson);
        assert_eq!(
            read(&nameless, Some(Format::Csv)).expect("rows").1,
            Format::Csv
        );
        assert_eq!(by_name("X.JSONL.gz"), Some(Format::Ndjson));
    }

    #[test]
    fn an_unreadable_input_is_reported_with_its_cause() {
        let folder = tempfile::tempdir().expect("a folder");
        let missing = read(&folder.path().join("no.csv"), None)
            .expect_err("it is missing")
            .to_string();
        assert!(missing.contains("no.csv`: No such file"), "{missing}");
        let directory = read(folder.path(), None)
            .expect_err("it is a folder")
            .to_string();
        assert!(directory.contains("is a directory"), "{directory}");
        let two = folder.path().join("two.zip");
        zip_of(&two, &[("a.csv", "a\n"), ("b.csv", "b\n")]);
        let two = read(&two, None).expect_err("two files").to_string();
        assert!(two.ends_with("but contains: a.csv, b.csv"), "{two}");
        let broken = folder.path().join("broken.zip");
        std::fs::write(&broken, b"PK\x03\x04 and no more").expect("room");
        let broken = read(&broken, None).expect_err("no archive").to_string();
        assert!(broken.contains("as a zip archive"), "{broken}");
    }
}
