//! The parse state of one key: its current problems and its last good state, which includes being absent.

use std::sync::Arc;

use sluicegate_config::problem::Problems;

/// The state of one key.
pub(super) struct ParsedKey<T> {
    /// The last value read; `None` before the first read.
    seen: Option<Option<Arc<[u8]>>>,
    problems: Option<Problems>,
    good: Good<T>,
}

/// The last good state.
enum Good<T> {
    /// Never good so far.
    Never,
    /// The key was absent.
    Absent,
    /// The value and its parsed form.
    Value(Arc<[u8]>, T),
}

impl<T> Default for ParsedKey<T> {
    fn default() -> Self {
        Self {
            seen: None,
            problems: None,
            good: Good::Never,
        }
    }
}

impl<T> ParsedKey<T> {
    /// Updates to the current value; calls `read` only for a changed value. Returns whether it changed.
    pub(super) fn read(
        &mut self,
        value: Option<&Arc<[u8]>>,
        read: impl FnOnce(&[u8]) -> Result<T, Problems>,
    ) -> bool {
        if let Some(seen) = &self.seen
            && seen.as_ref() == value
        {
            return false;
        }
        self.seen = Some(value.cloned());
        self.problems = None;
        match value.map(|value| (value, read(value))) {
            None => self.good = Good::Absent,
            Some((value, Ok(good))) => self.good = Good::Value(Arc::clone(value), good),
            Some((_, Err(problems))) => self.problems = Some(problems),
        }
        true
    }

    /// Forces the next read to parse again if the value has references, whose targets may have changed.
    pub(super) fn forget_references(&mut self) {
        let refers = |value: &Arc<[u8]>| value.windows(2).any(|pair| pair == b"${");
        if matches!(&self.seen, Some(Some(value)) if refers(value)) {
            self.seen = None;
        }
    }

    /// Forces the next read to parse again.
    pub(super) fn forget(&mut self) {
        self.seen = None;
    }

    /// Whether the key has a value, valid or not.
    pub(super) fn has_value(&self) -> bool {
        matches!(self.seen, Some(Some(_)))
    }

    /// Whether the key was ever good, which includes absent.
    pub(super) fn is_known(&self) -> bool {
        !matches!(self.good, Good::Never)
    }

    /// The last good value; `None` if there was none or the key was absent.
    pub(super) fn in_effect(&self) -> Option<&T> {
        match &self.good {
            Good::Value(_, good) => Some(good),
            Good::Never | Good::Absent => None,
        }
    }

    /// The bytes of the last good value.
    pub(super) fn good_value(&self) -> Option<&Arc<[u8]>> {
        match &self.good {
            Good::Value(value, _) => Some(value),
            Good::Never | Good::Absent => None,
        }
    }

    /// Problems of the current value.
    pub(super) fn problems(&self) -> Option<&Problems> {
        self.problems.as_ref()
    }
}
