//! The watch loop against a scripted connection: its updates after events, cancelled watches, outages, restored servers
//! and lost events.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sluicegate_config::control::ControlKey;
use tokio::sync::mpsc;

use super::failure::Failure;
use super::reflector::{Listing, WatchConnection, WatchEvent, WatchTimings, follow};
use super::{Cause, Entry, KeyVersion, StoreUpdate, Tree, TreeChange};

/// What `next` does when the loop polls it.
enum Step {
    Event(WatchEvent),
    /// Blocks until a listing was requested.
    UntilListed,
}

/// Answers `open` and `list` from one queue each and plays the events in order, then stays silent.
struct Script {
    openings: VecDeque<Result<Listing, Failure>>,
    listings: VecDeque<Result<Listing, Failure>>,
    steps: VecDeque<Step>,
    calls: Arc<Mutex<Vec<&'static str>>>,
}

impl Script {
    fn log_call(&self, what: &'static str) {
        self.calls
            .lock()
            .expect("no panic while it is held")
            .push(what);
    }

    fn was_called(&self, what: &'static str) -> bool {
        self.calls
            .lock()
            .expect("no panic while it is held")
            .contains(&what)
    }
}

impl WatchConnection for Script {
    async fn open(&mut self, _known: u64) -> Result<Listing, Failure> {
        self.log_call("open");
        match self.openings.pop_front() {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }

    async fn list(&mut self, _known: u64) -> Result<Listing, Failure> {
        self.log_call("list");
        match self.listings.pop_front() {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }

    async fn next(&mut self) -> WatchEvent {
        while matches!(self.steps.front(), Some(Step::UntilListed)) {
            if !self.was_called("list") {
                // Dropped when the connection is to list.
                std::future::pending::<()>().await;
            }
            self.steps.pop_front();
        }
        match self.steps.pop_front() {
            Some(Step::Event(event)) => event,
            _ => std::future::pending().await,
        }
    }
}

fn gate(name: &str) -> ControlKey {
    ControlKey::enabled(name).expect("a name")
}

fn put(name: &str, value: &str, revision: u64) -> TreeChange {
    let stamp = KeyVersion {
        revision,
        version: i64::try_from(revision).expect("a small number"),
    };
    let entry = Entry {
        value: value.as_bytes().into(),
        stamp,
    };
    TreeChange::put(gate(name), entry)
}

fn gone(name: &str, revision: u64) -> TreeChange {
    TreeChange::delete(gate(name), revision)
}

fn event(change: TreeChange, revision: u64) -> Step {
    Step::Event(WatchEvent::Changes {
        changes: vec![change],
        unrecognized: Vec::new(),
        revision,
    })
}

fn cancelled() -> Step {
    Step::Event(WatchEvent::Lost(Failure::away("cancelled by the server")))
}

fn listing_of(cluster: u64, changes: &[TreeChange], revision: u64) -> Listing {
    let mut tree = Tree::default();
    tree.apply(changes.to_vec(), revision);
    tree.floor = revision;
    tree.identity = Some(format!("cluster {cluster}").into());
    tree.into()
}

fn listing(changes: &[TreeChange], revision: u64) -> Result<Listing, Failure> {
    Ok(listing_of(1, changes, revision))
}

/// Plays a script until the sink has received `lines` updates. Returns these and the calls of the connection.
fn play(
    lines: usize,
    openings: Vec<Result<Listing, Failure>>,
    listings: Vec<Result<Listing, Failure>>,
    steps: Vec<Step>,
) -> (Vec<String>, Vec<&'static str>) {
    let calls = Arc::new(Mutex::new(Vec::new()));
    let script = Script {
        openings: openings.into(),
        listings: listings.into(),
        steps: steps.into(),
        calls: Arc::clone(&calls),
    };
    let timings = WatchTimings {
        list_timeout: Duration::from_millis(300),
        relist: Duration::from_millis(1200),
    };
    let (send, mut updates) = mpsc::unbounded_channel();
    let sink = Box::new(move |update| {
        let _ = send.send(line(&update));
    });
    let (_requests, rereads) = mpsc::unbounded_channel();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let seen = runtime.block_on(async {
        let mut seen = Vec::new();
        let collect = async {
            while seen.len() < lines {
                seen.extend(updates.recv().await);
            }
        };
        let ends = async {
            tokio::select! {
                () = follow(script, timings, sink, rereads) => {}
                () = collect => {}
            }
        };
        // What is missing then is seen in the lines.
        let _ = tokio::time::timeout(Duration::from_secs(20), ends).await;
        seen
    });
    let calls = calls.lock().expect("no panic while it is held").clone();
    assert_eq!(seen.len(), lines, "{seen:?}");
    (seen, calls)
}

fn line(update: &StoreUpdate) -> String {
    match update {
        StoreUpdate::Tree {
            changes,
            cause,
            tree,
        } => {
            let of = |change: &TreeChange| {
                let value = change.entry.as_ref().map_or("-".into(), |entry| {
                    String::from_utf8_lossy(&entry.value).into_owned()
                });
                format!("{}={value}", change.key.handler().unwrap_or("?"))
            };
            let changes: Vec<String> = changes.iter().map(of).collect();
            let cause = match cause {
                Cause::First => "first",
                Cause::Event => "event",
                Cause::Resync => "resync",
                Cause::MissedUpdate => "missed",
            };
            format!("{cause} {} @{}", changes.join(" "), tree.revision)
        }
        StoreUpdate::Unreachable { reason } => format!("unreachable: {reason}"),
        StoreUpdate::Reachable => "reachable".to_owned(),
    }
}

#[test]
fn events_follow_the_first_listing_and_older_ones_are_dropped() {
    let (seen, _) = play(
        3,
        vec![listing(&[put("a", "true", 3)], 5)],
        vec![],
        vec![
            event(put("a", "stale", 3), 5),
            event(put("b", "stale", 4), 5),
            event(put("a", "false", 6), 6),
            event(put("a", "true", 6), 6),
            event(put("a", "true", 5), 7),
            event(gone("a", 8), 8),
            event(put("a", "false", 6), 9),
        ],
    );
    assert_eq!(
        seen,
        ["first a=true @5", "event a=false @6", "event a=- @8"]
    );
}

#[test]
fn a_cancelled_watch_causes_a_resync_without_reporting_an_outage() {
    let (seen, calls) = play(
        3,
        vec![
            listing(&[put("a", "true", 3)], 5),
            listing(&[put("a", "false", 9), put("b", "true", 8)], 9),
        ],
        vec![],
        vec![cancelled(), event(put("b", "false", 10), 10)],
    );
    assert_eq!(
        seen,
        [
            "first a=true @5",
            "resync b=true a=false @9",
            "event b=false @10"
        ]
    );
    assert_eq!(calls, ["open", "open"]);
}

#[test]
fn an_outage_is_reported_once_and_ends_with_the_changes_made_during_it() {
    let refused = || Err(Failure::away("connection refused"));
    let (seen, _) = play(
        4,
        vec![
            listing(&[put("a", "true", 3), put("b", "true", 4)], 5),
            refused(),
            refused(),
            refused(),
            listing(&[put("b", "false", 6)], 7),
        ],
        vec![],
        vec![cancelled()],
    );
    assert_eq!(
        seen,
        [
            "first a=true b=true @5",
            "unreachable: connection refused",
            "reachable",
            "resync a=- b=false @7"
        ]
    );
}

#[test]
fn a_refusal_is_told_from_an_outage_and_retried_until_it_ends() {
    let refused = || Err(Failure::Refused("permission denied".to_owned()));
    let (seen, calls) = play(
        4,
        vec![
            listing(&[put("a", "true", 3)], 5),
            refused(),
            refused(),
            listing(&[put("a", "false", 6)], 7),
        ],
        vec![],
        vec![cancelled()],
    );
    assert_eq!(
        seen,
        [
            "first a=true @5",
            "unreachable: the store refuses to be read: permission denied; check the credentials and their permission to \
             read the whole prefix",
            "reachable",
            "resync a=false @7"
        ]
    );
    assert_eq!(calls, ["open"; 4]);
}

#[test]
fn a_store_that_never_answers_is_reported_unreachable() {
    let (seen, _) = play(1, vec![], vec![], vec![]);
    assert_eq!(seen, ["unreachable: no answer within 300ms"]);
}

#[test]
fn a_restored_store_and_a_different_cluster_are_both_followed() {
    let mut restored = listing_of(1, &[put("a", "false", 20)], 40);
    // A listing that is not atomic has the previously known revision as its floor.
    restored.tree.floor = 50;
    let (seen, calls) = play(
        6,
        vec![
            listing(&[put("a", "true", 30)], 50),
            Ok(restored),
            Ok(listing_of(2, &[put("b", "true", 3)], 44)),
        ],
        vec![],
        vec![
            cancelled(),
            event(put("b", "true", 41), 41),
            event(put("a", "true", 43), 43),
            cancelled(),
            event(put("b", "false", 45), 45),
        ],
    );
    assert_eq!(
        seen,
        [
            "first a=true @50",
            "resync a=false @40",
            "event b=true @41",
            "event a=true @43",
            "resync a=- b=true @44",
            "event b=false @45"
        ]
    );
    assert_eq!(calls, ["open", "open", "open"]);
}

#[test]
fn a_reverted_revision_is_reported_even_without_changes() {
    let (seen, calls) = play(
        2,
        vec![
            listing(&[put("a", "true", 3)], 50),
            listing(&[put("a", "true", 3)], 40),
        ],
        vec![listing(&[put("a", "true", 3)], 40)],
        vec![],
    );
    assert_eq!(seen, ["first a=true @50", "resync  @40"]);
    assert_eq!(
        calls[..3],
        ["open", "list", "open"],
        "a re-list is not linearised, an opening is"
    );
}

#[test]
fn a_changed_reason_of_an_outage_is_reported() {
    let away = |reason: &str| Err(Failure::away(reason));
    let (seen, _) = play(
        5,
        vec![
            away("connection refused"),
            away("connection refused"),
            away("permission denied"),
            away("connection refused"),
            listing(&[put("a", "true", 3)], 5),
        ],
        vec![],
        vec![],
    );
    assert_eq!(
        seen,
        [
            "unreachable: connection refused",
            "unreachable: permission denied",
            "unreachable: connection refused",
            "reachable",
            "first a=true @5"
        ]
    );
}

#[test]
fn a_relist_repairs_an_event_lost_by_the_server_and_reopens_the_watch() {
    let (seen, calls) = play(
        3,
        vec![
            listing(&[put("a", "true", 3)], 5),
            listing(&[put("a", "true", 8)], 8),
        ],
        vec![listing(&[put("a", "false", 6)], 6)],
        vec![],
    );
    assert_eq!(
        seen,
        ["first a=true @5", "missed a=false @6", "resync a=true @8"]
    );
    assert_eq!(calls[..3], ["open", "list", "open"]);
}

#[test]
fn an_event_within_the_grace_after_a_relist_is_not_a_missed_update() {
    let (seen, calls) = play(
        3,
        vec![listing(&[put("a", "true", 3)], 5)],
        vec![
            listing(&[put("a", "false", 6)], 6),
            listing(&[put("a", "true", 7)], 7),
        ],
        vec![Step::UntilListed, event(put("a", "false", 6), 6)],
    );
    assert_eq!(
        seen,
        ["first a=true @5", "event a=false @6", "missed a=true @7"]
    );
    assert_eq!(calls[..3], ["open", "list", "list"]);
}

#[test]
fn an_unrecognized_path_is_reported_and_changes_nothing() {
    let event = WatchEvent::Changes {
        changes: Vec::new(),
        unrecognized: vec![("odd".to_owned(), Some("not a control key".to_owned()))],
        revision: 6,
    };
    let (seen, _) = play(
        2,
        vec![listing(&[put("a", "true", 3)], 5)],
        vec![],
        vec![Step::Event(event)],
    );
    assert_eq!(seen, ["first a=true @5", "event  @6"]);
}

#[test]
fn a_failed_relist_reopens_the_connection() {
    let (seen, calls) = play(
        2,
        vec![
            listing(&[put("a", "true", 3)], 5),
            listing(&[put("a", "false", 6)], 6),
        ],
        vec![Err(Failure::away("stalled"))],
        vec![],
    );
    assert_eq!(seen, ["first a=true @5", "resync a=false @6"]);
    assert_eq!(calls[..3], ["open", "list", "open"]);
}

/// A listing after the watch has reported deletes.
fn listing_after(deleted: &[&str], listing: Result<Listing, Failure>) -> Result<Listing, Failure> {
    let deletes_seen = deleted.iter().map(|name| gate(name)).collect();
    listing.map(|listing| Listing {
        deletes_seen,
        ..listing
    })
}

#[test]
fn a_delete_from_an_unnumbered_notice_counts_as_seen_by_the_watch() {
    let all = [
        put("a", "true", 3),
        put("b", "true", 3),
        put("c", "true", 3),
    ];
    let (seen, calls) = play(
        4,
        vec![listing(&all, 5)],
        vec![
            listing_after(&["a"], listing(&all[1..], 6)),
            // `c` is missing too, without a notice.
            listing_after(&["b"], listing(&[put("d", "true", 8)], 9)),
        ],
        vec![
            Step::Event(WatchEvent::Unnumbered),
            Step::Event(WatchEvent::Unnumbered),
        ],
    );
    assert_eq!(
        seen,
        [
            "first a=true b=true c=true @5",
            "event a=- @6",
            "event b=- @6",
            "resync c=- d=true @9"
        ]
    );
    assert_eq!(calls[..3], ["open", "list", "list"], "the watch continues");
}

#[test]
fn deletes_reported_by_a_lost_watch_count_unless_the_store_reverted() {
    let (seen, _) = play(
        4,
        vec![
            listing(&[put("a", "true", 3), put("b", "true", 3)], 5),
            listing_after(&["a", "b"], listing(&[put("b", "true", 3)], 7)),
            listing_after(&["b"], listing(&[], 4)),
        ],
        vec![],
        vec![cancelled(), cancelled(), event(put("b", "true", 5), 5)],
    );
    assert_eq!(
        seen,
        [
            "first a=true b=true @5",
            "event a=- @7",
            "resync b=- @4",
            "event b=true @5"
        ]
    );
}

#[test]
fn deletes_reported_during_a_pending_relist_count_for_it() {
    let all = [put("a", "true", 3), put("b", "true", 3)];
    let (seen, calls) = play(
        2,
        vec![listing(&all, 5)],
        vec![
            // The difference must outlast the grace to count as missed; the notice arrives during it.
            listing_after(&["a"], listing(&all[1..], 6)),
            listing(&all[1..], 6),
        ],
        vec![Step::UntilListed, Step::Event(WatchEvent::Unnumbered)],
    );
    assert_eq!(seen, ["first a=true b=true @5", "event a=- @6"]);
    assert_eq!(calls[..3], ["open", "list", "list"]);
}
