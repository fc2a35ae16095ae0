//! Which records a drain finishes, and which it leaves to the next owner.

use sluicegate_runtime::{RawRecord, outcome_flag};

use super::*;
use crate::status::{ProblemKind, ServiceProblem, WaitsFor};

/// A call that runs the records before `end` and is then stopped.
fn runs_before(end: i64) -> impl Fn(i64) -> u16 {
    move |offset| match offset < end {
        true => ACK,
        false => outcome_code::NOT_RUN,
    }
}

/// Both handlers have records; one has started five, the other two, when their calls are stopped. Returns the offsets
/// that run then.
fn drain_two_handlers(bench: &mut Bench) -> Vec<i64> {
    bench.deliver(0..10, |_| None);
    bench.finish(1, runs_before(5));
    let deadline_ms = bench.flow.ctx.now_ms + 10_000;
    bench.flow.start_drain(&[bench.slot], deadline_ms);
    // Both were given records again; neither runs more than the stated number.
    bench.finish(1, runs_before(0));
    bench.finish(0, runs_before(2));
    assert!(!bench.flow.is_drained(&[bench.slot]));
    bench.finish(0, |_| ACK)
}

#[test]
fn a_drain_finishes_started_records_and_leaves_the_rest() {
    let mut bench = Bench::new(2);
    bench.deliver(0..10, |_| Some("k".to_owned()));
    assert_eq!(bench.finish(0, runs_before(3)), [0, 1, 2]);
    bench.flow.start_drain(&[bench.slot], 10_000);
    assert!(!bench.flow.is_drained(&[bench.slot]));
    bench.finish(0, |_| ACK);
    bench.finish(1, |_| ACK);
    bench.finish(0, |_| ACK);
    assert!(bench.flow.is_drained(&[bench.slot]));
    let last = bench.flow.commits_due();
    assert_eq!(
        last[0].offset, 10,
        "all were in flight in one handler or the other"
    );
    bench.flow.release(&[bench.slot]);
    assert_eq!((bench.flow.held_records(), bench.flow.charged()), (0, 0));
}

#[test]
fn the_records_of_a_call_are_admitted_until_their_partition_is_fenced() {
    let mut bench = Bench::new(1);
    bench.deliver(0..2, |_| None);
    let admitted = |bench: &Bench| {
        let taken = bench.pools[0].taken.lock().unwrap();
        let records = taken.iter().flat_map(|batch| &batch.records);
        records.map(RawRecord::is_admitted).collect::<Vec<_>>()
    };
    bench.flow.start_drain(&[bench.slot], 10_000);
    assert_eq!(
        admitted(&bench),
        [true, true],
        "what has started may finish"
    );
    bench.flow.lose(&[bench.slot]);
    bench.flow.release(&[bench.slot]);
    assert_eq!(admitted(&bench), [false, false]);
    bench.slot = bench.flow.assign(NewAssignment::first(at(), 0, 2));
    assert_eq!(
        admitted(&bench),
        [false, false],
        "those of the next assignment are others"
    );
    bench.deliver(0..1, |_| None);
    assert_eq!(admitted(&bench), [false, false, true]);
}

#[test]
fn a_drain_ends_calls_after_their_current_record() {
    let mut bench = Bench::new(1);
    bench.deliver(0..10, |_| None);
    let cancel = bench.pools[0].taken.lock().unwrap()[0].cancel.clone();
    assert!(!cancel.is_set());
    bench.flow.start_drain(&[bench.slot], 10_000);
    assert!(
        cancel.is_set() && !cancel.is_cancelled(),
        "it starts no further record, and finishes its current one"
    );
    bench.finish(0, runs_before(3));
    assert!(
        bench.flow.is_drained(&[bench.slot]),
        "unstarted records are left to the next owner"
    );
    assert_eq!(bench.flow.commits_due()[0].offset, 3);
    bench.flow.release(&[bench.slot]);
    assert_eq!((bench.flow.held_records(), bench.flow.charged()), (0, 0));
}

#[test]
fn a_drain_reruns_unstarted_records_of_a_stopped_call_that_another_handler_started() {
    let mut bench = Bench::new(2);
    assert_eq!(drain_two_handlers(&mut bench), [2, 3, 4]);
    assert!(bench.flow.is_drained(&[bench.slot]));
    assert_eq!(bench.flow.commits_due()[0].offset, 5);
}

#[test]
fn a_call_that_hangs_after_its_drain_blocks_no_later_drain() {
    let mut bench = Bench::new(2);
    bench.deliver(0..2, |_| None);
    let hung: Vec<_> = bench
        .pools
        .iter()
        .map(|pool| std::mem::take(&mut *pool.taken.lock().unwrap()))
        .collect();
    assert!(hung.iter().all(|calls| calls.len() == 1));
    bench.flow.start_drain(&[bench.slot], 1_000);
    bench.flow.tick(1_000);
    bench.flow.release(&[bench.slot]);
    bench.slot = bench.flow.assign(NewAssignment::first(at(), 0, 2));
    assert_eq!(drain_two_handlers(&mut bench), [2, 3, 4]);
    assert!(bench.flow.is_drained(&[bench.slot]));
}

/// Outcomes of a call so far.
fn published(codes: &[(u16, u16)]) -> Mutex<Vec<RawOutcome>> {
    let outcome = |&(code, flags): &(u16, u16)| RawOutcome {
        code,
        flags,
        ..RawOutcome::default()
    };
    Mutex::new(codes.iter().map(outcome).collect())
}

#[test]
fn what_a_hung_call_has_finished_counts_when_its_drain_times_out() {
    let mut bench = Bench::new(1);
    let (emitted, drop) = (outcome_flag::EMITTED, outcome_code::DROP);
    bench.pools[0] = Arc::new(ScriptedPool {
        published: published(&[(ACK, 0), (drop, 0), (ACK, 0), (ACK, emitted), (ACK, 0)]),
        ..ScriptedPool::default()
    });
    bench.apply(|_, _| true);
    bench.deliver(0..8, |_| None);
    let waits = |offset: i64| bench.waits_for(Some(offset));
    assert_eq!(waits(0), WaitsFor::Call { runs: 5 }, "it was handled");
    assert_eq!(waits(5), WaitsFor::Handler, "it hangs");
    assert_eq!(waits(7), WaitsFor::Call { runs: 5 }, "it was not started");
    bench.flow.start_drain(&[bench.slot], 1_000);
    bench.flow.tick(999);
    assert_eq!(bench.frontier(), 0, "the call may still end");
    bench.flow.tick(1_000);
    assert_eq!(bench.frontier(), 3);
    let ledger = bench.flow.assignment(bench.slot).ledger();
    assert_eq!(ledger.settled_ahead(), [4..5], "the emits of 3 are lost");
    assert_eq!(bench.flow.take_unfinished(), 4);
    assert_eq!(bench.flow.commits_due()[0].offset, 3);
    let counted = |bench: &Bench| (bench.outcomes().ack, bench.outcomes().drop);
    assert_eq!(counted(&bench), (3, 1));
    bench.flow.release(&[bench.slot]);
    bench.finish(0, |_| ACK);
    assert_eq!(counted(&bench), (3, 1), "what the next owner handles again");
    assert_eq!((bench.flow.fault(), bench.flow.held_records()), (None, 0));
    assert_eq!(bench.flow.charged(), 0);
}

/// A bench whose drain is overdue, but not fenced yet: messages of calls come first.
fn overdue(records: i64) -> Bench {
    let mut bench = Bench::new(1);
    bench.deliver(0..records, |_| None);
    bench.flow.start_drain(&[bench.slot], 1_000);
    bench.flow.tick(999);
    bench.flow.set_time(1_000);
    bench
}

#[test]
fn no_dead_letter_is_written_for_a_record_that_is_left_to_the_next_owner() {
    let mut bench = overdue(1);
    bench.finish(0, |_| outcome_code::DEAD_LETTER);
    assert!(bench.emitter.sent.lock().unwrap().is_empty());
    bench.flow.tick(1_000);
    assert_eq!(bench.frontier(), 0);
    assert_eq!(bench.flow.take_unfinished(), 1);
    assert_eq!((bench.flow.fault(), bench.flow.held_records()), (None, 0));
}

#[test]
fn what_a_call_has_handled_and_cannot_count_when_it_times_out_in_a_drain_is_unfinished() {
    let mut bench = overdue(4);
    let hung = bench.pools[0].taken.lock().unwrap()[0].id;
    let completed = published(&[(ACK, 0), (ACK, outcome_flag::EMITTED)]);
    bench.flow.receive(PumpMessage::CallTimedOut {
        handler: HandlerIx(0),
        batch: hung,
        published: Published::up_to(completed.into_inner().unwrap()),
    });
    bench.flow.tick(1_000);
    assert_eq!(bench.frontier(), 1);
    assert_eq!(bench.flow.take_unfinished(), 1, "the emits of 1 are lost");
}

#[test]
fn a_late_success_ends_the_report_of_failing_attempts() {
    let mut bench = Bench::new(1);
    let problems = |bench: &Bench| {
        let clock = crate::clock::WallClock { epoch_ms: 0 };
        let report = bench.flow.report(clock, |_| None).handlers.remove(0);
        let failing = |one: &&ServiceProblem| one.kind == ProblemKind::AttemptsFailing;
        report.problems.iter().filter(failing).count()
    };
    for second in 0..40 {
        bench.flow.tick(second as u64 * 1_000);
        bench.deliver(second..second + 1, |_| None);
        bench.finish(0, |_| outcome_code::RETRY);
    }
    assert_eq!(problems(&bench), 1);
    bench.deliver(40..41, |_| None);
    bench.flow.release(&[bench.slot]);
    bench.finish(0, |_| ACK);
    assert_eq!(problems(&bench), 0);
}

#[test]
fn outcomes_of_a_batch_handler_count_only_when_its_call_has_ended() {
    let mut bench = Bench::new(1);
    bench.pools[0] = Arc::new(ScriptedPool {
        published: published(&[(ACK, 0), (ACK, 0)]),
        ..ScriptedPool::default()
    });
    bench.apply(|_, settings| {
        generation_of(settings).takes_batches = true;
        true
    });
    bench.deliver(0..2, |_| None);
    assert_eq!(bench.waits_for(Some(0)), WaitsFor::Handler);
    let hung = bench.pools[0].taken.lock().unwrap()[0].id;
    let completed = published(&[(ACK, 0)]).into_inner().unwrap();
    bench.flow.receive(PumpMessage::CallTimedOut {
        handler: HandlerIx(0),
        batch: hung,
        published: Published::up_to(completed),
    });
    assert_eq!(bench.frontier(), 0, "the outcome was not final");
    bench.pools[0].taken.lock().unwrap().clear();
    bench.flow.tick(100);
    bench.flow.dispatch();
    bench.flow.start_drain(&[bench.slot], 1_000);
    bench.flow.tick(1_000);
    assert_eq!(bench.frontier(), 0);
    assert!(
        bench
            .flow
            .commits_due()
            .iter()
            .all(|commit| commit.offset == 0)
    );
}

#[test]
fn a_call_that_times_out_after_its_partition_was_released_parks_nothing() {
    let mut bench = Bench::new(1);
    bench.deliver(0..3, |_| None);
    let batch = bench.pools[0].taken.lock().unwrap()[0].id;
    bench.flow.release(&[bench.slot]);
    bench.flow.receive(PumpMessage::CallTimedOut {
        handler: HandlerIx(0),
        batch,
        published: Published::default(),
    });
    bench.flow.tick(3_600_000);
    bench.flow.dispatch();
    assert_eq!(
        bench.pools[0].taken.lock().unwrap().len(),
        1,
        "only the hung call"
    );
    assert_eq!(bench.outcomes().retry, 0);
}
