//! Waiting for members: who has applied a revision, who refuses, who does not answer.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::FleetError;
use crate::member::MemberReport;
use crate::store::Store;

/// How often members are asked.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Where a member stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum MemberState {
    /// It has applied the revision, and the handler is well there.
    Applied,
    /// It has applied the revision, and refuses the handler or cannot run it.
    Refused {
        /// Why, a line each.
        reasons: Vec<String>,
    },
    /// It is alive, and has not applied the revision.
    Behind {
        /// What it has applied.
        applied: u64,
    },
    /// Its report cannot be read.
    Unreadable {
        /// Why.
        reason: String,
    },
    /// It was there, and its key is gone: it has stopped, or is cut off.
    Gone,
}

/// A member and where it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Its id.
    pub member: String,
    /// Where it stands.
    #[serde(flatten)]
    pub state: MemberState,
}

/// What came of waiting.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Awaited {
    /// Whether every member has applied it and none refuses.
    pub everywhere: bool,
    /// Each member, by id.
    pub members: Vec<Verdict>,
}

impl Awaited {
    /// Those that refuse.
    pub fn refusals(&self) -> impl Iterator<Item = &Verdict> {
        let refuses = |verdict: &&Verdict| matches!(verdict.state, MemberState::Refused { .. });
        self.members.iter().filter(refuses)
    }

    /// Those that did not answer.
    pub fn missing(&self) -> impl Iterator<Item = &Verdict> {
        self.members.iter().filter(|verdict| {
            !matches!(
                verdict.state,
                MemberState::Refused { .. } | MemberState::Applied
            )
        })
    }
}

/// Waits until every member (of `only`, if given) has applied `revision`, or `deadline`. A member that was seen and goes
/// away counts as one that does not answer: it may still run what was before. `tell` hears each new state of the fleet.
///
/// # Errors
/// [`FleetError::Store`] when the store refuses; one that is away is asked again until the deadline.
pub fn await_members(
    store: &dyn Store,
    handler: &str,
    revision: u64,
    only: Option<&[String]>,
    deadline: Instant,
    tell: &mut dyn FnMut(&Awaited),
) -> Result<Awaited, FleetError> {
    let mut seen: BTreeMap<String, MemberState> = BTreeMap::new();
    for member in only.unwrap_or_default() {
        seen.insert(member.clone(), MemberState::Gone);
    }
    let mut told = None;
    loop {
        match store.members() {
            Ok(members) => look(&mut seen, members, handler, revision, only),
            Err(error) if error.is_retryable() && Instant::now() < deadline => {}
            Err(error) => return Err(error.into()),
        }
        let now = awaited(&seen);
        if told.as_ref() != Some(&now) {
            tell(&now);
            told = Some(now.clone());
        }
        // Whoever has not applied yet may still refuse, so all are heard before a refusal ends it.
        let settled = !now.members.is_empty() && now.missing().next().is_none();
        if settled || Instant::now() >= deadline {
            return Ok(now);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn look(
    seen: &mut BTreeMap<String, MemberState>,
    members: Vec<(String, Vec<u8>)>,
    handler: &str,
    revision: u64,
    only: Option<&[String]>,
) {
    for state in seen.values_mut() {
        *state = MemberState::Gone;
    }
    for (id, report) in members {
        if only.is_none_or(|only| only.contains(&id)) {
            seen.insert(id, state(&report, handler, revision));
        }
    }
}

fn state(report: &[u8], handler: &str, revision: u64) -> MemberState {
    let report = match MemberReport::from_json(report) {
        Ok(report) => report,
        Err(reason) => return MemberState::Unreadable { reason },
    };
    if report.applied_revision < revision {
        return MemberState::Behind {
            applied: report.applied_revision,
        };
    }
    let reasons = complaints(&report, handler);
    match reasons.is_empty() {
        true => MemberState::Applied,
        false => MemberState::Refused { reasons },
    }
}

/// What a member says against a handler, a line each.
pub(super) fn complaints(report: &MemberReport, handler: &str) -> Vec<String> {
    let of_handlers = report
        .handlers
        .iter()
        .filter(|listed| listed.name == handler);
    let of_handlers = of_handlers.map(|listed| match listed.reason.is_empty() {
        true => listed.state.clone(),
        false => format!("{}: {}", listed.state, listed.reason),
    });
    let of_keys = report
        .rejections
        .iter()
        .filter(|rejection| rejection.handlers.iter().any(|name| name == handler));
    let of_keys = of_keys.map(|rejection| match &rejection.path {
        Some(path) => format!("{}: {path}: {}", rejection.key, rejection.reason),
        None => format!("{}: {}", rejection.key, rejection.reason),
    });
    of_handlers.chain(of_keys).collect()
}

fn awaited(seen: &BTreeMap<String, MemberState>) -> Awaited {
    let members: Vec<Verdict> = seen
        .iter()
        .map(|(member, state)| Verdict {
            member: member.clone(),
            state: state.clone(),
        })
        .collect();
    let applied = |verdict: &Verdict| verdict.state == MemberState::Applied;
    Awaited {
        everywhere: !members.is_empty() && members.iter().all(applied),
        members,
    }
}
