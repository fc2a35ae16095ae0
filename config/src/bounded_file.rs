//! Reads files of which nobody knows what they are: a regular file up to a bound, and nothing that could be waited for.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::path::Path;

/// Why a file is not read. Displays as what comes after the file's name.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The system refuses it.
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// It is a folder, a pipe, a socket or a device.
    #[error("is not a regular file")]
    NotRegular,
    /// It is too long.
    #[error("has {length} bytes; at most {most} are read")]
    TooLong { length: u64, most: usize },
    /// It grew beyond the bound while it was read.
    #[error("has more than {most} bytes; at most that many are read")]
    Grew { most: usize },
}

impl ReadError {
    /// The system's error, if it is one.
    pub(crate) fn into_io(self) -> std::io::Error {
        match self {
            Self::Io(error) => error,
            other => std::io::Error::other(other.to_string()),
        }
    }
}

/// The bytes of the regular file at `path`, at most `most` of them. A pipe is refused at once: nothing waits for a writer.
pub(crate) fn read(path: &Path, most: usize) -> Result<Vec<u8>, ReadError> {
    let file = open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(ReadError::NotRegular);
    }
    read_open(file, metadata.len(), most)
}

/// The same for a file that a user names for one reading: a pipe, such as a shell's `<(…)`, is read to its end.
pub(crate) fn read_given(path: &Path, most: usize) -> Result<Vec<u8>, ReadError> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    read_open(file, length, most)
}

/// [`read`], as UTF-8 text.
pub(crate) fn read_text(path: &Path, most: usize) -> Result<String, ReadError> {
    String::from_utf8(read(path, most)?).map_err(|_| {
        let kind = std::io::ErrorKind::InvalidData;
        ReadError::Io(std::io::Error::new(kind, "it is not UTF-8 text"))
    })
}

/// Without waiting for the other end of a pipe.
fn open(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, flags);
    }
    options.open(path)
}

fn read_open(file: File, length: u64, most: usize) -> Result<Vec<u8>, ReadError> {
    if length > most as u64 {
        return Err(ReadError::TooLong { length, most });
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0) + 1);
    file.take(most as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > most {
        return Err(ReadError::Grew { most });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_within_the_bound_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        std::fs::write(&file, "12345").unwrap();
        assert_eq!(read(&file, 5).unwrap(), b"12345");
        assert!(matches!(read(&file, 4), Err(ReadError::TooLong { .. })));
        assert!(matches!(read(folder.path(), 9), Err(ReadError::NotRegular)));
        assert!(matches!(
            read(Path::new("/dev/zero"), 9),
            Err(ReadError::NotRegular)
        ));
        assert!(matches!(
            read_given(Path::new("/dev/zero"), 9),
            Err(ReadError::Grew { .. })
        ));
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        // Nobody writes to it: waiting would never end.
        assert!(matches!(read(&pipe, 9), Err(ReadError::NotRegular)));
        assert!(matches!(
            read(&folder.path().join("no"), 9),
            Err(ReadError::Io(_))
        ));
    }
}
