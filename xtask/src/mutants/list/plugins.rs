//! Mutants of the plugins folder and of loading.

use super::Mutant;
use super::PLUGINS;

/// Of the plugins folder and of loading.
pub(super) const FOLDER: &[Mutant] = &[Mutant {
    name: "exporter-takes-over-a-name",
    what: "a plugin that exports a handler of another plugin's name is chosen for it",
    suite: PLUGINS,
}];
