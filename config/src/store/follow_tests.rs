//! The watch loop against a scripted link: what it tells after events, cancels, outages, restored servers and lost events.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;

use super::reflector::{Listing, WatchConnection, WatchEvent, WatchTimings, follow};
use super::{Cause, ControlKey, Entry, KeyVersion, StoreUpdate, Tree, TreeChange};

/// What happens when the loop asks for the next event.
enum Step {
    Hear(WatchEvent),
    /// Nothing until a listing was asked for.
    UntilListed,
}

/// Answers openings and listings from a queue each; events are played in order, then silence.
struct Script {
    openings: VecDeque<Result<Listing, String>>,
    listings: VecDeque<Result<Listing, String>>,
    steps: VecDeque<Step>,
    asked: Arc<Mutex<Vec<&'static str>>>,
}

impl Script {
    fn say(&self, what: &'static str) {
        self.asked
            .lock()
            .expect("no panic while it is held")
            .push(what);
    }

    fn heard(&self, what: &'static str) -> bool {
        self.asked
            .lock()
            .expect("no panic while it is held")
            .contains(&what)
    }
}

impl WatchConnection for Script {
    async fn open(&mut self, _known: u64) -> Result<Listing, String> {
        self.say("open");
        match self.openings.pop_front() {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }

    async fn list(&mut self, _known: u64) -> Result<Listing, String> {
        self.say("list");
        match self.listings.pop_front() {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }

    async fn next(&mut self) -> WatchEvent {
        while matches!(self.steps.front(), Some(Step::UntilListed)) {
            tokio::time::sleep(Duration::from_millis(2)).await;
            if self.heard("list") {
                self.steps.pop_front();
            }
        }
        match self.steps.pop_front() {
            Some(Step::Hear(heard)) => heard,
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
    Step::Hear(WatchEvent::Changes {
        changes: vec![change],
        strangers: Vec::new(),
        revision,
    })
}

fn cancelled() -> Step {
    Step::Hear(WatchEvent::Lost("cancelled by the server".to_owned()))
}

fn listing_of(cluster: u64, changes: &[TreeChange], revision: u64) -> Listing {
    let mut tree = Tree::default();
    tree.apply(changes.to_vec(), revision);
    tree.floor = revision;
    tree.identity = Some(format!("cluster {cluster}").into());
    tree.into()
}

fn listing(changes: &[TreeChange], revision: u64) -> Result<Listing, String> {
    Ok(listing_of(1, changes, revision))
}

/// Plays a script until the sink was told `lines` times, and gives that and what the link was asked.
fn play(
    lines: usize,
    openings: Vec<Result<Listing, String>>,
    listings: Vec<Result<Listing, String>>,
    steps: Vec<Step>,
) -> (Vec<String>, Vec<&'static str>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let script = Script {
        openings: openings.into(),
        listings: listings.into(),
        steps: steps.into(),
        asked: Arc::clone(&asked),
    };
    let pace = WatchTimings {
        patience: Duration::from_millis(300),
        relist: Duration::from_millis(1200),
    };
    let (tell, mut told) = mpsc::unbounded_channel();
    let sink = Box::new(move |update| {
        let _ = tell.send(line(&update));
    });
    let (_asks, rereads) = mpsc::unbounded_channel();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let told = runtime.block_on(async {
        let mut seen = Vec::new();
        let collect = async {
            while seen.len() < lines {
                seen.extend(told.recv().await);
            }
        };
        tokio::select! {
            () = follow(script, pace, sink, rereads) => {}
            () = collect => {}
            () = tokio::time::sleep(Duration::from_secs(20)) => {}
        }
        seen
    });
    let asked = asked.lock().expect("no panic while it is held").clone();
    assert_eq!(told.len(), lines, "{told:?}");
    (told, asked)
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
                Cause::MissedUpdate => "repair",
            };
            format!("{cause} {} @{}", changes.join(" "), tree.revision)
        }
        StoreUpdate::Unreachable { reason } => format!("away: {reason}"),
        StoreUpdate::Reachable => "back".to_owned(),
    }
}

#[test]
fn events_follow_the_first_reading_and_older_ones_are_dropped() {
    let (told, _) = play(
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
        told,
        ["first a=true @5", "event a=false @6", "event a=- @8"]
    );
}

#[test]
fn after_a_cancel_everything_is_read_again_without_calling_it_an_outage() {
    let (told, asked) = play(
        3,
        vec![
            listing(&[put("a", "true", 3)], 5),
            listing(&[put("a", "false", 9), put("b", "true", 8)], 9),
        ],
        vec![],
        vec![cancelled(), event(put("b", "false", 10), 10)],
    );
    assert_eq!(
        told,
        [
            "first a=true @5",
            "resync b=true a=false @9",
            "event b=false @10"
        ]
    );
    assert_eq!(asked, ["open", "open"]);
}

#[test]
fn an_outage_is_told_once_and_ends_with_what_changed_meanwhile() {
    let refused = || Err("connection refused".to_owned());
    let (told, _) = play(
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
        told,
        [
            "first a=true b=true @5",
            "away: connection refused",
            "back",
            "resync a=- b=false @7"
        ]
    );
}

#[test]
fn a_store_that_is_silent_from_the_start_is_told_to_be_away() {
    let (told, _) = play(1, vec![], vec![], vec![]);
    assert_eq!(told, ["away: no answer within 300ms"]);
}

#[test]
fn a_store_that_was_restored_is_followed_again_and_so_is_another_cluster() {
    let mut restored = listing_of(1, &[put("a", "false", 20)], 40);
    // Where a listing is not of one moment, its floor is what was known before.
    restored.tree.floor = 50;
    let (told, asked) = play(
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
        told,
        [
            "first a=true @50",
            "resync a=false @40",
            "event b=true @41",
            "event a=true @43",
            "resync a=- b=true @44",
            "event b=false @45"
        ]
    );
    assert_eq!(asked, ["open", "open", "open"]);
}

#[test]
fn that_only_the_revision_went_back_is_told_too() {
    let (told, asked) = play(
        2,
        vec![
            listing(&[put("a", "true", 3)], 50),
            listing(&[put("a", "true", 3)], 40),
        ],
        vec![listing(&[put("a", "true", 3)], 40)],
        vec![],
    );
    assert_eq!(told, ["first a=true @50", "resync  @40"]);
    assert_eq!(
        asked[..3],
        ["open", "list", "open"],
        "a listing is no proof"
    );
}

#[test]
fn why_a_store_is_away_is_told_again_when_it_changes() {
    let away = |reason: &str| Err(reason.to_owned());
    let (told, _) = play(
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
        told,
        [
            "away: connection refused",
            "away: permission denied",
            "away: connection refused",
            "back",
            "first a=true @5"
        ]
    );
}

#[test]
fn an_event_that_the_server_lost_is_repaired_by_the_relist_and_the_watch_is_made_anew() {
    let (told, asked) = play(
        3,
        vec![
            listing(&[put("a", "true", 3)], 5),
            listing(&[put("a", "true", 8)], 8),
        ],
        vec![listing(&[put("a", "false", 6)], 6)],
        vec![],
    );
    assert_eq!(
        told,
        ["first a=true @5", "repair a=false @6", "resync a=true @8"]
    );
    assert_eq!(asked[..3], ["open", "list", "open"]);
}

#[test]
fn an_event_that_comes_soon_after_the_relist_is_no_repair() {
    let (told, asked) = play(
        3,
        vec![listing(&[put("a", "true", 3)], 5)],
        vec![
            listing(&[put("a", "false", 6)], 6),
            listing(&[put("a", "true", 7)], 7),
        ],
        vec![Step::UntilListed, event(put("a", "false", 6), 6)],
    );
    assert_eq!(
        told,
        ["first a=true @5", "event a=false @6", "repair a=true @7"]
    );
    assert_eq!(asked[..3], ["open", "list", "list"]);
}

#[test]
fn a_path_that_is_no_control_key_is_told_and_changes_nothing() {
    let odd = WatchEvent::Changes {
        changes: Vec::new(),
        strangers: vec![("odd".to_owned(), Some("it is no control key".to_owned()))],
        revision: 6,
    };
    let (told, _) = play(
        2,
        vec![listing(&[put("a", "true", 3)], 5)],
        vec![],
        vec![Step::Hear(odd)],
    );
    assert_eq!(told, ["first a=true @5", "event  @6"]);
}

#[test]
fn a_relist_that_fails_leads_to_a_new_connection() {
    let (told, asked) = play(
        2,
        vec![
            listing(&[put("a", "true", 3)], 5),
            listing(&[put("a", "false", 6)], 6),
        ],
        vec![Err("stalled".to_owned())],
        vec![],
    );
    assert_eq!(told, ["first a=true @5", "resync a=false @6"]);
    assert_eq!(asked[..3], ["open", "list", "open"]);
}

/// A reading after the watch has told of deletes.
fn listing_told(deleted: &[&str], listing: Result<Listing, String>) -> Result<Listing, String> {
    let told_deleted = deleted.iter().map(|name| gate(name)).collect();
    listing.map(|listing| Listing {
        told_deleted,
        ..listing
    })
}

#[test]
fn a_delete_that_a_notice_told_without_a_number_was_seen_by_the_watch() {
    let all = [
        put("a", "true", 3),
        put("b", "true", 3),
        put("c", "true", 3),
    ];
    let (told, asked) = play(
        4,
        vec![listing(&all, 5)],
        vec![
            listing_told(&["a"], listing(&all[1..], 6)),
            // `c` is missing too, and nobody told why.
            listing_told(&["b"], listing(&[put("d", "true", 8)], 9)),
        ],
        vec![
            Step::Hear(WatchEvent::Unnumbered),
            Step::Hear(WatchEvent::Unnumbered),
        ],
    );
    assert_eq!(
        told,
        [
            "first a=true b=true c=true @5",
            "event a=- @6",
            "event b=- @6",
            "resync c=- d=true @9"
        ]
    );
    assert_eq!(asked[..3], ["open", "list", "list"], "the watch goes on");
}

#[test]
fn what_a_lost_watch_has_told_counts_and_not_of_a_store_that_went_back() {
    let (told, _) = play(
        4,
        vec![
            listing(&[put("a", "true", 3), put("b", "true", 3)], 5),
            listing_told(&["a", "b"], listing(&[put("b", "true", 3)], 7)),
            listing_told(&["b"], listing(&[], 4)),
        ],
        vec![],
        vec![cancelled(), cancelled(), event(put("b", "true", 5), 5)],
    );
    assert_eq!(
        told,
        [
            "first a=true b=true @5",
            "event a=- @7",
            "resync b=- @4",
            "event b=true @5"
        ]
    );
}

#[test]
fn what_was_told_before_a_relist_counts_for_the_reading_that_is_taken_over() {
    let all = [put("a", "true", 3), put("b", "true", 3)];
    let (told, asked) = play(
        2,
        vec![listing(&all, 5)],
        vec![
            // The difference has to last before it is a repair, and the notice comes meanwhile.
            listing_told(&["a"], listing(&all[1..], 6)),
            listing(&all[1..], 6),
        ],
        vec![Step::UntilListed, Step::Hear(WatchEvent::Unnumbered)],
    );
    assert_eq!(told, ["first a=true b=true @5", "event a=- @6"]);
    assert_eq!(asked[..3], ["open", "list", "list"]);
}
