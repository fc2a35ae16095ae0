//! A staged rollout, driven from an operator's terminal: wave by wave, with a rollback at the first refusal.

use std::path::Path;
use std::time::{Duration, Instant};

use sluicegate_config::control::{ControlKey, MemberReport, Rollout};
use sluicegate_config::document::{format_duration, parse_duration};
use sluicegate_store::{Expected, KeyVersion, Store};

use super::backend::name_of_spec;
use super::keys::{check_revision, expected, in_progress, is_conflict};
use super::members::handler_state;
use super::{FleetError, MemberState, MemberStatus, WaitResult, Wave, await_members, parse_waves};

/// Poll interval of the member reports during the health wait.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Settings of a rollout.
#[derive(Clone, Debug)]
pub struct RolloutSettings {
    /// Its waves; the last one contains all members.
    pub waves: Vec<Wave>,
    /// How long a wave must stay healthy before the next one.
    pub wait_healthy: Duration,
    /// Timeout for a wave to apply the revision.
    pub timeout: Duration,
    /// The operator, for messages.
    pub by: String,
}

/// Progress of a rollout.
#[derive(Clone, Debug)]
pub enum RolloutStep<'s> {
    /// A wave begins.
    Wave {
        /// Its number, from 1.
        number: usize,
        /// The number of waves.
        of: usize,
        /// The members that have the new revision from now on.
        members: &'s [String],
    },
    /// The state of the wave's members changed.
    Members(&'s WaitResult),
    /// The wave has applied the revision; it must stay healthy for this long.
    AwaitingHealthy(Duration),
    /// The wave failed: the earlier revision is restored.
    Restoring(&'s [String]),
    /// Every wave is healthy: the spec is written for all members.
    Finishing,
}

/// How a rollout ended.
#[derive(Clone, Debug)]
pub enum RolloutResult {
    /// All members have the spec.
    Done {
        /// The revision of the spec.
        revision: u64,
        /// The members that have it; members that joined during the rollout may not yet.
        awaited: WaitResult,
    },
    /// It was ended, and the earlier revision is active again.
    Restored {
        /// Why.
        reasons: Vec<String>,
        /// The members that run the earlier revision again.
        awaited: WaitResult,
    },
}

/// Starts a rollout of the spec `text`, provided that the handler's spec is still at `expect`, if given, and drives it
/// to its end.
///
/// # Errors
/// [`FleetError`]; a rollout that was started then stays as it is, to be resumed or aborted.
pub fn begin(
    store: &dyn Store,
    text: &str,
    file: Option<&Path>,
    expect: Option<u64>,
    settings: &RolloutSettings,
    notify: &mut dyn FnMut(RolloutStep<'_>),
) -> Result<RolloutResult, FleetError> {
    let name = name_of_spec(text, file)?;
    let spec = ControlKey::spec(&name)?;
    let found = store.list()?;
    let found = found.get(&spec).map_or(0, |entry| entry.stamp.revision);
    check_revision(store, &spec, expect, found)?;
    if store.members()?.is_empty() {
        return Err(FleetError::NoMembers);
    }
    let rollout = Rollout {
        id: format!("{}-{:08x}", std::process::id(), fastrand::u32(..)),
        by: settings.by.clone(),
        started: jiff::Timestamp::now().to_string(),
        spec: Some(text.to_owned()),
        waves: settings.waves.iter().map(ToString::to_string).collect(),
        wait_healthy: Some(format_duration(settings.wait_healthy)),
        base_revision: found,
        ..Rollout::default()
    };
    let key = ControlKey::rollout(&name)?;
    let stamp = match store.write(&key, Some(&rollout.to_json()), Expected::Absent) {
        Ok(stamp) => stamp,
        Err(error) if is_conflict(&error) => {
            let tree = store.list()?;
            return Err(match tree.get(&key) {
                Some(entry) => in_progress(&name, entry),
                None => error.into(),
            });
        }
        Err(error) => return Err(error.into()),
    };
    let mut driver = RolloutDriver {
        store,
        name,
        rollout,
        stamp,
        timeout: settings.timeout,
        notify,
    };
    driver.run()
}

/// Continues a rollout that another terminal started.
///
/// # Errors
/// [`FleetError::NotInProgress`], or as for [`begin`].
pub fn resume(
    store: &dyn Store,
    name: &str,
    timeout: Duration,
    notify: &mut dyn FnMut(RolloutStep<'_>),
) -> Result<RolloutResult, FleetError> {
    RolloutDriver::of(store, name, timeout, notify)?.run()
}

/// Aborts a rollout in progress and restores the earlier revision.
///
/// # Errors
/// [`FleetError::NotInProgress`], or as for [`begin`].
pub fn abort(
    store: &dyn Store,
    name: &str,
    timeout: Duration,
    notify: &mut dyn FnMut(RolloutStep<'_>),
) -> Result<RolloutResult, FleetError> {
    RolloutDriver::of(store, name, timeout, notify)?
        .restore(vec!["aborted by an operator".to_owned()])
}

/// A rollout under way.
struct RolloutDriver<'d> {
    store: &'d dyn Store,
    name: String,
    rollout: Rollout,
    stamp: KeyVersion,
    timeout: Duration,
    notify: &'d mut dyn FnMut(RolloutStep<'_>),
}

impl<'d> RolloutDriver<'d> {
    /// Loads the rollout from the store.
    fn of(
        store: &'d dyn Store,
        name: &str,
        timeout: Duration,
        notify: &'d mut dyn FnMut(RolloutStep<'_>),
    ) -> Result<Self, FleetError> {
        let tree = store.list()?;
        let Some(entry) = tree.get(&ControlKey::rollout(name)?) else {
            return Err(FleetError::NotInProgress {
                name: name.to_owned(),
            });
        };
        let rollout = Rollout::from_json(&entry.value).map_err(|error| FleetError::Overtaken {
            name: name.to_owned(),
            what: error.into(),
        })?;
        Ok(Self {
            store,
            name: name.to_owned(),
            rollout,
            stamp: entry.stamp,
            timeout,
            notify,
        })
    }

    fn run(&mut self) -> Result<RolloutResult, FleetError> {
        let waves = parse_waves(&self.rollout.waves.join(","));
        let waves = waves.map_err(|error| self.overtaken(error))?;
        let healthy = self.rollout.wait_healthy.as_deref().unwrap_or("0s");
        let healthy = parse_duration(healthy).map_err(|error| self.overtaken(error))?;
        for number in self.rollout.wave..waves.len() {
            self.extend_wave(number, &waves)?;
            let members = self.rollout.members.clone();
            let notify = &mut *self.notify;
            let awaited = await_members(
                self.store,
                &self.name,
                self.stamp.revision,
                Some(&members),
                Instant::now() + self.timeout,
                &mut |awaited| notify(RolloutStep::Members(awaited)),
            )?;
            if !awaited.converged {
                return self.restore(awaited.members.iter().filter_map(reason).collect());
            }
            (self.notify)(RolloutStep::AwaitingHealthy(healthy));
            let reasons = self.await_healthy(&members, healthy)?;
            if !reasons.is_empty() {
                return self.restore(reasons);
            }
        }
        self.finish()
    }

    /// Extends the rollout to the size of the wave; members that have the new revision keep it.
    fn extend_wave(&mut self, number: usize, waves: &[Wave]) -> Result<(), FleetError> {
        let mut alive: Vec<String> = self
            .store
            .members()?
            .into_iter()
            .map(|(id, _)| id)
            .collect();
        alive.sort();
        if alive.is_empty() {
            return Err(FleetError::NoMembers);
        }
        let rollout = &mut self.rollout;
        rollout.wave = number;
        rollout.members.retain(|id| alive.contains(id));
        let size = waves[number].size(alive.len());
        for id in alive {
            if rollout.members.len() < size && !rollout.members.contains(&id) {
                rollout.members.push(id);
            }
        }
        rollout.members.sort();
        (self.notify)(RolloutStep::Wave {
            number: number + 1,
            of: waves.len(),
            members: &self.rollout.members,
        });
        let value = self.rollout.to_json();
        self.stamp = self.write(Some(&value))?;
        Ok(())
    }

    /// Collects problems of the members for the duration `time`; returns at the first ones.
    fn await_healthy(&self, members: &[String], time: Duration) -> Result<Vec<String>, FleetError> {
        let until = Instant::now() + time;
        loop {
            match self.store.members() {
                Ok(alive) => {
                    let reasons = self.problems_of(members, &alive);
                    if !reasons.is_empty() {
                        return Ok(reasons);
                    }
                }
                // Members continue without the store, and so does the wait.
                Err(error) if error.is_retryable() => {}
                Err(error) => return Err(error.into()),
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Vec::new());
            }
            std::thread::sleep(left.min(POLL_INTERVAL));
        }
    }

    fn problems_of(&self, members: &[String], alive: &[(String, Vec<u8>)]) -> Vec<String> {
        let mut reasons = Vec::new();
        for id in members {
            let report = alive.iter().find(|(alive, _)| alive == id);
            let state = match report.map(|(_, report)| MemberReport::from_json(report)) {
                None => MemberState::Gone,
                Some(Err(error)) => MemberState::Unreadable {
                    reason: error.to_string(),
                },
                Some(Ok(report)) => handler_state(&report, &self.name),
            };
            let member = id.clone();
            reasons.extend(reason(&MemberStatus { member, state }));
        }
        reasons
    }

    /// Writes the spec for all members and ends the rollout.
    fn finish(&mut self) -> Result<RolloutResult, FleetError> {
        (self.notify)(RolloutStep::Finishing);
        let key = ControlKey::spec(&self.name)?;
        let tree = self.store.list()?;
        let there = tree.get(&key);
        let text = self.rollout.spec.clone().unwrap_or_default();
        let is_written = there.is_some_and(|entry| &*entry.value == text.as_bytes());
        let mut revision = there.map_or(0, |entry| entry.stamp.revision);
        if !is_written {
            let written = match revision == self.rollout.base_revision {
                true => self
                    .store
                    .write(&key, Some(text.as_bytes()), expected(there)),
                false => Err(sluicegate_store::StoreError::Conflict {
                    place: self.store.locate(&key),
                }),
            };
            match written {
                Ok(stamp) => revision = stamp.revision,
                Err(error) if is_conflict(&error) => {
                    let place = self.store.locate(&key);
                    return self.restore(vec![format!(
                        "{place} was changed concurrently; check it and roll out again"
                    )]);
                }
                Err(error) => return Err(error.into()),
            }
        }
        let stamp = self.write(None)?;
        let revision = revision.max(stamp.revision);
        let notify = &mut *self.notify;
        let awaited = await_members(
            self.store,
            &self.name,
            revision,
            None,
            Instant::now() + self.timeout,
            &mut |awaited| notify(RolloutStep::Members(awaited)),
        )?;
        Ok(RolloutResult::Done { revision, awaited })
    }

    /// Deletes the rollout, which restores the earlier revision, and waits for the members that had the new one.
    fn restore(&mut self, reasons: Vec<String>) -> Result<RolloutResult, FleetError> {
        (self.notify)(RolloutStep::Restoring(&reasons));
        let stamp = self.write(None)?;
        let alive = self.store.members()?;
        let had: Vec<String> = alive
            .into_iter()
            .map(|(id, _)| id)
            .filter(|id| self.rollout.is_for(id))
            .collect();
        if had.is_empty() {
            let awaited = WaitResult::default();
            return Ok(RolloutResult::Restored { reasons, awaited });
        }
        let notify = &mut *self.notify;
        let awaited = await_members(
            self.store,
            &self.name,
            stamp.revision,
            Some(&had),
            Instant::now() + self.timeout,
            &mut |awaited| notify(RolloutStep::Members(awaited)),
        )?;
        Ok(RolloutResult::Restored { reasons, awaited })
    }

    /// Writes the rollout's key, unless another writer has.
    fn write(&self, value: Option<&[u8]>) -> Result<KeyVersion, FleetError> {
        let key = ControlKey::rollout(&self.name)?;
        let written = self.store.write(&key, value, Expected::At(self.stamp));
        written.map_err(|error| match is_conflict(&error) {
            true => self.overtaken("another terminal is driving it, or ended it"),
            false => error.into(),
        })
    }

    fn overtaken(&self, what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> FleetError {
        FleetError::Overtaken {
            name: self.name.clone(),
            what: what.into(),
        }
    }
}

/// Why a member's state blocks the rollout; `None` when it is healthy.
fn reason(status: &MemberStatus) -> Option<String> {
    let member = &status.member;
    match &status.state {
        MemberState::Applied => None,
        MemberState::Refused { reasons } => {
            Some(format!("{member} refuses it: {}", reasons.join("; ")))
        }
        MemberState::Behind { applied } => Some(format!(
            "{member} does not answer; it has revision {applied}"
        )),
        MemberState::Preparing => Some(format!("{member} is still preparing it")),
        MemberState::Unreadable { reason } => Some(format!("{member}: {reason}")),
        MemberState::Gone => Some(format!(
            "{member} is gone: it has stopped, or is cut off from the store"
        )),
    }
}
