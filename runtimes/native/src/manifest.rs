//! `plugin.yaml`, the manifest of a packaged plugin: the first check. A library without one is identified by its
//! descriptor alone.
//!
//! A manifest is stored next to its library and names it as `entry`; a manifest that names another file is ignored.
//!
//! ```yaml
//! name: relay
//! version: 1.2.0
//! kind: native
//! entry: librelay.so
//! abi: "1.0"             # the handler ABI that it was built for: the service's major, and not a newer minor
//! files:                 # SHA-256 of every file
//!   librelay.so: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
//! ```

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use saphyr_parser::{Event, Parser, ScanError};
use sluicegate_abi::descriptor::{ABI_MAJOR, ABI_MINOR};
use sluicegate_runtime::PluginIdentity;

use crate::artefact::open_regular;

const NAME: &str = "plugin.yaml";
const KEYS: [&str; 8] = [
    "name",
    "version",
    "kind",
    "entry",
    "abi",
    "files",
    "description",
    "license",
];

/// Why the manifest check fails.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    #[error("`{}` cannot be read: {source}", file.display())]
    Unreadable { file: PathBuf, source: io::Error },
    #[error("`{}`: {source}", file.display())]
    Invalid { file: PathBuf, source: SyntaxError },
    #[error("the manifest has no `{0}`")]
    Missing(&'static str),
    #[error("its kind is `{0}`, but the entry is a native library; write `kind: native`")]
    Kind(String),
    #[error("it has `{key}: {said}`, but the library has `{found}`; package matching files")]
    OtherIdentity {
        key: &'static str,
        said: String,
        found: String,
    },
    #[error("`files` has no SHA-256 of `{0}`; package the plugin again")]
    NoHash(String),
    #[error(
        "`{entry}` has the SHA-256 {found}, but the manifest has {said}; it was changed after packaging"
    )]
    OtherHash {
        entry: String,
        found: String,
        said: String,
    },
    #[error("`abi: {0}` is not a version such as \"1.0\"")]
    AbiFormat(String),
    #[error(
        "it is for handler ABI {0}, this service supports {ABI_MAJOR}.{ABI_MINOR}; install a build for that version"
    )]
    OtherAbi(String),
}

impl ManifestError {
    /// Whether the same files may pass the check later: a manifest that the file system does not give says nothing about the plugin. Bytes
    /// that are not text are its content.
    pub(crate) fn is_retryable(&self) -> bool {
        matches!(self, Self::Unreadable { source, .. } if source.kind() != io::ErrorKind::InvalidData)
    }
}

/// Why a text is not a manifest.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SyntaxError {
    #[error(transparent)]
    Yaml(#[from] ScanError),
    #[error("line {line}: `{key}` is unknown; known keys: {}", KEYS.join(", "))]
    UnknownKey { line: usize, key: String },
    #[error("line {line}: `files` must be a map of file names to their SHA-256")]
    FilesNotMap { line: usize },
    #[error("line {line}: `{key}` is a duplicate key")]
    DuplicateKey { line: usize, key: String },
    #[error("line {line}: a manifest is a map of strings, with a map of hashes under `files`")]
    NotMap { line: usize },
}

/// A manifest of one library.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    texts: BTreeMap<String, String>,
    /// Hashes by file name.
    files: BTreeMap<String, String>,
}

impl Manifest {
    /// The manifest of the library at `path`, if it has one. An unsuitable manifest is refused before the library is read.
    pub(crate) fn for_library(path: &Path) -> Result<Option<Self>, ManifestError> {
        let file = path.with_file_name(NAME);
        let read = open_regular(&file).and_then(std::io::read_to_string);
        let text = match read {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ManifestError::Unreadable { file, source }),
        };
        let manifest =
            Self::parse(&text).map_err(|source| ManifestError::Invalid { file, source })?;
        let entry = manifest.text("entry")?;
        if path
            .file_name()
            .is_none_or(|name| name.to_string_lossy() != *entry)
        {
            return Ok(None);
        }
        let kind = manifest.text("kind")?;
        if kind != "native" {
            return Err(ManifestError::Kind(kind.clone()));
        }
        manifest.check_abi()?;
        Ok(Some(manifest))
    }

    /// Checks the library against the manifest.
    pub(crate) fn check(&self, identity: &PluginIdentity) -> Result<(), ManifestError> {
        for (key, found) in [("name", &identity.name), ("version", &identity.version)] {
            let said = self.text(key)?;
            if said != found {
                return Err(ManifestError::OtherIdentity {
                    key,
                    said: said.clone(),
                    found: found.clone(),
                });
            }
        }
        let entry = self.text("entry")?;
        let said = self.files.get(entry);
        let said = said.ok_or_else(|| ManifestError::NoHash(entry.clone()))?;
        if !said.eq_ignore_ascii_case(&identity.sha256) {
            return Err(ManifestError::OtherHash {
                entry: entry.clone(),
                found: identity.sha256.clone(),
                said: said.clone(),
            });
        }
        Ok(())
    }

    fn check_abi(&self) -> Result<(), ManifestError> {
        let Some(abi) = self.texts.get("abi") else {
            return Ok(());
        };
        let (major, minor) = abi.split_once('.').unwrap_or((abi.as_str(), "0"));
        let (Ok(major), Ok(minor)) = (major.parse::<u16>(), minor.parse::<u16>()) else {
            return Err(ManifestError::AbiFormat(abi.clone()));
        };
        if major != ABI_MAJOR || minor > ABI_MINOR {
            return Err(ManifestError::OtherAbi(abi.clone()));
        }
        Ok(())
    }

    fn text(&self, key: &'static str) -> Result<&String, ManifestError> {
        self.texts.get(key).ok_or(ManifestError::Missing(key))
    }

    /// Parses a map of strings in which `files` is a nested map of strings.
    fn parse(text: &str) -> Result<Self, SyntaxError> {
        let mut manifest = Self {
            texts: BTreeMap::new(),
            files: BTreeMap::new(),
        };
        let (mut depth, mut key) = (0, None::<String>);
        for event in Parser::new_from_str(text) {
            let (event, span) = event?;
            let line = span.start.line();
            match event {
                Event::MappingStart(..) if depth == 0 => depth = 1,
                Event::MappingStart(..) if depth == 1 && key.as_deref() == Some("files") => {
                    (depth, key) = (2, None);
                }
                Event::MappingEnd => depth -= 1,
                Event::Scalar(text, ..) if depth > 0 => match key.take() {
                    None if depth == 1 && !KEYS.contains(&&*text) => {
                        let key = text.into_owned();
                        return Err(SyntaxError::UnknownKey { line, key });
                    }
                    None => key = Some(text.into_owned()),
                    Some(key) if depth == 1 && key == "files" => {
                        return Err(SyntaxError::FilesNotMap { line });
                    }
                    Some(key) => {
                        let map = if depth == 2 {
                            &mut manifest.files
                        } else {
                            &mut manifest.texts
                        };
                        if map.insert(key.clone(), text.into_owned()).is_some() {
                            return Err(SyntaxError::DuplicateKey { line, key });
                        }
                    }
                },
                Event::Scalar(..)
                | Event::MappingStart(..)
                | Event::SequenceStart(..)
                | Event::Alias(_) => {
                    return Err(SyntaxError::NotMap { line });
                }
                _ => {}
            }
        }
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artefact::Artefact;

    const GOOD: &str = "name: a\nversion: 1.0.0\nkind: native\nentry: liba.so\nabi: '1.0'\nfiles:\n  liba.so: AB\n";

    /// The file system gives no manifest, or the manifest is wrong: only the first can pass later with the same files.
    #[test]
    fn a_manifest_that_cannot_be_read_is_not_a_failed_check() {
        use crate::artefact::Artefact;

        let folder = tempfile::tempdir().expect("a folder");
        let library = folder.path().join("liba.so");
        let manifest = folder.path().join(NAME);
        std::fs::write(&library, "no library").expect("it is written");
        let refusal = || Artefact::read(&library).err().expect("it is refused");
        std::os::unix::fs::symlink(NAME, &manifest).expect("it is linked");
        let looped = refusal();
        assert!(looped.is_retryable(), "{looped}");
        assert!(looped.to_string().contains("Too many levels"), "{looped}");
        std::fs::remove_file(&manifest).expect("it is removed");
        for wrong in [&b"\xff"[..], b"name: [", b""] {
            std::fs::write(&manifest, wrong).expect("it is written");
            let refused = refusal();
            assert!(!refused.is_retryable(), "{refused}");
        }
    }

    fn identity(name: &str, sha256: &str) -> PluginIdentity {
        PluginIdentity {
            name: name.into(),
            version: "1.0.0".into(),
            handlers: vec![],
            abi: "1.0".into(),
            toolchain: String::new(),
            sha256: sha256.into(),
        }
    }

    #[test]
    fn a_library_must_match_its_manifest() {
        let manifest = Manifest::parse(GOOD).unwrap();
        manifest.check(&identity("a", "ab")).unwrap();
        assert!(
            manifest
                .check(&identity("b", "ab"))
                .unwrap_err()
                .to_string()
                .contains("but the library has `b`")
        );
        assert!(
            manifest
                .check(&identity("a", "ac"))
                .unwrap_err()
                .to_string()
                .contains("changed after packaging")
        );
        let without = Manifest::parse(&GOOD.replace("liba.so: AB", "other.so: AB")).unwrap();
        assert!(
            without
                .check(&identity("a", "ab"))
                .unwrap_err()
                .to_string()
                .contains("no SHA-256 of `liba.so`")
        );
    }

    #[test]
    fn other_forms_are_refused_with_the_line() {
        for (text, words) in [
            ("[a]", "line 1: a manifest is a map"),
            ("name: a\nnames: b", "line 2: `names` is unknown"),
            ("name: a\nname: b", "line 2: `name` is a duplicate key"),
            ("files: x", "line 1: `files` must be a map"),
            ("name: [a]", "line 1: a manifest is a map"),
            ("name: 'a", "line"),
        ] {
            let error = Manifest::parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn a_manifest_applies_to_the_library_that_it_names() {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("liba.so");
        let with_manifest = |text: &str| {
            std::fs::write(folder.path().join(NAME), text).unwrap();
            Manifest::for_library(&library)
        };
        assert!(with_manifest(GOOD).unwrap().is_some());
        let other = with_manifest(&GOOD.replace("liba.so", "libb.so"));
        assert!(other.unwrap().is_none());
        assert!(
            with_manifest(&GOOD.replace("native", "grpc"))
                .unwrap_err()
                .to_string()
                .contains("kind is `grpc`")
        );
        assert!(
            with_manifest(&GOOD.replace("1.0'", "2.0'"))
                .unwrap_err()
                .to_string()
                .contains("for handler ABI 2.0")
        );
        let nameless = with_manifest("name: a").unwrap_err();
        assert!(nameless.to_string().contains("no `entry`"));
        std::fs::remove_file(folder.path().join(NAME)).unwrap();
        assert!(Manifest::for_library(&library).unwrap().is_none());
    }

    #[test]
    fn an_unreadable_manifest_may_be_readable_later_and_an_invalid_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (library, manifest) = (folder.path().join("liba.so"), folder.path().join(NAME));
        let error = || Artefact::read(&library).err().expect("an error");
        // No regular file, which cannot be read as any user.
        std::fs::create_dir(&manifest).unwrap();
        let unreadable = error();
        assert!(unreadable.is_retryable(), "{unreadable}");
        assert!(unreadable.to_string().contains(NAME), "{unreadable}");
        std::fs::remove_dir(&manifest).unwrap();
        std::fs::write(&manifest, "[a]").unwrap();
        let invalid = error();
        assert!(!invalid.is_retryable(), "{invalid}");
    }
}
