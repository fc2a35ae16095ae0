//! The list-watch loop of every networked store: list everything, watch, and never miss changes for good (G10).
//!
//! ```text
//!            ┌───────────── backoff ◄── Unreachable ◄─┐ refused, no answer
//!            ▼                                        │
//!  open: list and watch ──────────────────────────────┤
//!            │ First | Resync                         │
//!            ▼                                        │
//!  next: events ─► Tree::apply ─► Event ──── lost: cancelled, compacted, disconnected, expired ──► open
//!    ▲       │ notices without a revision ─► re-list: the keys that they named are Event, the rest Resync
//!    ▲       │ every `relist`
//!    │       ▼
//!    └── re-list ─► still different after `grace`? ─► MissedUpdate ──► open (the server lost the watch)
//! ```
//!
//! A watch that may have missed something is replaced, never repaired (ADR 0016): both stores have ways to drop events
//! silently, and only a full listing shows what was lost. The periodic re-list finds losses that nothing announces. Its
//! result is kept for a grace period first, since events and listing arrive independently and one that is merely late
//! is not lost.
//!
//! An opening that reads an older revision than before, or a different store, is trusted: it is a full linearised
//! reading, so the store was restored or replaced. Its state replaces the known one; the receiver decides what to do
//! about that (ADR 0025). Any other reading is merged by revision, so that nothing is applied backwards.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::jitter::{backoff, jittered};
use sluicegate_config::control::ControlKey;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::failure::Failure;
use super::{Cause, StoreSink, StoreUpdate, Tree, TreeChange};

/// Initial and maximum delay between attempts to reach a store; randomized. The maximum is G10's bound for a recovered store.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Remedy for a store that answers, but refuses to be read.
const REFUSED_REMEDY: &str = "check the credentials and their permission to read the whole prefix";

/// A full reading of the store.
pub(super) struct Listing {
    /// The content. Its floor is the revision up to which a missing key counts as deleted.
    pub(super) tree: Tree,
    /// Keys that the watch reported as deleted or emptied before this reading: if they are missing here, they were not
    /// lost.
    pub(super) deletes_seen: BTreeSet<ControlKey>,
}

impl From<Tree> for Listing {
    /// A reading of a store whose watch reports each delete as an event.
    fn from(tree: Tree) -> Self {
        Self {
            tree,
            deletes_seen: BTreeSet::new(),
        }
    }
}

impl Listing {
    /// The deletes `reported` by the watch that this reading confirms, compared with the `known` tree.
    fn confirmed_deletes(&self, reported: &BTreeSet<ControlKey>, known: &Tree) -> Vec<TreeChange> {
        let gone = reported.iter().filter_map(|key| {
            let revision = known.get(key)?.stamp.revision;
            let is_gone = self.tree.get(key).is_none() && revision <= self.tree.floor;
            is_gone.then(|| TreeChange::delete(key.clone(), revision + 1))
        });
        gone.collect()
    }
}

/// An event of a connection.
#[derive(Debug)]
pub(super) enum WatchEvent {
    /// Changes up to `revision`, possibly none.
    Changes {
        changes: Vec<TreeChange>,
        /// Paths that are not control keys, with the reasons; `None` for a removed path.
        unrecognized: Vec<(String, Option<String>)>,
        revision: u64,
    },
    /// Something changed, but the server does not say by which write: only a full reading can tell. The watch
    /// continues.
    Unnumbered,
    /// The watch has ended; changes since then are unknown.
    Lost(Failure),
}

/// The store connection used by the loop.
pub(super) trait WatchConnection: Send {
    /// Lists everything and watches from there, dropping any earlier watch. `known` is the newest known revision; an
    /// older answer must be linearised, since the state reverts to it.
    fn open(&mut self, known: u64) -> impl Future<Output = Result<Listing, Failure>> + Send;

    /// Lists everything while the watch continues.
    fn list(&mut self, known: u64) -> impl Future<Output = Result<Listing, Failure>> + Send;

    /// The next events. Cancel-safe: dropping the future loses nothing.
    fn next(&mut self) -> impl Future<Output = WatchEvent> + Send;
}

/// Timeout of an opening or a listing, in request timeouts: a prefix takes many requests.
const LISTING_REQUESTS: u32 = 12;

/// Timings of the loop.
#[derive(Clone, Copy, Debug)]
pub(super) struct WatchTimings {
    /// Timeout of an opening or a listing.
    pub(super) list_timeout: Duration,
    /// Interval of re-lists, with ±20 % jitter.
    pub(super) relist: Duration,
}

impl WatchTimings {
    /// Timings for a store with this `request_timeout` per request.
    pub(super) fn new(request_timeout: Duration, relist: Duration) -> Self {
        Self {
            list_timeout: request_timeout * LISTING_REQUESTS,
            relist,
        }
    }

    /// How long a listing may differ from the events: they arrive independently.
    fn grace(&self) -> Duration {
        Duration::from_secs(1).min(self.relist / 4)
    }

    fn next_relist(&self) -> Instant {
        Instant::now() + jittered(self.relist)
    }
}

/// Follows a store until the future is dropped.
pub(super) async fn follow<L: WatchConnection>(
    link: L,
    timings: WatchTimings,
    sink: StoreSink,
    rereads: mpsc::UnboundedReceiver<()>,
) {
    let mut reflector = Reflector {
        link,
        timings,
        sink,
        rereads,
        tree: Tree::default(),
        read: false,
        unreachable: None,
        failures: 0,
        deletes_seen: BTreeSet::new(),
    };
    loop {
        if reflector.open().await {
            reflector.watch_events().await;
        } else {
            reflector.back_off().await;
        }
    }
}

struct Reflector<L> {
    link: L,
    timings: WatchTimings,
    sink: StoreSink,
    rereads: mpsc::UnboundedReceiver<()>,
    tree: Tree,
    /// Whether the store has been read at all.
    read: bool,
    /// The last reported reason why the store is unreachable.
    unreachable: Option<String>,
    /// Consecutive failed openings.
    failures: u32,
    /// Deletes seen by listings that are not applied yet, as in [`Listing`].
    deletes_seen: BTreeSet<ControlKey>,
}

/// What the loop waits for.
enum Step {
    Event(WatchEvent),
    Relist,
    GraceOver,
    Reread,
}

impl<L: WatchConnection> Reflector<L> {
    /// Opens the watch. Returns whether it is open.
    async fn open(&mut self) -> bool {
        let known = self.tree.revision;
        let opened = timeout(self.timings.list_timeout, self.link.open(known)).await;
        let opened = opened.unwrap_or_else(|_| Err(no_answer(self.timings.list_timeout)));
        match opened {
            Ok(mut listing) => {
                self.failures = 0;
                self.deletes_seen.append(&mut listing.deletes_seen);
                let cause = match self.read {
                    false => Cause::First,
                    true => Cause::Resync,
                };
                self.apply_listing(listing, cause);
                true
            }
            Err(failure) => {
                self.lost(&failure);
                false
            }
        }
    }

    /// Whether a listing is of an earlier state, or of a different store: the known state does not lead to it.
    fn is_discontinuous(&self, listing: &Listing) -> bool {
        listing.tree.revision < self.tree.revision || listing.tree.is_other_than(&self.tree)
    }

    /// Applies a listing and reports its changes. Returns whether it changed anything.
    fn apply_listing(&mut self, listing: Listing, cause: Cause) -> bool {
        if self.unreachable.take().is_some() {
            (self.sink)(StoreUpdate::Reachable);
        }
        let unrecognized = self.tree.unrecognized_keys.clone();
        let breaks = self.is_discontinuous(&listing);
        let reported = std::mem::take(&mut self.deletes_seen);
        let seen = match breaks {
            // The reported deletes belong to a different history.
            true => Vec::new(),
            false => {
                let seen = listing.confirmed_deletes(&reported, &self.tree);
                self.tree.apply(seen, 0)
            }
        };
        let between = (!seen.is_empty()).then(|| Arc::new(self.tree.clone()));
        let changes = match breaks {
            true => {
                let changes = self.tree.changes_to(&listing.tree);
                self.tree = listing.tree;
                if self.tree.floor > self.tree.revision {
                    // The floor belongs to the former history; of this one nothing was known.
                    self.tree.floor = 0;
                }
                changes
            }
            false => self.tree.catch_up(listing.tree),
        };
        self.read = true;
        let changed = !changes.is_empty() || !seen.is_empty();
        let must_report =
            !changes.is_empty() || breaks || unrecognized != self.tree.unrecognized_keys;
        match between {
            None if must_report || cause == Cause::First => self.report(changes, cause),
            None => {}
            // The re-read does not invalidate what the watch reported.
            Some(_) if changes.is_empty() => self.report(seen, Cause::Event),
            Some(tree) => {
                (self.sink)(StoreUpdate::Tree {
                    tree,
                    changes: seen,
                    cause: Cause::Event,
                });
                self.report(changes, cause);
            }
        }
        changed
    }

    fn report(&mut self, changes: Vec<TreeChange>, cause: Cause) {
        (self.sink)(StoreUpdate::Tree {
            tree: Arc::new(self.tree.clone()),
            changes,
            cause,
        });
    }

    /// Reports a failed opening. A refusal is retried like an outage, because it ends as soon as the permission is granted; its
    /// report tells it from an outage, which needs another remedy.
    fn lost(&mut self, failure: &Failure) {
        self.failures += 1;
        let reason = match failure {
            Failure::Refused(reason) => {
                format!("the store refuses to be read: {reason}; {REFUSED_REMEDY}")
            }
            Failure::Away(_) | Failure::Compacted => failure.to_string(),
        };
        if self.unreachable.as_ref() != Some(&reason) {
            self.unreachable = Some(reason.clone());
            (self.sink)(StoreUpdate::Unreachable { reason });
        }
    }

    /// Waits for a random part of a delay that doubles with each failure, or until a re-read is requested.
    async fn back_off(&mut self) {
        let (first, longest) = BACKOFF;
        let until = Instant::now() + backoff(first, longest, self.failures);
        tokio::select! {
            () = sleep_until(until) => {}
            () = requested(&mut self.rereads) => {}
        }
    }

    /// Follows events until the watch ends or has proved unreliable.
    async fn watch_events(&mut self) {
        let mut relist = self.timings.next_relist();
        let mut pending: Option<(Listing, Instant)> = None;
        loop {
            let grace = pending.as_ref().map(|(_, until)| *until);
            let next = tokio::select! {
                event = self.link.next() => Step::Event(event),
                () = sleep_until(relist), if grace.is_none() => Step::Relist,
                () = sleep_until(grace.unwrap_or(relist)), if grace.is_some() => Step::GraceOver,
                () = requested(&mut self.rereads) => Step::Reread,
            };
            match next {
                Step::Event(WatchEvent::Changes {
                    changes,
                    unrecognized,
                    revision,
                }) => self.apply_events(changes, unrecognized, revision),
                Step::Event(WatchEvent::Unnumbered) => {
                    let Some(listing) = self.relist().await else {
                        return;
                    };
                    self.apply_listing(listing, Cause::Resync);
                }
                Step::Event(WatchEvent::Lost(reason)) => {
                    tracing::debug!(%reason, "watch ended; listing everything again");
                    return;
                }
                Step::Reread => return,
                Step::Relist => {
                    let Some(listing) = self.relist().await else {
                        return;
                    };
                    relist = self.timings.next_relist();
                    let mut after = self.tree.clone();
                    if after.catch_up(listing.tree.clone()).is_empty() {
                        self.apply_listing(listing, Cause::MissedUpdate);
                    } else {
                        pending = Some((listing, Instant::now() + self.timings.grace()));
                    }
                }
                Step::GraceOver => {
                    let repaired = pending.take().is_some_and(|(listing, _)| {
                        self.apply_listing(listing, Cause::MissedUpdate)
                    });
                    if repaired {
                        return;
                    }
                }
            }
        }
    }

    fn apply_events(
        &mut self,
        changes: Vec<TreeChange>,
        unrecognized: Vec<(String, Option<String>)>,
        revision: u64,
    ) {
        let before = self.tree.unrecognized_keys.clone();
        for (path, reason) in unrecognized {
            match reason {
                Some(reason) => self.tree.unrecognized_keys.insert(path, reason),
                None => self.tree.unrecognized_keys.remove(&path),
            };
        }
        let changes = self.tree.apply(changes, revision);
        if !changes.is_empty() || before != self.tree.unrecognized_keys {
            self.report(changes, Cause::Event);
        }
    }

    /// A listing while the watch continues; `None` when the store does not answer, or the listing is discontinuous: the
    /// next opening decides.
    async fn relist(&mut self) -> Option<Listing> {
        let known = self.tree.revision;
        let listed = timeout(self.timings.list_timeout, self.link.list(known)).await;
        let listed = listed.unwrap_or_else(|_| Err(no_answer(self.timings.list_timeout)));
        match listed {
            Ok(mut listing) if !self.is_discontinuous(&listing) => {
                self.deletes_seen.append(&mut listing.deletes_seen);
                Some(listing)
            }
            Ok(_) => None,
            Err(reason) => {
                tracing::debug!(%reason, "periodic re-list failed; reconnecting");
                None
            }
        }
    }
}

fn no_answer(list_timeout: Duration) -> Failure {
    Failure::Away(format!("no answer within {list_timeout:?}"))
}

/// Resolves when a re-read is requested; never after all requesters are gone.
async fn requested(rereads: &mut mpsc::UnboundedReceiver<()>) {
    match rereads.recv().await {
        Some(()) => while rereads.try_recv().is_ok() {},
        None => std::future::pending().await,
    }
}
