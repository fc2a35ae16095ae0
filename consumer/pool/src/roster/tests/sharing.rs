//! Members that share a full thread pool.

use super::*;

/// One worker and members that always submit in the same order; which batches ran, by member.
fn greedy(members: u32, rounds: usize) -> Vec<u32> {
    let mut table = Table::new(1);
    let all: Vec<_> = (0..members)
        .map(|at| table.add(&format!("member {at}")))
        .collect();
    let mut order = Vec::new();
    let submit_all = |table: &mut Table| {
        for (at, member) in (0..).zip(&all) {
            while table.submit(member, at) {}
        }
    };
    submit_all(&mut table);
    let worker = thread(0, 1);
    for _ in 0..rounds {
        let next = table.next(worker);
        if next.starts_with("create") {
            let Phase::Creating { member, item, .. } = &table.roster.slots[0].phase else {
                panic!("nothing is created");
            };
            order.push(item.as_ref().unwrap().batch.id.index);
            let member = Arc::clone(member);
            assert_eq!(table.created(worker, &member), "call");
        } else {
            order.push(next.strip_prefix("call ").unwrap().parse().unwrap());
        }
        submit_all(&mut table);
        let served = Arc::clone(&all[*order.last().unwrap() as usize]);
        assert!(table.call_ended(worker, &served, None));
    }
    order
}

#[test]
fn members_of_a_full_pool_get_equal_shares_in_any_order_of_submission() {
    let order = greedy(3, 300);
    for window in order[10..].windows(30) {
        let count = |member| window.iter().filter(|&&ran| ran == member).count();
        let counts = [count(0), count(1), count(2)];
        assert!(counts.iter().all(|&n| n.abs_diff(10) <= 2), "{counts:?}");
    }
}

#[test]
fn a_member_that_does_not_use_its_turn_gives_way_at_the_next_tick() {
    let mut table = Table::new(1);
    let (here, gone) = (table.add("here"), table.add("gone"));
    let worker = table.running(&here, 1);
    assert!(table.submit(&here, 2));
    assert!(!table.submit(&gone, 3) && !table.submit(&here, 4));
    assert!(table.call_ended(worker, &here, None));
    assert_eq!(table.next(worker), "call 2");
    assert!(!table.submit(&here, 4), "it is the other one's turn");
    table.effects();
    table.tick(SECOND);
    assert_eq!(table.effects(), ["room"]);
    assert!(table.submit(&here, 4));
}

#[test]
fn a_later_release_of_a_member_with_an_instance_on_an_abandoned_thread_is_quarantined() {
    let mut table = Table::new(1);
    let (one, two) = (table.add("one"), table.add("two"));
    let worker = table.running(&two, 1);
    assert!(table.call_ended(worker, &two, None));
    assert!(table.submit(&one, 2));
    assert!(table.next(worker).starts_with("create one"));
    assert_eq!(table.created(worker, &one), "call");
    table.tick(TIMEOUT);
    table.tick(SECOND);
    table.effects();
    table.step(Event::Leave(&two));
    let again = thread(0, table.roster.slots[0].thread_epoch);
    assert!(table.next(again).starts_with("leave"));
    assert!(table.report(again, Report::Released(&two)));
    assert_eq!(table.effects().last().unwrap(), "released two Quarantined");
}
