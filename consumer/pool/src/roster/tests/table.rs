//! Batches on their way, commands, and the end of a member.

use sluicegate_engine::dispatch::OwnedPartition;

use super::*;

#[test]
fn a_first_batch_starts_a_thread_and_a_later_one_wakes_it() {
    let mut table = Table::new(2);
    let one = table.add("one");
    let worker = table.running(&one, 1);
    assert_eq!(worker, thread(0, 1));
    assert!(table.call_ended(worker, &one, None));
    assert_eq!(table.next(worker), "park");
    assert!(table.submit(&one, 2));
    assert_eq!(table.effects(), ["wake 0"], "rather than another one");
    assert_eq!(table.next(worker), "call 2");
}

#[test]
fn one_batch_waits_per_slot_and_a_finished_call_makes_room() {
    let mut table = Table::new(2);
    let one = table.add("one");
    let worker = table.running(&one, 1);
    for number in 2..5 {
        assert!(table.submit(&one, number));
    }
    assert!(!table.submit(&one, 5) && !table.submit(&one, 6));
    assert_eq!(table.effects(), ["spawn 1/2"]);
    assert!(table.call_ended(worker, &one, None));
    assert_eq!(table.effects(), [""; 0], "its outcomes are on their way");
    assert_eq!(table.next(worker), "call 2");
    assert_eq!(table.effects(), ["room"], "once per inbox");
    // A thread that has just started makes no room.
    assert_eq!(table.next(thread(1, 2)), "create one with {}");
    assert_eq!(table.effects(), [""; 0]);
}

#[test]
fn bound_batches_keep_their_worker_and_alternate_with_shared_ones() {
    let mut table = Table::new(2);
    let one = table.add("one");
    assert!(table.submit_to(&one, 1, Some(3)), "modulo the slots");
    assert!(table.submit_to(&one, 2, Some(1)));
    assert!(!table.submit_to(&one, 3, Some(1)), "its worker is full");
    assert_eq!(table.effects(), ["spawn 1/1", "wake 1"]);
    assert!(table.submit(&one, 4) && table.submit(&one, 5));
    assert_eq!(table.effects(), ["spawn 0/2"]);
    let bound = thread(1, 1);
    assert_eq!(table.next(bound), "create one with {}");
    assert_eq!(table.created(bound, &one), "call");
    let mut order = Vec::new();
    for _ in 0..3 {
        assert!(table.call_ended(bound, &one, None));
        order.push(table.next(bound));
    }
    assert_eq!(order, ["call 4", "call 2", "call 5"]);
    assert_eq!(table.next(thread(0, 2)), "park", "nothing bound to it");
}

#[test]
fn cancelled_batches_return_and_an_instance_that_is_being_built_is_kept() {
    let mut table = Table::new(1);
    let one = table.add("one");
    assert!(table.submit(&one, 1));
    assert_eq!(table.next(thread(0, 1)), "create one with {}");
    let cancelled = batch(2, None);
    let flags = [cancelled.cancel.clone()];
    let inbox = Arc::clone(&table.inbox);
    let submitted = table
        .roster
        .submit(&one, cancelled, &inbox, &mut table.effects);
    assert!(submitted.is_ok());
    flags.iter().for_each(|flag| flag.set());
    table.effects();
    table.step(Event::Recall);
    assert_eq!(table.effects(), ["not run 2"]);
    let Phase::Creating {
        item: Some(item), ..
    } = &table.roster.slots[0].phase
    else {
        panic!("the instance is not being built");
    };
    item.batch.cancel.set();
    table.step(Event::Recall);
    assert_eq!(table.effects(), ["not run 1"]);
    assert_eq!(table.created(thread(0, 1), &one), "recalled");
    assert!(table.submit(&one, 3));
    assert_eq!(table.next(thread(0, 1)), "call 3");
}

#[test]
fn a_probe_takes_an_idle_worker_then_one_that_is_free_soon_then_the_first() {
    let mut table = Table::new(2);
    let one = table.add("one");
    let worker = table.running(&one, 1);
    table.probe(&one, None);
    assert_eq!(table.effects(), ["spawn 1/2"], "the other one is idle");
    assert_eq!(table.next(thread(1, 2)), "probe one");
    assert!(table.call_ended(worker, &one, None));
    table.probe(&one, None);
    assert_eq!(table.effects(), ["wake 0"], "it delivers outcomes");
    assert_eq!(table.next(worker), "probe one");
    let (_, _answer) = table.probe(&one, None);
    assert_eq!(table.effects(), ["wake 0"], "all are in calls");
}

#[test]
fn a_probe_is_cancelled_only_before_it_has_started() {
    let mut table = Table::new(1);
    let one = table.add("one");
    let (first, _) = table.probe(&one, None);
    let (second, _) = table.probe(&one, Some("new"));
    assert_eq!(table.next(thread(0, 1)), "probe one");
    assert!(!table.roster.cancel_probe(first));
    assert!(table.roster.cancel_probe(second));
    assert!(!table.roster.cancel_probe(second));
    assert_eq!(table.next(thread(0, 1)), "park", "the config is not taken");
}

/// A probe with a new config that ends with `result`; what the member's config is then, and the effects.
fn probed(result: Result<(), ProbeError>) -> (String, Vec<String>) {
    let mut table = Table::new(2);
    let one = table.add("one");
    table.running(&one, 1);
    table.probe(&one, Some("new"));
    table.effects();
    let monitor_of = |_| None;
    let next = table
        .roster
        .next(thread(1, 2), &monitor_of, table.now, &mut table.effects);
    let Next::Task(Task::Probe(probe)) = next else {
        panic!("no probe");
    };
    assert!(table.report(thread(1, 2), Report::Probed(&probe, result)));
    let config = table.roster.config(&one).json.to_string();
    (config, table.effects())
}

#[test]
fn an_accepted_config_is_applied_by_all_other_threads_and_a_refused_one_by_none() {
    let (config, effects) = probed(Ok(()));
    assert_eq!(config, "new");
    assert_eq!(effects, ["wake 0", "answer ok"]);
    let (config, effects) = probed(Err(ProbeError::Gone));
    assert_eq!(config, "{}");
    assert_eq!(effects, ["answer the instance no longer exists"]);
}

#[test]
fn partitions_are_announced_to_running_threads_and_only_if_they_change() {
    let mut table = Table::new(3);
    let one = table.add("one");
    let worker = table.running(&one, 1);
    let owned = [OwnedPartition::new("t", 0, 1)];
    let inbox = Arc::clone(&table.inbox);
    for _ in 0..2 {
        table.step(Event::Owned(&one, &inbox, &owned));
    }
    assert_eq!(table.effects(), ["wake 0"]);
    assert!(table.roster.owned(&one).contains(&owned[0]));
    assert!(table.call_ended(worker, &one, None));
    assert!(table.submit(&one, 2));
    assert_eq!(table.next(worker), "change one", "before the next batch");
    assert_eq!(table.next(worker), "call 2");
}

#[test]
fn a_release_returns_queued_batches_and_ends_once_with_the_last_worker() {
    let mut table = Table::new(2);
    let (one, two) = (table.add("one"), table.add("two"));
    let first = table.running(&one, 1);
    let second = table.running(&two, 2);
    assert!(table.submit(&one, 3) && table.submit(&two, 4));
    table.step(Event::Leave(&one));
    assert_eq!(table.effects(), ["not run 3", "wake 0", "wake 1"]);
    assert!(!table.submit(&one, 5), "it has left");
    for (worker, member, released) in [(second, &two, ""), (first, &one, "released one Clean")] {
        assert!(table.call_ended(worker, member, None));
        assert_eq!(table.next(worker), "leave one");
        table.effects();
        assert!(table.report(worker, Report::Released(&one)));
        assert_eq!(table.effects().concat(), released);
    }
    table.step(Event::Leave(&one));
    assert_eq!(table.effects(), [""; 0]);
    assert_eq!(
        table.next(first),
        "create two with {}",
        "the pool stays open"
    );
}

#[test]
fn a_member_without_threads_is_released_at_once_and_the_last_one_closes_the_pool() {
    let mut table = Table::new(1);
    let (one, two) = (table.add("one"), table.add("two"));
    table.step(Event::Leave(&one));
    assert_eq!(table.effects(), ["released one Clean"]);
    assert!(!table.roster.is_closing());
    let worker = table.running(&two, 1);
    table.step(Event::Leave(&two));
    assert!(table.roster.is_closing() && table.roster.is_ending());
    assert!(table.call_ended(worker, &two, None));
    assert_eq!(table.next(worker), "leave two");
    assert!(table.report(worker, Report::Released(&two)));
    assert_eq!(table.next(worker), "exit");
    assert_eq!(
        table.effects(),
        ["wake 0", "released two Clean", "thread ended"]
    );
    assert!(!table.roster.is_ending());
}
