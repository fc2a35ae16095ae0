//! Topics that handlers need, topics that exist, and reports of the difference.

use std::time::Duration;

use sluicegate_config::{Environment, read_spec};
use sluicegate_plugins::HandlerPlan;

use super::*;

/// The requirements of handlers with these topics and dead-letter settings; the gate of the last one is closed.
fn wanted(handlers: &[(&str, &str)]) -> Wanted {
    let plan = |(number, (topics, dead_letter)): (usize, &(&str, &str))| {
        let text = format!(
            "name: h{number}\nplugin: p\nroute: {{ topics: [{topics}] }}\ndead_letter: {{ {dead_letter} }}\n"
        );
        let mut spec = read_spec(&text, None, &Environment::default()).expect("a good spec");
        spec.enabled = number + 1 < handlers.len();
        HandlerPlan {
            ix: HandlerIx(number as u32),
            name: spec.name.as_str().into(),
            spec: Arc::new(spec),
            targets: Vec::new(),
        }
    };
    let plan = HandlerTable {
        revision: 1,
        handlers: handlers.iter().enumerate().map(plan).collect(),
    };
    Wanted::new(plan.routes().expect("routes"), &plan)
}

fn cluster(topics: &[(&str, i32)]) -> ClusterTopics {
    let owned = |(name, partitions): &(&str, i32)| ((*name).to_owned(), *partitions);
    topics.iter().map(owned).collect()
}

#[test]
fn dead_letter_topics_follow_existing_source_topics_and_open_handlers() {
    let wanted = wanted(&[
        ("\"orders-*\", absent", "topic: dead"),
        ("orders-a", ""),
        ("strict", "create: false"),
        ("orders-a", "topic: of-a-closed-gate"),
    ]);
    let topics = cluster(&[
        ("orders-a", 3),
        ("orders-b", 7),
        ("dead", 1),
        ("__consumer_offsets", 50),
    ]);
    let needed = wanted.needed(&topics);
    let seen: Vec<_> = needed
        .iter()
        .map(|(name, need)| (name.as_str(), need.partitions, need.create))
        .collect();
    assert_eq!(
        seen,
        [
            ("dead", Some(7), true),
            ("orders-a.dlt", Some(3), true),
            // May not be created, so it has to exist whether or not its source does.
            ("strict.dlt", None, false),
        ]
    );
    let absent = wanted.missing_sources(&topics);
    let absent: Vec<&str> = absent.keys().map(|(_, topic)| topic.as_str()).collect();
    assert_eq!(absent, ["absent", "strict"]);
}

fn scanner() -> TopicScanner {
    TopicScanner::new(ClientSettings {
        bootstrap_servers: String::new(),
        group_id: "g".into(),
        client: BTreeMap::new(),
        producer: Default::default(),
        prefetch_bytes: 0,
        request_timeout: Duration::ZERO,
    })
}

#[test]
fn a_topic_is_gone_when_it_is_missing_twice_in_a_row() {
    let mut scanner = scanner();
    let all = cluster(&[("a", 1), ("b", 2)]);
    scanner.found.topics = Some(Arc::new(all.clone()));
    let mut scan = |seen: &[(&str, i32)]| {
        let mut topics = cluster(seen);
        scanner.retain_vanished(&mut topics);
        scanner.found.topics = Some(Arc::new(topics.clone()));
        topics
    };
    assert_eq!(scan(&[("a", 1)]), all);
    assert_eq!(
        scan(&[("a", 1), ("b", 2)]),
        all,
        "it was a gap in the answer"
    );
    assert_eq!(scan(&[("a", 1)]), all);
    assert_eq!(scan(&[("a", 1)]), cluster(&[("a", 1)]));
}

#[test]
fn a_gate_change_does_not_list_topics() {
    let mut scanner = scanner();
    let topics = cluster(&[("orders-a", 1), ("orders-a.dlt", 1)]);
    scanner.found.topics = Some(Arc::new(topics));
    let gate = "orders-a";
    let open = wanted(&[(gate, ""), ("x", "")]);
    let closed = wanted(&[("x", "create: false, topic: y"), (gate, "")]);
    assert!(scanner.covers(&open, &open));
    assert!(!scanner.covers(&open, &closed), "another topic is named");
    let pattern = wanted(&[("\"orders-*\"", ""), ("x", "")]);
    assert!(
        !scanner.covers(&open, &pattern),
        "the topics of a new pattern are not known"
    );
    assert!(scanner.covers(&pattern, &pattern));
}

#[test]
fn commands_without_news_do_not_delay_the_next_scan() {
    let mut scanner = scanner();
    scanner.refresh_interval = Duration::from_millis(50);
    let topics = cluster(&[("orders-a", 1), ("orders-a.dlt", 1)]);
    scanner.found.topics = Some(Arc::new(topics));
    let newest = || Arc::new(wanted(&[("\"orders-*\"", ""), ("x", "")]));
    let command = || TopicCommand::Want(newest());
    let (commands, inbox) = channel();
    let (scanned, scans) = channel();
    let first = newest();
    let thread = std::thread::spawn(move || {
        watch(&mut scanner, first, &inbox, move |_| {
            let _ = scanned.send(());
        });
    });
    let any_scan = (0..1_000).any(|_| {
        commands.send(command()).expect("it listens");
        scans.recv_timeout(Duration::from_millis(10)).is_ok()
    });
    assert!(
        any_scan,
        "a stream of gate changes delays the scan for new topics"
    );
    drop(commands);
    thread.join().expect("it ends");
}

#[test]
fn a_fault_is_reported_with_cause_and_remedy_until_it_is_resolved() {
    let mut scanner = scanner();
    let missing = TopicError::Missing {
        name: "a.dlt".into(),
    };
    let key: FaultKey = ("h".into(), "a.dlt".into());
    let faults = BTreeMap::from([(key, Fault::NoDeadLetterTopic(missing))]);
    scanner.log_changes(&faults);
    scanner.found.faults = faults;
    let problems = scanner.problems();
    assert_eq!(problems.len(), 1);
    assert!(
        problems[0]
            .what
            .contains("`h` has no dead-letter topic a.dlt")
    );
    assert!(problems[0].since_ms > 0 && !problems[0].remedy.is_empty());
    let empty = wanted(&[("a", "")]);
    assert_eq!(scanner.wait(&empty), FIRST_RETRY_DELAY);
    assert_eq!(
        scanner.wait(&empty),
        FIRST_RETRY_DELAY * 2,
        "the wait grows"
    );
    scanner.log_changes(&BTreeMap::new());
    scanner.found.faults.clear();
    assert!(scanner.problems().is_empty() && scanner.since_ms.is_empty());
    assert_eq!(
        scanner.wait(&empty),
        MAX_SCAN_INTERVAL,
        "its gate is closed"
    );
}

#[test]
fn a_deleted_topic_is_noticed_within_a_metadata_refresh() {
    let mut scanner = scanner();
    let refresh = Duration::from_secs(30);
    assert_eq!(scanner.refresh_interval, refresh);
    let there = cluster(&[("a", 3), ("a.dlt", 3)]);
    scanner.found.topics = Some(Arc::new(there));
    let wanted = wanted(&[("a", ""), ("x", "")]);
    assert_eq!(scanner.wait(&wanted), refresh);
    // The next scan.
    let mut topics = cluster(&[("a.dlt", 3)]);
    scanner.retain_vanished(&mut topics);
    scanner.found.topics = Some(Arc::new(topics));
    assert_eq!(
        scanner.wait(&wanted),
        FIRST_RETRY_DELAY,
        "one more scan confirms it"
    );
    let mut topics = cluster(&[("a.dlt", 3)]);
    scanner.retain_vanished(&mut topics);
    let faults = wanted.missing_sources(&topics);
    scanner.log_changes(&faults);
    scanner.found.faults = faults;
    let problem = scanner.problems().remove(0);
    let what = "handler `h0` reads topic a, which does not exist";
    assert_eq!(problem.what, what);
    assert!(problem.is_missing_topic("a") && !problem.is_missing_topic("b"));
    // The list of a large cluster costs more, and is requested less often.
    scanner.found.faults.clear();
    scanner.vanished.clear();
    for (partitions, seconds) in [(19_999, 30), (20_000, 60), (1_000_000, 300)] {
        scanner.found.topics = Some(Arc::new(cluster(&[("a", partitions)])));
        assert_eq!(scanner.wait(&wanted), Duration::from_secs(seconds));
    }
}

#[test]
fn a_missing_topic_is_scanned_for_soon_and_not_once_per_request() {
    let mut scanner = scanner();
    scanner.request_interval = Duration::from_millis(300);
    let topics = cluster(&[("orders-a", 1), ("orders-a.dlt", 1)]);
    scanner.found.topics = Some(Arc::new(topics));
    let (commands, inbox) = channel();
    let (scanned, scans) = channel();
    let first = Arc::new(wanted(&[("orders-a", ""), ("x", "")]));
    let thread = std::thread::spawn(move || {
        watch(&mut scanner, first, &inbox, move |_| {
            let _ = scanned.send(Instant::now());
        });
    });
    let requested = Instant::now();
    for _ in 0..1_000 {
        commands.send(TopicCommand::Rescan).expect("it listens");
    }
    let first = scans.recv_timeout(Duration::from_secs(20)).expect("a scan");
    assert!(
        first - requested >= Duration::from_millis(250),
        "a flood of requests waits for the interval"
    );
    drop(commands);
    thread.join().expect("it ends");
    // No broker answers there; even so, the scan was not followed by one per request.
    assert!(scans.try_iter().count() < 3);
}
