//! The config of a service whose specs are in a store.

use crate::workdir::Workdir;

/// A workdir whose config reads specs from a store: `handlers` is the YAML of one source, such as `etcd: { … }`.
///
/// # Panics
/// If the folder cannot be written.
#[must_use]
pub fn workdir(bootstrap: &str, group: &str, handlers: &str) -> Workdir {
    let workdir = Workdir::empty();
    workdir.write(
        "sluicegate.yaml",
        &format!(
            "kafka:\n  bootstrap_servers: {bootstrap}\n  group_id: {group}\n\
             handlers:\n  cache: handlers.cache\n  {handlers}\n\
             plugins: {{ folder: plugins, cache: cache, allow_unsigned: true }}\n\
             processing:\n  commit_interval: 200ms\n"
        ),
    );
    workdir
}
