//! Snapshots: every handler's spec at one revision of its source, the desired state of the service.
//!
//! A snapshot is complete and valid. A rejected text does not remove its handler: the last good version takes its
//! place, with the gate closed if the rejected text closes it, and the rejection is listed (ADR 0014). A handler that
//! is missing was therefore deleted, or was never valid, and the service can drain it without asking why. If a source
//! left out what it cannot read, a typing mistake would remove a handler, and its records would pass by and be
//! committed (G1).
//!
//! The service applies snapshots without knowing their source (ADR 0005). Specs are shared, and an unchanged one
//! usually keeps its `Arc`, which makes the comparison of two snapshots with thousands of handlers cheap.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::document::ChoiceValue;
use crate::problem::Problems;
use crate::spec::HandlerSpec;

/// The desired state: every handler's spec at one revision of its source.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// The source's revision. Revisions are applied in increasing order only (G10).
    pub revision: u64,
    /// Specs by handler name. When a handler's newest text is rejected, its last good version is listed, with the gate closed if
    /// the rejected text closes it.
    pub handlers: BTreeMap<String, Arc<HandlerSpec>>,
    /// Texts of the source that are not applied, with their problems; sorted by origin.
    pub rejections: Vec<Rejection>,
    /// Settings of the service itself.
    pub switches: RuntimeSettings,
}

/// Service-wide settings from a store's keys; sources without such keys keep the defaults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RuntimeSettings {
    /// Log records, sampled and rate-limited.
    pub record_log: bool,
    /// Metrics granularity.
    pub metrics: MetricsLevel,
}

/// Metrics granularity. Each level includes the one before it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum MetricsLevel {
    /// Version, start time and snapshot only.
    Off,
    /// Also the service as a whole and its topics.
    Basic,
    /// Also every handler.
    Handler,
    /// Also every partition and the Kafka clients' statistics.
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

/// A rejected text and its effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rejection {
    /// The file or key.
    pub origin: String,
    /// Affected handlers, as far as they are known.
    pub handlers: Vec<String>,
    /// What stays active instead.
    pub effect: RejectionEffect,
    /// Why the text was rejected.
    pub problems: Problems,
}

/// What stays active while a text is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RejectionEffect {
    /// The handler's last good version stays active.
    LastGoodSpec,
    /// The handler has no good version and does not run.
    NotRunning,
    /// No effect on handlers.
    Ignored,
}

impl Rejection {
    /// A rejection of a text for at most one handler, which keeps its last good version (`runs_on`) or does not run.
    pub fn of_one(
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
    /// A snapshot of `specs` without rejections. Of specs with the same name, the last wins.
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
