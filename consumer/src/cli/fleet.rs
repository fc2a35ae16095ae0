//! `sluicegate handlers apply | delete | history | rollout`, and `on` and `off` with a config: these write directly to the
//! control backend of the service config, whether the service runs or not.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use sluicegate_admin::logging;
use sluicegate_config::control::{ControlKey, host};
use sluicegate_config::escape::escape;
use sluicegate_store::Store;
use sluicegate_sync::fleet as operate;
use sluicegate_sync::fleet::{
    FleetError, GateKeyPolicy, MemberState, RolloutResult, RolloutSettings, RolloutStep,
    SpecBackend, WaitResult, Wave, WaveError, parse_waves,
};

use super::demo::duration;
use super::failure::Failure;
use super::output::Output;
use super::table::Table;
use super::validate::ConfigFile;

/// Arguments that make a command wait for the fleet.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Waiting {
    /// Wait until every member has applied it; reports members that refuse it or do not answer
    #[arg(long)]
    wait: bool,
    /// Maximum wait; for a rollout in waves, per wave
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "30s")]
    timeout: Duration,
}

impl Waiting {
    /// Whether `--wait` is set.
    pub(super) fn is_wanted(&self) -> bool {
        self.wait
    }

    /// With `--wait`, the store whose members are waited for; `lacking` names what a folder lacks.
    fn store<'b>(
        &self,
        backend: &'b SpecBackend,
        lacking: &'static str,
    ) -> Result<Option<&'b dyn Store>, Failure> {
        let store = self.wait.then(|| backend.store(lacking));
        store.transpose().map_err(failure)
    }
}

/// Arguments of `apply`.
#[derive(clap::Args, Debug)]
pub(super) struct Apply {
    /// The spec, YAML or JSON
    #[arg(value_name = "FILE")]
    spec: PathBuf,
    #[command(flatten)]
    config: ConfigFile,
    /// Write only if the handler's spec is still at this store revision; 0 means it must not exist
    #[arg(long, value_name = "REVISION")]
    expect: Option<u64>,
    #[command(flatten)]
    waiting: Waiting,
    /// Roll out in waves, such as 1,25%,100%: each wave waits until its members have applied the spec
    #[arg(long, value_name = "SIZES", value_parser = waves)]
    waves: Option<Waves>,
    /// How long a wave must stay healthy before the next one starts
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10s", requires = "waves")]
    wait_healthy: Duration,
    #[command(flatten)]
    output: Output,
}

/// Wave sizes, parsed from one argument.
#[derive(Clone, Debug)]
struct Waves(Vec<Wave>);

fn waves(text: &str) -> Result<Waves, WaveError> {
    parse_waves(text).map(Waves)
}

/// Arguments of `delete`.
#[derive(clap::Args, Debug)]
pub(super) struct Delete {
    /// The handler's name
    name: String,
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    output: Output,
}

/// Arguments of `history`.
#[derive(clap::Args, Debug)]
pub(super) struct History {
    /// The handler's name
    name: String,
    /// Key to show
    #[arg(long, value_enum, default_value = "spec")]
    key: Key,
    /// Maximum number of values to print
    #[arg(long, value_name = "N", default_value = "20")]
    limit: usize,
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Key {
    /// The spec
    Spec,
    /// The gate
    Enabled,
    /// The handler's own config
    Config,
    /// The canary (not implemented yet: services reject it)
    Canary,
}

/// Arguments of `rollout`.
#[derive(clap::Args, Debug)]
pub(super) struct Rollout {
    /// The handler's name
    name: String,
    /// Resume the rollout at its current wave
    #[arg(long, required_unless_present = "abort", conflicts_with = "abort")]
    resume: bool,
    /// Abort the rollout and restore the earlier spec
    #[arg(long)]
    abort: bool,
    #[command(flatten)]
    config: ConfigFile,
    /// Maximum wait per wave
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "30s")]
    timeout: Duration,
    #[command(flatten)]
    output: Output,
}

fn open_backend(config: &ConfigFile) -> Result<SpecBackend, Failure> {
    let config = config.load().map_err(Failure::problems)?;
    SpecBackend::open(&config.handlers).map_err(Failure::bad_input)
}

fn failure(error: FleetError) -> Failure {
    match error {
        FleetError::Spec(problems) => Failure::problems(problems),
        error @ (FleetError::Name(_) | FleetError::NeedsStore { .. }) => Failure::bad_input(error),
        error => Failure::other(error),
    }
}

/// A completed write, and which members have applied it.
#[derive(Serialize)]
struct Outcome<W: Serialize> {
    #[serde(flatten)]
    done: W,
    #[serde(skip_serializing_if = "Option::is_none")]
    awaited: Option<WaitResult>,
}

/// A completed gate write.
#[derive(Serialize)]
struct GateDone<'n> {
    name: &'n str,
    gate: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<u64>,
}

/// Prints the completed write and, with the store of `--wait`, waits for the members; fails unless all of them have applied it.
fn finish<W: Serialize>(
    done: W,
    summary: &str,
    of: (Option<&dyn Store>, &str, u64),
    waiting: &Waiting,
    output: Output,
) -> Result<(), Failure> {
    let (store, name, revision) = of;
    let Some(store) = store else {
        let awaited = None;
        return output.print(&Outcome { done, awaited }, |_| summary.to_owned());
    };
    let deadline = Instant::now() + waiting.timeout;
    let awaited = operate::await_members(store, name, revision, None, deadline, &mut |_| {})
        .map_err(failure)?;
    print_members(done, summary, name, awaited, waiting, output)
}

/// Prints the completed write and the members' states; fails unless all of them have applied it.
fn print_members<W: Serialize>(
    done: W,
    summary: &str,
    name: &str,
    awaited: WaitResult,
    waiting: &Waiting,
    output: Output,
) -> Result<(), Failure> {
    let failed = (!awaited.converged).then(|| not_converged(name, &awaited, waiting.timeout));
    let outcome = Outcome {
        done,
        awaited: Some(awaited),
    };
    output.print(&outcome, |outcome| {
        let members = outcome.awaited.as_ref().map(members).unwrap_or_default();
        format!("{summary}\n{members}")
    })?;
    failed.map_or(Ok(()), |failed| Err(Failure::other(failed)))
}

fn not_converged(name: &str, awaited: &WaitResult, timeout: Duration) -> String {
    let seconds = timeout.as_secs_f64();
    if awaited.members.is_empty() {
        return format!(
            "it is written, but after {seconds} s no live member could apply it; start the service"
        );
    }
    let whys = awaited
        .members
        .iter()
        .filter(|status| status.state != MemberState::Applied)
        .map(|status| format!("{} {}", status.member, why(&status.state)));
    let whys: Vec<String> = whys.collect();
    format!(
        "`{name}` is written, but not in effect on every member: {}; see `sluicegate handlers show {name}` there",
        whys.join("; ")
    )
}

fn why(state: &MemberState) -> String {
    match state {
        MemberState::Applied => "has applied it".to_owned(),
        MemberState::Refused { reasons } => {
            format!("refuses it: {}", escape(&reasons.join("; ")))
        }
        MemberState::Behind { applied } => format!("does not answer (it has revision {applied})"),
        MemberState::Preparing => "is still preparing it".to_owned(),
        MemberState::Unreadable { reason } => {
            format!("has an unreadable report: {}", escape(reason))
        }
        MemberState::Gone => "is gone: it has stopped, or is cut off from the store".to_owned(),
    }
}

fn members(awaited: &WaitResult) -> String {
    let mut table = Table::new(&["MEMBER", "STATE"]);
    for status in &awaited.members {
        table.row([status.member.clone(), why(&status.state)]);
    }
    table.render()
}

/// `on` and `off`, written directly to the control backend.
pub(super) fn gate(
    name: &str,
    open: bool,
    config: &ConfigFile,
    waiting: &Waiting,
    output: Output,
) -> Result<(), Failure> {
    let backend = open_backend(config)?;
    let store = waiting.store(&backend, "members to wait for")?;
    let written = backend.write_gate(name, open, GateKeyPolicy::Always);
    let written = written.map_err(failure)?;
    let gate = if open { "open" } else { "closed" };
    let revision = written.revision;
    let done = GateDone {
        name,
        gate,
        revision,
    };
    let Some((store, revision)) = store.zip(revision) else {
        // Without `--wait`, no service is asked whether the change is active.
        let place = written.origin;
        let awaited = None;
        return output.print(&Outcome { done, awaited }, |_| {
            format!(
                "gate of `{name}` is written as {gate} to {place}; running services will apply it"
            )
        });
    };
    let deadline = Instant::now() + waiting.timeout;
    let awaited = match open {
        true => operate::await_members(store, name, revision, None, deadline, &mut |_| {}),
        false => operate::await_closed(store, name, revision, deadline),
    };
    let awaited = awaited.map_err(failure)?;
    let summary = match awaited.converged {
        true => format!("gate of `{name}` is {gate}"),
        false => format!("gate of `{name}` is written as {gate}"),
    };
    print_members(done, &summary, name, awaited, waiting, output)
}

/// `apply FILE`.
pub(super) fn apply(apply: &Apply) -> Result<(), Failure> {
    let file = &apply.spec;
    let text = std::fs::read_to_string(file).map_err(|error| {
        Failure::bad_input(format!(
            "the spec {} cannot be read: {error}",
            file.display()
        ))
    })?;
    let backend = open_backend(&apply.config)?;
    if let Some(Waves(waves)) = &apply.waves {
        let store = backend.store("members to roll out to").map_err(failure)?;
        return staged(store, &text, apply, waves);
    }
    let waiting = &apply.waiting;
    let store = waiting.store(&backend, "members to wait for and no revisions")?;
    let done = backend
        .apply(&text, Some(file), apply.expect)
        .map_err(failure)?;
    let (summary, name, revision) = (written(&done), done.name.clone(), done.revision);
    let of = (store, name.as_str(), revision);
    finish(done, &summary, of, waiting, apply.output)
}

fn written(done: &operate::SpecWrite) -> String {
    let mut summary = match done.changed {
        true => format!("spec of `{}` is written to {}", done.name, done.place),
        false => format!("spec of `{}` is already in {}", done.name, done.place),
    };
    if done.revision > 0 {
        summary.push_str(&format!(", revision {}", done.revision));
    }
    if !done.overridden_by.is_empty() {
        let keys = done.overridden_by.join(" and ");
        summary.push_str(&format!("; overridden in part by {keys}"));
    }
    summary
}

/// `delete NAME`.
pub(super) fn delete(delete: &Delete) -> Result<(), Failure> {
    let backend = open_backend(&delete.config)?;
    let store = delete.waiting.store(&backend, "members to wait for")?;
    let done = backend.delete(&delete.name).map_err(failure)?;
    let summary = format!("deleted {}", done.places.join(", "));
    let of = (store, delete.name.as_str(), done.revision);
    finish(done, &summary, of, &delete.waiting, delete.output)
}

/// An earlier value of a key, for output.
#[derive(Serialize)]
struct Earlier {
    revision: u64,
    /// `None` if the key was deleted.
    value: Option<String>,
}

/// `history NAME`.
pub(super) fn history(history: &History) -> Result<(), Failure> {
    let backend = open_backend(&history.config)?;
    let store = backend.store("earlier values").map_err(failure)?;
    let name = &history.name;
    let key = match history.key {
        Key::Spec => ControlKey::spec(name),
        Key::Enabled => ControlKey::enabled(name),
        Key::Config => ControlKey::config(name),
        Key::Canary => ControlKey::canary(name),
    };
    let key = key.map_err(Failure::bad_input)?;
    let past = store.history(&key, history.limit).map_err(Failure::other)?;
    if past.is_empty() {
        let place = store.locate(&key);
        return Err(Failure::other(format!("{place} has no values")));
    }
    let past: Vec<Earlier> = past
        .into_iter()
        .map(|past| Earlier {
            revision: past.revision,
            value: past
                .value
                .map(|value| String::from_utf8_lossy(&value).into_owned()),
        })
        .collect();
    history.output.print(&past, |past| {
        let shown = past.iter().map(|earlier| {
            let value = earlier.value.as_deref().unwrap_or("(deleted)").trim_end();
            format!("revision {}\n{value}\n", earlier.revision)
        });
        shown.collect::<Vec<_>>().join("\n")
    })
}

/// `apply FILE --waves …`.
fn staged(store: &dyn Store, text: &str, apply: &Apply, waves: &[Wave]) -> Result<(), Failure> {
    let user = std::env::var("USER").unwrap_or_else(|_| "unknown".to_owned());
    let settings = RolloutSettings {
        waves: waves.to_vec(),
        wait_healthy: apply.wait_healthy,
        timeout: apply.waiting.timeout,
        by: format!("{user}@{}", host()),
    };
    let file: &Path = &apply.spec;
    let ended = operate::begin(
        store,
        text,
        Some(file),
        apply.expect,
        &settings,
        &mut report_step,
    );
    print_result(ended.map_err(failure)?, apply.output)
}

/// `rollout NAME --resume | --abort`.
pub(super) fn rollout(rollout: &Rollout) -> Result<(), Failure> {
    let backend = open_backend(&rollout.config)?;
    let store = backend.store("rollouts").map_err(failure)?;
    let name = &rollout.name;
    if rollout.abort {
        let ended = operate::abort(store, name, rollout.timeout, &mut report_step);
        let RolloutResult::Restored { awaited, .. } = ended.map_err(failure)? else {
            return Err(Failure::other("the rollout completed instead"));
        };
        return rollout.output.print(&awaited, |awaited| {
            format!("the earlier spec is in effect again\n{}", members(awaited))
        });
    }
    let ended = operate::resume(store, name, rollout.timeout, &mut report_step);
    print_result(ended.map_err(failure)?, rollout.output)
}

/// Prints progress for the user at the terminal.
fn report_step(step: RolloutStep<'_>) {
    logging::say(&match step {
        RolloutStep::Wave {
            number,
            of,
            members,
        } => format!("wave {number} of {of}: {}", members.join(", ")),
        RolloutStep::Members(awaited) => {
            let has = |status: &&operate::MemberStatus| status.state == MemberState::Applied;
            let count = awaited.members.iter().filter(has).count();
            format!("  {count} of {} have applied it", awaited.members.len())
        }
        RolloutStep::AwaitingHealthy(time) => {
            format!("  watching their health for {} s", time.as_secs_f64())
        }
        RolloutStep::Restoring(reasons) => {
            format!(
                "restoring the earlier spec: {}",
                escape(&reasons.join("; "))
            )
        }
        RolloutStep::Finishing => {
            "every wave is healthy: writing the spec for all members".to_owned()
        }
    });
}

/// Result of a rollout, for output.
#[derive(Serialize)]
struct RolloutOutput<'e> {
    result: &'static str,
    reasons: &'e [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<u64>,
    awaited: &'e WaitResult,
}

fn print_result(ended: RolloutResult, output: Output) -> Result<(), Failure> {
    match &ended {
        RolloutResult::Done { revision, awaited } => {
            let end = RolloutOutput {
                result: "done",
                reasons: &[],
                revision: Some(*revision),
                awaited,
            };
            output.print(&end, |end| {
                format!("rolled out, revision {revision}\n{}", members(end.awaited))
            })
        }
        RolloutResult::Restored { reasons, awaited } => {
            let end = RolloutOutput {
                result: "restored",
                reasons,
                revision: None,
                awaited,
            };
            output.print(&end, |end| members(end.awaited))?;
            let again = match awaited.converged {
                true => "the earlier spec is restored",
                false => {
                    "the rollout is removed, but not every member has confirmed the earlier spec"
                }
            };
            Err(Failure::other(format!("{}; {again}", reasons.join("; "))))
        }
    }
}
