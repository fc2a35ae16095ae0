//! The rules of the contract that concern one handler.

use std::sync::Arc;
use std::time::Duration;

use sluicegate_abi::view::{BorrowedRecords, RecordParts};
use sluicegate_runtime::{
    CallOutput, CallRequest, CallStatus, CancelFlag, CreateError, CreateRequest, HandlerInfo,
    HandlerInstance, InstanceError, LoadedPlugin, NotTaken, PartitionChange, PartitionEvent,
    RawOutcome, outcome_code, outcome_flag,
};

use super::{Check, CheckResult, NullServices, records};

/// The handler under test.
pub(super) struct Subject {
    pub(super) plugin: Arc<dyn LoadedPlugin>,
    pub(super) info: HandlerInfo,
    pub(super) config: String,
    /// The config was given, not derived from the schema.
    pub(super) given: bool,
}

/// Result of a call.
struct Called {
    status: CallStatus,
    outcomes: Vec<RawOutcome>,
    output: CallOutput,
}

/// A rule returns a text if it is violated: the report shows it verbatim.
type Rule = fn(&Subject) -> Result<(), String>;

const WITH_INSTANCE: [(&str, Rule); 9] = [
    ("reports its health", Subject::health_answers),
    ("accepts a call without records", Subject::empty_call),
    (
        "returns an outcome for every unusual record",
        Subject::unusual_records,
    ),
    ("keeps a lane in order", Subject::lanes),
    ("handles consecutive calls", Subject::repeated_calls),
    (
        "starts no record of a cancelled call",
        Subject::cancelled_call,
    ),
    (
        "handles assigned, revoked, drain and drop",
        Subject::lifecycle,
    ),
    ("runs on two workers at once", Subject::two_workers),
    (
        "accepts a new config if declared, and survives an invalid one",
        Subject::new_config,
    ),
];

impl Subject {
    pub(super) fn check(self, done: &mut dyn FnMut(Check)) {
        let handler = Some(self.info.name.clone());
        let mut report = |name, result| {
            done(Check {
                handler: handler.clone(),
                name,
                result,
            })
        };
        let to_result = |result: Result<(), String>| {
            result.map_or_else(CheckResult::Failed, |()| CheckResult::Passed)
        };
        report(
            "refuses a config of another type",
            to_result(self.bad_config()),
        );
        match self.create() {
            Ok(instance) => {
                drop(instance);
                report("starts with its config", CheckResult::Passed);
            }
            Err(why) if self.given => {
                return report("starts with its config", CheckResult::Failed(why));
            }
            Err(why) => {
                let text =
                    format!("provide a config; the one derived from its schema is refused: {why}");
                return report("starts with its config", CheckResult::Skipped(text));
            }
        }
        for (name, rule) in WITH_INSTANCE {
            report(name, to_result(rule(&self)));
        }
    }

    fn create(&self) -> Result<Box<dyn HandlerInstance>, String> {
        let request = self.request(&self.config);
        let created = self.plugin.create(request);
        created.map_err(|error| error.to_string())
    }

    fn request<'a>(&'a self, config: &'a str) -> CreateRequest<'a> {
        CreateRequest::new(
            &self.info.name,
            "conformance",
            config,
            Arc::new(NullServices),
        )
    }

    fn bad_config(&self) -> Result<(), String> {
        match self.plugin.create(self.request("[\"no\", 1]")) {
            Err(CreateError::Config(reason)) if !reason.is_empty() => Ok(()),
            Err(other) => Err(format!(
                "expected a config error with a reason, got: {other}"
            )),
            Ok(_) => Err("it accepts a list as its config; describe the config by a type".into()),
        }
    }

    fn health_answers(&self) -> Result<(), String> {
        // An unhealthy handler passes if it gives a reason.
        match self.create()?.health() {
            Err(error) if error.to_string().is_empty() => {
                Err("it is unhealthy without a reason".into())
            }
            _ => Ok(()),
        }
    }

    fn empty_call(&self) -> Result<(), String> {
        let called = self.call(self.create()?.as_mut(), &[])?;
        if called.output.emits.is_empty() {
            Ok(())
        } else {
            Err("it emits records in a call without records".into())
        }
    }

    fn unusual_records(&self) -> Result<(), String> {
        for (what, parts) in records::unusual() {
            let called = self.call(self.create()?.as_mut(), std::slice::from_ref(&parts))?;
            match called.outcomes[0].code {
                outcome_code::PANICKED => {
                    return Err(format!("it panics on {what}: {}", called.detail(0)));
                }
                outcome_code::NOT_RUN => return Err(format!("it returns no outcome for {what}")),
                _ => {}
            }
        }
        let all: Vec<RecordParts> = records::unusual()
            .into_iter()
            .map(|(_, parts)| parts)
            .collect();
        let called = self.call(self.create()?.as_mut(), &all)?;
        match called
            .outcomes
            .iter()
            .position(|outcome| outcome.code == outcome_code::NOT_RUN)
        {
            Some(index) => Err(format!(
                "in one call with the others, it returns no outcome for {}",
                records::unusual()[index].0
            )),
            None => Ok(()),
        }
    }

    fn lanes(&self) -> Result<(), String> {
        let parts = records::one_lane();
        let called = self.call(self.create()?.as_mut(), &parts)?;
        if self.info.takes_batches {
            return Ok(());
        }
        let (mut blocked, mut emitted) = (false, false);
        for (index, outcome) in called
            .outcomes
            .iter()
            .enumerate()
            .filter(|(index, _)| *index != 2)
        {
            let ran = outcome.code != outcome_code::NOT_RUN;
            if ran && blocked {
                return Err(format!(
                    "record {index} ran although an earlier one of its lane is not settled"
                ));
            }
            if !ran && !blocked && !emitted {
                return Err(format!(
                    "record {index} did not run although nothing of its lane is open"
                ));
            }
            let plain = outcome.succeeds();
            blocked |= !plain;
            // Plugins may wait until it is written, but need not: the service settles a lane in order.
            emitted |= outcome.flags & outcome_flag::EMITTED != 0;
        }
        if called.outcomes[2].code == outcome_code::NOT_RUN {
            return Err("a record of another lane did not run".into());
        }
        Ok(())
    }

    fn repeated_calls(&self) -> Result<(), String> {
        let mut instance = self.create()?;
        for size in [1, 5, 2, 5] {
            let called = self.call(instance.as_mut(), &records::one_lane()[..size])?;
            if called.status == CallStatus::Poisoned {
                return Err("it panics on ordinary records".into());
            }
        }
        match instance.monitor().current() {
            None => Ok(()),
            Some(call) => Err(format!(
                "call {} is reported as running after it returned",
                call.serial
            )),
        }
    }

    fn lifecycle(&self) -> Result<(), String> {
        let mut instance = self.create()?;
        let event = |change, epoch| PartitionEvent {
            change,
            topic: "conformance",
            partition: 3,
            epoch,
            start_offset: (change == PartitionChange::Assigned).then_some(0),
            deadline: Some(Duration::from_secs(1)),
        };
        let failed = |error: InstanceError| format!("it does not follow its partitions: {error}");
        let first = event(PartitionChange::Assigned, 1);
        instance.partition(&first).map_err(failed)?;
        self.call(instance.as_mut(), &records::one_lane())?;
        for (change, epoch) in [
            (PartitionChange::Revoked, 1),
            (PartitionChange::Assigned, 1 << 32),
            (PartitionChange::Lost, 1 << 32),
        ] {
            instance.partition(&event(change, epoch)).map_err(failed)?;
        }
        let drained = instance.drain(1000);
        drained.map_err(|error| format!("it is not drained: {error}"))?;
        // A panic in one of them makes the instance unusable, which this call detects.
        let called = self.call(instance.as_mut(), &[])?;
        if called.status == CallStatus::Poisoned {
            return Err("it panics when a partition changes, or when it is drained".into());
        }
        Ok(())
    }

    fn two_workers(&self) -> Result<(), String> {
        std::thread::scope(|scope| {
            let work = || -> Result<(), String> {
                let mut instance = self.create()?;
                for _ in 0..20 {
                    self.call(instance.as_mut(), &records::one_lane())?;
                }
                Ok(())
            };
            let workers = [scope.spawn(work), scope.spawn(work)];
            workers.into_iter().try_for_each(|worker| {
                worker.join().map_err(|_| "a worker panicked".to_string())?
            })
        })
    }

    fn new_config(&self) -> Result<(), String> {
        if !self.info.takes_config {
            return Ok(());
        }
        let mut instance = self.create()?;
        self.call(instance.as_mut(), &records::one_lane())?;
        match instance.reconfigure("[\"no\", 1]") {
            Err(NotTaken::Refused(reason)) if !reason.is_empty() => {}
            Err(other) => return Err(format!("a config of another type: {other}")),
            Ok(()) => return Err("it accepts a list as its config".into()),
        }
        instance
            .reconfigure(&self.config)
            .map_err(|error| format!("its initial config: {error}"))?;
        self.call(instance.as_mut(), &records::one_lane()).map(drop)
    }

    fn cancelled_call(&self) -> Result<(), String> {
        let mut instance = self.create()?;
        let cancel = CancelFlag::default();
        cancel.set();
        let called = self.call_until(instance.as_mut(), &records::one_lane(), &cancel)?;
        let started = |outcome: &RawOutcome| outcome.code != outcome_code::NOT_RUN;
        if called.outcomes.iter().any(started) || !called.output.emits.is_empty() {
            return Err("it handles records of a cancelled call".into());
        }
        Ok(())
    }

    /// Calls the handler and checks the invariants of every call.
    fn call(
        &self,
        instance: &mut dyn HandlerInstance,
        parts: &[RecordParts],
    ) -> Result<Called, String> {
        self.call_until(instance, parts, &CancelFlag::default())
    }

    fn call_until(
        &self,
        instance: &mut dyn HandlerInstance,
        parts: &[RecordParts],
        cancel: &CancelFlag,
    ) -> Result<Called, String> {
        let raw = BorrowedRecords::new(parts);
        let mut outcomes = vec![RawOutcome::default(); raw.len()];
        let mut output = CallOutput::default();
        let call = CallRequest {
            records: &raw,
            timeout_ms: 30_000,
            record_timeout_ms: 30_000,
            cancel,
        };
        let status = sluicegate_runtime::call(instance, &call, &mut outcomes, &mut output)
            .map_err(|_| "the runtime panicked")?;
        let called = Called {
            status,
            outcomes,
            output,
        };
        called.check_invariants()?;
        Ok(called)
    }
}

impl Called {
    fn detail(&self, index: usize) -> &str {
        let at = (self.outcomes[index].detail as usize).checked_sub(1);
        at.and_then(|at| self.output.details.get(at))
            .map_or("", String::as_str)
    }

    fn check_invariants(&self) -> Result<(), String> {
        for (index, outcome) in self.outcomes.iter().enumerate() {
            if outcome.code > outcome_code::PANICKED {
                return Err(format!(
                    "record {index} has the unknown outcome code {}",
                    outcome.code
                ));
            }
            if outcome.detail as usize > self.output.details.len() {
                return Err(format!(
                    "the outcome of record {index} references a missing text"
                ));
            }
            let flagged = outcome.flags & outcome_flag::EMITTED != 0;
            let emitted = self
                .output
                .emits
                .iter()
                .any(|emit| emit.record as usize == index);
            if flagged != emitted {
                return Err(format!(
                    "record {index} is flagged as emitting: {flagged}, but emitted: {emitted}"
                ));
            }
        }
        let panicked = self
            .outcomes
            .iter()
            .any(|outcome| outcome.code == outcome_code::PANICKED);
        if panicked && self.status == CallStatus::Usable {
            return Err("it panicked but reports to be usable".into());
        }
        match self
            .output
            .emits
            .iter()
            .find(|emit| emit.to.topic.is_empty())
        {
            Some(emit) => Err(format!(
                "it emits without a topic for record {}",
                emit.record
            )),
            None => Ok(()),
        }
    }
}
