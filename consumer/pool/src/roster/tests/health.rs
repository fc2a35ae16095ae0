//! Health checks, and what is built in place of unhealthy instances.

use super::*;

/// A member with an idle instance.
fn idle() -> (Table, Arc<PoolMember>, WorkerId) {
    let mut table = Table::new(1);
    let one = table.add("one");
    let worker = table.running(&one, 1);
    assert!(table.call_ended(worker, &one, None));
    assert_eq!(table.next(worker), "park");
    (table, one, worker)
}

/// A member whose instance was found unhealthy and dropped.
fn unhealthy() -> (Table, Arc<PoolMember>, WorkerId) {
    let (mut table, one, worker) = idle();
    table.tick(HEALTH_INTERVAL);
    assert_eq!(table.next(worker), "check, 0 missing");
    let why = Some("no".to_owned());
    assert!(table.report(worker, Report::HealthChecked(&one, why)));
    table.instances.clear();
    assert_eq!(table.next(worker), "park");
    assert_eq!(table.effects(), ["wake 0", "unhealthy 0 no"]);
    (table, one, worker)
}

#[test]
fn a_check_that_is_pending_is_not_requested_again() {
    let (mut table, one, worker) = idle();
    table.tick(HEALTH_INTERVAL - SECOND);
    assert_eq!(table.effects(), [""; 0]);
    table.tick(SECOND);
    table.tick(HEALTH_INTERVAL);
    assert_eq!(table.effects(), ["wake 0"]);
    assert_eq!(table.next(worker), "check, 0 missing");
    assert!(table.report(worker, Report::HealthChecked(&one, None)));
    assert_eq!(table.effects(), [""; 0], "it was healthy before");
    assert_eq!(table.next(worker), "park");
}

#[test]
fn a_missing_instance_is_built_by_each_check_until_one_passes() {
    let (mut table, one, worker) = unhealthy();
    for _ in 1..20 {
        table.tick(HEALTH_INTERVAL);
        assert_eq!(table.next(worker), "check, 1 missing");
        let Rebuild::Build(config) = table.roster.begin_rebuild(worker, &one, table.now) else {
            panic!("nothing is built");
        };
        assert_eq!(&*config.json, "{}");
        assert!(table.report(worker, Report::HealthChecked(&one, Some("no".to_owned()))));
        table.next(worker);
    }
    table.effects();
    assert!(table.report(worker, Report::HealthChecked(&one, None)));
    assert_eq!(table.effects(), ["healthy 0"]);
    assert!(matches!(
        table.roster.begin_rebuild(worker, &one, table.now),
        Rebuild::NotNow
    ));
}

#[test]
fn a_rebuild_that_hangs_is_abandoned_and_stays_unhealthy() {
    let (mut table, one, worker) = unhealthy();
    table.tick(HEALTH_INTERVAL);
    assert_eq!(table.next(worker), "check, 1 missing");
    let rebuild = table.roster.begin_rebuild(worker, &one, table.now);
    assert!(matches!(rebuild, Rebuild::Build(_)));
    table.effects();
    table.tick(CREATE_TIMEOUT);
    let why = ProbeError::Abandoned(CREATE_TIMEOUT);
    assert_eq!(
        table.effects(),
        ["abandoned 0", &format!("unhealthy 0 {why}"), "spawn 0/2"]
    );
    let rebuild = table.roster.begin_rebuild(worker, &one, table.now);
    assert!(matches!(rebuild, Rebuild::Abandoned));
}

#[test]
fn instances_that_hang_are_built_again_at_growing_intervals() {
    for (hung_in, timeout) in [
        ("creation", CREATE_TIMEOUT),
        ("health check", HEALTH_TIMEOUT),
    ] {
        let (mut table, one, mut worker) = unhealthy();
        let mut built = Vec::new();
        for check in 1..20 {
            table.tick(HEALTH_INTERVAL);
            assert_eq!(table.next(worker), "check, 1 missing");
            match table.roster.begin_rebuild(worker, &one, table.now) {
                Rebuild::Build(_) => {
                    built.push(check);
                    if hung_in == "health check" {
                        assert!(table.report(worker, Report::HealthCheck(&one)));
                    }
                    table.tick(timeout);
                    assert_eq!(table.roster.settings.hung.of("one"), 1, "{hung_in}");
                    table.step(Event::AbandonedThreadEnded(worker));
                    worker.thread_epoch += 1;
                }
                Rebuild::NotNow => {
                    assert!(
                        table.report(worker, Report::HealthChecked(&one, Some("no".to_owned())))
                    );
                    assert_eq!(table.next(worker), "park");
                }
                Rebuild::Abandoned => panic!("abandoned in {hung_in}"),
            }
        }
        assert_eq!(built, [1, 2, 4, 8, 16], "{hung_in}");
    }
}

#[test]
fn a_member_that_has_left_is_not_rebuilt() {
    let (mut table, one, worker) = unhealthy();
    let _two = table.add("two");
    table.tick(HEALTH_INTERVAL);
    assert_eq!(table.next(worker), "check, 1 missing");
    table.step(Event::Leave(&one));
    let rebuild = table.roster.begin_rebuild(worker, &one, table.now);
    assert!(matches!(rebuild, Rebuild::NotNow));
    assert!(table.roster.unhealthy_at(0).is_empty());
}

#[test]
fn an_unhealthy_slot_without_a_thread_is_checked_again_at_growing_intervals() {
    let (mut table, one, worker) = unhealthy();
    table.tick(HEALTH_INTERVAL);
    assert_eq!(table.next(worker), "check, 1 missing");
    assert!(table.report(worker, Report::LifecycleCall(&one)));
    table.effects();
    table.tick(DRAIN_TIMEOUT);
    assert_eq!(table.effects(), ["abandoned 0", "spawn 0/2"]);
    let mut tried = Vec::new();
    let mut starting = thread(0, 2);
    for check in 0..16 {
        if table.roster.slots[0].alive {
            let error = io::ErrorKind::WouldBlock.into();
            table.step(Event::ThreadNotStarted(starting, error));
            assert_eq!(table.effects(), [""; 0], "no batch is concerned");
            tried.push(check);
            starting.thread_epoch += 1;
        }
        table.tick(HEALTH_INTERVAL);
        table.effects();
    }
    assert_eq!(tried, [0, 1, 3, 7, 15]);
    table.tick(16 * HEALTH_INTERVAL);
    assert_eq!(
        table.effects(),
        [format!("spawn 0/{}", starting.thread_epoch)]
    );
    assert_eq!(table.next(starting), "check, 1 missing");
    let rebuild = table.roster.begin_rebuild(starting, &one, table.now);
    assert!(matches!(rebuild, Rebuild::Build(_)));
    assert!(table.report(starting, Report::HealthChecked(&one, None)));
    assert_eq!(table.effects(), ["healthy 0"]);
}

#[test]
fn a_healthy_slot_without_a_thread_gets_none() {
    let mut table = Table::new(1);
    let _one = table.add("one");
    table.tick(HEALTH_INTERVAL);
    assert_eq!(table.effects(), [""; 0]);
}
