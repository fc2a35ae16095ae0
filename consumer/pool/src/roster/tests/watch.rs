//! Calls, creations and lifecycle calls that hang.

use std::sync::atomic::Ordering;

use super::*;

#[test]
fn a_hung_call_is_cancelled_then_abandoned_and_its_late_report_does_not_count() {
    let mut table = Table::new(1);
    let one = table.add("one");
    let old = table.running(&one, 1);
    assert!(table.submit(&one, 2));
    table.monitor.at(Some((1, 3)));
    table.tick(TIMEOUT - SECOND);
    assert_eq!(table.effects(), [""; 0]);
    table.tick(SECOND);
    assert_eq!(table.effects(), ["cancel"]);
    table.tick(SECOND / 2);
    assert_eq!(table.effects(), [""; 0], "the grace period");
    table.tick(SECOND / 2);
    assert_eq!(
        table.effects(),
        ["abandoned 0", "timed out 1 after 3", "spawn 0/2"]
    );
    assert!(!table.call_ended(old, &one, Some("panicked")));
    assert_eq!(table.next(old), "exit");
    assert_eq!(table.created(old, &one), "abandoned");
    assert_eq!(table.next(thread(0, 2)), "create one with {}", "batch 2");
    assert_eq!(table.roster.busy(&one), 0);
    assert_eq!(table.created(thread(0, 2), &one), "call");
    assert_eq!(table.roster.busy(&one), 1);
}

#[test]
fn a_hung_call_that_can_be_killed_is_and_costs_a_thread_only_if_it_still_hangs() {
    let killed = || {
        let mut table = Table::new(1);
        let one = table.add("one");
        let worker = table.running(&one, 1);
        table.monitor.can_kill.store(true, Ordering::Relaxed);
        table.monitor.at(Some((7, 3)));
        table.tick(TIMEOUT - SECOND);
        table.tick(SECOND);
        assert_eq!(table.effects(), ["cancel"]);
        table.tick(SECOND);
        assert_eq!(table.effects(), ["kill 7"]);
        table.tick(SECOND);
        assert_eq!(table.effects(), [""; 0], "once, and it has time to return");
        (table, one, worker)
    };
    let (mut table, one, worker) = killed();
    table.monitor.at(None);
    assert!(table.call_ended(worker, &one, Some("killed")));
    table.tick(TIMEOUT);
    assert!(!table.effects().iter().any(|one| one.contains("abandoned")));
    let (mut table, _, worker) = killed();
    table.tick(SECOND);
    let expected = ["abandoned 0", "timed out 1 after 3"];
    assert_eq!(table.effects()[..2], expected);
    assert_eq!(table.next(worker), "exit");
}

#[test]
fn a_call_that_makes_progress_or_returns_is_not_abandoned() {
    let mut table = Table::new(1);
    let one = table.add("one");
    let worker = table.running(&one, 1);
    for record in 0..5 {
        table.monitor.at(Some((1, record)));
        table.tick(TIMEOUT / 2);
        assert_eq!(table.effects(), [""; 0], "each record is in time");
    }
    table.tick(TIMEOUT);
    assert_eq!(table.effects(), ["cancel"]);
    table.monitor.at(Some((1, 5)));
    table.tick(SECOND);
    table.tick(SECOND);
    assert_eq!(
        table.effects(),
        [""; 0],
        "it continued during the grace period"
    );
    table.monitor.at(None);
    table.tick(10 * TIMEOUT);
    assert_eq!(table.effects(), [""; 0], "it has returned");
    assert!(table.call_ended(worker, &one, None));
}

#[test]
fn a_call_that_never_starts_is_abandoned_without_outcomes() {
    let mut table = Table::new(1);
    let one = table.add("one");
    table.running(&one, 1);
    table.tick(TIMEOUT);
    table.tick(SECOND);
    assert_eq!(
        table.effects(),
        ["cancel", "abandoned 0", "timed out 1 after 0", "spawn 0/2"]
    );
}

/// Lets the call of a batch hang until it is abandoned; the thread, and the effects.
fn hang(table: &mut Table, member: &Arc<PoolMember>, number: u32) -> (WorkerId, Vec<String>) {
    assert!(table.submit(member, number));
    table.effects();
    let worker = thread(0, table.roster.slots[0].thread_epoch);
    assert!(table.next(worker).starts_with("create"));
    assert_eq!(table.created(worker, member), "call");
    table.tick(TIMEOUT);
    table.effects();
    table.tick(SECOND);
    (worker, table.effects())
}

#[test]
fn too_many_hung_calls_trip_their_member_unless_some_return() {
    let mut table = Table::new(1);
    let (one, two) = (table.add("one"), table.add("two"));
    let mut hung = Vec::new();
    for number in 1..4 {
        hung.push(hang(&mut table, &one, number).0);
    }
    // It returns after all.
    table.step(Event::AbandonedThreadEnded(hung[0]));
    hang(&mut table, &one, 4);
    assert!(table.submit(&one, 5), "three hang");
    table.effects();
    let worker = thread(0, table.roster.slots[0].thread_epoch);
    assert!(table.next(worker).starts_with("create"));
    assert_eq!(table.created(worker, &one), "call");
    assert!(table.submit(&one, 6));
    table.tick(TIMEOUT);
    table.tick(SECOND);
    assert_eq!(
        table.effects(),
        [
            "cancel",
            "abandoned 0",
            "tripped one",
            "timed out 5 after 0",
            "not run 6",
            "spawn 0/6"
        ]
    );
    assert!(!table.submit(&one, 7) && table.submit(&two, 8));
    table.step(Event::Leave(&one));
    assert!(table.next(thread(0, 6)).starts_with("leave"));
    table.effects();
    assert!(table.report(thread(0, 6), Report::Released(&one)));
    assert_eq!(table.effects(), ["released one Quarantined"]);
}

#[test]
fn a_hung_creation_returns_its_batch_and_a_hung_probe_is_answered() {
    let mut table = Table::new(1);
    let one = table.add("one");
    assert!(table.submit(&one, 1));
    assert_eq!(table.next(thread(0, 1)), "create one with {}");
    let (_, answer) = table.probe(&one, None);
    table.effects();
    table.tick(CREATE_TIMEOUT);
    let why = "unhealthy 0 instance creation, config change or health check timed out after 30s";
    assert_eq!(
        table.effects(),
        ["abandoned 0", why, "not run 1", "spawn 0/2"]
    );
    assert_eq!(table.created(thread(0, 1), &one), "abandoned");
    assert_eq!(table.next(thread(0, 2)), "probe one", "it is not lost");
    table.tick(CREATE_TIMEOUT);
    let effects = table.effects();
    assert_eq!(effects.first().unwrap(), "abandoned 0");
    assert!(matches!(
        answer.try_recv(),
        Ok(Err(ProbeError::Abandoned(CREATE_TIMEOUT)))
    ));
}

#[test]
fn a_hung_drain_quarantines_its_member_and_a_closing_pool_starts_no_other_thread() {
    let mut table = Table::new(1);
    let one = table.add("one");
    let worker = table.running(&one, 1);
    table.step(Event::Leave(&one));
    assert!(table.call_ended(worker, &one, None));
    assert_eq!(table.next(worker), "leave one");
    table.effects();
    table.tick(DRAIN_TIMEOUT);
    assert_eq!(
        table.effects(),
        ["abandoned 0", "released one Quarantined", "thread ended"]
    );
    assert!(!table.roster.is_ending());
    assert!(!table.report(worker, Report::Released(&one)));
    assert_eq!(table.effects(), [""; 0]);
}

#[test]
fn a_pending_release_of_an_abandoned_thread_is_quarantined() {
    let mut table = Table::new(1);
    let (one, two) = (table.add("one"), table.add("two"));
    table.running(&one, 1);
    table.step(Event::Leave(&two));
    table.tick(TIMEOUT);
    table.tick(SECOND);
    assert_eq!(
        table.effects(),
        [
            "wake 0",
            "cancel",
            "abandoned 0",
            "released two Quarantined",
            "timed out 1 after 0",
            "spawn 0/2"
        ]
    );
}

/// Abandons a thread in a health check, and lets the member leave; with `returns` the check returns in between.
fn leaves_after_a_hung_check(returns: bool) -> Vec<String> {
    let mut table = Table::new(1);
    let one = table.add("one");
    let worker = table.running(&one, 1);
    assert!(table.call_ended(worker, &one, None));
    table.tick(HEALTH_INTERVAL);
    assert_eq!(table.next(worker), "check, 0 missing");
    assert!(table.report(worker, Report::LifecycleCall(&one)));
    table.tick(DRAIN_TIMEOUT);
    assert!(!table.report(worker, Report::HealthChecked(&one, Some("late".to_owned()))));
    if returns {
        table.step(Event::AbandonedThreadEnded(worker));
    }
    table.step(Event::Leave(&one));
    assert_eq!(table.next(thread(0, 2)), "leave one");
    table.effects();
    assert!(table.report(thread(0, 2), Report::Released(&one)));
    table.effects()
}

#[test]
fn a_member_that_hangs_in_a_lifecycle_call_is_not_released_clean() {
    assert_eq!(
        leaves_after_a_hung_check(false),
        ["released one Quarantined"]
    );
    assert_eq!(leaves_after_a_hung_check(true), ["released one Clean"]);
}

/// Lets the next task of a member's only worker hang until it is abandoned.
fn hang_in(table: &mut Table, member: &Arc<PoolMember>, phase: &str, number: u32) -> WorkerId {
    let worker = thread(0, table.roster.slots[0].thread_epoch);
    match phase {
        "creation" => {
            assert!(table.submit(member, number));
            let worker = thread(0, table.roster.slots[0].thread_epoch);
            assert!(table.next(worker).starts_with("create"));
            table.tick(CREATE_TIMEOUT);
            return worker;
        }
        "health check" => {
            table.tick(HEALTH_INTERVAL);
            assert!(table.next(worker).starts_with("check"));
            assert!(table.report(worker, Report::HealthCheck(member)));
            table.tick(HEALTH_TIMEOUT);
        }
        _ => {
            table.step(Event::Owned(
                member,
                &Arc::clone(&table.inbox),
                &[OwnedPartition::new("t", number as i32, 1)],
            ));
            assert!(table.next(worker).starts_with("change"));
            table.tick(DRAIN_TIMEOUT);
        }
    }
    worker
}

#[test]
fn threads_are_bounded_whatever_they_hang_in_and_their_places_come_back() {
    for phase in ["creation", "health check", "partition event"] {
        let mut table = Table::new(1);
        let one = table.add("one");
        if phase != "creation" {
            let worker = table.running(&one, 99);
            assert!(table.call_ended(worker, &one, None));
            table.next(worker);
        }
        let mut hung = Vec::new();
        for number in 0..4 {
            assert!(!table.tripped(&one), "{phase} {number}");
            table.now += Duration::from_secs(60);
            table.step(Event::Tick);
            hung.push(hang_in(&mut table, &one, phase, number));
        }
        assert!(table.tripped(&one), "{phase}");
        assert_eq!(table.roster.settings.hung.count(), 4, "{phase}");
        table.effects();
        table.step(Event::AbandonedThreadEnded(hung[0]));
        assert!(table.tripped(&one), "three still hang");
        table.step(Event::AbandonedThreadEnded(hung[1]));
        assert!(!table.tripped(&one), "{phase}: most have returned");
        assert_eq!(table.effects(), ["untripped one"]);
        assert_eq!(table.roster.settings.hung.of("one"), 2, "{phase}");
        table.step(Event::AbandonedThreadEnded(hung[1]));
        assert_eq!(table.roster.settings.hung.count(), 2, "counted once");
    }
}

#[test]
fn the_bound_of_a_handler_covers_its_earlier_generations() {
    let mut earlier = Table::new(1);
    let one = earlier.add("one");
    let mut hung = Vec::new();
    for number in 0..4 {
        earlier.tick(Duration::from_secs(60));
        hung.push(hang_in(&mut earlier, &one, "creation", number));
    }
    assert!(earlier.tripped(&one));

    let mut later = Table::new(1);
    later.roster.settings.hung = earlier.roster.settings.hung.clone();
    let fixed = later.add("one");
    let worker = later.running(&fixed, 1);
    later.tick(SECOND);
    assert!(later.call_ended(worker, &fixed, None));
    later.next(worker);
    assert!(!later.tripped(&fixed), "it does not hang");
    hang_in(&mut later, &fixed, "health check", 2);
    assert!(later.tripped(&fixed), "it does, and is the fifth");
    later.tick(SECOND);
    assert!(later.tripped(&fixed), "most still hang");
    for worker in hung {
        earlier.step(Event::AbandonedThreadEnded(worker));
    }
    later.tick(SECOND);
    assert!(!later.tripped(&fixed), "most have returned");
}

#[test]
fn a_handler_with_many_workers_is_tripped_before_it_takes_the_threads_of_others() {
    let mut table = Table::new(40);
    let one = table.add("one");
    let mut running = Vec::new();
    for number in 0..40 {
        running.push(table.running(&one, number));
    }
    table.tick(TIMEOUT);
    table.tick(SECOND);
    assert!(!table.tripped(&one), "40 of at most 64");
    for number in 40..64 {
        table.effects();
        assert!(table.submit(&one, number));
        let slot = number as usize - 40;
        let worker = thread(slot, table.roster.slots[slot].thread_epoch);
        assert!(table.next(worker).starts_with("create"));
        assert_eq!(table.created(worker, &one), "call");
    }
    table.tick(TIMEOUT);
    table.tick(SECOND);
    assert!(table.tripped(&one));
}

#[test]
fn a_handler_whose_thread_hangs_is_tripped_at_once_if_too_many_hang_in_the_process() {
    let mut table = Table::new(1);
    let one = table.add("one");
    for _ in 0..HungThreads::MAX - 1 {
        table.roster.settings.hung.abandoned(&"other".into());
    }
    hang_in(&mut table, &one, "creation", 1);
    assert!(table.tripped(&one));
    let hung = thread(0, 1);
    table.tick(SECOND);
    assert!(table.tripped(&one), "its own still hangs");
    table.roster.settings.hung.abandoned(&"other".into());
    table.step(Event::AbandonedThreadEnded(hung));
    table.tick(SECOND);
    assert!(!table.tripped(&one), "its own have returned");
    hang_in(&mut table, &one, "creation", 2);
    assert!(table.tripped(&one), "nothing more may hang");
}
