//! What handlers want of topics, what there is, and what is told of the difference.

use std::time::Duration;

use sluicegate_config::{Environment, read_spec};

use super::*;
use crate::handlers::HandlerPlan;

/// What handlers of these topics and dead-letter settings want; the gate of the last one is shut.
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
            generation: 0,
            version: "".into(),
            spec: Arc::new(spec),
            pool: None,
            takes_batches: false,
            keeps_key_state: false,
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
fn dead_letter_topics_follow_their_sources_that_are_there_and_their_open_handlers() {
    let wanted = wanted(&[
        ("\"orders-*\", absent", "topic: dead"),
        ("orders-a", ""),
        ("strict", "create: false"),
        ("orders-a", "topic: of-a-shut-gate"),
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
            // It may not be made, so that it has to be there whatever becomes of its source.
            ("strict.dlt", None, false),
        ]
    );
    let absent = wanted.without_topic(&topics);
    let absent: Vec<&str> = absent.keys().map(|(_, topic)| topic.as_str()).collect();
    assert_eq!(absent, ["absent", "strict"]);
}

fn looker() -> Looker {
    Looker::new(ClientSettings {
        bootstrap_servers: String::new(),
        group_id: "g".into(),
        client: BTreeMap::new(),
        producer: Default::default(),
        prefetch_bytes: 0,
        request_timeout: Duration::ZERO,
    })
}

#[test]
fn a_topic_goes_when_it_is_missing_twice_in_a_row() {
    let mut looker = looker();
    let all = cluster(&[("a", 1), ("b", 2)]);
    looker.found.topics = Some(Arc::new(all.clone()));
    let mut look = |seen: &[(&str, i32)]| {
        let mut topics = cluster(seen);
        looker.keep_vanished(&mut topics);
        looker.found.topics = Some(Arc::new(topics.clone()));
        topics
    };
    assert_eq!(look(&[("a", 1)]), all);
    assert_eq!(
        look(&[("a", 1), ("b", 2)]),
        all,
        "it was a gap in the answer"
    );
    assert_eq!(look(&[("a", 1)]), all);
    assert_eq!(look(&[("a", 1)]), cluster(&[("a", 1)]));
}

#[test]
fn a_gate_that_moves_asks_nobody_for_topics() {
    let mut looker = looker();
    let topics = cluster(&[("orders-a", 1), ("orders-a.dlt", 1)]);
    looker.found.topics = Some(Arc::new(topics));
    let gate = "orders-a";
    let open = wanted(&[(gate, ""), ("x", "")]);
    let shut = wanted(&[("x", "create: false, topic: y"), (gate, "")]);
    assert!(looker.knows(&open, &open));
    assert!(!looker.knows(&open, &shut), "another topic is named");
    let pattern = wanted(&[("\"orders-*\"", ""), ("x", "")]);
    assert!(
        !looker.knows(&open, &pattern),
        "what a new pattern takes in is not known"
    );
    assert!(looker.knows(&pattern, &pattern));
}

#[test]
fn orders_that_tell_nothing_new_do_not_put_the_next_look_off() {
    let mut looker = looker();
    looker.refresh_interval = Duration::from_millis(50);
    let topics = cluster(&[("orders-a", 1), ("orders-a.dlt", 1)]);
    looker.found.topics = Some(Arc::new(topics));
    let newest = || Arc::new(wanted(&[("\"orders-*\"", ""), ("x", "")]));
    let order = || TopicCommand::Want(newest());
    let (orders, inbox) = channel();
    let (looked, seen) = channel();
    let first = newest();
    let thread = std::thread::spawn(move || {
        watch(&mut looker, first, &inbox, move |_| {
            let _ = looked.send(());
        });
    });
    let told = (0..1_000).any(|_| {
        orders.send(order()).expect("it listens");
        seen.recv_timeout(Duration::from_millis(10)).is_ok()
    });
    assert!(
        told,
        "gates move all the time, and nobody looks for new topics"
    );
    drop(orders);
    thread.join().expect("it ends");
}

#[test]
fn what_stands_is_shown_with_cause_and_remedy_and_goes_when_it_heals() {
    let mut looker = looker();
    let missing = TopicError::Missing {
        name: "a.dlt".into(),
    };
    let key: FaultKey = ("h".into(), "a.dlt".into());
    let faults = BTreeMap::from([(key, Fault::NoDeadLetterTopic(missing))]);
    looker.tell(&faults);
    looker.found.faults = faults;
    let problems = looker.problems();
    assert_eq!(problems.len(), 1);
    assert!(
        problems[0]
            .what
            .contains("`h` has no dead-letter topic a.dlt")
    );
    assert!(problems[0].since_ms > 0 && !problems[0].remedy.is_empty());
    let empty = wanted(&[("a", "")]);
    assert_eq!(looker.wait(&empty), FIRST_RETRY);
    assert_eq!(looker.wait(&empty), FIRST_RETRY * 2, "the wait grows");
    looker.tell(&BTreeMap::new());
    looker.found.faults.clear();
    assert!(looker.problems().is_empty() && looker.since_ms.is_empty());
    assert_eq!(looker.wait(&empty), WITHOUT_PATTERNS, "its gate is shut");
}

#[test]
fn a_topic_that_is_deleted_is_missed_within_a_metadata_refresh() {
    let mut looker = looker();
    let refresh = Duration::from_secs(30);
    assert_eq!(looker.refresh_interval, refresh);
    let there = cluster(&[("a", 3), ("a.dlt", 3)]);
    looker.found.topics = Some(Arc::new(there));
    let wanted = wanted(&[("a", ""), ("x", "")]);
    assert_eq!(looker.wait(&wanted), refresh);
    // The look then.
    let mut topics = cluster(&[("a.dlt", 3)]);
    looker.keep_vanished(&mut topics);
    looker.found.topics = Some(Arc::new(topics));
    assert_eq!(looker.wait(&wanted), FIRST_RETRY, "it is asked once more");
    let mut topics = cluster(&[("a.dlt", 3)]);
    looker.keep_vanished(&mut topics);
    let faults = wanted.without_topic(&topics);
    looker.tell(&faults);
    looker.found.faults = faults;
    let problem = looker.problems().remove(0);
    let what = "handler `h0` reads topic a, which does not exist";
    assert_eq!(problem.what, what);
    assert!(problem.is_missing_topic("a") && !problem.is_missing_topic("b"));
    // The list of a large cluster costs more, and is asked for less often.
    looker.found.faults.clear();
    looker.vanished.clear();
    for (partitions, seconds) in [(19_999, 30), (20_000, 60), (1_000_000, 300)] {
        looker.found.topics = Some(Arc::new(cluster(&[("a", partitions)])));
        assert_eq!(looker.wait(&wanted), Duration::from_secs(seconds));
    }
}

#[test]
fn a_topic_that_a_client_misses_is_looked_for_soon_and_not_for_each_time() {
    let mut looker = looker();
    looker.asked_for = Duration::from_millis(300);
    let topics = cluster(&[("orders-a", 1), ("orders-a.dlt", 1)]);
    looker.found.topics = Some(Arc::new(topics));
    let (orders, inbox) = channel();
    let (looked, seen) = channel();
    let first = Arc::new(wanted(&[("orders-a", ""), ("x", "")]));
    let thread = std::thread::spawn(move || {
        watch(&mut looker, first, &inbox, move |_| {
            let _ = looked.send(Instant::now());
        });
    });
    let asked = Instant::now();
    for _ in 0..1_000 {
        orders.send(TopicCommand::Look).expect("it listens");
    }
    let first = seen.recv_timeout(Duration::from_secs(20)).expect("a look");
    assert!(
        first - asked >= Duration::from_millis(250),
        "a flood waits its time"
    );
    drop(orders);
    thread.join().expect("it ends");
    // Nobody answers there, so that the look was not followed by one a time that it was asked for.
    assert!(seen.try_iter().count() < 3);
}
