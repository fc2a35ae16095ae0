//! Outcomes of records, and the errors that convert into them.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use sluicegate_abi::plugin::Call;
use sluicegate_abi::{RawOutcome, outcome_code, outcome_flag};

/// The outcome of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// Processed.
    Ack,
    /// Redeliver later; later records of the same key wait behind it.
    Retry {
        /// Delay; `None` uses the backoff of the handler's spec.
        after: Option<Duration>,
        /// Human-readable reason.
        reason: Cow<'static, str>,
    },
    /// Send the record to the dead-letter topic.
    DeadLetter {
        /// Human-readable reason; becomes a header of the dead letter.
        reason: Cow<'static, str>,
    },
    /// Discard: settled and counted, not sent anywhere.
    Drop {
        /// Human-readable reason.
        reason: Cow<'static, str>,
    },
}

impl Outcome {
    /// Redeliver after the backoff of the handler's spec.
    pub fn retry(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Retry {
            after: None,
            reason: reason.into(),
        }
    }

    /// Redeliver after `after`, at most one hour: the record blocks its partition's frontier until then.
    pub fn retry_after(after: Duration, reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Retry {
            after: Some(after),
            reason: reason.into(),
        }
    }

    /// Send to the dead-letter topic.
    pub fn dead_letter(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::DeadLetter {
            reason: reason.into(),
        }
    }

    /// Discard.
    pub fn drop(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Drop {
            reason: reason.into(),
        }
    }

    /// Whether a later record of the same lane may follow in the same call.
    pub(crate) fn frees_lane(&self) -> bool {
        matches!(self, Self::Ack | Self::Drop { .. })
    }

    pub(crate) fn is_retry(&self) -> bool {
        matches!(self, Self::Retry { .. })
    }

    /// The ABI form; the reason is stored in the call's details.
    pub(crate) fn to_raw(&self, call: &Call<'_>, emitted: bool) -> RawOutcome {
        let (code, after, reason) = match self {
            Self::Ack => (outcome_code::ACK, None, ""),
            Self::Retry { after, reason } => (outcome_code::RETRY, *after, reason.as_ref()),
            Self::DeadLetter { reason } => (outcome_code::DEAD_LETTER, None, reason.as_ref()),
            Self::Drop { reason } => (outcome_code::DROP, None, reason.as_ref()),
        };
        RawOutcome {
            code,
            flags: if emitted { outcome_flag::EMITTED } else { 0 },
            detail: if reason.is_empty() {
                0
            } else {
                call.detail(reason)
            },
            // A delay below one millisecond is rounded up: 0 would mean the spec's backoff.
            arg: after.map_or(0, |d| {
                u64::try_from(d.as_millis()).unwrap_or(u64::MAX).max(1)
            }),
        }
    }
}

/// An error of a handler, with its class: `retryable` becomes [`Outcome::Retry`], `terminal` [`Outcome::DeadLetter`], `unavailable` no attempt.
/// From `new`, `terminal` refuses the config and the others are a failed start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandlerError {
    class: ErrorClass,
    message: String,
    after: Option<Duration>,
}

/// Whether a retry can succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// It can: for example a lost connection or a rate limit.
    Retryable,
    /// It cannot: the record or the config is invalid.
    Terminal,
    /// It can, once what the instance needs is there again: until then no record could be handled.
    Unavailable,
}

impl HandlerError {
    /// A retry can succeed.
    pub fn retryable(message: impl fmt::Display) -> Self {
        Self {
            class: ErrorClass::Retryable,
            message: message.to_string(),
            after: None,
        }
    }

    /// A retry cannot succeed.
    pub fn terminal(message: impl fmt::Display) -> Self {
        Self {
            class: ErrorClass::Terminal,
            message: message.to_string(),
            after: None,
        }
    }

    /// What every record needs is away, such as the database: the record, and those behind it in the call, have made no attempt. The
    /// instance is dropped, and `new` is tried with growing delays until it succeeds; the handler is `UNHEALTHY` until then.
    ///
    /// Not for what concerns a single record: one that always ends so holds its partition for ever.
    pub fn unavailable(message: impl fmt::Display) -> Self {
        Self {
            class: ErrorClass::Unavailable,
            message: message.to_string(),
            after: None,
        }
    }

    /// Sets the retry delay, instead of the spec's backoff.
    #[must_use]
    pub fn after(mut self, after: Duration) -> Self {
        self.after = Some(after);
        self
    }

    /// Its class.
    pub fn class(&self) -> ErrorClass {
        self.class
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Any other error is retryable, unless it is [classified](Classify): a retry is safe, and ends in a dead letter. The message has the
/// error's sources. `HandlerError` itself is therefore not a [`std::error::Error`].
impl<E: std::error::Error> From<E> for HandlerError {
    fn from(error: E) -> Self {
        Self::retryable(with_sources(&error))
    }
}

/// The error's text, and those of its sources that are not part of it.
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

impl From<HandlerError> for Outcome {
    fn from(error: HandlerError) -> Self {
        match error.class {
            ErrorClass::Retryable | ErrorClass::Unavailable => Self::Retry {
                after: error.after,
                reason: error.message.into(),
            },
            ErrorClass::Terminal => Self::DeadLetter {
                reason: error.message.into(),
            },
        }
    }
}

/// What a handler returns: an outcome, or an error that becomes one.
pub type Result<T = Outcome, E = HandlerError> = std::result::Result<T, E>;

/// Classifies any error: `connect().retryable()?`, `parse(x).terminal()?`.
pub trait Classify<T> {
    /// A retry can succeed.
    ///
    /// # Errors
    /// The error as a retryable [`HandlerError`].
    fn retryable(self) -> Result<T, HandlerError>;

    /// A retry cannot succeed.
    ///
    /// # Errors
    /// The error as a terminal [`HandlerError`].
    fn terminal(self) -> Result<T, HandlerError>;

    /// What every record needs is away.
    ///
    /// # Errors
    /// The error as an unavailable [`HandlerError`].
    fn unavailable(self) -> Result<T, HandlerError>;
}

impl<T, E: fmt::Display> Classify<T> for Result<T, E> {
    fn retryable(self) -> Result<T, HandlerError> {
        self.map_err(HandlerError::retryable)
    }

    fn terminal(self) -> Result<T, HandlerError> {
        self.map_err(HandlerError::terminal)
    }

    fn unavailable(self) -> Result<T, HandlerError> {
        self.map_err(HandlerError::unavailable)
    }
}
