//! Names of topics that are never freed: a call that hangs may read one after the pump that made it is gone.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// Every topic that this process was ever assigned, once: so much memory is given up.
static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());

/// The name, kept for as long as the process lives.
pub(super) fn kept(topic: &str) -> &'static str {
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(&name) = names.get(topic) {
        return name;
    }
    let name: &'static str = Box::leak(topic.into());
    names.insert(name);
    name
}
