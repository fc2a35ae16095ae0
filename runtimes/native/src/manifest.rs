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
use std::path::Path;

use saphyr_parser::{Event, Parser};
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

/// A manifest of one library.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    texts: BTreeMap<String, String>,
    /// Hashes by file name.
    files: BTreeMap<String, String>,
}

impl Manifest {
    /// The manifest of the library at `path`, if it has one. An unsuitable manifest is refused before the library is read.
    pub(crate) fn for_library(path: &Path) -> Result<Option<Self>, String> {
        let file = path.with_file_name(NAME);
        let read = open_regular(&file).and_then(std::io::read_to_string);
        let text = match read {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("`{}` cannot be read: {error}", file.display())),
        };
        let manifest =
            Self::parse(&text).map_err(|reason| format!("`{}`: {reason}", file.display()))?;
        let entry = manifest.text("entry")?;
        if path
            .file_name()
            .is_none_or(|name| name.to_string_lossy() != *entry)
        {
            return Ok(None);
        }
        let kind = manifest.text("kind")?;
        if kind != "native" {
            return Err(format!(
                "its kind is `{kind}`, but the entry is a native library; write `kind: native`"
            ));
        }
        manifest.check_abi()?;
        Ok(Some(manifest))
    }

    /// Checks the library against the manifest.
    pub(crate) fn check(&self, identity: &PluginIdentity) -> Result<(), String> {
        for (key, found) in [("name", &identity.name), ("version", &identity.version)] {
            let said = self.text(key)?;
            if said != found {
                return Err(format!(
                    "it has `{key}: {said}`, but the library has `{found}`; package matching files"
                ));
            }
        }
        let entry = self.text("entry")?;
        let said = self.files.get(entry).ok_or_else(|| {
            format!("`files` has no SHA-256 of `{entry}`; package the plugin again")
        })?;
        if !said.eq_ignore_ascii_case(&identity.sha256) {
            return Err(format!(
                "`{entry}` has the SHA-256 {}, but the manifest has {said}; it was changed after packaging",
                identity.sha256
            ));
        }
        Ok(())
    }

    fn check_abi(&self) -> Result<(), String> {
        let Some(abi) = self.texts.get("abi") else {
            return Ok(());
        };
        let (major, minor) = abi.split_once('.').unwrap_or((abi, "0"));
        let (Ok(major), Ok(minor)) = (major.parse::<u16>(), minor.parse::<u16>()) else {
            return Err(format!("`abi: {abi}` is not a version such as \"1.0\""));
        };
        if major != ABI_MAJOR || minor > ABI_MINOR {
            return Err(format!(
                "it is for handler ABI {abi}, this service supports {ABI_MAJOR}.{ABI_MINOR}; install a build for that version"
            ));
        }
        Ok(())
    }

    fn text(&self, key: &str) -> Result<&String, String> {
        self.texts
            .get(key)
            .ok_or_else(|| format!("the manifest has no `{key}`"))
    }

    /// Parses a map of strings in which `files` is a nested map of strings.
    fn parse(text: &str) -> Result<Self, String> {
        let mut manifest = Self {
            texts: BTreeMap::new(),
            files: BTreeMap::new(),
        };
        let (mut depth, mut key) = (0, None::<String>);
        for event in Parser::new_from_str(text) {
            let (event, span) = event.map_err(|error| error.to_string())?;
            let at = |what: String| format!("line {}: {what}", span.start.line());
            match event {
                Event::MappingStart(..) if depth == 0 => depth = 1,
                Event::MappingStart(..) if depth == 1 && key.as_deref() == Some("files") => {
                    (depth, key) = (2, None);
                }
                Event::MappingEnd => depth -= 1,
                Event::Scalar(text, ..) if depth > 0 => match key.take() {
                    None if depth == 1 && !KEYS.contains(&&*text) => {
                        return Err(at(format!(
                            "`{text}` is unknown; known keys: {}",
                            KEYS.join(", ")
                        )));
                    }
                    None => key = Some(text.into_owned()),
                    Some(key) if depth == 1 && key == "files" => {
                        return Err(at(
                            "`files` must be a map of file names to their SHA-256".into()
                        ));
                    }
                    Some(key) => {
                        let map = if depth == 2 {
                            &mut manifest.files
                        } else {
                            &mut manifest.texts
                        };
                        if map.insert(key.clone(), text.into_owned()).is_some() {
                            return Err(at(format!("`{key}` is a duplicate key")));
                        }
                    }
                },
                Event::Scalar(..)
                | Event::MappingStart(..)
                | Event::SequenceStart(..)
                | Event::Alias(_) => {
                    return Err(at(
                        "a manifest is a map of strings, with a map of hashes under `files`".into(),
                    ));
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

    const GOOD: &str = "name: a\nversion: 1.0.0\nkind: native\nentry: liba.so\nabi: '1.0'\nfiles:\n  liba.so: AB\n";

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
        assert_eq!(manifest.check(&identity("a", "ab")), Ok(()));
        assert!(
            manifest
                .check(&identity("b", "ab"))
                .unwrap_err()
                .contains("but the library has `b`")
        );
        assert!(
            manifest
                .check(&identity("a", "ac"))
                .unwrap_err()
                .contains("changed after packaging")
        );
        let without = Manifest::parse(&GOOD.replace("liba.so: AB", "other.so: AB")).unwrap();
        assert!(
            without
                .check(&identity("a", "ab"))
                .unwrap_err()
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
            let error = Manifest::parse(text).unwrap_err();
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
        assert_eq!(with_manifest(&GOOD.replace("liba.so", "libb.so")), Ok(None));
        assert!(
            with_manifest(&GOOD.replace("native", "grpc"))
                .unwrap_err()
                .contains("kind is `grpc`")
        );
        assert!(
            with_manifest(&GOOD.replace("1.0'", "2.0'"))
                .unwrap_err()
                .contains("for handler ABI 2.0")
        );
        assert!(with_manifest("name: a").unwrap_err().contains("no `entry`"));
        std::fs::remove_file(folder.path().join(NAME)).unwrap();
        assert_eq!(Manifest::for_library(&library), Ok(None));
    }
}
