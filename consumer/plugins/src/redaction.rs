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
    CallMonitor, CallOutput, CallRequest, CallStatus, CreateError, HandlerInfo, HandlerInstance,
    HealthError, HostServices, LoadedPlugin, NotTaken, PluginIdentity, RawOutcome,
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

    fn create(
        &self,
        handler: &str,
        instance_name: &str,
        config_json: &str,
        services: Arc<dyn HostServices>,
    ) -> Result<Box<dyn HandlerInstance>, CreateError> {
        let redaction = Arc::clone(&self.redaction);
        let redacted = |text: String| redaction.redact(&text).into_owned();
        let created = self
            .plugin
            .create(handler, instance_name, config_json, services);
        match created {
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
        call: &CallRequest<'_>,
        outcomes: &mut [RawOutcome],
        output: &mut CallOutput,
    ) -> CallStatus {
        let before = output.details.len();
        let status = self.instance.handle(call, outcomes, output);
        if output.details.len() > before
            && let Some(redactor) = self.redaction.current()
        {
            for detail in output.details.iter_mut().skip(before) {
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

    fn health(&mut self) -> Result<(), HealthError> {
        let health = self.instance.health();
        health.map_err(|error| match error {
            HealthError::Unhealthy(why) => HealthError::Unhealthy(self.redacted(why)),
            HealthError::Spent(why) => HealthError::Spent(self.redacted(why)),
        })
    }

    fn reconfigure(&mut self, config_json: &str) -> Result<(), NotTaken> {
        let taken = self.instance.reconfigure(config_json);
        taken.map_err(|refused| match refused {
            NotTaken::Refused(why) => NotTaken::Refused(self.redacted(why)),
            NotTaken::Spent(why) => NotTaken::Spent(self.redacted(why)),
        })
    }

    fn assigned(&mut self, topic: &str, partition: i32, epoch: u32) {
        self.instance.assigned(topic, partition, epoch);
    }

    fn revoked(&mut self, topic: &str, partition: i32, epoch: u32) {
        self.instance.revoked(topic, partition, epoch);
    }

    fn drain(&mut self, deadline_ms: u64) {
        self.instance.drain(deadline_ms);
    }
}

impl RedactedInstance {
    fn redacted(&self, text: String) -> String {
        self.redaction.redact(&text).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use sluicegate_config::secret::Redactor;
    use sluicegate_kit::log_capture::captured;
    use sluicegate_runtime::{LogLevel, MetricKind, RawRecord, outcome_code};

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
            handler: &str,
            _instance_name: &str,
            config_json: &str,
            services: Arc<dyn HostServices>,
        ) -> Result<Box<dyn HandlerInstance>, CreateError> {
            match handler {
                "refuses" => Err(CreateError::Config(format!("bad: {config_json}"))),
                "fails" => Err(CreateError::Failed(format!("panicked: {config_json}"))),
                _ => Ok(Box::new(LeakyInstance {
                    services,
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
            output: &mut CallOutput,
        ) -> CallStatus {
            output.details.push(format!("cannot use {}", self.config));
            self.services.log(LogLevel::Error, &self.config);
            self.services.metric(MetricKind::Counter, &self.config, 1.0);
            CallStatus::Usable
        }

        fn monitor(&self) -> Arc<dyn CallMonitor> {
            unreachable!("not called")
        }

        fn health(&mut self) -> Result<(), HealthError> {
            let why = self.config.clone();
            Err(match why.contains("spend") {
                true => HealthError::Spent(why),
                false => HealthError::Unhealthy(why),
            })
        }

        fn reconfigure(&mut self, config_json: &str) -> Result<(), NotTaken> {
            self.config = config_json.to_owned();
            match config_json.contains("spend") {
                true => Err(NotTaken::Spent(config_json.to_owned())),
                false => Err(NotTaken::Refused(config_json.to_owned())),
            }
        }

        fn assigned(&mut self, _topic: &str, _partition: i32, _epoch: u32) {}
        fn revoked(&mut self, _topic: &str, _partition: i32, _epoch: u32) {}
        fn drain(&mut self, _deadline_ms: u64) {}
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
        let services =
            HandlerServices::new("a".into(), Arc::clone(&metrics), Arc::clone(&redaction));
        let services: Arc<dyn HostServices> = Arc::new(services);
        let create = |name: &str| plugin.create(name, "a", SECRET, Arc::clone(&services));
        let mut texts: Vec<String> = ["refuses", "fails"]
            .map(|name| create(name).err().expect("it refuses").to_string())
            .to_vec();
        let mut instance = create("runs").expect("an instance");
        let mut output = CallOutput::default();
        let records: [RawRecord; 0] = [];
        let cancel = sluicegate_runtime::CancelFlag::default();
        let call = CallRequest {
            records: &records,
            timeout_ms: 0,
            cancel: &cancel,
        };
        let mut outcomes = [RawOutcome {
            code: outcome_code::ACK,
            ..RawOutcome::default()
        }];
        let mut ask = |instance: &mut Box<dyn HandlerInstance>| {
            instance.handle(&call, &mut outcomes, &mut output);
            let error = instance.health().expect_err("it is unhealthy");
            let is_spent = matches!(error, HealthError::Spent(_));
            assert_eq!(is_spent, error.to_string().contains("spend"), "{error:?}");
            vec![error.to_string()]
        };
        texts.extend(ask(&mut instance));
        // A later config adds a secret; the old one is still reported.
        redaction.add(&Redactor::new(&[NEWER]));
        for config in [NEWER.to_owned(), format!("spend {NEWER} {SECRET}")] {
            let refused = instance.reconfigure(&config).expect_err("it refuses");
            let is_spent = matches!(refused, NotTaken::Spent(_));
            assert_eq!(is_spent, config.contains("spend"), "{refused:?}");
            texts.push(refused.to_string());
            texts.extend(ask(&mut instance));
        }
        texts.append(&mut output.details);
        assert!(metrics.snapshot().is_empty());
        texts
    }
}
