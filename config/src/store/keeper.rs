//! Keeps a member's key: by a clock of its own, looked at and not assumed, under an id that no other process holds.
//!
//! ```text
//!  clock (a third of the key's life) ─┐
//!  a new report ──────────────────────┼─► renew what the key lives by, if the clock says so ─► write, or look
//!  the connection changed ────────────┤        └ failed: again after a growing pause       └ another's: `Claim`
//!  another process holds the id ──────┘
//! ```
//!
//! Reports must not move the clock: a control plane that is written often makes many.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::claim::Claim;
use super::driver::{Driver, RunningTask};
use super::failure::Failure;
use super::{Membership, MembershipStatus};
use crate::jitter::backoff;
use crate::member::MemberReport;

/// First and longest wait between attempts to keep a key; what is waited is a random part of it.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_millis(3200));
/// Longest time between two looks at an id that another process holds.
const CLAIM_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// A member's key in one kind of store.
pub(super) trait MemberLink: Send {
    /// Renews what keys live by, such as a lease; makes a new one where that is gone.
    fn renew(&mut self) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Makes `report` stand under `id`, unless another process holds that: a key that lives by nothing, and one of which
    /// `is_own` says so, is replaced.
    fn write(
        &mut self,
        id: &str,
        report: &[u8],
        is_own: &(dyn Fn(&[u8]) -> bool + Sync),
    ) -> impl Future<Output = Result<Written, Failure>> + Send;

    /// Returns when the key may be gone and has to be looked at at once.
    fn disturbed(&mut self) -> impl Future<Output = ()> + Send;
}

/// What came of writing a member's key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// The report stands there.
    Done,
    /// Another living process wrote this there.
    Taken(Vec<u8>),
}

/// Leaves: takes away the key under the id that it is given.
pub(super) type Leave = Box<dyn FnOnce(&Driver, String) + Send + Sync>;

struct KeptMember {
    reports: watch::Sender<Arc<MemberReport>>,
    status: watch::Receiver<MembershipStatus>,
    task: RunningTask,
    leave: Option<Leave>,
}

/// How long a key lives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Life {
    /// After its process was killed.
    pub(super) ttl: Duration,
    /// What the store may take beyond that to remove it.
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
    let (told, status) = watch::channel(claim.status());
    let (reports, newest) = watch::channel(Arc::new(report));
    let task = driver.task(keep(link, claim, life.ttl / 3, newest, told));
    Box::new(KeptMember {
        reports,
        status,
        task,
        leave: Some(leave),
    })
}

impl Membership for KeptMember {
    fn report(&self, report: MemberReport) {
        // The task lives as long as the value.
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

/// Keeps the key until nobody reports any more.
async fn keep<L: MemberLink>(
    mut link: L,
    mut claim: Claim,
    beat: Duration,
    mut reports: watch::Receiver<Arc<MemberReport>>,
    told: watch::Sender<MembershipStatus>,
) {
    let mut clock = interval(beat);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failures = Failures::default();
    loop {
        let pause = failures
            .pause(beat)
            .or_else(|| claim.is_taken().then(|| CLAIM_POLL_INTERVAL.min(beat)));
        let well = failures.count == 0;
        // The clock comes first: nothing that happens often keeps it waiting.
        let renew = tokio::select! {
            biased;
            _ = clock.tick() => true,
            changed = reports.changed(), if well => match changed {
                Ok(()) => false,
                Err(_) => return,
            },
            () = link.disturbed(), if well => false,
            () = sleep(pause.unwrap_or_default()), if pause.is_some() => !well,
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
            Ok(()) => failures.over(),
            Err(failure) => {
                claim.unseen(Instant::now());
                failures.note(claim.id(), failure);
            }
        }
        told.send_if_modified(|status| {
            let now = claim.status();
            let news = *status != now;
            *status = now;
            news
        });
    }
}

/// Writes the report under the id, or under the next one.
async fn write<L: MemberLink>(
    link: &mut L,
    claim: &mut Claim,
    report: &MemberReport,
    failures: &mut Failures,
) -> Result<(), Failure> {
    let mut short = false;
    loop {
        let report = MemberReport {
            id: claim.id().to_owned(),
            ..report.clone()
        };
        let mut value = report.to_json();
        let whole = value.len();
        short |= failures.is_too_long(whole);
        if short {
            value = report.minimal().to_json();
        }
        let is_own = |value: &[u8]| claim.is_own(value);
        let written = link.write(claim.id(), &value, &is_own).await;
        match written {
            Ok(Written::Done) => {
                claim.held();
                failures.written(whole, short);
                return Ok(());
            }
            Ok(Written::Taken(by)) => {
                if !claim.taken(&by, Instant::now()) {
                    return Ok(());
                }
            }
            // A member that cannot tell all is still a member.
            Err(Failure::Refused(reason)) if !short => {
                tracing::debug!(
                    member = claim.id(),
                    reason,
                    "a member's report is refused; a short one is tried"
                );
                short = true;
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// Failures since the last success.
#[derive(Default)]
struct Failures {
    count: u32,
    /// Whether a refusal was told.
    told: bool,
    /// The length of a whole report that was refused where a short one was taken: those of that length are not tried again.
    too_long: Option<usize>,
}

impl Failures {
    fn note(&mut self, member: &str, failure: Failure) {
        self.count = self.count.saturating_add(1);
        let refused = matches!(failure, Failure::Refused(_));
        let reason = failure.reason();
        if refused && !self.told {
            self.told = true;
            tracing::warn!(
                member,
                reason,
                "a member's key is refused by its store; trying again"
            );
        } else {
            tracing::debug!(member, reason, "a member's key is not kept; trying again");
        }
    }

    /// Whether a report of this length was refused for its length.
    fn is_too_long(&self, whole: usize) -> bool {
        self.too_long.is_some_and(|too_long| whole >= too_long)
    }

    /// A report was taken. A short one that was taken where the whole one was not tells that this is a matter of length: what
    /// is refused for another reason, such as a right, is refused whatever its length.
    fn written(&mut self, whole: usize, short: bool) {
        if short && !self.is_too_long(whole) {
            tracing::warn!(
                bytes = whole,
                "a member's report is refused for its length; a short one is written"
            );
            self.too_long = Some(whole);
        }
    }

    fn over(&mut self) {
        self.count = 0;
        self.told = false;
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

    /// A store in which keys live by leases, and a lease until a test takes it away.
    #[derive(Default)]
    struct Shared {
        /// By id: lease and value.
        keys: BTreeMap<String, (u64, Vec<u8>)>,
        leases: BTreeSet<u64>,
        renewals: u32,
        /// Longest value that is taken.
        longest: Option<usize>,
    }

    impl Shared {
        /// The keys whose lease lives, with the instance that wrote them.
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

        async fn write(
            &mut self,
            id: &str,
            report: &[u8],
            is_own: &(dyn Fn(&[u8]) -> bool + Sync),
        ) -> Result<Written, Failure> {
            let mut store = lock(&self.store);
            store.living();
            if store.longest.is_some_and(|most| report.len() > most) {
                return Err(Failure::Refused("too long".to_owned()));
            }
            if !store.leases.contains(&self.lease) {
                return Err(Failure::away("requested lease not found"));
            }
            match store.keys.get(id) {
                Some((_, there)) if !is_own(there) => Ok(Written::Taken(there.clone())),
                _ => {
                    let value = (self.lease, report.to_vec());
                    store.keys.insert(id.to_owned(), value);
                    Ok(Written::Done)
                }
            }
        }

        async fn disturbed(&mut self) {
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

    fn start(store: &Store, instance: &str, lease: u64, patience: Duration) -> Kept {
        let claim = Claim::new(&report(instance, 0), patience);
        let link = Leased {
            store: Arc::clone(store),
            lease,
        };
        let (told, status) = watch::channel(claim.status());
        let (reports, newest) = watch::channel(Arc::new(report(instance, 0)));
        let task = tokio::spawn(keep(link, claim, BEAT, newest, told));
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

    /// Asks every 5 ms until it is so.
    async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !is_so() {
            assert!(Instant::now() < end, "waited for {what}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    fn m1_of(instance: &str) -> Vec<(String, String)> {
        vec![("m1".to_owned(), instance.to_owned())]
    }

    #[test]
    fn a_member_that_reports_all_the_time_renews_its_lease() {
        run(async {
            let store = Store::default();
            let member = start(&store, "a", 1, LONG);
            let mut revision = 0;
            until("ten renewals beside the reports", || {
                revision += 1;
                let _ = member.reports.send(Arc::new(report("a", revision)));
                lock(&store).renewals >= 10
            })
            .await;
            assert!(revision > 20, "{revision} reports");
        });
    }

    #[test]
    fn a_key_that_somebody_deletes_is_back() {
        run(async {
            let store = Store::default();
            let _member = start(&store, "a", 1, LONG);
            until("the key", || lock(&store).living() == m1_of("a")).await;
            lock(&store).keys.clear();
            until("the key again", || lock(&store).living() == m1_of("a")).await;
        });
    }

    #[test]
    fn a_lease_that_lapsed_is_made_anew() {
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
    fn of_two_with_one_id_the_first_keeps_it_and_the_second_takes_another_aloud() {
        run(async {
            let store = Store::default();
            let first = start(&store, "a", 1, LONG);
            until("the key", || lock(&store).living() == m1_of("a")).await;
            let second = start(&store, "b", 2, 3 * BEAT);
            until("a word of the clash", || {
                assert_eq!(lock(&store).living()[0], m1_of("a")[0]);
                second.status.borrow().clash.is_some()
            })
            .await;
            until("another id", || {
                assert_eq!(lock(&store).living()[0], m1_of("a")[0]);
                lock(&store).living().len() == 2
            })
            .await;
            until("word of it", || second.status.borrow().id != "m1").await;
            let id = second.status.borrow().id.clone();
            assert!(id.starts_with("m1-"), "{id}");
            let both = [&m1_of("a")[..], &[(id.clone(), "b".to_owned())]].concat();
            assert_eq!(lock(&store).living(), both);
            let value = lock(&store).keys[&id].1.clone();
            assert_eq!(MemberReport::from_json(&value).unwrap().id, id);
            assert!(second.status.borrow().clash.is_some(), "it stays told");
            assert_eq!(first.status.borrow().clash, None);
            // The key of the one that goes is not the other's.
            second.task.abort();
            until("its end", || second.task.is_finished()).await;
            lock(&store).leases.remove(&2);
            assert_eq!(lock(&store).living(), m1_of("a"));
        });
    }

    #[test]
    fn a_member_that_was_killed_has_its_id_again_when_its_old_key_lapses() {
        run(async {
            let store = Store::default();
            let killed = start(&store, "a", 1, LONG);
            until("the key", || lock(&store).living() == m1_of("a")).await;
            killed.task.abort();
            until("its end", || killed.task.is_finished()).await;
            let next = start(&store, "b", 2, LONG);
            until("a word of the clash", || {
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
    fn a_member_whose_report_is_refused_stays_a_member_with_a_short_one() {
        run(async {
            let store = Store::default();
            lock(&store).longest = Some(400);
            let member = start(&store, "a", 1, LONG);
            let long = MemberReport {
                preparing: vec!["a handler that is being prepared".into(); 100],
                ..report("a", 7)
            };
            let _ = member.reports.send(Arc::new(long));
            until("a short report", || {
                let store = lock(&store);
                let told = store.keys.get("m1");
                let told = told.map(|(_, value)| MemberReport::from_json(value).unwrap());
                told.is_some_and(|told| (told.applied_revision, told.omitted.handlers) == (7, 100))
            })
            .await;
        });
    }

    #[test]
    fn a_refusal_that_is_over_leaves_nothing_out_of_the_next_report() {
        run(async {
            let store = Store::default();
            // Whatever its length, as without a right.
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
                let told = store.keys.get("m1");
                let told = told.map(|(_, value)| MemberReport::from_json(value).unwrap());
                told.is_some_and(|told| (told.preparing.len(), told.omitted.handlers) == (100, 0))
            })
            .await;
        });
    }
}
