//! `logging:` the service's own log, or that of a bridge.

use super::rules::LEVEL;
use crate::document::{ChoiceValue, choice, text};
use crate::section;

/// Log format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Human-readable lines.
    Text,
    /// One JSON object per line.
    Json,
}

impl ChoiceValue for LogFormat {
    const WORDS: &'static [(&'static str, Self)] = &[("text", Self::Text), ("json", Self::Json)];
}

section! {
    /// The service's own log.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct LoggingConfig {
        /// Log format: text lines, or one JSON object per line.
        format: LogFormat = choice(&[]), default "text";
        /// Minimum level, or a filter such as info,sluicegate_engine::flow=debug.
        level: String = text(&LEVEL), default "info";
    }
}
