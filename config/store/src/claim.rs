//! Decides under which id a member keeps its key while another process may hold that id. Pure.
//!
//! ```text
//!  own id ──► absent, or written by this process? ── yes ──► held
//!    ▲             │ another process's key
//!    │             ▼
//!    └── poll; after `hold_timeout` it cannot be a leftover of a killed process ──► `{id}-{random}`, permanently
//! ```

use std::time::Duration;

use sluicegate_config::control::MemberReport;
use tokio::time::Instant;

use super::{MembershipStatus, check_member_id};

/// Longest prefix of the wanted id that a replacement id keeps, in bytes: ids have a maximum length.
const MAX_BASE: usize = 240;

/// The id of a member.
pub(super) struct Claim {
    wanted: String,
    instance: String,
    id: String,
    hold_timeout: Duration,
    /// Since when another process's key occupies the own id.
    taken_since: Option<Instant>,
    /// The holder of the wanted id, for messages.
    holder: Option<String>,
}

impl Claim {
    /// `hold_timeout` is how long the key of a killed process can remain.
    pub(super) fn new(report: &MemberReport, hold_timeout: Duration) -> Self {
        Self {
            wanted: report.id.clone(),
            instance: report.instance.clone(),
            id: report.id.clone(),
            hold_timeout,
            taken_since: None,
            holder: None,
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Whether this process wrote `value`, on any connection.
    pub(super) fn is_own(&self, value: &[u8]) -> bool {
        MemberReport::from_json(value).is_ok_and(|there| there.instance == self.instance)
    }

    /// Whether another process's key occupies the own id.
    pub(super) fn is_taken(&self) -> bool {
        self.taken_since.is_some()
    }

    /// Reports that another process's `value` occupies the own id. Returns whether the id has changed.
    pub(super) fn taken(&mut self, value: &[u8], now: Instant) -> bool {
        let holder = holder(value);
        let Some(since) = self.taken_since else {
            tracing::warn!(
                member = self.id,
                holder,
                wait_s = self.hold_timeout.as_secs(),
                "member id held by another process; waiting for its key to be removed"
            );
            self.taken_since = Some(now);
            self.holder = Some(holder);
            return false;
        };
        self.holder = Some(holder);
        if now.saturating_duration_since(since) < self.hold_timeout {
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
            "two processes share one member id; this process uses another. Set a distinct `handlers.member_id` for each"
        );
        self.id = id;
        self.taken_since = None;
        true
    }

    /// Restarts the wait after a store failure: leases outlive a leader change by up to their whole lifetime, so time
    /// waited during an outage does not count.
    pub(super) fn restart_wait(&mut self, now: Instant) {
        if let Some(since) = &mut self.taken_since {
            *since = now;
        }
    }

    /// Reports that the key at the own id is this process's.
    pub(super) fn held(&mut self) {
        if self.taken_since.take().is_some() {
            tracing::info!(
                member = self.id,
                "member id released by the other process and acquired"
            );
        }
        if self.id == self.wanted {
            self.holder = None;
        }
    }

    pub(super) fn status(&self) -> MembershipStatus {
        let (id, wanted) = (&self.id, &self.wanted);
        let clash = self.holder.as_ref().map(|holder| match id == wanted {
            true => format!(
                "the member id `{id}` is held by {holder}; until its key is removed, this process is not listed as a member"
            ),
            false => format!(
                "the member id `{wanted}` is held by {holder}; this process runs as member `{id}`"
            ),
        });
        MembershipStatus {
            id: id.clone(),
            clash,
        }
    }
}

/// The writer of a member key, for messages.
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
        _ => "a key that is not a member report".to_owned(),
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
    fn another_process_waits_for_the_hold_timeout_and_then_takes_another_id() {
        let hold_timeout = Duration::from_secs(12);
        let mut claim = Claim::new(&report("m1", "b"), hold_timeout);
        let other = report("m1", "a").to_json();
        assert!(!claim.is_own(&other) && claim.is_own(&report("m1", "b").to_json()));
        assert!(!claim.is_own(b"garbage"));
        let start = Instant::now();
        assert!(!claim.taken(&other, start));
        assert!(!claim.taken(&other, start + hold_timeout - Duration::from_millis(1)));
        assert_eq!(claim.id(), "m1");
        let clash = claim.status().clash.expect("a clash");
        assert!(
            clash.starts_with(
                "the member id `m1` is held by process 12 on host-b, started 2026-11-21T16:00:00Z;"
            ),
            "{clash}"
        );
        assert!(claim.taken(&other, start + hold_timeout));
        assert!(claim.id().starts_with("m1-") && claim.id().len() == "m1-".len() + 8);
        claim.held();
        assert!(claim.status().clash.is_some(), "the clash stays reported");
    }

    #[test]
    fn an_id_released_in_time_is_acquired_and_clears_the_clash() {
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
        let hold_timeout = Duration::from_secs(12);
        let mut claim = Claim::new(&report("m1", "b"), hold_timeout);
        let start = Instant::now();
        claim.taken(b"x", start);
        claim.restart_wait(start + hold_timeout);
        assert!(!claim.taken(b"x", start + hold_timeout * 2 - Duration::from_millis(1)));
        assert!(claim.taken(b"x", start + hold_timeout * 2));
        claim.restart_wait(start + hold_timeout * 3);
        assert!(!claim.is_taken(), "no wait was under way");
    }

    #[test]
    fn the_replacement_of_a_long_id_is_a_valid_id() {
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
