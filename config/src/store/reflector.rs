//! The watch loop that every store with a network shares: read all, listen, and never go deaf (G10).
//!
//! ```text
//!            ┌───────────── backoff ◄── Unreachable ◄─┐ refused, silent
//!            ▼                                        │
//!  open: read all and listen ─────────────────────────┤
//!            │ First | Resync                         │
//!            ▼                                        │
//!  next: events ─► Tree::apply ─► Event ──── lost: cancelled, compacted, disconnected, expired ──► open
//!    ▲       │ notices that do not number their writes ─► read all: what they named is Event, the rest Resync
//!    ▲       │ every `relist`
//!    │       ▼
//!    └── read all ─► still different after `grace`? ─► Repair ──► open (the server forgot us)
//! ```
//!
//! An opening that reads an older revision than before, or another store, is believed: it is a full linearised reading, so
//! the store was restored or replaced. Its state is taken over whole; whoever listens decides what to make of that.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Cause, ControlKey, StoreSink, StoreUpdate, Tree, TreeChange};
use crate::jitter::{backoff, jittered};

/// First and longest wait between attempts to reach a store; what is waited is a random part of it.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// A full reading.
pub(super) struct Listing {
    /// What was read; its floor says up to which revision a missing key counts as deleted.
    pub(super) tree: Tree,
    /// Keys of which a watch has told, before this was read, that they were deleted or emptied: where they are missing here,
    /// that was no loss.
    pub(super) told_deleted: BTreeSet<ControlKey>,
}

impl From<Tree> for Listing {
    /// A reading of a store whose watch tells of each delete by itself.
    fn from(tree: Tree) -> Self {
        Self {
            tree,
            told_deleted: BTreeSet::new(),
        }
    }
}

impl Listing {
    /// The deletes that a watch has `told` and that this shows, against what is `known`.
    fn seen_deletes(&self, told: &BTreeSet<ControlKey>, known: &Tree) -> Vec<TreeChange> {
        let gone = told.iter().filter_map(|key| {
            let revision = known.get(key)?.stamp.revision;
            let is_gone = self.tree.get(key).is_none() && revision <= self.tree.floor;
            is_gone.then(|| TreeChange::delete(key.clone(), revision + 1))
        });
        gone.collect()
    }
}

/// What a link hears.
#[derive(Debug)]
pub(super) enum WatchEvent {
    /// Changes up to `revision`, maybe none.
    Changes {
        changes: Vec<TreeChange>,
        /// Paths that are no control keys and why; `None` for one that is gone.
        strangers: Vec<(String, Option<String>)>,
        revision: u64,
    },
    /// Something changed, and the server does not say by which write: only a full reading tells. The subscription stands.
    Unnumbered,
    /// The subscription is over; what happened since is not known.
    Lost(String),
}

/// A store's connection as the loop needs it. Errors are reasons for people.
pub(super) trait WatchConnection: Send {
    /// Reads everything and listens from there on, giving up whatever it listened to before.
    /// `known` is the newest revision that is known; an older answer must be linearised, since the state goes back to it.
    fn open(&mut self, known: u64) -> impl Future<Output = Result<Listing, String>> + Send;

    /// Reads everything while it goes on listening.
    fn list(&mut self, known: u64) -> impl Future<Output = Result<Listing, String>> + Send;

    /// The next events. Nothing is lost when the future is dropped and made anew.
    fn next(&mut self) -> impl Future<Output = WatchEvent> + Send;
}

/// What an opening or a listing may take beside one request: reading a whole prefix is many requests.
const REQUESTS: u32 = 12;

/// How often and how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct WatchTimings {
    /// How long an opening or a listing may take.
    pub(super) patience: Duration,
    /// Time between listings, give or take a fifth.
    pub(super) relist: Duration,
}

impl WatchTimings {
    /// The pace of a store whose requests may take `request_timeout` each.
    pub(super) fn new(request_timeout: Duration, relist: Duration) -> Self {
        Self {
            patience: request_timeout * REQUESTS,
            relist,
        }
    }

    /// How long a difference between a listing and the events may last: they travel apart.
    fn grace(&self) -> Duration {
        Duration::from_secs(1).min(self.relist / 4)
    }

    fn next_relist(&self) -> Instant {
        Instant::now() + jittered(self.relist)
    }
}

/// Follows a store for ever; whoever started it drops the future to stop it.
pub(super) async fn follow<L: WatchConnection>(
    link: L,
    pace: WatchTimings,
    sink: StoreSink,
    rereads: mpsc::UnboundedReceiver<()>,
) {
    let mut loop_ = Reflector {
        link,
        pace,
        sink,
        rereads,
        tree: Tree::default(),
        read: false,
        away: None,
        failures: 0,
        told_deleted: BTreeSet::new(),
    };
    loop {
        if loop_.open().await {
            loop_.listen().await;
        } else {
            loop_.back_off().await;
        }
    }
}

struct Reflector<L> {
    link: L,
    pace: WatchTimings,
    sink: StoreSink,
    rereads: mpsc::UnboundedReceiver<()>,
    tree: Tree,
    /// Whether the store has been read at all.
    read: bool,
    /// Why the store is away, as the sink was told.
    away: Option<String>,
    /// Openings that failed since the last one that did not.
    failures: u32,
    /// Of the listings that are not taken over yet: as of [`Listing`].
    told_deleted: BTreeSet<ControlKey>,
}

/// Why a period of listening ends.
enum Step {
    Heard(WatchEvent),
    Relist,
    GraceOver,
    Reread,
}

impl<L: WatchConnection> Reflector<L> {
    /// Whether it listens now.
    async fn open(&mut self) -> bool {
        let known = self.tree.revision;
        let opened = timeout(self.pace.patience, self.link.open(known)).await;
        let opened = opened.unwrap_or_else(|_| Err(no_answer(self.pace.patience)));
        match opened {
            Ok(mut listing) => {
                self.failures = 0;
                self.told_deleted.append(&mut listing.told_deleted);
                let cause = match self.read {
                    false => Cause::First,
                    true => Cause::Resync,
                };
                self.settle(listing, cause);
                true
            }
            Err(reason) => {
                self.lost(reason);
                false
            }
        }
    }

    /// Whether a listing is of an earlier state, or of another store: nothing that is known leads on to it.
    fn breaks_with(&self, listing: &Listing) -> bool {
        listing.tree.revision < self.tree.revision || listing.tree.is_other_than(&self.tree)
    }

    /// Takes a listing over and tells what it changed; whether it changed anything.
    fn settle(&mut self, listing: Listing, cause: Cause) -> bool {
        if self.away.take().is_some() {
            (self.sink)(StoreUpdate::Reachable);
        }
        let strangers = self.tree.unrecognized_keys.clone();
        let breaks = self.breaks_with(&listing);
        let told = std::mem::take(&mut self.told_deleted);
        let seen = match breaks {
            // What was told is of another history.
            true => Vec::new(),
            false => {
                let seen = listing.seen_deletes(&told, &self.tree);
                self.tree.apply(seen, 0)
            }
        };
        let between = (!seen.is_empty()).then(|| Arc::new(self.tree.clone()));
        let changes = match breaks {
            true => {
                let changes = self.tree.changes_to(&listing.tree);
                self.tree = listing.tree;
                if self.tree.floor > self.tree.revision {
                    // It is of the history that was known; of this one nothing was.
                    self.tree.floor = 0;
                }
                changes
            }
            false => self.tree.catch_up(listing.tree),
        };
        self.read = true;
        let changed = !changes.is_empty() || !seen.is_empty();
        let news = !changes.is_empty() || breaks || strangers != self.tree.unrecognized_keys;
        match between {
            None if news || cause == Cause::First => self.tell(changes, cause),
            None => {}
            // That everything was read is no reason to doubt what a watch told.
            Some(_) if changes.is_empty() => self.tell(seen, Cause::Event),
            Some(tree) => {
                (self.sink)(StoreUpdate::Tree {
                    tree,
                    changes: seen,
                    cause: Cause::Event,
                });
                self.tell(changes, cause);
            }
        }
        changed
    }

    fn tell(&mut self, changes: Vec<TreeChange>, cause: Cause) {
        (self.sink)(StoreUpdate::Tree {
            tree: Arc::new(self.tree.clone()),
            changes,
            cause,
        });
    }

    fn lost(&mut self, reason: String) {
        self.failures += 1;
        if self.away.as_ref() != Some(&reason) {
            self.away = Some(reason.clone());
            (self.sink)(StoreUpdate::Unreachable { reason });
        }
    }

    /// Waits a random part of a time that doubles with each failure, or until somebody asks.
    async fn back_off(&mut self) {
        let (first, longest) = BACKOFF;
        let until = Instant::now() + backoff(first, longest, self.failures);
        tokio::select! {
            () = sleep_until(until) => {}
            () = asked(&mut self.rereads) => {}
        }
    }

    /// Follows events until the subscription is over, or has shown that it is not to be trusted.
    async fn listen(&mut self) {
        let mut relist = self.pace.next_relist();
        let mut pending: Option<(Listing, Instant)> = None;
        loop {
            let grace = pending.as_ref().map(|(_, until)| *until);
            let next = tokio::select! {
                heard = self.link.next() => Step::Heard(heard),
                () = sleep_until(relist), if grace.is_none() => Step::Relist,
                () = sleep_until(grace.unwrap_or(relist)), if grace.is_some() => Step::GraceOver,
                () = asked(&mut self.rereads) => Step::Reread,
            };
            match next {
                Step::Heard(WatchEvent::Changes {
                    changes,
                    strangers,
                    revision,
                }) => self.heard(changes, strangers, revision),
                Step::Heard(WatchEvent::Unnumbered) => {
                    let Some(listing) = self.relist().await else {
                        return;
                    };
                    self.settle(listing, Cause::Resync);
                }
                Step::Heard(WatchEvent::Lost(reason)) => {
                    tracing::debug!(reason, "a watch is over; reading everything again");
                    return;
                }
                Step::Reread => return,
                Step::Relist => {
                    let Some(listing) = self.relist().await else {
                        return;
                    };
                    relist = self.pace.next_relist();
                    let mut after = self.tree.clone();
                    if after.catch_up(listing.tree.clone()).is_empty() {
                        self.settle(listing, Cause::MissedUpdate);
                    } else {
                        pending = Some((listing, Instant::now() + self.pace.grace()));
                    }
                }
                Step::GraceOver => {
                    let repaired = pending
                        .take()
                        .is_some_and(|(listing, _)| self.settle(listing, Cause::MissedUpdate));
                    if repaired {
                        return;
                    }
                }
            }
        }
    }

    fn heard(
        &mut self,
        changes: Vec<TreeChange>,
        strangers: Vec<(String, Option<String>)>,
        revision: u64,
    ) {
        let before = self.tree.unrecognized_keys.clone();
        for (path, reason) in strangers {
            match reason {
                Some(reason) => self.tree.unrecognized_keys.insert(path, reason),
                None => self.tree.unrecognized_keys.remove(&path),
            };
        }
        let changes = self.tree.apply(changes, revision);
        if !changes.is_empty() || before != self.tree.unrecognized_keys {
            self.tell(changes, Cause::Event);
        }
    }

    /// A listing beside the events; `None` when the store does not answer as it should, or not as it did: an opening tells.
    async fn relist(&mut self) -> Option<Listing> {
        let known = self.tree.revision;
        let listed = timeout(self.pace.patience, self.link.list(known)).await;
        let listed = listed.unwrap_or_else(|_| Err(no_answer(self.pace.patience)));
        match listed {
            Ok(mut listing) if !self.breaks_with(&listing) => {
                self.told_deleted.append(&mut listing.told_deleted);
                Some(listing)
            }
            Ok(_) => None,
            Err(reason) => {
                tracing::debug!(reason, "the regular re-list failed; connecting again");
                None
            }
        }
    }
}

fn no_answer(patience: Duration) -> String {
    format!("no answer within {patience:?}")
}

/// Resolves when a re-read is asked for; never once nobody can ask any more.
async fn asked(rereads: &mut mpsc::UnboundedReceiver<()>) {
    match rereads.recv().await {
        Some(()) => while rereads.try_recv().is_ok() {},
        None => std::future::pending().await,
    }
}
