//! Keeps a member's key alive: on its own timer, by verifying the key rather than assuming it, under an id that no
//! other process holds.
//!
//! ```text
//!  timer (a third of the key's TTL) ──┐
//!  a new report ──────────────────────┼─► renew lease or session, on the timer ─► write, or verify
//!  the connection changed ────────────┤        └ failed: retry with backoff          └ another's key: `Claim`
//!  another process holds the id ──────┘
//! ```
//!
//! Reports must not reset the timer: a busy control plane produces many, and the lease would expire between them. The
//! key is written or verified each time, because an operator can delete it and an expired lease takes it along.
//!
//! A key of another process is not overwritten: it may be a live member with the same id, and an operator's `--wait`
//! would then count one member for two. It may also be the remains of a killed process, so the claim waits for as long
//! as such a key can last before it takes another id. Time in which the store is unreachable does not count, since
//! leases outlive a change of the store's leader. A report that the store refuses is replaced by a minimal one: a
//! member that reports too much is still a member.

use std::sync::Arc;
use std::time::Duration;

use crate::jitter::backoff;
use sluicegate_config::control::MemberReport;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::claim::Claim;
use super::driver::{Driver, RunningTask};
use super::failure::Failure;
use super::{Membership, MembershipStatus};

/// Initial and maximum delay between attempts to keep a key; randomized. Never longer than the interval between renewals, or
/// repeated failures would cost a short lease.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_millis(3200));
/// Maximum poll interval of an id that another process holds.
const CLAIM_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// A member's key in one kind of store.
pub(super) trait MemberLink: Send {
    /// Renews the lease or session that the key depends on, or creates a new one.
    fn renew(&mut self) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Writes `report` under the id of `claim`, unless another process holds that. A key without lease or session, and
    /// one that this process wrote, is replaced.
    fn write(
        &mut self,
        claim: &Claim,
        report: &[u8],
    ) -> impl Future<Output = Result<Written, Failure>> + Send;

    /// Resolves when the key may be gone and must be verified at once.
    fn invalidated(&mut self) -> impl Future<Output = ()> + Send;
}

/// Result of writing a member's key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// The key holds the report.
    Done,
    /// A different live process wrote this value there.
    Taken(Vec<u8>),
}

/// Called on leaving: deletes the key under the given id.
pub(super) type Leave = Box<dyn FnOnce(&Driver, String) + Send + Sync>;

struct KeptMember {
    reports: watch::Sender<Arc<MemberReport>>,
    status: watch::Receiver<MembershipStatus>,
    task: RunningTask,
    leave: Option<Leave>,
}

/// How long a key outlives its process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Life {
    /// TTL of the lease or session after its process was killed.
    pub(super) ttl: Duration,
    /// Maximum time until the store removes the key after that.
    pub(super) removal: Duration,
}

/// Joins under the id of `report`.
pub(super) fn join<L: MemberLink + 'static>(
    driver: &Arc<Driver>,
    link: L,
    life: Life,
    report: MemberReport,
    leave: Leave,
) -> Box<dyn Membership> {
    let claim = Claim::new(&report, life.ttl + life.removal);
    let (status_sender, status) = watch::channel(claim.status());
    let (reports, newest) = watch::channel(Arc::new(report));
    let task = driver.task(keep(link, claim, life.ttl / 3, newest, status_sender));
    Box::new(KeptMember {
        reports,
        status,
        task,
        leave: Some(leave),
    })
}

impl Membership for KeptMember {
    fn report(&self, report: MemberReport) {
        // The receiving task lives as long as `self`.
        let _ = self.reports.send(Arc::new(report));
    }

    fn status(&self) -> MembershipStatus {
        self.status.borrow().clone()
    }
}

impl Drop for KeptMember {
    fn drop(&mut self) {
        self.task.end();
        let id = self.status.borrow().id.clone();
        if let Some(leave) = self.leave.take() {
            leave(self.task.driver(), id);
        }
    }
}

/// Keeps the key until the sender of reports is dropped.
async fn keep<L: MemberLink>(
    mut link: L,
    mut claim: Claim,
    beat: Duration,
    mut reports: watch::Receiver<Arc<MemberReport>>,
    status: watch::Sender<MembershipStatus>,
) {
    let mut clock = interval(beat);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failures = Failures::default();
    loop {
        let pause = failures
            .pause(beat)
            .or_else(|| claim.is_taken().then(|| CLAIM_POLL_INTERVAL.min(beat)));
        let healthy = failures.count == 0;
        // The timer has priority, so frequent reports cannot starve it.
        let renew = tokio::select! {
            biased;
            _ = clock.tick() => true,
            changed = reports.changed(), if healthy => match changed {
                Ok(()) => false,
                Err(_) => return,
            },
            () = link.invalidated(), if healthy => false,
            () = sleep(pause.unwrap_or_default()), if pause.is_some() => !healthy,
        };
        let report = Arc::clone(&reports.borrow_and_update());
        let kept = match renew {
            true => link.renew().await,
            false => Ok(()),
        };
        let kept = match kept {
            Ok(()) => write(&mut link, &mut claim, &report, &mut failures).await,
            failed => failed,
        };
        match kept {
            Ok(()) => failures.clear(),
            Err(failure) => {
                claim.restart_wait(Instant::now());
                failures.record(claim.id(), failure);
            }
        }
        status.send_if_modified(|status| {
            let now = claim.status();
            let is_changed = *status != now;
            *status = now;
            is_changed
        });
    }
}

/// Writes the report under the own id, or under a replacement id.
async fn write<L: MemberLink>(
    link: &mut L,
    claim: &mut Claim,
    report: &MemberReport,
    failures: &mut Failures,
) -> Result<(), Failure> {
    let mut minimal = false;
    loop {
        let report = MemberReport {
            id: claim.id().to_owned(),
            ..report.clone()
        };
        let mut value = report.to_json();
        let whole = value.len();
        minimal |= failures.is_too_long(whole);
        if minimal {
            value = report.minimal().to_json();
        }
        match link.write(claim, &value).await {
            Ok(Written::Done) => {
                claim.held();
                failures.written(whole, minimal);
                return Ok(());
            }
            Ok(Written::Taken(by)) => {
                if !claim.taken(&by, Instant::now()) {
                    return Ok(());
                }
            }
            // A member with a minimal report is still a member.
            Err(Failure::Refused(reason)) if !minimal => {
                tracing::debug!(
                    member = claim.id(),
                    reason,
                    "member report refused; retrying with a minimal one"
                );
                minimal = true;
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// Failures since the last success.
#[derive(Default)]
struct Failures {
    count: u32,
    /// Whether a refusal was logged.
    is_logged: bool,
    /// The length of a full report that was refused where a minimal one was accepted: reports of that length or more
    /// are not tried again.
    too_long: Option<usize>,
}

impl Failures {
    fn record(&mut self, member: &str, failure: Failure) {
        self.count = self.count.saturating_add(1);
        let refused = matches!(failure, Failure::Refused(_));
        let reason = failure.to_string();
        if refused && !self.is_logged {
            self.is_logged = true;
            tracing::warn!(member, reason, "member key refused by its store; retrying");
        } else {
            tracing::debug!(member, reason, "cannot keep member key; retrying");
        }
    }

    /// Whether a report of this length was refused for its length.
    fn is_too_long(&self, whole: usize) -> bool {
        self.too_long.is_some_and(|too_long| whole >= too_long)
    }

    /// Records an accepted report. A minimal one that was accepted where the full one was not shows that length is the
    /// reason: a refusal for another reason, such as a permission, does not depend on the length.
    fn written(&mut self, whole: usize, minimal: bool) {
        if minimal && !self.is_too_long(whole) {
            tracing::warn!(
                bytes = whole,
                "member report too long for its store; writing a minimal one"
            );
            self.too_long = Some(whole);
        }
    }

    fn clear(&mut self) {
        self.count = 0;
        self.is_logged = false;
    }

    fn pause(&self, beat: Duration) -> Option<Duration> {
        let (first, longest) = BACKOFF;
        (self.count > 0).then(|| backoff(first, longest.min(beat), self.count))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::{Mutex, MutexGuard};

    use super::*;

    /// A store whose keys depend on leases; a lease lasts until a test removes it.
    #[derive(Default)]
    struct Shared {
        /// By id: lease and value.
        keys: BTreeMap<String, (u64, Vec<u8>)>,
        leases: BTreeSet<u64>,
        renewals: u32,
        /// Maximum accepted length of a value.
        longest: Option<usize>,
    }

    impl Shared {
        /// The keys with a live lease, with the instance that wrote them.
        fn living(&mut self) -> Vec<(String, String)> {
            let leases = &self.leases;
            self.keys.retain(|_, (lease, _)| leases.contains(lease));
            let instance = |value: &[u8]| MemberReport::from_json(value).unwrap().instance;
            let keys = self.keys.iter();
            keys.map(|(id, (_, value))| (id.clone(), instance(value)))
                .collect()
        }
    }

    type Store = Arc<Mutex<Shared>>;

    fn lock(store: &Store) -> MutexGuard<'_, Shared> {
        store.lock().unwrap()
    }

    struct Leased {
        store: Store,
        lease: u64,
    }

    impl MemberLink for Leased {
        async fn renew(&mut self) -> Result<(), Failure> {
            let mut store = lock(&self.store);
            store.renewals += 1;
            store.leases.insert(self.lease);
            Ok(())
        }

        async fn write(&mut self, claim: &Claim, report: &[u8]) -> Result<Written, Failure> {
            let mut store = lock(&self.store);
            store.living();
            if store.longest.is_some_and(|most| report.len() > most) {
                return Err(Failure::Refused("too long".to_owned()));
            }
            if !store.leases.contains(&self.lease) {
                return Err(Failure::away("requested lease not found"));
            }
            match store.keys.get(claim.id()) {
                Some((_, there)) if !claim.is_own(there) => Ok(Written::Taken(there.clone())),
                _ => {
                    let value = (self.lease, report.to_vec());
                    store.keys.insert(claim.id().to_owned(), value);
                    Ok(Written::Done)
                }
            }
        }

        async fn invalidated(&mut self) {
            std::future::pending().await
        }
    }

    const BEAT: Duration = Duration::from_millis(100);
    const LONG: Duration = Duration::from_secs(600);

    struct Kept {
        reports: watch::Sender<Arc<MemberReport>>,
        status: watch::Receiver<MembershipStatus>,
        task: tokio::task::JoinHandle<()>,
    }

    fn report(instance: &str, applied_revision: u64) -> MemberReport {
        MemberReport {
            id: "m1".into(),
            instance: instance.into(),
            applied_revision,
            ..MemberReport::default()
        }
    }

    fn start(store: &Store, instance: &str, lease: u64, hold_timeout: Duration) -> Kept {
        let claim = Claim::new(&report(instance, 0), hold_timeout);
        let link = Leased {
            store: Arc::clone(store),
            lease,
        };
        let (status_sender, status) = watch::channel(claim.status());
        let (reports, newest) = watch::channel(Arc::new(report(instance, 0)));
        let task = tokio::spawn(keep(link, claim, BEAT, newest, status_sender));
        Kept {
            reports,
            status,
            task,
        }
    }

    fn run(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime")
            .block_on(test);
    }

    /// Polls `is_so` every 5 ms until it returns true.
    async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
        let mut polls = tokio::time::interval(Duration::from_millis(5));
        let holds = async {
            while !is_so() {
                polls.tick().await;
            }
        };
        let held = tokio::time::timeout(Duration::from_secs(20), holds).await;
        assert!(held.is_ok(), "waited for {what}");
    }

    fn m1_of(instance: &str) -> Vec<(String, String)> {
        vec![("m1".to_owned(), instance.to_owned())]
    }

    #[test]
    fn frequent_reports_do_not_keep_a_member_from_renewing_its_lease() {
        run(async {
            let store = Store::default();
            let member = start(&store, "a", 1, LONG);
            let mut revision = 0;
            until("ten renewals despite the reports", || {
                revision += 1;
                let _ = member.reports.send(Arc::new(report("a", revision)));
                lock(&store).renewals >= 10
            })
            .await;
            assert!(revision > 20, "{revision} reports");
        });
    }

    #[test]
    fn a_deleted_member_key_is_written_again() {
        run(async {
            let store = Store::default();
            let _member = start(&store, "a", 1, LONG);
            until("the key", || lock(&store).living() == m1_of("a")).await;
            lock(&store).keys.clear();
            until("the key again", || lock(&store).living() == m1_of("a")).await;
        });
    }

    #[test]
    fn an_expired_lease_is_replaced() {
        run(async {
            let store = Store::default();
            let member = start(&store, "a", 1, LONG);
            until("the key", || lock(&store).living() == m1_of("a")).await;
            lock(&store).leases.clear();
            let _ = member.reports.send(Arc::new(report("a", 1)));
            until("the key again", || lock(&store).living() == m1_of("a")).await;
        });
    }

    #[test]
    fn of_two_members_with_one_id_the_second_takes_another_and_reports_the_clash() {
        run(async {
            let store = Store::default();
            let first = start(&store, "a", 1, LONG);
            until("the key", || lock(&store).living() == m1_of("a")).await;
            let second = start(&store, "b", 2, 3 * BEAT);
            until("the report of the clash", || {
                assert_eq!(lock(&store).living()[0], m1_of("a")[0]);
                second.status.borrow().clash.is_some()
            })
            .await;
            until("another id", || {
                assert_eq!(lock(&store).living()[0], m1_of("a")[0]);
                lock(&store).living().len() == 2
            })
            .await;
            until("the report of the id", || second.status.borrow().id != "m1").await;
            let id = second.status.borrow().id.clone();
            assert!(id.starts_with("m1-"), "{id}");
            let both = [&m1_of("a")[..], &[(id.clone(), "b".to_owned())]].concat();
            assert_eq!(lock(&store).living(), both);
            let value = lock(&store).keys[&id].1.clone();
            assert_eq!(MemberReport::from_json(&value).unwrap().id, id);
            assert!(
                second.status.borrow().clash.is_some(),
                "the clash stays reported"
            );
            assert_eq!(first.status.borrow().clash, None);
            // Stopping one does not affect the key of the other.
            second.task.abort();
            until("its end", || second.task.is_finished()).await;
            lock(&store).leases.remove(&2);
            assert_eq!(lock(&store).living(), m1_of("a"));
        });
    }

    #[test]
    fn a_restarted_member_regains_its_id_when_the_old_key_expires() {
        run(async {
            let store = Store::default();
            let killed = start(&store, "a", 1, LONG);
            until("the key", || lock(&store).living() == m1_of("a")).await;
            killed.task.abort();
            until("its end", || killed.task.is_finished()).await;
            let next = start(&store, "b", 2, LONG);
            until("the report of the clash", || {
                next.status.borrow().clash.is_some()
            })
            .await;
            assert_eq!(lock(&store).living(), m1_of("a"));
            lock(&store).leases.remove(&1);
            until("its id", || lock(&store).living() == m1_of("b")).await;
            until("the end of the clash", || {
                next.status.borrow().clash.is_none()
            })
            .await;
        });
    }

    #[test]
    fn a_member_whose_full_report_is_refused_stays_a_member_with_a_minimal_one() {
        run(async {
            let store = Store::default();
            lock(&store).longest = Some(400);
            let member = start(&store, "a", 1, LONG);
            let long = MemberReport {
                preparing: vec!["a handler that is being prepared".into(); 100],
                ..report("a", 7)
            };
            let _ = member.reports.send(Arc::new(long));
            until("a minimal report", || {
                let store = lock(&store);
                let written = store.keys.get("m1");
                let written = written.map(|(_, value)| MemberReport::from_json(value).unwrap());
                written.is_some_and(|written| {
                    (written.applied_revision, written.omitted.handlers) == (7, 100)
                })
            })
            .await;
        });
    }

    #[test]
    fn the_report_after_a_temporary_refusal_is_complete() {
        run(async {
            let store = Store::default();
            // Refused regardless of length, as without a permission.
            lock(&store).longest = Some(0);
            let member = start(&store, "a", 1, LONG);
            let long = MemberReport {
                preparing: vec!["a handler that is being prepared".into(); 100],
                ..report("a", 7)
            };
            let _ = member.reports.send(Arc::new(long));
            until("two refusals", || lock(&store).renewals > 1).await;
            assert!(lock(&store).keys.is_empty());
            lock(&store).longest = None;
            until("the whole report", || {
                let store = lock(&store);
                let written = store.keys.get("m1");
                let written = written.map(|(_, value)| MemberReport::from_json(value).unwrap());
                written.is_some_and(|written| {
                    (written.preparing.len(), written.omitted.handlers) == (100, 0)
                })
            })
            .await;
        });
    }
}
