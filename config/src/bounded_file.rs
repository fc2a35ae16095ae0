//! Reads untrusted paths: regular files up to a size limit. Pipes and devices are rejected, since reading them can block.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::path::Path;

/// Why a file was not read. Displays as a phrase that follows the file's name.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// I/O error, such as a missing file or permission.
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// A folder, pipe, socket or device.
    #[error("is not a regular file")]
    NotRegular,
    /// Longer than the limit.
    #[error("has {length} bytes; at most {most} are read")]
    TooLong {
        /// Size of the file in bytes, from its metadata.
        length: u64,
        /// Limit in bytes.
        most: usize,
    },
    /// Grew beyond the limit while it was being read.
    #[error("has more than {most} bytes; at most that many are read")]
    Grew {
        /// Limit in bytes.
        most: usize,
    },
}

impl ReadError {
    /// The I/O error; other causes are wrapped in one.
    pub fn into_io(self) -> std::io::Error {
        match self {
            Self::Io(error) => error,
            other => std::io::Error::other(other.to_string()),
        }
    }
}

/// Reads the regular file at `path`, at most `most` bytes. Never blocks: a pipe is rejected, whether or not it has a writer.
pub fn read(path: &Path, most: usize) -> Result<Vec<u8>, ReadError> {
    let file = open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(ReadError::NotRegular);
    }
    read_open(file, metadata.len(), most)
}

/// As [`read`], for a file named on the command line: a pipe, such as the shell's `<(…)`, is read to its end.
pub fn read_given(path: &Path, most: usize) -> Result<Vec<u8>, ReadError> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    read_open(file, length, most)
}

/// [`read`], as UTF-8 text.
pub fn read_text(path: &Path, most: usize) -> Result<String, ReadError> {
    String::from_utf8(read(path, most)?).map_err(|_| {
        let kind = std::io::ErrorKind::InvalidData;
        ReadError::Io(std::io::Error::new(kind, "not UTF-8 text"))
    })
}

/// Opens without blocking on a pipe's other end.
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
        // It has no writer: a blocking open would never return.
        assert!(matches!(read(&pipe, 9), Err(ReadError::NotRegular)));
        assert!(matches!(
            read(&folder.path().join("no"), 9),
            Err(ReadError::Io(_))
        ));
    }
}
