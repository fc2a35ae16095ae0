//! Redacts the secrets of a handler's config in everything that its plugin reports (G15); a rejected config, for example, quotes
//! the rejected value.
//!
//! ```text
//!  plugin ─► errors, reasons, details ─► Redacted ────────────┐
//!         ─► log lines, metric names ─► HandlerServices ───────┼─► Redaction ─► logs, API, metrics, member keys, dead letters
//!         ─► topics of emitted records ─► EmitCounts, refusals ┘
//! ```
//!
//! Emitted records are not redacted: a handler may put an allowed reference there deliberately.

use std::borrow::Cow;
use std::sync::Arc;

use sluicegate_config::secret::Redaction;
use sluicegate_runtime::{
    CallHost, CallMonitor, CallRequest, CallStatus, CreateError, CreateRequest, HandlerInfo,
    HandlerInstance, InstanceError, LoadedPlugin, NotTaken, PartitionEvent, PluginIdentity,
    RawOutcome,
};

/// A plugin whose texts are redacted.
pub(super) struct Redacted {
    pub(super) plugin: Arc<dyn LoadedPlugin>,
    pub(super) redaction: Arc<Redaction>,
}

impl LoadedPlugin for Redacted {
    fn identity(&self) -> &PluginIdentity {
        self.plugin.identity()
    }

    fn handlers(&self) -> &[HandlerInfo] {
        self.plugin.handlers()
    }

    fn create(&self, request: CreateRequest<'_>) -> Result<Box<dyn HandlerInstance>, CreateError> {
        let redaction = Arc::clone(&self.redaction);
        let redacted = |text: String| redaction.redact(&text).into_owned();
        match self.plugin.create(request) {
            Ok(instance) => Ok(Box::new(RedactedInstance {
                instance,
                redaction: Arc::clone(&redaction),
            })),
            Err(CreateError::Config(text)) => Err(CreateError::Config(redacted(text))),
            Err(CreateError::Failed(text)) => Err(CreateError::Failed(redacted(text))),
            Err(unknown @ CreateError::Unknown { .. }) => Err(unknown),
        }
    }

    fn shutdown(&self, deadline_ms: u64) {
        self.plugin.shutdown(deadline_ms);
    }
}

struct RedactedInstance {
    instance: Box<dyn HandlerInstance>,
    redaction: Arc<Redaction>,
}

impl HandlerInstance for RedactedInstance {
    fn handle(
        &mut self,
        request: &CallRequest<'_>,
        outcomes: &mut [RawOutcome],
        host: &mut CallHost<'_>,
    ) -> CallStatus {
        let status = self.instance.handle(request, outcomes, host);
        if !host.details_mut().is_empty()
            && let Some(redactor) = self.redaction.current()
        {
            for detail in host.details_mut() {
                if let Cow::Owned(redacted) = redactor.redact(detail) {
                    *detail = redacted;
                }
            }
        }
        status
    }

    fn monitor(&self) -> Arc<dyn CallMonitor> {
        self.instance.monitor()
    }

    fn health(&mut self) -> Result<(), InstanceError> {
        let checked = self.instance.health();
        checked.map_err(|error| self.redacted_error(error))
    }

    fn reconfigure(&mut self, config_json: &str) -> Result<(), NotTaken> {
        let taken = self.instance.reconfigure(config_json);
        taken.map_err(|refused| match refused {
            NotTaken::Refused(why) => NotTaken::Refused(self.redacted(why)),
            NotTaken::Poisoned(why) => NotTaken::Poisoned(self.redacted(why)),
        })
    }

    fn partition(&mut self, event: &PartitionEvent<'_>) -> Result<(), InstanceError> {
        let followed = self.instance.partition(event);
        followed.map_err(|error| self.redacted_error(error))
    }

    fn drain(&mut self, deadline_ms: u64) -> Result<(), InstanceError> {
        let drained = self.instance.drain(deadline_ms);
        drained.map_err(|error| self.redacted_error(error))
    }
}

impl RedactedInstance {
    fn redacted_error(&self, error: InstanceError) -> InstanceError {
        match error {
            InstanceError::Failed(why) => InstanceError::Failed(self.redacted(why)),
            InstanceError::Poisoned(why) => InstanceError::Poisoned(self.redacted(why)),
        }
    }

    fn redacted(&self, text: String) -> String {
        self.redaction.redact(&text).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use sluicegate_config::secret::Redactor;
    use sluicegate_kit::log_capture::captured;
    use sluicegate_runtime::{
        CallSink, HostServices, LogLevel, LogLine, MetricKind, PartitionChange, RawRecord,
        outcome_code,
    };

    use super::*;
    use crate::services::{HandlerServices, UserMetrics};

    const SECRET: &str = "hunter2-very-secret";
    const NEWER: &str = "second-secret-9";

    /// Reports its config through every text that a plugin can return.
    struct LeakyPlugin;

    struct LeakyInstance {
        services: Arc<dyn HostServices>,
        config: String,
    }

    impl LoadedPlugin for LeakyPlugin {
        fn identity(&self) -> &PluginIdentity {
            unreachable!("not called")
        }

        fn handlers(&self) -> &[HandlerInfo] {
            &[]
        }

        fn create(
            &self,
            request: CreateRequest<'_>,
        ) -> Result<Box<dyn HandlerInstance>, CreateError> {
            let config_json = request.config_json;
            match request.handler {
                "refuses" => Err(CreateError::Config(format!("bad: {config_json}"))),
                "fails" => Err(CreateError::Failed(format!("panicked: {config_json}"))),
                _ => Ok(Box::new(LeakyInstance {
                    services: request.services,
                    config: config_json.to_owned(),
                })),
            }
        }

        fn shutdown(&self, _deadline_ms: u64) {}
    }

    impl HandlerInstance for LeakyInstance {
        fn handle(
            &mut self,
            _call: &CallRequest<'_>,
            _outcomes: &mut [RawOutcome],
            host: &mut CallHost<'_>,
        ) -> CallStatus {
            host.detail(&format!("cannot use {}", self.config));
            let line = LogLine {
                target: &self.config,
                fields: &self.config,
                ..LogLine::new(LogLevel::Error, &self.config)
            };
            self.services.log(&line);
            self.services.metric(MetricKind::Counter, &self.config, 1.0);
            CallStatus::Usable
        }

        fn monitor(&self) -> Arc<dyn CallMonitor> {
            unreachable!("not called")
        }

        fn health(&mut self) -> Result<(), InstanceError> {
            let why = self.config.clone();
            Err(match why.contains("poison") {
                true => InstanceError::Poisoned(why),
                false => InstanceError::Failed(why),
            })
        }

        fn reconfigure(&mut self, config_json: &str) -> Result<(), NotTaken> {
            self.config = config_json.to_owned();
            match config_json.contains("poison") {
                true => Err(NotTaken::Poisoned(config_json.to_owned())),
                false => Err(NotTaken::Refused(config_json.to_owned())),
            }
        }

        fn partition(&mut self, _event: &PartitionEvent<'_>) -> Result<(), InstanceError> {
            Err(InstanceError::Failed(self.config.clone()))
        }

        fn drain(&mut self, _deadline_ms: u64) -> Result<(), InstanceError> {
            Err(InstanceError::Poisoned(self.config.clone()))
        }
    }

    #[test]
    fn no_text_of_a_plugin_contains_a_secret_of_its_config() {
        let mut texts = Vec::new();
        let log = captured(|| texts = collect_all_texts());
        texts.extend(log.lines().map(str::to_owned));
        assert!(texts.len() > 12, "{texts:?}");
        for text in texts {
            let hidden = !text.contains(SECRET) && !text.contains(NEWER);
            assert!(hidden && text.contains("***"), "{text}");
        }
    }

    fn collect_all_texts() -> Vec<String> {
        let redaction = Arc::new(Redaction::new(Redactor::new(&[SECRET])));
        let plugin = Redacted {
            plugin: Arc::new(LeakyPlugin),
            redaction: Arc::clone(&redaction),
        };
        let metrics = Arc::new(UserMetrics::default());
        let services = HandlerServices::new(
            "a".into(),
            Arc::clone(&metrics),
            Arc::clone(&redaction),
            Arc::clone(&redaction),
        );
        let services: Arc<dyn HostServices> = Arc::new(services);
        let create = |name: &str| {
            plugin.create(CreateRequest::new(name, "a", SECRET, Arc::clone(&services)))
        };
        let mut texts: Vec<String> = ["refuses", "fails"]
            .map(|name| create(name).err().expect("it refuses").to_string())
            .to_vec();
        let mut instance = create("runs").expect("an instance");
        let mut output = sluicegate_runtime::CallOutput::default();
        let records: [RawRecord; 0] = [];
        let cancel = sluicegate_runtime::CancelFlag::default();
        let call = CallRequest {
            records: &records,
            timeout_ms: 0,
            record_timeout_ms: 0,
            cancel: &cancel,
        };
        let mut outcomes = [RawOutcome {
            code: outcome_code::ACK,
            ..RawOutcome::default()
        }];
        let mut ask = |instance: &mut Box<dyn HandlerInstance>| {
            let mut host = CallHost::new(&call, &mut output);
            instance.handle(&call, &mut outcomes, &mut host);
            let error = instance.health().expect_err("it is unhealthy");
            let is_poisoned = matches!(error, InstanceError::Poisoned(_));
            assert_eq!(
                is_poisoned,
                error.to_string().contains("poison"),
                "{error:?}"
            );
            let event = PartitionEvent {
                change: PartitionChange::Lost,
                topic: "t",
                partition: 0,
                epoch: 1,
                start_offset: None,
                deadline: None,
            };
            let refused = instance.partition(&event).expect_err("it refuses");
            let left = instance.drain(1).expect_err("it refuses");
            vec![error.to_string(), refused.to_string(), left.to_string()]
        };
        texts.extend(ask(&mut instance));
        // A later config adds a secret; the old one is still reported.
        redaction.add(&Redactor::new(&[NEWER]));
        for config in [NEWER.to_owned(), format!("poison {NEWER} {SECRET}")] {
            let refused = instance.reconfigure(&config).expect_err("it refuses");
            let is_poisoned = matches!(refused, NotTaken::Poisoned(_));
            assert_eq!(is_poisoned, config.contains("poison"), "{refused:?}");
            texts.push(refused.to_string());
            texts.extend(ask(&mut instance));
        }
        texts.append(&mut output.details);
        assert!(metrics.snapshot().is_empty());
        texts
    }
}
