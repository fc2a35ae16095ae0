//! Every handler's spec at one revision of its source: what is meant to run.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use crate::problem::Problems;
use crate::spec::HandlerSpec;

/// Every handler's spec at one revision of its source.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// The source's number for it; a lower one is never applied after a higher one (G10).
    pub revision: u64,
    /// Specs by handler name. Where the newest text of one is bad, its last good version stands here.
    pub handlers: BTreeMap<String, Arc<HandlerSpec>>,
    /// What the source holds but is not applied, and why; sorted by origin.
    pub rejections: Vec<Rejection>,
}

/// A text that is refused, and what runs in its stead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rejection {
    /// The file or key.
    pub origin: String,
    /// Handlers that it concerns, as far as they are known.
    pub handlers: Vec<String>,
    /// What stays in effect.
    pub effect: RejectionEffect,
    /// What is wrong.
    pub problems: Problems,
}

/// What stays in effect while a text is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RejectionEffect {
    /// The last good version of its handler runs on.
    LastGoodSpec,
    /// There was no good version: the handler does not run.
    NotRunning,
    /// The texts contradict each other, so the whole last good snapshot runs on.
    LastGoodSnapshot,
}

impl Snapshot {
    /// A snapshot of `specs` without rejections. A later spec takes the place of an earlier one of the same name.
    pub fn new(revision: u64, specs: impl IntoIterator<Item = HandlerSpec>) -> Self {
        Self {
            revision,
            handlers: specs
                .into_iter()
                .map(|spec| (spec.name.clone(), Arc::new(spec)))
                .collect(),
            rejections: Vec::new(),
        }
    }
}
