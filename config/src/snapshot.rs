//! Every handler's spec at one revision of its source: what is meant to run.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::document::ChoiceValue;
use crate::problem::Problems;
use crate::spec::HandlerSpec;

/// Every handler's spec at one revision of its source.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// The source's number for it; a lower one is never applied after a higher one (G10).
    pub revision: u64,
    /// Specs by handler name. Where the newest text of one is refused, its last good version stands here; its gate is shut
    /// if that text says so.
    pub handlers: BTreeMap<String, Arc<HandlerSpec>>,
    /// What the source holds but is not applied, and why; sorted by origin.
    pub rejections: Vec<Rejection>,
    /// What the source says of the service itself.
    pub switches: RuntimeSettings,
}

/// What a store's keys switch in the service itself; a source without such keys leaves the defaults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RuntimeSettings {
    /// Write a sampled, rate-limited log line a record.
    pub record_log: bool,
    /// How fine metrics are.
    pub metrics: MetricsLevel,
}

/// How fine metrics are: each level has what the one before has.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum MetricsLevel {
    /// Version, start and snapshot only.
    Off,
    /// The service as a whole and its topics.
    Basic,
    /// Also each handler.
    Handler,
    /// Also each partition and the Kafka clients' statistics.
    #[default]
    Partition,
}

impl ChoiceValue for MetricsLevel {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("off", Self::Off),
        ("basic", Self::Basic),
        ("handler", Self::Handler),
        ("partition", Self::Partition),
    ];
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
    /// It changes nothing.
    Ignored,
}

impl Rejection {
    /// The refusal of a text that declares at most one handler, which runs on as it did or does not run.
    pub(crate) fn of_one(
        origin: String,
        handler: Option<&str>,
        runs_on: bool,
        problems: Problems,
    ) -> Self {
        Self {
            origin,
            handlers: handler.into_iter().map(str::to_owned).collect(),
            effect: match runs_on {
                true => RejectionEffect::LastGoodSpec,
                false => RejectionEffect::NotRunning,
            },
            problems,
        }
    }
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
            switches: RuntimeSettings::default(),
        }
    }
}
