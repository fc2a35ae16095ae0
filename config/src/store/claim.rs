//! Under which id a member keeps its key, and what it does while another process holds that id. Pure.
//!
//! ```text
//!  the own id ──► nothing, or what this process wrote? ── yes ──► it is held
//!       ▲                  │ another process's key
//!       │                  ▼
//!       └── looks again; after `patience` it is not the key of a process that was killed ──► `{id}-{random}`, for good
//! ```

use std::time::Duration;

use tokio::time::Instant;

use super::{MembershipStatus, check_member_id};
use crate::member::MemberReport;

/// Longest part of the wanted id that another id keeps, in bytes: ids have an end.
const MAX_BASE: usize = 240;

/// The id of a member.
pub(super) struct Claim {
    wanted: String,
    instance: String,
    id: String,
    patience: Duration,
    /// Since when another process's key stands at the own id.
    taken_since: Option<Instant>,
    /// Who holds the wanted id, for people.
    holder: Option<String>,
}

impl Claim {
    /// `patience` is how long the key of a process that was killed may stand.
    pub(super) fn new(report: &MemberReport, patience: Duration) -> Self {
        Self {
            wanted: report.id.clone(),
            instance: report.instance.clone(),
            id: report.id.clone(),
            patience,
            taken_since: None,
            holder: None,
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Whether this process wrote `value`, on whichever connection.
    pub(super) fn is_own(&self, value: &[u8]) -> bool {
        MemberReport::from_json(value).is_ok_and(|there| there.instance == self.instance)
    }

    /// Whether another process's key stands at the own id.
    pub(super) fn is_taken(&self) -> bool {
        self.taken_since.is_some()
    }

    /// Another process's `value` stands at the own id. `true`: there is another id from now on.
    pub(super) fn taken(&mut self, value: &[u8], now: Instant) -> bool {
        let holder = holder(value);
        let Some(since) = self.taken_since else {
            tracing::warn!(
                member = self.id,
                holder,
                wait_s = self.patience.as_secs(),
                "the member id is held by another process; waiting for its key to go"
            );
            self.taken_since = Some(now);
            self.holder = Some(holder);
            return false;
        };
        self.holder = Some(holder);
        if now.saturating_duration_since(since) < self.patience {
            return false;
        }
        let mut end = self.wanted.len().min(MAX_BASE);
        while !self.wanted.is_char_boundary(end) {
            end -= 1;
        }
        let id = format!("{}-{:08x}", &self.wanted[..end], fastrand::u32(..));
        tracing::warn!(
            member = self.wanted,
            taken = id,
            holder = self.holder,
            "two processes have one member id; this one takes another. Give each its own `handlers.member_id`"
        );
        self.id = id;
        self.taken_since = None;
        true
    }

    /// The store did not answer: leases outlive a change of its leader by up to their whole time, so that what was waited for
    /// another process's key does not count.
    pub(super) fn unseen(&mut self, now: Instant) {
        if let Some(since) = &mut self.taken_since {
            *since = now;
        }
    }

    /// The key at the own id is this process's.
    pub(super) fn held(&mut self) {
        if self.taken_since.take().is_some() {
            tracing::info!(member = self.id, "the member id is free again, and held");
        }
        if self.id == self.wanted {
            self.holder = None;
        }
    }

    pub(super) fn status(&self) -> MembershipStatus {
        let (id, wanted) = (&self.id, &self.wanted);
        let clash = self.holder.as_ref().map(|holder| match id == wanted {
            true => format!(
                "the member id `{id}` is held by {holder}; until its key goes this process is not listed among the members"
            ),
            false => format!(
                "the member id `{wanted}` is held by {holder}; this process is the member `{id}`"
            ),
        });
        MembershipStatus {
            id: id.clone(),
            clash,
        }
    }
}

/// Who wrote a member key, for people.
fn holder(value: &[u8]) -> String {
    match MemberReport::from_json(value) {
        Ok(report) if check_member_id("", &report.host).is_ok() => {
            let since = match report.started.chars().all(|c| c.is_ascii_graphic()) {
                true => report.started.as_str(),
                false => "?",
            };
            format!(
                "process {} on {}, started {}",
                report.pid,
                report.host.escape_debug(),
                since.get(..since.len().min(40)).unwrap_or("?")
            )
        }
        _ => "something that is no member's report".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(id: &str, instance: &str) -> MemberReport {
        MemberReport {
            id: id.into(),
            instance: instance.into(),
            host: "host-b".into(),
            pid: 12,
            started: "2026-11-21T16:00:00Z".into(),
            ..MemberReport::default()
        }
    }

    #[test]
    fn the_newcomer_waits_for_a_key_that_may_outlive_its_process_and_then_takes_another_id() {
        let patience = Duration::from_secs(12);
        let mut claim = Claim::new(&report("m1", "b"), patience);
        let other = report("m1", "a").to_json();
        assert!(!claim.is_own(&other) && claim.is_own(&report("m1", "b").to_json()));
        assert!(!claim.is_own(b"garbage"));
        let start = Instant::now();
        assert!(!claim.taken(&other, start));
        assert!(!claim.taken(&other, start + patience - Duration::from_millis(1)));
        assert_eq!(claim.id(), "m1");
        let clash = claim.status().clash.expect("a clash");
        assert!(
            clash.starts_with(
                "the member id `m1` is held by process 12 on host-b, started 2026-11-21T16:00:00Z;"
            ),
            "{clash}"
        );
        assert!(claim.taken(&other, start + patience));
        assert!(claim.id().starts_with("m1-") && claim.id().len() == "m1-".len() + 8);
        claim.held();
        assert!(claim.status().clash.is_some(), "it stays told");
    }

    #[test]
    fn a_key_that_goes_in_time_is_taken_over_without_a_word_left() {
        let mut claim = Claim::new(&report("m1", "b"), Duration::from_secs(10));
        let start = Instant::now();
        claim.taken(b"x", start);
        claim.held();
        assert_eq!(claim.status().clash, None);
        // A later clash is a new one.
        assert!(!claim.taken(b"x", start + Duration::from_secs(60)));
        assert_eq!(claim.id(), "m1");
    }

    #[test]
    fn the_time_of_an_outage_does_not_count_as_waited() {
        let patience = Duration::from_secs(12);
        let mut claim = Claim::new(&report("m1", "b"), patience);
        let start = Instant::now();
        claim.taken(b"x", start);
        claim.unseen(start + patience);
        assert!(!claim.taken(b"x", start + patience * 2 - Duration::from_millis(1)));
        assert!(claim.taken(b"x", start + patience * 2));
        claim.unseen(start + patience * 3);
        assert!(!claim.is_taken(), "nothing was waited for");
    }

    #[test]
    fn another_id_is_as_usable_as_the_wanted_one() {
        let mut claim = Claim::new(&report(&"é".repeat(255 / 2), "b"), Duration::ZERO);
        let start = Instant::now();
        claim.taken(b"x", start);
        assert!(claim.taken(b"x", start));
        assert!(
            check_member_id("store", claim.id()).is_ok(),
            "{}",
            claim.id()
        );
    }
}
