//! `sluicegate handlers apply | delete | history | rollout`, and `on` and `off` with a config: straight to the control plane
//! that the service config names, whether the service runs or not.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use sluicegate_config::Environment;
use sluicegate_config::escape::escape;
use sluicegate_config::fleet::{
    self as operate, FleetError, MemberState, RolloutResult, RolloutSettings, RolloutStep,
    WaitResult, Wave, WaveError, parse_waves,
};
use sluicegate_config::service::HandlersFrom;
use sluicegate_config::source::{FileSource, SpecSource, host};
use sluicegate_config::store::{ControlKey, Store};

use super::demo::duration;
use super::failure::Failure;
use super::output::Output;
use super::table::Table;
use super::validate::ConfigFile;
use crate::logging;

/// Arguments that make a command wait for the fleet.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Waiting {
    /// Return when every member has applied it; says who refuses or does not answer
    #[arg(long)]
    wait: bool,
    /// How long to wait; of a rollout in waves, for each wave
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "30s")]
    timeout: Duration,
}

impl Waiting {
    /// Whether it is asked for.
    pub(super) fn is_wanted(&self) -> bool {
        self.wait
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
    /// Only if the handler's spec is still at this revision of the store; 0 if there must be none
    #[arg(long, value_name = "REVISION")]
    expect: Option<u64>,
    #[command(flatten)]
    waiting: Waiting,
    /// Roll out in waves, such as 1,25%,100%: each waits for its members' acks
    #[arg(long, value_name = "SIZES", value_parser = waves)]
    waves: Option<Waves>,
    /// How long a wave must stay well before the next one
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10s", requires = "waves")]
    wait_healthy: Duration,
    #[command(flatten)]
    output: Output,
}

/// Sizes of waves, as one argument.
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
    /// Which of its keys
    #[arg(long, value_enum, default_value = "spec")]
    key: Key,
    /// Most values
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
    /// The canary
    Canary,
}

/// Arguments of `rollout`.
#[derive(clap::Args, Debug)]
pub(super) struct Rollout {
    /// The handler's name
    name: String,
    /// Go on where it stands
    #[arg(long, required_unless_present = "abort", conflicts_with = "abort")]
    resume: bool,
    /// End it: the earlier spec is in effect again
    #[arg(long)]
    abort: bool,
    #[command(flatten)]
    config: ConfigFile,
    /// How long each wave may take
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "30s")]
    timeout: Duration,
    #[command(flatten)]
    output: Output,
}

/// Where a config's handler specs stand.
enum SpecBackend {
    Folder(PathBuf),
    Store(Arc<dyn Store>),
}

impl SpecBackend {
    fn of(config: &ConfigFile) -> Result<Self, Failure> {
        let config = config.load().map_err(Failure::problems)?;
        if let HandlersFrom::File { folder, .. } = &config.handlers.from {
            return Ok(Self::Folder(folder.clone()));
        }
        match config.handlers.open_store().map_err(Failure::bad_input)? {
            Some(store) => Ok(Self::Store(store)),
            None => Err(Failure::other("the config names no store of specs")),
        }
    }

    /// The store, for what only a store can do.
    fn store(self, what: &str) -> Result<Arc<dyn Store>, Failure> {
        match self {
            Self::Store(store) => Ok(store),
            Self::Folder(folder) => Err(Failure::bad_input(format!(
                "specs stand in the folder {}, which has no {what}; that takes `handlers.etcd` or `handlers.zookeeper`",
                folder.display()
            ))),
        }
    }
}

fn failure(error: FleetError) -> Failure {
    match error {
        FleetError::Spec(problems) => Failure::problems(problems),
        error @ FleetError::Name(_) => Failure::bad_input(error),
        error => Failure::other(error),
    }
}

/// What was done, and who has it.
#[derive(Serialize)]
struct Outcome<W: Serialize> {
    #[serde(flatten)]
    done: W,
    #[serde(skip_serializing_if = "Option::is_none")]
    awaited: Option<WaitResult>,
}

/// What was written to a gate.
#[derive(Serialize)]
struct GateDone<'n> {
    name: &'n str,
    gate: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<u64>,
}

/// Prints what was done, waits if that is asked for, and fails when somebody has it not.
fn finish<W: Serialize>(
    done: W,
    said: &str,
    of: (&dyn Store, &str, u64),
    waiting: &Waiting,
    output: Output,
) -> Result<(), Failure> {
    let (store, name, revision) = of;
    if !waiting.wait {
        let awaited = None;
        return output.print(&Outcome { done, awaited }, |_| said.to_owned());
    }
    let deadline = Instant::now() + waiting.timeout;
    let awaited = operate::await_members(store, name, revision, None, deadline, &mut |_| {})
        .map_err(failure)?;
    told(done, said, name, awaited, waiting, output)
}

/// Prints what was done and who has it; fails when somebody has it not.
fn told<W: Serialize>(
    done: W,
    said: &str,
    name: &str,
    awaited: WaitResult,
    waiting: &Waiting,
    output: Output,
) -> Result<(), Failure> {
    let failed = (!awaited.converged).then(|| not_everywhere(name, &awaited, waiting.timeout));
    let outcome = Outcome {
        done,
        awaited: Some(awaited),
    };
    output.print(&outcome, |outcome| {
        let members = outcome.awaited.as_ref().map(members).unwrap_or_default();
        format!("{said}\n{members}")
    })?;
    failed.map_or(Ok(()), |failed| Err(Failure::other(failed)))
}

fn not_everywhere(name: &str, awaited: &WaitResult, timeout: Duration) -> String {
    let seconds = timeout.as_secs_f64();
    if awaited.members.is_empty() {
        return format!(
            "it is written, and after {seconds} s no member is alive that could have applied it; start the service"
        );
    }
    let whys = awaited
        .members
        .iter()
        .filter(|verdict| verdict.state != MemberState::Applied)
        .map(|verdict| format!("{} {}", verdict.member, why(&verdict.state)));
    let whys: Vec<String> = whys.collect();
    format!(
        "`{name}` is written, and not in effect everywhere: {}; see `sluicegate handlers show {name}` there",
        whys.join("; ")
    )
}

fn why(state: &MemberState) -> String {
    match state {
        MemberState::Applied => "has it".to_owned(),
        MemberState::Refused { reasons } => {
            format!("refuses it: {}", escape(&reasons.join("; ")))
        }
        MemberState::Behind { applied } => format!("does not answer (it has revision {applied})"),
        MemberState::Preparing => "is still preparing it".to_owned(),
        MemberState::Unreadable { reason } => {
            format!("cannot be understood: {}", escape(reason))
        }
        MemberState::Gone => "is gone: it has stopped, or is cut off from the store".to_owned(),
    }
}

fn members(awaited: &WaitResult) -> String {
    let mut table = Table::new(&["MEMBER", "STATE"]);
    for verdict in &awaited.members {
        table.row([verdict.member.clone(), why(&verdict.state)]);
    }
    table.render()
}

/// `on` and `off`, straight to the control plane.
pub(super) fn gate(
    name: &str,
    open: bool,
    config: &ConfigFile,
    waiting: &Waiting,
    output: Output,
) -> Result<(), Failure> {
    let gate = if open { "open" } else { "shut" };
    // Nobody is asked whether it acts.
    let written = |place: &str| {
        format!("gate of `{name}` is written as {gate} to {place}; services that run by it follow")
    };
    match SpecBackend::of(config)? {
        SpecBackend::Folder(folder) if !waiting.wait => {
            let source = FileSource::new(folder, Duration::from_secs(5), Environment::of_process());
            let done = source.gates().set_gate(name, open);
            let place = done.map_err(Failure::other)?.origin;
            let revision = None;
            output.print(
                &GateDone {
                    name,
                    gate,
                    revision,
                },
                |_| written(&place),
            )
        }
        plane => {
            let store = plane.store("members to wait for")?;
            let revision = operate::set_gate(&*store, name, open).map_err(failure)?;
            let done = GateDone {
                name,
                gate,
                revision: Some(revision),
            };
            if !waiting.wait {
                let key = ControlKey::enabled(name).map_err(Failure::bad_input)?;
                let awaited = None;
                let said = written(&store.locate(&key));
                return output.print(&Outcome { done, awaited }, |_| said);
            }
            let deadline = Instant::now() + waiting.timeout;
            let awaited = match open {
                true => {
                    operate::await_members(&*store, name, revision, None, deadline, &mut |_| {})
                }
                false => operate::await_closed(&*store, name, revision, deadline),
            };
            let awaited = awaited.map_err(failure)?;
            let said = match awaited.converged {
                true => format!("gate of `{name}` is {gate}"),
                false => format!("gate of `{name}` is written as {gate}"),
            };
            told(done, &said, name, awaited, waiting, output)
        }
    }
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
    let plane = SpecBackend::of(&apply.config)?;
    if let Some(Waves(waves)) = &apply.waves {
        let store = plane.store("members to roll out to")?;
        return staged(&*store, &text, apply, waves);
    }
    let wants_store = apply.waiting.wait || apply.expect.is_some();
    if let SpecBackend::Folder(folder) = &plane
        && !wants_store
    {
        let done = operate::apply_file(folder, &text, Some(file)).map_err(failure)?;
        return apply.output.print(&done, written);
    }
    let store = plane.store("members to wait for and no revisions")?;
    let done = operate::apply_spec(&*store, &text, Some(file), apply.expect).map_err(failure)?;
    let (said, name, revision) = (written(&done), done.name.clone(), done.revision);
    let of = (&*store, name.as_str(), revision);
    finish(done, &said, of, &apply.waiting, apply.output)
}

fn written(done: &operate::SpecWrite) -> String {
    let mut said = match done.changed {
        true => format!("spec of `{}` is written to {}", done.name, done.place),
        false => format!("spec of `{}` stands in {} already", done.name, done.place),
    };
    if done.revision > 0 {
        said.push_str(&format!(", revision {}", done.revision));
    }
    if !done.overridden_by.is_empty() {
        let keys = done.overridden_by.join(" and ");
        said.push_str(&format!("; {keys} takes the place of what it says there"));
    }
    said
}

/// `delete NAME`.
pub(super) fn delete(delete: &Delete) -> Result<(), Failure> {
    let said = |places: &[String]| format!("deleted {}", places.join(", "));
    match SpecBackend::of(&delete.config)? {
        SpecBackend::Folder(folder) if !delete.waiting.wait => {
            let done = operate::delete_file(&folder, &delete.name).map_err(failure)?;
            delete.output.print(&done, |done| said(&done.places))
        }
        plane => {
            let store = plane.store("members to wait for")?;
            let done = operate::delete_handler(&*store, &delete.name).map_err(failure)?;
            let (said, revision) = (said(&done.places), done.revision);
            let of = (&*store, delete.name.as_str(), revision);
            finish(done, &said, of, &delete.waiting, delete.output)
        }
    }
}

/// An earlier value, for people and programs.
#[derive(Serialize)]
struct Earlier {
    revision: u64,
    /// `None` where the key was deleted.
    value: Option<String>,
}

/// `history NAME`.
pub(super) fn history(history: &History) -> Result<(), Failure> {
    let store = SpecBackend::of(&history.config)?.store("earlier values")?;
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
    let user = std::env::var("USER").unwrap_or_else(|_| "somebody".to_owned());
    let settings = RolloutSettings {
        waves: waves.to_vec(),
        wait_healthy: apply.wait_healthy,
        timeout: apply.waiting.timeout,
        by: format!("{user}@{}", host()),
    };
    let file: &Path = &apply.spec;
    let ended = operate::begin(store, text, Some(file), apply.expect, &settings, &mut tell);
    ended_as(ended.map_err(failure)?, apply.output)
}

/// `rollout NAME --resume | --abort`.
pub(super) fn rollout(rollout: &Rollout) -> Result<(), Failure> {
    let store = SpecBackend::of(&rollout.config)?.store("rollouts")?;
    let name = &rollout.name;
    if rollout.abort {
        let ended = operate::abort(&*store, name, rollout.timeout, &mut tell);
        let RolloutResult::Restored { awaited, .. } = ended.map_err(failure)? else {
            return Err(Failure::other("the rollout went on to its end instead"));
        };
        return rollout.output.print(&awaited, |awaited| {
            format!("the earlier spec is in effect again\n{}", members(awaited))
        });
    }
    let ended = operate::resume(&*store, name, rollout.timeout, &mut tell);
    ended_as(ended.map_err(failure)?, rollout.output)
}

/// Progress, for the person at the terminal.
fn tell(step: RolloutStep<'_>) {
    logging::say(&match step {
        RolloutStep::Wave {
            number,
            of,
            members,
        } => format!("wave {number} of {of}: {}", members.join(", ")),
        RolloutStep::Members(awaited) => {
            let has = |verdict: &&operate::MemberStatus| verdict.state == MemberState::Applied;
            let count = awaited.members.iter().filter(has).count();
            format!("  {count} of {} have it", awaited.members.len())
        }
        RolloutStep::AwaitingHealthy(time) => {
            format!("  watching them for {} s", time.as_secs_f64())
        }
        RolloutStep::Restoring(reasons) => {
            format!(
                "restoring the earlier spec: {}",
                escape(&reasons.join("; "))
            )
        }
        RolloutStep::Finishing => "every wave is well: writing the spec for everybody".to_owned(),
    });
}

/// How a rollout ended, as data.
#[derive(Serialize)]
struct StagedEnd<'e> {
    result: &'static str,
    reasons: &'e [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<u64>,
    awaited: &'e WaitResult,
}

fn ended_as(ended: RolloutResult, output: Output) -> Result<(), Failure> {
    match &ended {
        RolloutResult::Done { revision, awaited } => {
            let end = StagedEnd {
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
            let end = StagedEnd {
                result: "restored",
                reasons,
                revision: None,
                awaited,
            };
            output.print(&end, |end| members(end.awaited))?;
            let again = match awaited.converged {
                true => "the earlier spec is restored",
                false => {
                    "the rollout is taken away, and not everybody has said that the earlier spec is in effect again"
                }
            };
            Err(Failure::other(format!("{}; {again}", reasons.join("; "))))
        }
    }
}
