//! Situation: operators write specs and roll them out to members that accept, reject or do not respond.
//! Property: waiting callers learn the status of every member; a rollout reaches all members or restores the earlier revision.

use std::collections::BTreeSet;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sluicegate_config::control::Rollout;
use sluicegate_config::control::{ControlKey, MemberHandler, MemberReport, Omitted, rollout};
use sluicegate_store::{Expected, MemoryStore, Store, StoreWatch};
use sluicegate_sync::fleet::{
    FleetError, GateKeyPolicy, MemberState, RolloutResult, RolloutSettings, RolloutStep,
    SpecBackend, WaitResult, abort, await_closed, await_members, begin, parse_waves, resume,
};

const OLD: &str = "name: a\nplugin: relay\nroute: { topics: [t] }\n";
const NEW: &str = "name: a\nplugin: relay\nversion: \"2\"\nroute: { topics: [t] }\n";

/// Members that apply the store's content as the service does, without running handlers.
struct Fleet {
    store: MemoryStore,
    watches: Vec<Box<dyn StoreWatch>>,
    threads: Vec<JoinHandle<()>>,
    /// (member, spec) for each applied change.
    applied: Arc<Mutex<Vec<(String, String)>>>,
}

fn spec_for(store: &dyn Store, member: &str) -> (String, u64) {
    let tree = store.list().expect("the store is reachable");
    let text = |key: &ControlKey| {
        let entry = tree.get(key)?;
        Some(String::from_utf8_lossy(&entry.value).into_owned())
    };
    let rollout = text(&ControlKey::Rollout("a".into()))
        .map(|text| rollout::Rollout::from_json(text.as_bytes()).expect("a valid rollout"));
    let spec = match rollout.filter(|rollout| rollout.is_for(member)) {
        Some(rollout) => rollout.spec.unwrap_or_default(),
        None => text(&ControlKey::Spec("a".into())).unwrap_or_default(),
    };
    (spec, tree.revision)
}

impl Fleet {
    /// `refusing` members reject the new spec; `deaf` ones apply nothing after they have joined.
    fn start(ids: &[&str], refusing: &[&str], deaf: &[&str]) -> Self {
        let store = MemoryStore::new();
        store
            .write(
                &ControlKey::Spec("a".into()),
                Some(OLD.as_bytes()),
                Expected::Absent,
            )
            .expect("the store is reachable");
        let mut fleet = Self {
            store,
            watches: Vec::new(),
            threads: Vec::new(),
            applied: Arc::default(),
        };
        for id in ids {
            let refuses = refusing.contains(id);
            let is_deaf = deaf.contains(id);
            let id = (*id).to_owned();
            let report = MemberReport {
                id: id.clone(),
                ..MemberReport::default()
            };
            let membership = fleet.store.join(report).expect("a free id");
            let (sender, changes) = channel();
            let watch = fleet.store.watch(Box::new(move |update| {
                // The member may have been dropped.
                let _ = sender.send(update);
            }));
            fleet.watches.push(watch.expect("the store is reachable"));
            let (store, applied) = (fleet.store.clone(), Arc::clone(&fleet.applied));
            fleet.threads.push(std::thread::spawn(move || {
                let mut last = String::new();
                for _ in changes.iter().filter(|_| !is_deaf) {
                    let (spec, revision) = spec_for(&store, &id);
                    let mut report = MemberReport {
                        id: id.clone(),
                        applied_revision: revision,
                        ..MemberReport::default()
                    };
                    if refuses && spec == NEW {
                        report.handlers.push(MemberHandler {
                            name: "a".into(),
                            state: "REFUSED".into(),
                            reason: "no plugin `relay` of version 2".into(),
                        });
                    }
                    if spec != last {
                        last = spec.clone();
                        let mut applied = applied.lock().expect("not poisoned");
                        applied.push((id.clone(), spec));
                    }
                    membership.report(report);
                }
            }));
        }
        fleet
    }

    fn backend(&self) -> SpecBackend {
        SpecBackend::in_store(Arc::new(self.store.clone()))
    }

    /// Closes the gate; returns the revision that members wait for.
    fn close_gate(&self) -> u64 {
        let written = self.backend().write_gate("a", false, GateKeyPolicy::Always);
        let written = written.expect("the handler exists");
        written.revision.expect("a store has revisions")
    }

    fn spec(&self) -> String {
        spec_for(&self.store, "").0
    }

    fn had_new(&self) -> BTreeSet<String> {
        let applied = self.applied.lock().expect("not poisoned");
        let new = applied.iter().filter(|(_, spec)| spec == NEW);
        new.map(|(id, _)| id.clone()).collect()
    }

    fn last_of(&self, id: &str) -> String {
        let applied = self.applied.lock().expect("not poisoned");
        let last = applied.iter().rev().find(|(member, _)| member == id);
        last.map(|(_, spec)| spec.clone()).unwrap_or_default()
    }

    fn has_rollout(&self) -> bool {
        let tree = self.store.list().expect("the store is reachable");
        tree.get(&ControlKey::Rollout("a".into())).is_some()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // A member is dropped with its watch.
        self.watches.clear();
        for thread in self.threads.drain(..) {
            // A panic was already reported by the panic hook.
            let _ = thread.join();
        }
    }
}

fn settings(waves: &str) -> RolloutSettings {
    RolloutSettings {
        waves: parse_waves(waves).expect("valid waves"),
        wait_healthy: Duration::from_millis(50),
        timeout: Duration::from_secs(2),
        by: "ada".to_owned(),
    }
}

fn deadline_in(millis: u64) -> Instant {
    Instant::now() + Duration::from_millis(millis)
}

#[test]
fn apply_is_compared_with_the_revision_seen() {
    let fleet = Fleet::start(&[], &[], &[]);
    let moved = fleet.backend().apply(NEW, None, Some(99)).unwrap_err();
    assert!(
        matches!(moved, FleetError::Moved { found: 1, .. }),
        "{moved}"
    );
    assert_eq!(fleet.spec(), OLD);
    let written = fleet.backend().apply(NEW, None, Some(1)).unwrap();
    assert!(written.changed && written.revision == 2);
    assert!(!fleet.backend().apply(NEW, None, None).unwrap().changed);
    let bad = fleet
        .backend()
        .apply("name: a\nworkers: 0\n", None, None)
        .unwrap_err();
    assert!(bad.to_string().contains("workers"), "{bad}");
    let nameless = fleet
        .backend()
        .apply("plugin: x\n", None, None)
        .unwrap_err();
    assert!(nameless.to_string().contains("`name`"), "{nameless}");
}

#[test]
fn a_delete_removes_exactly_the_keys_of_the_handler() {
    let fleet = Fleet::start(&[], &[], &[]);
    fleet.close_gate();
    let other = OLD.replace("name: a", "name: b");
    fleet.backend().apply(&other, None, None).unwrap();
    let backend = fleet.backend();
    let deleted = backend.delete("a").unwrap();
    assert_eq!(deleted.places, ["a/spec", "a/enabled"]);
    let tree = fleet.store.list().unwrap();
    assert_eq!(tree.entries.len(), 1, "{tree:?}");
    let unknown = backend.delete("a").unwrap_err();
    assert!(unknown.to_string().contains("no handler `a`"), "{unknown}");
    let gone = backend.write_gate("a", true, GateKeyPolicy::Always);
    assert!(gone.is_err());
}

#[test]
fn waiting_returns_once_the_last_member_has_applied() {
    let fleet = Fleet::start(&["m1", "m2", "m3"], &[], &[]);
    let revision = fleet.close_gate();
    let awaited = await_members(
        &fleet.store,
        "a",
        revision,
        None,
        deadline_in(5_000),
        &mut |_| {},
    );
    let awaited = awaited.unwrap();
    assert!(
        awaited.converged && awaited.members.len() == 3,
        "{awaited:?}"
    );
}

#[test]
fn waiting_names_the_member_that_does_not_respond() {
    let fleet = Fleet::start(&["m1", "m2", "m3"], &[], &["m2"]);
    let revision = fleet.close_gate();
    let awaited = await_members(
        &fleet.store,
        "a",
        revision,
        None,
        deadline_in(400),
        &mut |_| {},
    );
    let awaited = awaited.unwrap();
    assert!(!awaited.converged);
    let missing: Vec<&str> = awaited.missing().map(|one| one.member.as_str()).collect();
    assert_eq!(missing, ["m2"]);
}

#[test]
fn a_member_that_disappears_during_the_wait_is_named() {
    let fleet = Fleet::start(&["m1"], &[], &[]);
    let behind = MemberReport {
        id: "m2".into(),
        ..MemberReport::default()
    };
    let mut membership = Some(fleet.store.join(behind).unwrap());
    let revision = fleet.close_gate();
    let awaited = await_members(
        &fleet.store,
        "a",
        revision,
        None,
        deadline_in(600),
        &mut |now| {
            if now.members.len() == 2 {
                drop(membership.take());
            }
        },
    );
    let awaited = awaited.unwrap();
    assert!(!awaited.converged);
    assert_eq!(awaited.members[1].state, MemberState::Gone);
}

/// Waits on a store whose only member has this report.
fn says(store: &MemoryStore, report: MemberReport) -> WaitResult {
    let report = MemberReport {
        id: "m1".into(),
        applied_revision: 9,
        ..report
    };
    let _membership = store.join(report).expect("a free id");
    await_members(store, "a", 7, None, deadline_in(150), &mut |_| {})
        .expect("the store is reachable")
}

#[test]
fn a_slow_handler_does_not_delay_waits_for_others() {
    let store = MemoryStore::new();
    let preparing = |name: &str| MemberReport {
        preparing: vec![name.to_owned()],
        ..MemberReport::default()
    };
    assert!(says(&store, preparing("slow")).converged);
    let own = says(&store, preparing("a"));
    assert_eq!(own.members[0].state, MemberState::Preparing);
    assert_eq!(own.missing().count(), 1);
}

#[test]
fn a_report_that_leaves_out_handlers_does_not_count_as_applied() {
    let store = MemoryStore::new();
    let omitting = |handlers, keys| MemberReport {
        omitted: Omitted { handlers, keys },
        ..MemberReport::default()
    };
    assert!(says(&store, omitting(0, 6_000)).converged);
    let unknown = says(&store, omitting(3, 0));
    let MemberState::Unreadable { reason } = &unknown.members[0].state else {
        panic!("{unknown:?}");
    };
    assert!(reason.contains("omits 3 entries"), "{reason}");
}

#[test]
fn closing_a_gate_succeeds_despite_problems_of_the_handler() {
    let store = MemoryStore::new();
    let report = MemberReport {
        id: "m1".into(),
        applied_revision: 9,
        preparing: vec!["a".into()],
        handlers: vec![MemberHandler {
            name: "a".into(),
            state: "REFUSED".into(),
            reason: "its spec is rejected".into(),
        }],
        ..MemberReport::default()
    };
    let _membership = store.join(report).unwrap();
    assert!(
        await_closed(&store, "a", 9, deadline_in(150))
            .unwrap()
            .converged
    );
    assert!(
        !await_closed(&store, "a", 10, deadline_in(150))
            .unwrap()
            .converged
    );
    let open = await_members(&store, "a", 9, None, deadline_in(150), &mut |_| {}).unwrap();
    assert!(!open.converged);
}

#[test]
fn waves_reach_all_members() {
    let fleet = Fleet::start(&["m1", "m2", "m3", "m4"], &[], &[]);
    let mut sizes = Vec::new();
    let staged = begin(
        &fleet.store,
        NEW,
        None,
        None,
        &settings("1,50%,100%"),
        &mut |step| {
            if let RolloutStep::Wave { members, .. } = step {
                sizes.push(members.len());
            }
        },
    );
    let staged = staged.unwrap();
    assert!(
        matches!(&staged, RolloutResult::Done { awaited, .. } if awaited.converged),
        "{staged:?}"
    );
    assert_eq!(sizes, [1, 2, 4]);
    assert_eq!(fleet.spec(), NEW);
    assert!(!fleet.has_rollout());
}

#[test]
fn a_rejection_in_the_second_wave_restores_the_first() {
    let fleet = Fleet::start(&["m1", "m2", "m3"], &["m2"], &[]);
    let staged = begin(
        &fleet.store,
        NEW,
        None,
        None,
        &settings("1,100%"),
        &mut |_| {},
    );
    let staged = staged.unwrap();
    let RolloutResult::Restored { reasons, awaited } = staged else {
        panic!("{staged:?}");
    };
    assert_eq!(
        reasons,
        ["m2 refuses it: REFUSED: no plugin `relay` of version 2"]
    );
    assert!(awaited.converged, "{awaited:?}");
    assert_eq!(fleet.spec(), OLD);
    assert!(!fleet.has_rollout());
    assert!(fleet.had_new().contains("m1"), "the first wave applied it");
    for id in ["m1", "m2", "m3"] {
        assert_eq!(fleet.last_of(id), OLD, "{id}");
    }
}

#[test]
fn rollouts_of_a_handler_are_exclusive_and_can_be_resumed_or_aborted() {
    let fleet = Fleet::start(&["m1", "m2"], &[], &[]);
    let key = ControlKey::Rollout("a".into());
    let left_behind = Rollout {
        id: "r1".into(),
        by: "bob".into(),
        started: "2026-01-01T00:00:00Z".into(),
        spec: Some(NEW.into()),
        waves: vec!["1".into(), "100%".into()],
        members: vec!["m1".into()],
        wait_healthy: Some("10ms".into()),
        base_revision: 1,
        ..Rollout::default()
    };
    let leave = || {
        let written = fleet
            .store
            .write(&key, Some(&left_behind.to_json()), Expected::Absent);
        written.expect("no other rollout");
    };
    leave();
    let refused = begin(
        &fleet.store,
        NEW,
        None,
        None,
        &settings("100%"),
        &mut |_| {},
    );
    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.contains("by bob at 2026") && refused.contains("--resume"),
        "{refused}"
    );
    assert!(matches!(
        fleet.backend().apply(NEW, None, None),
        Err(FleetError::InProgress { .. })
    ));
    let aborted = abort(&fleet.store, "a", Duration::from_secs(2), &mut |_| {}).unwrap();
    assert!(matches!(aborted, RolloutResult::Restored { .. }));
    assert_eq!(fleet.spec(), OLD);
    leave();
    let done = resume(&fleet.store, "a", Duration::from_secs(2), &mut |_| {}).unwrap();
    assert!(matches!(done, RolloutResult::Done { .. }), "{done:?}");
    assert_eq!(fleet.spec(), NEW);
    let none = resume(&fleet.store, "a", Duration::from_secs(2), &mut |_| {});
    assert!(matches!(none, Err(FleetError::NotInProgress { .. })));
}

#[test]
fn a_spec_changed_during_a_rollout_is_kept() {
    let fleet = Fleet::start(&["m1"], &[], &[]);
    let other = OLD.replace("[t]", "[u]");
    let store = fleet.store.clone();
    let staged = begin(
        &fleet.store,
        NEW,
        None,
        None,
        &settings("100%"),
        &mut |step| {
            if let RolloutStep::AwaitingHealthy(_) = step {
                let key = ControlKey::Spec("a".into());
                store
                    .write(&key, Some(other.as_bytes()), Expected::Any)
                    .expect("the store is reachable");
            }
        },
    );
    let staged = staged.unwrap();
    assert!(
        matches!(&staged, RolloutResult::Restored { reasons, .. } if reasons[0].contains("changed concurrently")),
        "{staged:?}"
    );
    assert_eq!(fleet.spec(), other);
}

#[test]
fn a_rollout_without_members_does_nothing() {
    let fleet = Fleet::start(&[], &[], &[]);
    let staged = begin(
        &fleet.store,
        NEW,
        None,
        None,
        &settings("100%"),
        &mut |_| {},
    );
    assert!(matches!(staged, Err(FleetError::NoMembers)));
    assert!(!fleet.has_rollout());
}
