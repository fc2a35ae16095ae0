//! A service whose specs stand in a store: its config, and the words for what the other side of the store does.

use crate::workdir::Workdir;

/// Replaces the config's folder of specs by a store: `handlers` is YAML of one source, such as `etcd: { … }`.
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
