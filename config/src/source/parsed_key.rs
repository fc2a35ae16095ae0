//! One key as it was read: what is wrong with it, and the last good state of it, "not there" included.

use std::sync::Arc;

use crate::problem::Problems;

/// The state of one key.
pub(super) struct ParsedKey<T> {
    /// What was read last; `None` before the first reading.
    seen: Option<Option<Arc<[u8]>>>,
    problems: Option<Problems>,
    good: Good<T>,
}

/// The last good state.
enum Good<T> {
    /// None yet.
    Never,
    /// The key was not there.
    Absent,
    /// It had this value, which reads so.
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
    /// Takes the value that stands there now; `read` is only called for one that is new. `true` when it was.
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

    /// The next reading is made in any case, if what the value refers to may have changed.
    pub(super) fn forget_references(&mut self) {
        let refers = |value: &Arc<[u8]>| value.windows(2).any(|pair| pair == b"${");
        if matches!(&self.seen, Some(Some(value)) if refers(value)) {
            self.seen = None;
        }
    }

    /// The next reading is made in any case.
    pub(super) fn forget(&mut self) {
        self.seen = None;
    }

    /// Whether the key has a value, good or bad.
    pub(super) fn has_value(&self) -> bool {
        matches!(self.seen, Some(Some(_)))
    }

    /// Whether it ever was good.
    pub(super) fn is_known(&self) -> bool {
        !matches!(self.good, Good::Never)
    }

    /// What it says: the last good value, if there was one.
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

    /// What is wrong with the value that stands there now.
    pub(super) fn problems(&self) -> Option<&Problems> {
        self.problems.as_ref()
    }
}
