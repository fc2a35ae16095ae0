//! Instances that fail, and threads that cannot be started.

use super::*;

#[test]
fn a_batch_whose_instance_cannot_be_built_returns_and_the_member_backs_off_from_the_next_failure_on()
 {
    let mut table = Table::new(1);
    let one = table.add("one");
    let worker = thread(0, 1);
    let error = ProbeError::RuntimePanicked;
    assert!(table.submit(&one, 1));
    assert_eq!(table.next(worker), "create one with {}");
    table.effects();
    assert!(table.report(worker, Report::NotCreated(&one, &error)));
    assert_eq!(
        table.effects(),
        [
            format!("failed {error}").as_str(),
            &format!("unhealthy 0 {error}"),
            "not run 1"
        ]
    );
    assert!(table.submit(&one, 2), "the first rebuild is immediate");
    assert_eq!(table.next(worker), "create one with {}");
    assert!(table.submit(&one, 3));
    table.effects();
    assert!(table.report(worker, Report::NotCreated(&one, &error)));
    assert_eq!(
        table.effects()[2..],
        ["not run 2", "not run 3"],
        "no other worker can run it"
    );
    assert!(!table.submit(&one, 4) && !table.submit_to(&one, 5, Some(0)));
    assert_eq!(table.next(worker), "park for 10ms");
    table.effects();
    table.now += Duration::from_millis(9);
    assert_eq!(table.next(worker), "park for 1ms");
    assert!(!table.submit(&one, 4));
    table.now += Duration::from_millis(1);
    assert_eq!(table.next(worker), "park");
    assert_eq!(table.effects(), ["room"]);
    assert!(table.submit(&one, 4));
}

#[test]
fn a_member_backs_off_at_one_slot_and_runs_at_another() {
    let mut table = Table::new(2);
    let one = table.add("one");
    let worker = table.running(&one, 1);
    assert!(table.submit_to(&one, 2, Some(0)));
    assert!(table.call_ended(worker, &one, Some("panicked")));
    assert_eq!(
        table.next(worker),
        "call 2",
        "the first rebuild is immediate"
    );
    assert!(table.submit_to(&one, 3, Some(0)));
    table.effects();
    assert!(table.call_ended(worker, &one, Some("panicked")));
    assert_eq!(table.effects(), ["not run 3"]);
    assert!(!table.submit_to(&one, 4, Some(0)));
    assert!(table.submit(&one, 5));
    assert_eq!(table.effects(), ["spawn 1/2"], "not the one that backs off");
    assert_eq!(table.next(worker), "park for 10ms");
    assert_eq!(table.next(thread(1, 2)), "create one with {}");
}

#[test]
fn the_end_of_a_backoff_is_noticed_by_the_watchdog_while_the_worker_is_busy_elsewhere() {
    let mut table = Table::new(1);
    let (one, two) = (table.add("one"), table.add("two"));
    let worker = table.running(&one, 1);
    for number in 2..4 {
        assert!(table.call_ended(worker, &one, Some("panicked")));
        assert_eq!(table.submit(&one, number), number == 2);
        table.next(worker);
    }
    assert!(table.submit(&two, 4));
    assert_eq!(table.next(worker), "create two with {}");
    table.effects();
    table.tick(SECOND);
    assert_eq!(table.effects(), [""; 0], "told when it came free");
    assert!(table.submit(&one, 5));
}

/// Panics on batches until one more failure trips the member.
fn about_to_trip(table: &mut Table, one: &Arc<PoolMember>) -> WorkerId {
    let worker = table.running(one, 1);
    for number in 2..5 {
        assert!(table.call_ended(worker, one, Some("panicked")));
        table.tick(SECOND);
        assert!(table.submit(one, number));
        assert_eq!(table.next(worker), format!("call {number}"));
    }
    worker
}

#[test]
fn a_tripped_member_is_published_before_its_batches_return_and_a_reset_notifies() {
    let mut table = Table::new(1);
    let (one, two) = (table.add("one"), table.add("two"));
    let worker = about_to_trip(&mut table, &one);
    assert!(table.submit(&one, 5));
    assert!(!table.submit(&two, 6), "full");
    table.effects();
    assert!(table.call_ended(worker, &one, Some("panicked")));
    assert_eq!(table.effects(), ["tripped one", "not run 5", "room"]);
    assert!(!table.submit(&one, 7));
    assert_eq!(table.next(worker), "park");
    table.tick(SECOND);
    assert_eq!(
        table.effects(),
        [""; 0],
        "it has no room, so its inbox is told nothing"
    );
    assert!(table.submit(&two, 8), "another member is not concerned");
    table.effects();
    table.step(Event::Reset(&one));
    assert_eq!(table.effects(), ["untripped one", "room"]);
    assert!(table.submit(&one, 9));
}

#[test]
fn progress_ends_the_count_of_failures() {
    let mut table = Table::new(1);
    let one = table.add("one");
    let worker = table.running(&one, 1);
    for number in 2..50 {
        assert!(table.report(
            worker,
            Report::CallEnded {
                member: &one,
                failed: Some((Failure::Poisoned, "panicked")),
                made_progress: true,
            },
        ));
        assert!(table.submit(&one, number), "neither backs off nor trips");
        assert_eq!(table.next(worker), format!("call {number}"));
    }
}

#[test]
fn without_any_thread_all_batches_return_and_their_members_back_off() {
    let mut table = Table::new(2);
    let (one, two) = (table.add("one"), table.add("two"));
    assert!(table.submit(&one, 1));
    assert_eq!(table.effects(), ["spawn 0/1"]);
    let (_, answer) = table.probe(&two, None);
    let error = || io::ErrorKind::WouldBlock.into();
    table.step(Event::ThreadNotStarted(thread(0, 1), error()));
    let effects = table.effects()[1..].to_vec();
    let why = "unhealthy 0 cannot start a worker thread: operation would block";
    assert_eq!(effects.first().map(String::as_str), Some(why));
    assert!(effects.contains(&"not run 1".to_owned()), "{effects:?}");
    assert!(matches!(
        answer.try_recv(),
        Ok(Err(ProbeError::NoThread(_)))
    ));
    // The event of a thread that holds no slot any more has no effect.
    table.step(Event::ThreadNotStarted(thread(0, 1), error()));
    assert_eq!(table.effects(), [""; 0]);
    assert!(table.submit(&two, 2), "only handlers with batches back off");
    assert_eq!(table.effects(), ["spawn 0/2"]);
    assert!(table.submit(&one, 3), "at that slot");
    assert_eq!(table.effects(), ["spawn 1/3"]);
    for worker in [thread(0, 2), thread(1, 3)] {
        table.step(Event::ThreadNotStarted(worker, error()));
    }
    table.effects();
    assert!(!table.submit(&one, 4), "at all of them");
    table.tick(HEALTH_INTERVAL);
    assert!(table.submit(&one, 4), "it is tried again");
}

#[test]
fn with_another_thread_only_bound_batches_return() {
    let mut table = Table::new(2);
    let (one, two) = (table.add("one"), table.add("two"));
    table.running(&one, 1);
    assert!(table.submit(&one, 2));
    assert!(table.submit_to(&two, 3, Some(1)));
    assert_eq!(table.effects(), ["spawn 1/2", "wake 1"]);
    let error = io::ErrorKind::WouldBlock.into();
    table.step(Event::ThreadNotStarted(thread(1, 2), error));
    let why = "unhealthy 1 cannot start a worker thread: operation would block";
    assert_eq!(table.effects(), [why, "not run 3"]);
    assert_eq!(table.roster.queue.len(), 1, "the running thread takes it");
}

#[test]
fn a_member_whose_instances_cannot_be_built_backs_off_for_ever_and_is_never_tripped() {
    let mut table = Table::new(1);
    let one = table.add("one");
    let error = ProbeError::RuntimePanicked;
    for number in 0..200 {
        assert!(table.submit(&one, number));
        table.effects();
        let worker = thread(0, table.roster.slots[0].thread_epoch);
        assert_eq!(table.next(worker), "create one with {}");
        assert!(table.report(worker, Report::NotCreated(&one, &error)));
        table.now += Duration::from_secs(30);
        table.next(worker);
    }
    assert!(table.submit(&one, 200));
}

#[test]
fn a_member_whose_dependency_is_away_is_unhealthy_and_backs_off_for_ever() {
    let mut table = Table::new(1);
    let one = table.add("one");
    let mut worker = table.running(&one, 1);
    for number in 2..100 {
        let away = Report::CallEnded {
            member: &one,
            failed: Some((Failure::Unavailable, "no database")),
            made_progress: false,
        };
        table.effects();
        assert!(table.report(worker, away));
        assert_eq!(table.effects()[0], "unhealthy 0 no database");
        table.now += Duration::from_secs(30);
        table.next(worker);
        assert!(table.submit(&one, number), "after the longest delay");
        worker = thread(0, table.roster.slots[0].thread_epoch);
        assert_eq!(table.next(worker), format!("call {number}"));
    }
    assert!(!table.tripped(&one));
}
