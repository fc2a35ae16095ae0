//! A service's folder: its config, the specs in `handlers.d`, the libraries in `plugins`.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::artefacts;

/// A temporary folder that `sluicegate run -c sluicegate.yaml` can be started in.
pub struct Workdir {
    folder: TempDir,
}

impl Workdir {
    /// A folder whose config consumes `bootstrap` in the group `group`, with bare unsigned libraries allowed.
    /// `more` is YAML that is added below `processing:` (indented by two spaces) or, unindented, as further sections.
    ///
    /// # Panics
    /// If the folder cannot be written.
    #[must_use]
    pub fn new(bootstrap: &str, group: &str, more: &str) -> Self {
        let workdir = Self::empty();
        workdir.write(
            "sluicegate.yaml",
            &format!(
                "kafka:\n  bootstrap_servers: {bootstrap}\n  group_id: {group}\n\
                 handlers:\n  file: {{ folder: handlers.d }}\n\
                 plugins: {{ folder: plugins, cache: cache, allow_unsigned: true }}\n\
                 processing:\n  commit_interval: 200ms\n{more}"
            ),
        );
        workdir
    }

    /// A folder with empty `handlers.d` and `plugins` and no config.
    ///
    /// # Panics
    /// If the folder cannot be written.
    #[must_use]
    pub fn empty() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("sluicegate-work-")
            .tempdir()
            .expect("a temporary folder");
        for name in ["handlers.d", "plugins"] {
            std::fs::create_dir(folder.path().join(name)).expect("a folder in a fresh folder");
        }
        Self { folder }
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The config file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("sluicegate.yaml")
    }

    /// Writes a file atomically: a watcher sees the old text or the new one, never a part.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write(&self, name: &str, text: &str) {
        let path = self.folder.path().join(name);
        // The temporary name starts with a dot and has no extension, so that watchers do not take it for a spec.
        let partial = self
            .folder
            .path()
            .join(format!(".partial-{}", name.replace('/', "-")));
        std::fs::write(&partial, text)
            .and_then(|()| std::fs::rename(&partial, &path))
            .unwrap_or_else(|error| {
                panic!("cannot write {}: {error}", path.display());
            });
    }

    /// Removes a file.
    ///
    /// # Panics
    /// If it does not exist.
    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.folder.path().join(name))
            .unwrap_or_else(|error| panic!("cannot remove {name}: {error}"));
    }

    /// Writes `handlers.d/{name}.yaml`; `spec` is the text below the `name:` line.
    pub fn spec(&self, name: &str, spec: &str) {
        self.write(
            &format!("handlers.d/{name}.yaml"),
            &format!("name: {name}\n{spec}"),
        );
    }

    /// Copies the libraries of these plugin crates into `plugins`.
    ///
    /// # Panics
    /// If one cannot be built or copied.
    pub fn plugins(&self, names: &[&str]) {
        for name in names {
            self.plugin_file(&artefacts::plugin(name), &artefacts::library_name(name));
        }
    }

    /// Copies a file into `plugins` under `name`, through a temporary file that is renamed, so that watchers never see a part.
    ///
    /// # Panics
    /// If it cannot be copied.
    pub fn plugin_file(&self, from: &Path, name: &str) {
        let to = self.folder.path().join("plugins").join(name);
        let partial = self.folder.path().join(format!(".partial-{name}"));
        std::fs::copy(from, &partial)
            .and_then(|_| std::fs::rename(&partial, &to))
            .unwrap_or_else(|error| {
                panic!(
                    "cannot copy {} to {}: {error}",
                    from.display(),
                    to.display()
                );
            });
    }
}
