//! Which artefact of the catalogue a spec means, and which handler in it.
//!
//! A plugin named X is what `plugin: X` means. A handler X that other plugins export is named with its plugin, as
//! `plugin: NAME/X`: otherwise any file in the folder could take over another one's handlers by exporting their names.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sluicegate_config::spec::{VersionRequirement, plugin_and_handler};
use sluicegate_pool::pool::relock;
use sluicegate_runtime::PluginIdentity;

use super::catalogue::{Artefact, Catalogue, Files, several_builds};

/// Why no artefact matches.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// No plugin of this name.
    #[error("no plugin in `{folder}` is named `{plugin}`; available: {known}{broken}")]
    Unknown {
        /// The folder.
        folder: String,
        /// The name.
        plugin: String,
        /// Available plugins.
        known: String,
        /// Unusable files, as a clause; empty if there are none.
        broken: String,
    },
    /// Only handlers of plugins with other names have this name.
    #[error(
        "no plugin in `{folder}` is named `{plugin}`; to run the handler `{plugin}` of another plugin, write {candidates}{broken}"
    )]
    ExportedOnly {
        /// The folder.
        folder: String,
        /// The name.
        plugin: String,
        /// What to write for each plugin that exports it.
        candidates: String,
        /// Unusable files, as a clause; empty if there are none.
        broken: String,
    },
    /// No version that the spec accepts is available.
    #[error("plugin `{plugin}` has no version that matches `{wanted}`; available: {known}{broken}")]
    NoVersion {
        /// The name.
        plugin: String,
        /// The requirement.
        wanted: String,
        /// Available versions.
        known: String,
        /// Unusable files, as a clause; empty if there are none.
        broken: String,
    },
    /// The spec names a plugin that exports several handlers.
    #[error("plugin `{plugin}` {version} exports several handlers; write {candidates}")]
    Ambiguous {
        /// The name.
        plugin: String,
        /// Its newest version.
        version: String,
        /// What to write for each of its handlers.
        candidates: String,
    },
    /// The spec names a handler that the plugin does not export.
    #[error("plugin `{plugin}` {version} exports no handler `{handler}`; write {candidates}")]
    NotExported {
        /// The name of the plugin.
        plugin: String,
        /// Its newest version.
        version: String,
        /// The name of the handler.
        handler: String,
        /// What to write for each of its handlers.
        candidates: String,
    },
    /// The version that would be chosen has several builds.
    #[error(
        "plugin `{plugin}` has several builds of version {version}; remove all but one of them: {builds}"
    )]
    SeveralBuilds {
        /// The name.
        plugin: String,
        /// The version.
        version: String,
        /// Their files and digests.
        builds: String,
    },
    /// A file that may hold a newer version of the plugin could not be read yet.
    #[error(
        "`{path}` may have a newer version of plugin `{plugin}` than {version}, and could not be read yet: {why}; the handler waits \
         for it: make it readable for the service, or remove it"
    )]
    Unread {
        /// The name.
        plugin: String,
        /// The newest version that is known.
        version: String,
        /// The file, or the folder of a package.
        path: String,
        /// Why it could not be read.
        why: String,
    },
    /// The plugin is not signed.
    #[error(
        "plugin `{plugin}` at `{path}` is not signed; for development set `plugins.allow_unsigned: true`"
    )]
    Unsigned {
        /// The name.
        plugin: String,
        /// The file.
        path: String,
    },
}

impl Catalogue {
    /// The newest artefact for `plugin` (`NAME` or `NAME/HANDLER`) in a version that `wanted` accepts, and the handler's name.
    ///
    /// # Errors
    /// [`FindError`] lists what is available instead.
    pub fn find(
        &self,
        plugin: &str,
        wanted: &VersionRequirement,
    ) -> Result<(Arc<Artefact>, String), FindError> {
        let (name, handler) = plugin_and_handler(plugin);
        let files = self.files();
        let usable: Vec<&Arc<Artefact>> = files
            .values()
            .filter_map(|file| file.content.as_ref().ok())
            .collect();
        let named: Vec<_> = usable
            .iter()
            .filter(|artefact| artefact.identity.name == name)
            .collect();
        if named.is_empty() {
            return Err(self.none_named(plugin, &usable, self.broken(&files)));
        }
        let fitting = named
            .iter()
            .filter(|artefact| wanted.matches(&artefact.version));
        let newest = fitting.max_by_key(|artefact| (&artefact.version, artefact.modified));
        let Some(&&newest) = newest else {
            return Err(FindError::NoVersion {
                plugin: name.to_owned(),
                wanted: wanted.to_string(),
                known: list(named.iter().map(|artefact| artefact.version.to_string())),
                broken: self.broken(&files),
            });
        };
        let of_version: Vec<&Artefact> = named
            .iter()
            .filter(|artefact| artefact.version == newest.version)
            .map(|artefact| &****artefact)
            .collect();
        if let Some(builds) = several_builds(&of_version) {
            return Err(FindError::SeveralBuilds {
                plugin: name.to_owned(),
                version: newest.version.to_string(),
                builds,
            });
        }
        // Of an exact version, there is nothing newer to wait for.
        let is_pinned = wanted.is_exact();
        if let Some((path, why)) = self.unread_candidate(name, &files).filter(|_| !is_pinned) {
            // An older version must not take the place of one that is only unreadable for the moment.
            return Err(FindError::Unread {
                plugin: name.to_owned(),
                version: newest.version.to_string(),
                path: path.display().to_string(),
                why,
            });
        }
        if !self.allow_unsigned {
            return Err(FindError::Unsigned {
                plugin: name.to_owned(),
                path: newest.path.display().to_string(),
            });
        }
        let handler = exported_handler(&newest.identity, handler)?;
        Ok((Arc::clone(newest), handler))
    }

    /// What could not be read, of which nothing is known, and which by its name may be the plugin, with the reason. Files are named
    /// after the plugin and perhaps its version, or are in a package that is.
    fn unread_candidate(&self, name: &str, files: &Files) -> Option<(PathBuf, String)> {
        let in_package = |path: &Path| path.parent().is_some_and(|parent| parent != self.folder());
        let unknown = files.iter().filter(|(_, file)| file.is_unknown());
        let files = unknown.filter(|(path, _)| {
            let package = path.parent().filter(|_| in_package(path));
            may_be(path, name) || package.is_some_and(|package| may_be(package, name))
        });
        let files = files.filter_map(|(path, file)| {
            let unread = file.unread.as_ref()?;
            Some((path.clone(), unread.why.clone()))
        });
        let folders = relock(&self.unlisted).clone();
        let folders = folders.into_iter().filter(|(at, _)| may_be(at, name));
        files.chain(folders).next()
    }

    /// A clause with the files that are not usable; empty if there are none.
    fn broken(&self, files: &Files) -> String {
        let unreadable = relock(&self.unreadable).clone().map(|it| it.why);
        let refused = files.values().filter_map(|file| {
            let refused = file.unread.as_ref().or(file.content.as_ref().err())?;
            Some(refused.why.clone())
        });
        let broken: Vec<String> = unreadable.into_iter().chain(refused).collect();
        match broken.is_empty() {
            true => String::new(),
            false => format!("; not usable: {}", broken.join("; ")),
        }
    }

    /// Why no plugin has the name in `plugin`.
    fn none_named(&self, plugin: &str, usable: &[&Arc<Artefact>], broken: String) -> FindError {
        let folder = self.folder().display().to_string();
        let exporters: Vec<String> = usable
            .iter()
            .filter(|artefact| artefact.identity.handlers.iter().any(|name| name == plugin))
            .map(|artefact| reference(&artefact.identity.name, plugin))
            .collect();
        if exporters.is_empty() {
            return FindError::Unknown {
                folder,
                plugin: plugin_and_handler(plugin).0.to_owned(),
                known: list(usable.iter().map(|artefact| artefact.identity.name.clone())),
                broken,
            };
        }
        FindError::ExportedOnly {
            folder,
            plugin: plugin.to_owned(),
            candidates: any_of(exporters),
            broken,
        }
    }
}

/// The handler that a spec means by the plugin's name alone, or by that and `handler`.
fn exported_handler(identity: &PluginIdentity, handler: Option<&str>) -> Result<String, FindError> {
    let PluginIdentity {
        name,
        version,
        handlers,
        ..
    } = identity;
    let wanted = handler.unwrap_or(name);
    if handlers.iter().any(|exported| exported == wanted) {
        return Ok(wanted.to_owned());
    }
    let candidates = || any_of(handlers.iter().map(|one| reference(name, one)).collect());
    match (handler, handlers.as_slice()) {
        (None, [only]) => Ok(only.clone()),
        (None, _) => Err(FindError::Ambiguous {
            plugin: name.clone(),
            version: version.clone(),
            candidates: candidates(),
        }),
        (Some(handler), _) => Err(FindError::NotExported {
            plugin: name.clone(),
            version: version.clone(),
            handler: handler.to_owned(),
            candidates: candidates(),
        }),
    }
}

/// Whether a file or folder may belong to the plugin by its name: `NAME`, or `NAME-VERSION`, with `lib` before and `.so` after it.
fn may_be(path: &Path, plugin: &str) -> bool {
    let plain = |text: &str| text.to_lowercase().replace(['-', '.'], "_");
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.strip_suffix(".so").unwrap_or(&name);
    let plugin = plain(plugin);
    [name, name.strip_prefix("lib").unwrap_or(name)]
        .iter()
        .any(|name| {
            let name = plain(name);
            let Some(rest) = name.strip_prefix(&plugin) else {
                return false;
            };
            let version = rest.trim_start_matches('_').trim_start_matches('v');
            rest.is_empty()
                || version.len() < rest.len() && version.starts_with(|c: char| c.is_ascii_digit())
        })
}

/// What a spec has to say for a handler of a plugin.
fn reference(plugin: &str, handler: &str) -> String {
    format!("`plugin: {plugin}/{handler}`")
}

/// Joins alternatives for a sentence, sorted and without duplicates.
fn any_of(mut all: Vec<String>) -> String {
    all.sort_unstable();
    all.dedup();
    all.join(" or ")
}

/// Joins names for a sentence, sorted and without duplicates.
fn list(names: impl Iterator<Item = String>) -> String {
    let mut names: Vec<String> = names.collect();
    names.sort_unstable();
    names.dedup();
    match names.is_empty() {
        true => "nothing".to_owned(),
        false => names.join(", "),
    }
}
