//! Seeks the plugins of new specs in the folder: a plugin file and the spec that needs it may be written within milliseconds.
//!
//! A scan can take long (it reads and hashes files, perhaps on a network file system), and gates have to act at once: so it runs
//! where generations are prepared. Until it has ended, a spec without its plugin is neither refused nor served.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use sluicegate_config::HandlerSpec;
use sluicegate_pool::pool::relock;

use super::managed::PendingChange;
use super::registry::{Inner, Registry};

/// How long a new snapshot waits for a plugin file that was written just before it.
const NEW_PLUGIN_TIMEOUT: Duration = Duration::from_millis(500);

/// A scan for missing plugins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Lookup {
    /// None is needed: what is missing is refused.
    #[default]
    Done,
    Wanted,
    Running,
}

impl Registry {
    /// Converges after a new snapshot; what lacks its plugin is sought before it is refused.
    pub(super) fn converge_seeking(&self, inner: &mut Inner) -> bool {
        let before = std::mem::replace(&mut inner.lookup, Lookup::Wanted);
        let wanted = self.converge(inner);
        let is_sought = |next: &PendingChange| matches!(next, PendingChange::Sought);
        if !inner.live.values().any(|live| is_sought(&live.next)) {
            inner.lookup = match before {
                Lookup::Running => Lookup::Running,
                Lookup::Wanted | Lookup::Done => Lookup::Done,
            };
        }
        wanted
    }

    /// Scans the folder if plugins are sought there, and serves or refuses their specs; `false` if none are.
    pub(super) fn seek_missing(&self) -> bool {
        let sought: Vec<Arc<HandlerSpec>> = {
            let mut inner = relock(&self.inner);
            if inner.lookup != Lookup::Wanted {
                return false;
            }
            inner.lookup = Lookup::Running;
            let sought = inner.live.iter().filter_map(|(name, live)| {
                let is_sought = matches!(live.next, PendingChange::Sought);
                inner.snapshot.handlers.get(name).filter(|_| is_sought)
            });
            sought.cloned().collect()
        };
        let ending = Ending(&self.inner);
        self.catalogue
            .scan_settled(NEW_PLUGIN_TIMEOUT, |catalogue| {
                let is_found =
                    |spec: &Arc<HandlerSpec>| catalogue.find(&spec.plugin, &spec.version).is_ok();
                sought.iter().all(is_found)
            });
        drop(ending);
        let mut inner = relock(&self.inner);
        self.converge(&mut inner);
        true
    }
}

/// Ends a running scan, also by a panic; one that is wanted since stays wanted.
struct Ending<'r>(&'r Mutex<Inner>);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let mut inner = relock(self.0);
        if inner.lookup == Lookup::Running {
            inner.lookup = Lookup::Done;
        }
    }
}
