//! The sentences of the contract about one handler.

use std::sync::Arc;

use sluicegate_abi::view::{BorrowedRecords, RecordParts};
use sluicegate_runtime::{
    CallOutput, CallRequest, CallStatus, CancelFlag, CreateError, HandlerInfo, HandlerInstance,
    LoadedPlugin, NotTaken, RawOutcome, outcome_code, outcome_flag,
};

use super::{Check, CheckResult, Quiet, records};

/// The handler that is asked.
pub(super) struct Subject {
    pub(super) plugin: Arc<dyn LoadedPlugin>,
    pub(super) info: HandlerInfo,
    pub(super) config: String,
    /// The config was given, not made from the schema.
    pub(super) given: bool,
}

/// What a call came to.
struct Called {
    status: CallStatus,
    outcomes: Vec<RawOutcome>,
    output: CallOutput,
}

type Sentence = fn(&Subject) -> Result<(), String>;

const WITH_INSTANCE: [(&str, Sentence); 9] = [
    ("says whether it is well", Subject::health_answers),
    ("takes a call without records", Subject::empty_call),
    ("gives every odd record an outcome", Subject::odd_records),
    ("keeps a lane in order", Subject::lanes),
    ("answers calls one after the other", Subject::repeated_calls),
    (
        "begins no record of a call that is cancelled",
        Subject::cancelled_call,
    ),
    (
        "takes partitions and lets them go, drains and ends",
        Subject::life,
    ),
    ("runs on two workers at once", Subject::two_workers),
    (
        "takes a config if it says so, and survives a bad one",
        Subject::new_config,
    ),
];

impl Subject {
    pub(super) fn check(self, done: &mut dyn FnMut(Check)) {
        let handler = Some(self.info.name.clone());
        let mut say = |name, result| {
            done(Check {
                handler: handler.clone(),
                name,
                result,
            })
        };
        let told = |result: Result<(), String>| {
            result.map_or_else(CheckResult::Failed, |()| CheckResult::Passed)
        };
        say("refuses a config of another type", told(self.bad_config()));
        match self.create() {
            Ok(instance) => {
                drop(instance);
                say("starts with its config", CheckResult::Passed);
            }
            Err(why) if self.given => {
                return say("starts with its config", CheckResult::Failed(why));
            }
            Err(why) => {
                let text =
                    format!("give a config for it; the one made from its schema is no good: {why}");
                return say("starts with its config", CheckResult::Skipped(text));
            }
        }
        for (name, sentence) in WITH_INSTANCE {
            say(name, told(sentence(&self)));
        }
    }

    fn create(&self) -> Result<Box<dyn HandlerInstance>, String> {
        self.plugin
            .create(
                &self.info.name,
                "conformance-0",
                &self.config,
                Arc::new(Quiet),
            )
            .map_err(|error| error.to_string())
    }

    fn bad_config(&self) -> Result<(), String> {
        match self.plugin.create(
            &self.info.name,
            "conformance-0",
            "[\"no\", 1]",
            Arc::new(Quiet),
        ) {
            Err(CreateError::Config(reason)) if !reason.is_empty() => Ok(()),
            Err(other) => Err(format!(
                "it should say what is wrong with the config, it says: {other}"
            )),
            Ok(_) => {
                Err("it starts with a list as its config; describe the config by a type".into())
            }
        }
    }

    fn health_answers(&self) -> Result<(), String> {
        // Not being well is an answer too.
        match self.create()?.health() {
            Err(text) if text.is_empty() => Err("it is not well and does not say why".into()),
            _ => Ok(()),
        }
    }

    fn empty_call(&self) -> Result<(), String> {
        let called = self.call(self.create()?.as_mut(), &[])?;
        if called.output.emits.is_empty() {
            Ok(())
        } else {
            Err("it emits records for nothing".into())
        }
    }

    fn odd_records(&self) -> Result<(), String> {
        for (what, parts) in records::odd() {
            let called = self.call(self.create()?.as_mut(), std::slice::from_ref(&parts))?;
            match called.outcomes[0].code {
                outcome_code::PANICKED => {
                    return Err(format!("it panics on {what}: {}", called.detail(0)));
                }
                outcome_code::NOT_RUN => return Err(format!("it gives no outcome for {what}")),
                _ => {}
            }
        }
        let all: Vec<RecordParts> = records::odd().into_iter().map(|(_, parts)| parts).collect();
        let called = self.call(self.create()?.as_mut(), &all)?;
        match called
            .outcomes
            .iter()
            .position(|outcome| outcome.code == outcome_code::NOT_RUN)
        {
            Some(index) => Err(format!(
                "among others, it gives no outcome for {}",
                records::odd()[index].0
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
        let mut blocked = false;
        for (index, outcome) in called
            .outcomes
            .iter()
            .enumerate()
            .filter(|(index, _)| *index != 2)
        {
            let ran = outcome.code != outcome_code::NOT_RUN;
            if ran && blocked {
                return Err(format!(
                    "record {index} ran though an earlier one of its lane is not settled"
                ));
            }
            if !ran && !blocked {
                return Err(format!(
                    "record {index} did not run though nothing of its lane is open"
                ));
            }
            let plain = matches!(outcome.code, outcome_code::ACK | outcome_code::DROP);
            blocked |= !plain || outcome.flags & outcome_flag::EMITTED != 0;
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
            if called.status == CallStatus::Spent {
                return Err("it panics on plain records".into());
            }
        }
        match instance.monitor().current() {
            None => Ok(()),
            Some(call) => Err(format!(
                "call {} seems to run after it returned",
                call.serial
            )),
        }
    }

    fn life(&self) -> Result<(), String> {
        let mut instance = self.create()?;
        instance.assigned("conformance", 3, 1);
        self.call(instance.as_mut(), &records::one_lane())?;
        instance.revoked("conformance", 3, 1);
        instance.assigned("conformance", 3, 2);
        instance.revoked("conformance", 3, 2);
        instance.drain(1000);
        // A panic in one of them spends the instance, which this shows.
        let called = self.call(instance.as_mut(), &[])?;
        if called.status == CallStatus::Spent {
            return Err("it panics in assigned, revoked or drain".into());
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
            workers
                .into_iter()
                .try_for_each(|worker| worker.join().map_err(|_| "a worker ended".to_string())?)
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
            Ok(()) => return Err("it takes a list as its config".into()),
        }
        instance
            .reconfigure(&self.config)
            .map_err(|error| format!("the config that it began with: {error}"))?;
        self.call(instance.as_mut(), &records::one_lane()).map(drop)
    }

    fn cancelled_call(&self) -> Result<(), String> {
        let mut instance = self.create()?;
        let cancel = CancelFlag::default();
        cancel.set();
        let called = self.call_until(instance.as_mut(), &records::one_lane(), &cancel)?;
        let begun = |outcome: &RawOutcome| outcome.code != outcome_code::NOT_RUN;
        if called.outcomes.iter().any(begun) || !called.output.emits.is_empty() {
            return Err("it handles records whose result nobody wants any more".into());
        }
        Ok(())
    }

    /// Calls, and holds what comes back to what every call promises.
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
            cancel,
        };
        let status = instance.handle(&call, &mut outcomes, &mut output);
        let called = Called {
            status,
            outcomes,
            output,
        };
        called.promises()?;
        Ok(called)
    }
}

impl Called {
    fn detail(&self, index: usize) -> &str {
        let at = (self.outcomes[index].detail as usize).checked_sub(1);
        at.and_then(|at| self.output.details.get(at))
            .map_or("", String::as_str)
    }

    fn promises(&self) -> Result<(), String> {
        for (index, outcome) in self.outcomes.iter().enumerate() {
            if outcome.code > outcome_code::PANICKED {
                return Err(format!(
                    "record {index} has the unknown outcome code {}",
                    outcome.code
                ));
            }
            if outcome.detail as usize > self.output.details.len() {
                return Err(format!(
                    "the outcome of record {index} points to a text that is not there"
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
            return Err("it panicked and claims to be usable".into());
        }
        match self.output.emits.iter().find(|emit| emit.topic.is_empty()) {
            Some(emit) => Err(format!(
                "it emits to no topic on behalf of record {}",
                emit.record
            )),
            None => Ok(()),
        }
    }
}
