//! Errors of producers in the log: they recur with every connection attempt.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;

/// Minimum time between two log lines about the same kind of client error.
const ERROR_LOG_INTERVAL: Duration = Duration::from_secs(60);

fn is_connection_error(code: Option<RDKafkaErrorCode>) -> bool {
    use RDKafkaErrorCode::{AllBrokersDown, BrokerTransportFailure, Resolve};
    matches!(
        code,
        Some(AllBrokersDown | BrokerTransportFailure | Resolve)
    )
}

/// Connection errors are logged here only if they last this long: the pump's client reports the first ones, but may use
/// other brokers.
const CONNECTION_ERROR_GRACE: Duration = Duration::from_secs(30);

/// Client errors, one line per kind and minute: they recur with every connection attempt.
#[derive(Default)]
pub(super) struct ErrorLog {
    logged: Mutex<BTreeMap<Option<i32>, (Instant, u64)>>,
    /// When a connection error occurred first and last, in a series without a gap of a minute.
    connection: Mutex<Option<(Instant, Instant)>>,
}

impl ErrorLog {
    /// Logs an error, unless one of its kind was logged just before.
    pub(super) fn log(&self, code: Option<RDKafkaErrorCode>, error: &KafkaError, reason: &str) {
        let now = Instant::now();
        // The pump's own client connects to the same brokers at startup, and reports the failure with a remedy.
        if is_connection_error(code) && self.connection_fails_since(now) < CONNECTION_ERROR_GRACE {
            tracing::debug!(%error, reason, "producer");
            return;
        }
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = code.map(|code| code as i32);
        let suppressed = match logged.get_mut(&kind) {
            Some((last, suppressed)) if now.duration_since(*last) < ERROR_LOG_INTERVAL => {
                *suppressed += 1;
                return;
            }
            Some((_, suppressed)) => *suppressed,
            None => 0,
        };
        logged.insert(kind, (now, 0));
        tracing::warn!(%error, reason, suppressed, "producer");
    }

    /// Records a connection error, and returns for how long the series has lasted.
    fn connection_fails_since(&self, now: Instant) -> Duration {
        let mut noted = self
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let before = noted.filter(|(_, last)| now.duration_since(*last) < ERROR_LOG_INTERVAL);
        let first = before.map_or(now, |(first, _)| first);
        *noted = Some((first, now));
        now.duration_since(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_of_connection_errors_counts_from_its_first_one() {
        let (log, start) = (ErrorLog::default(), Instant::now());
        let after = |seconds| log.connection_fails_since(start + Duration::from_secs(seconds));
        let waited = [0, 20, 40, 95, 200].map(|seconds| after(seconds).as_secs());
        assert_eq!(
            waited,
            [0, 20, 40, 95, 0],
            "a minute without errors starts a new series"
        );
    }
}
