//! From the brokers' responses to the pumps: one message for each report.

use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use arc_swap::ArcSwap;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::ProducerContext;
use rdkafka::types::{RDKafkaErrorCode, RDKafkaRespErr};
use rdkafka::{ClientContext, Message};
use sluicegate_config::secret::Redaction;
use sluicegate_engine::dispatch::{Inbox, PumpMessage};
use sluicegate_engine::emit::{Delivery, EmitFailure, EmitToken, Way};

use super::error_log::ErrorLog;
use super::refusal::{self, Refused};
use crate::client_log::log;
use crate::ffi::{Reported, Reports};

/// The upper byte of what librdkafka returns with an answer is the pump's number.
const PUMP_SHIFT: u32 = 56;
/// More pumps cannot be told apart.
const MAX_PUMPS: usize = 256;

/// The inboxes of the pumps whose records a producer has.
#[derive(Default)]
pub(super) struct Pumps {
    // A weak reference keeps the address from being used by another inbox.
    inboxes: ArcSwap<Vec<Weak<Inbox>>>,
    adding: Mutex<()>,
}

impl Pumps {
    /// What librdkafka is to return with the answer for a record of this pump. `None`: there are too many pumps.
    pub(super) fn opaque(&self, inbox: &Arc<Inbox>, token: EmitToken) -> Option<u64> {
        let number = self.number(inbox).or_else(|| self.add(inbox))?;
        Some((number as u64) << PUMP_SHIFT | token.bits())
    }

    fn number(&self, inbox: &Arc<Inbox>) -> Option<usize> {
        let inboxes = self.inboxes.load();
        inboxes
            .iter()
            .position(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(inbox)))
    }

    fn add(&self, inbox: &Arc<Inbox>) -> Option<usize> {
        let _adding = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = self.number(inbox) {
            return Some(known);
        }
        let mut inboxes = Vec::clone(&self.inboxes.load());
        if inboxes.len() == MAX_PUMPS {
            return None;
        }
        inboxes.push(Arc::downgrade(inbox));
        let number = inboxes.len() - 1;
        self.inboxes.store(Arc::new(inboxes));
        Some(number)
    }

    /// Passes answers on to a pump.
    fn push(&self, pump: usize, deliveries: Vec<Delivery>) {
        let inboxes = self.inboxes.load();
        if let Some(inbox) = inboxes.get(pump).and_then(Weak::upgrade) {
            inbox.push(PumpMessage::Delivered(deliveries));
        }
    }
}

/// A newer broker may send a code that the bindings do not have.
fn code_of(code: i32) -> RDKafkaErrorCode {
    RDKafkaRespErr::try_from(code).map_or(RDKafkaErrorCode::Fail, RDKafkaErrorCode::from)
}

/// The pump and the token of an answer.
fn parts(opaque: u64) -> (usize, EmitToken) {
    (
        (opaque >> PUMP_SHIFT) as usize,
        EmitToken::from_bits(opaque),
    )
}

/// Context of a producer: what its answers and errors become.
pub(super) struct Answers {
    way: Way,
    pumps: Arc<Pumps>,
    errors: Arc<ErrorLog>,
    secrets: Arc<Redaction>,
    fatal: OnceLock<String>,
}

impl Answers {
    pub(super) fn new(
        way: Way,
        pumps: Arc<Pumps>,
        errors: Arc<ErrorLog>,
        secrets: Arc<Redaction>,
    ) -> Self {
        Self {
            way,
            pumps,
            errors,
            secrets,
            fatal: OnceLock::new(),
        }
    }

    /// The producer is broken: what it has is answered as failed.
    fn set_fatal(&self, reason: &str) {
        let _ = self.fatal.set(self.secrets.redact(reason).into_owned());
    }

    /// Failure of a record that was queued and not acknowledged.
    fn failure(&self, code: RDKafkaErrorCode, refused: Refused<'_>) -> EmitFailure {
        let ended = matches!(
            code,
            RDKafkaErrorCode::Fatal
                | RDKafkaErrorCode::PurgeQueue
                | RDKafkaErrorCode::PurgeInflight
        );
        match self.fatal.get() {
            Some(reason) if ended => refusal::no_producer(refused.topic, reason),
            _ => refusal::answered(code, refused, self.way),
        }
    }
}

impl ClientContext for Answers {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        log(level, facility, &self.secrets.redact(text));
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let reason = self.secrets.redact(reason);
        let code = error.rdkafka_error_code();
        self.errors.log(code, &error, &reason);
    }
}

impl ProducerContext for Answers {
    type DeliveryOpaque = usize;

    /// Called for what is left when a producer is dropped; reports are taken by [`Batch`] before.
    fn delivery(&self, result: &DeliveryResult<'_>, opaque: usize) {
        let (pump, token) = parts(opaque as u64);
        let failure = result.as_ref().err().map(|(error, record)| {
            let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
            let refused = Refused {
                topic: record.topic(),
                bytes: (record.key_len() + record.payload_len()) as u64,
            };
            Box::new(self.failure(code, refused))
        });
        self.pumps.push(pump, vec![Delivery { token, failure }]);
    }
}

/// The answers of one report, by pump.
pub(super) struct Batch<'a> {
    answers: &'a Answers,
    of_pumps: Vec<Vec<Delivery>>,
}

impl<'a> Batch<'a> {
    pub(super) fn new(answers: &'a Answers) -> Self {
        Self {
            answers,
            of_pumps: Vec::new(),
        }
    }
}

impl Reports for Batch<'_> {
    fn record(&mut self, record: &Reported<'_>) {
        let (pump, token) = parts(record.opaque);
        let failure = (record.code != 0).then(|| {
            let refused = Refused {
                topic: record.topic,
                bytes: record.bytes,
            };
            let code = code_of(record.code);
            Box::new(self.answers.failure(code, refused))
        });
        if pump >= self.of_pumps.len() {
            self.of_pumps.resize_with(pump + 1, Vec::new);
        }
        self.of_pumps[pump].push(Delivery { token, failure });
    }

    fn end(&mut self) {
        for (pump, deliveries) in self.of_pumps.iter_mut().enumerate() {
            if !deliveries.is_empty() {
                self.answers.pumps.push(pump, std::mem::take(deliveries));
            }
        }
    }

    fn error(&mut self, code: i32, is_fatal: bool, reason: &str) {
        if is_fatal {
            self.answers.set_fatal(reason);
        }
        let error = KafkaError::Global(code_of(code));
        self.answers.error(error, reason);
    }

    fn log(&mut self, level: i32, facility: &str, text: &str) {
        let level = match level {
            ..=3 => RDKafkaLogLevel::Error,
            4 => RDKafkaLogLevel::Warning,
            5 | 6 => RDKafkaLogLevel::Info,
            _ => RDKafkaLogLevel::Debug,
        };
        self.answers.log(level, facility, text);
    }
}
