//! What a handler says about a record, and the errors that become it.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use sluicegate_abi::plugin::Call;
use sluicegate_abi::{RawOutcome, outcome_code, outcome_flag};

/// What becomes of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// Done.
    Ack,
    /// Call again later; later records of the same key wait behind it.
    Retry {
        /// When; `None` takes the backoff of the handler's spec.
        after: Option<Duration>,
        /// Why, for people.
        reason: Cow<'static, str>,
    },
    /// Give up: the record goes to the dead-letter topic.
    DeadLetter {
        /// Why, for people; it becomes a header of the dead letter.
        reason: Cow<'static, str>,
    },
    /// Not wanted: settled and counted, sent nowhere.
    Drop {
        /// Why, for people.
        reason: Cow<'static, str>,
    },
}

impl Outcome {
    /// Call again after the backoff of the handler's spec.
    pub fn retry(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Retry {
            after: None,
            reason: reason.into(),
        }
    }

    /// Call again after `after`, at most an hour: the record holds its partition's frontier until then.
    pub fn retry_after(after: Duration, reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Retry {
            after: Some(after),
            reason: reason.into(),
        }
    }

    /// Give up.
    pub fn dead_letter(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::DeadLetter {
            reason: reason.into(),
        }
    }

    /// Not wanted.
    pub fn drop(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Drop {
            reason: reason.into(),
        }
    }

    /// A later record of the same lane may run right after this one in the same call.
    pub(crate) fn settles_at_once(&self) -> bool {
        matches!(self, Self::Ack | Self::Drop { .. })
    }

    /// The form that crosses the boundary; its text goes into the call's details.
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
            // A wish for less than a millisecond stays a wish: 0 would mean the spec's backoff.
            arg: after.map_or(0, |d| {
                u64::try_from(d.as_millis()).unwrap_or(u64::MAX).max(1)
            }),
        }
    }
}

/// An error of a handler, with its class: `retryable` becomes [`Outcome::Retry`], `terminal`
/// [`Outcome::DeadLetter`]. From `new`, `terminal` refuses the config and `retryable` is a failed start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandlerError {
    class: ErrorClass,
    message: String,
    after: Option<Duration>,
}

/// Whether trying again can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// It can: a connection was lost, a limit was hit.
    Retryable,
    /// It cannot: the record or the config is wrong.
    Terminal,
}

impl HandlerError {
    /// Trying again can help.
    pub fn retryable(message: impl fmt::Display) -> Self {
        Self {
            class: ErrorClass::Retryable,
            message: message.to_string(),
            after: None,
        }
    }

    /// Trying again cannot help.
    pub fn terminal(message: impl fmt::Display) -> Self {
        Self {
            class: ErrorClass::Terminal,
            message: message.to_string(),
            after: None,
        }
    }

    /// When to try again, instead of the spec's backoff.
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

impl std::error::Error for HandlerError {}

impl From<HandlerError> for Outcome {
    fn from(error: HandlerError) -> Self {
        match error.class {
            ErrorClass::Retryable => Self::Retry {
                after: error.after,
                reason: error.message.into(),
            },
            ErrorClass::Terminal => Self::DeadLetter {
                reason: error.message.into(),
            },
        }
    }
}

impl From<Result<Outcome, HandlerError>> for Outcome {
    fn from(result: Result<Outcome, HandlerError>) -> Self {
        result.unwrap_or_else(Into::into)
    }
}

impl From<Result<(), HandlerError>> for Outcome {
    fn from(result: Result<(), HandlerError>) -> Self {
        result.map_or_else(Into::into, |()| Self::Ack)
    }
}

/// Gives any error a class: `connect().retryable()?`, `parse(x).terminal()?`.
pub trait Classify<T> {
    /// Trying again can help.
    ///
    /// # Errors
    /// The error as a retryable [`HandlerError`].
    fn retryable(self) -> Result<T, HandlerError>;

    /// Trying again cannot help.
    ///
    /// # Errors
    /// The error as a terminal [`HandlerError`].
    fn terminal(self) -> Result<T, HandlerError>;
}

impl<T, E: fmt::Display> Classify<T> for Result<T, E> {
    fn retryable(self) -> Result<T, HandlerError> {
        self.map_err(HandlerError::retryable)
    }

    fn terminal(self) -> Result<T, HandlerError> {
        self.map_err(HandlerError::terminal)
    }
}
