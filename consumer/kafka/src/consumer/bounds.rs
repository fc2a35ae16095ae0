//! The first and end offset of a partition's log, queried from its leader: they tell a missing offset from one that
//! could not be read.

use std::collections::BTreeMap;

use sluicegate_engine::source::{BoundsError, SourceEvent, TopicPartition};

use super::KafkaSource;
use crate::ffi::{Answer, OffsetSpec, describe};

/// Marks the tokens of these requests, to tell them from the tokens of other requests.
const MARK: usize = 1 << (usize::BITS - 1);

/// A pending request: first for the first offset, then for the end offset.
struct Question {
    at: TopicPartition,
    first: Option<i64>,
}

/// The pending requests.
#[derive(Default)]
pub(super) struct Bounds {
    open: BTreeMap<usize, Question>,
    last: usize,
}

impl KafkaSource {
    pub(super) fn ask_first(&mut self, at: &TopicPartition) {
        let at = at.clone();
        self.ask_bound(Question { at, first: None });
    }

    fn ask_bound(&mut self, question: Question) {
        let spec = match question.first {
            None => OffsetSpec::Earliest,
            Some(_) => OffsetSpec::Latest,
        };
        self.bounds.last += 1;
        let token = self.bounds.last | MARK;
        let wanted = [(question.at.clone(), spec)];
        // The end of all records, including those of open transactions: the record to read may belong to one.
        let asked = self.connection.as_ref().is_some_and(|connection| {
            connection.ask_offsets(&wanted, false, token, self.request_timeout)
        });
        if asked {
            self.bounds.open.insert(token, question);
        } else {
            let bounds = Err(BoundsError::NotSent);
            let at = question.at;
            self.pending.push(SourceEvent::Bounds { at, bounds });
        }
    }

    /// Handles responses to bounds requests; returns the responses to other requests.
    pub(super) fn take_answers(&mut self) -> Vec<(usize, Answer)> {
        let mut others = Vec::new();
        if self.bounds.open.is_empty() && self.finder.is_idle() {
            return others;
        }
        while let Some((token, answer)) = self.connection.as_ref().and_then(|c| c.next_answer()) {
            if token & MARK == 0 {
                others.push((token, answer));
            } else if let Some(question) = self.bounds.open.remove(&token) {
                self.bound_answered(question, answer);
            }
        }
        others
    }

    fn bound_answered(&mut self, question: Question, answer: Answer) {
        let Question { at, first } = question;
        match (offset_of(answer), first) {
            (Ok(offset), None) => self.ask_bound(Question {
                at,
                first: Some(offset),
            }),
            (Ok(end), Some(first)) => {
                let bounds = Ok(first..end.max(first));
                self.pending.push(SourceEvent::Bounds { at, bounds });
            }
            (Err(error), _) => {
                let bounds = Err(error);
                self.pending.push(SourceEvent::Bounds { at, bounds });
            }
        }
    }
}

fn offset_of(answer: Answer) -> Result<i64, BoundsError> {
    match answer {
        Answer::Failed(reason) => Err(BoundsError::Refused(reason)),
        Answer::Offsets(entries) => match entries.first() {
            Some(entry) if entry.error_code != 0 => {
                Err(BoundsError::Refused(describe(entry.error_code)))
            }
            Some(entry) if entry.offset >= 0 => Ok(entry.offset),
            _ => Err(BoundsError::NoOffset),
        },
        Answer::Committed(_) => Err(BoundsError::UnexpectedResponse),
    }
}
