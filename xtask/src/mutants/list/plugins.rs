//! Mutants of the plugins folder and of loading.

use super::{GENERATIONS, Mutant, PLUGINS};

/// Of the plugins folder and of loading.
pub(super) const FOLDER: &[Mutant] = &[
    Mutant {
        name: "exporter-takes-over-a-name",
        what: "a plugin that exports a handler of another plugin's name is chosen for it",
        suite: PLUGINS,
    },
    Mutant {
        name: "digest-compared-after-loading",
        what: "the digest of a plugin file is compared once its code has run",
        suite: GENERATIONS,
    },
];
