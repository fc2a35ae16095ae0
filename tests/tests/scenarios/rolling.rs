//! Situation: processes of one group are stopped with SIGTERM at random moments 0 to 2 s apart and restarted at once, so that
//! joins, hand-overs and stops overlap, while records flow at a steady rate; everything with shipped defaults. Either without
//! a pause, so that most members stop while they still join; or two at a time, after which the group may settle.
//! Property: no record is lost or handled twice (G1, G3), every stop ends within its deadline, and no partition is without
//! progress for longer than two heartbeat intervals plus one second.
//! Alone: its gaps are measured in seconds.
//! Needs: Kafka of its own.
//! Command: `cargo xtask test --scenario rolling`, and with `--long` 200 stops each and 400,000 records

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use e2e::client::{Client, Outgoing, Read};
use e2e::kafka::{Kafka, KafkaOptions};
use e2e::process::Signal;
use e2e::service::Service;
use e2e::steady::Steady;
use e2e::wait::{stays, wait_for};
use e2e::workdir::Workdir;
use e2e::{long, now_ms};

const PARTITIONS: i32 = 12;
const MEMBERS: usize = 3;
const DEADLINE: Duration = Duration::from_secs(120);
/// The shipped `heartbeat.interval.ms`: members learn of a rebalance at a heartbeat.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// The broker's `group.consumer.heartbeat.interval.ms`, which applies under the newer protocol.
const BROKER_HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
/// Duration of a hand-over in addition to the heartbeats: a rebalance, the offset queries and the first fetch.
const HANDOVER_TIME: Duration = Duration::from_secs(1);
/// The shipped `processing.drain_timeout` plus the 5 s that a stop may take beyond it.
const STOP_DEADLINE: Duration = Duration::from_secs(20 + 5);
/// Records written per second: each partition gets one every 12 ms.
const RATE: u64 = 1_000;

fn workdir(bootstrap: &str, protocol: &str) -> Workdir {
    let workdir = Workdir::empty();
    workdir.write(
        "sluicegate.yaml",
        &format!(
            "kafka:\n  bootstrap_servers: {bootstrap}\n  group_id: rolled\n  client: {{ group.protocol: {protocol} }}\n\
             handlers:\n  file: {{ folder: handlers.d }}\n\
             plugins: {{ folder: plugins, cache: cache, allow_unsigned: true }}\n"
        ),
    );
    workdir.plugins(&["relay"]);
    workdir.spec(
        "copy",
        "plugin: relay\nversion: \"*\"\nroute: { topics: [source] }\n\
         config: { topic: copy, provenance: true }\n",
    );
    workdir
}

/// A member of the group, between its starts and stops.
struct Member {
    service: Service,
    /// When the stop was requested.
    stopping: Option<Instant>,
    /// Whether it has had an assignment since its start.
    joined: bool,
}

impl Member {
    fn start(workdir: &Workdir) -> Self {
        Self {
            service: Service::start(workdir, &[]),
            stopping: None,
            joined: false,
        }
    }

    fn has_joined(&mut self) -> bool {
        self.joined |= matches!(self.service.get("/readyz"), Ok((200, _)));
        self.joined
    }

    /// Restarts it if it has ended, and returns the duration of its stop.
    fn restart_if_over(&mut self, workdir: &Workdir) -> Option<Duration> {
        let told = self.stopping?;
        let took = told.elapsed();
        let Some(status) = self.service.process().exited() else {
            assert!(
                took < STOP_DEADLINE,
                "a stop takes longer than {STOP_DEADLINE:?}"
            );
            return None;
        };
        // A process that is signalled before it has installed its handler is killed by the signal; it is not a member yet.
        let not_begun = self.service.process().log().is_empty();
        assert!(status.success() || not_begun, "a stop ended with {status}");
        *self = Self::start(workdir);
        Some(took)
    }
}

/// The members of the group.
struct Members<'a> {
    workdir: &'a Workdir,
    all: Vec<Member>,
    /// The duration of each stop.
    stops: Vec<Duration>,
    /// The time of each stop request, in milliseconds since the epoch, like the timestamps of copies.
    told: Vec<i64>,
    random: fastrand::Rng,
}

impl<'a> Members<'a> {
    fn start(workdir: &'a Workdir) -> Self {
        let mut all: Vec<Member> = (0..MEMBERS).map(|_| Member::start(workdir)).collect();
        for member in &mut all {
            member.service.wait_ready();
        }
        Self {
            workdir,
            all,
            stops: Vec::new(),
            told: Vec::new(),
            random: e2e::random(),
        }
    }

    /// Restarts members whose stop is complete.
    fn restart_stopped(&mut self) {
        let ended = self
            .all
            .iter_mut()
            .filter_map(|member| member.restart_if_over(self.workdir));
        self.stops.extend(ended);
    }

    /// Stops a random member, as soon as one can be stopped: another member must be there to take over its partitions,
    /// because an empty group owns nothing.
    fn stop_one(&mut self) {
        wait_for("a member that can be stopped", DEADLINE, || {
            let victim = self.random.usize(..MEMBERS);
            let stays = |(place, member): (usize, &mut Member)| {
                place != victim && member.stopping.is_none() && member.has_joined()
            };
            if self.all[victim].stopping.is_none() && self.all.iter_mut().enumerate().any(stays) {
                self.all[victim].service.process().signal(Signal::TERM);
                self.all[victim].stopping = Some(Instant::now());
                self.told.push(now_ms());
                return Ok(());
            }
            self.restart_stopped();
            Err("each is the last one that has joined".to_owned())
        });
    }

    fn pause(&mut self) {
        let span = Duration::from_millis(self.random.u64(..2_000));
        stays("stops in time", span, || {
            self.restart_stopped();
            Ok(())
        });
    }

    /// Waits until every partition has an owner, every member has partitions, and each owner has handled records.
    fn settle(&mut self) {
        let mut first: Option<BTreeMap<i64, i64>> = None;
        wait_for("a settled group", DEADLINE, || {
            self.restart_stopped();
            let seen = self.frontiers();
            match (seen, &first) {
                (None, _) => first = None,
                (Some(seen), None) => first = Some(seen),
                (Some(seen), Some(first)) => {
                    if first.iter().all(|(at, from)| seen[at] > *from) {
                        return Ok(());
                    }
                }
            }
            Err(format!("{first:?}"))
        });
    }

    /// The frontier of every partition, if each has one owner and each member has partitions.
    fn frontiers(&self) -> Option<BTreeMap<i64, i64>> {
        let mut frontiers = BTreeMap::new();
        for member in &self.all {
            let owned = match member.stopping {
                Some(_) => return None,
                None => member.service.partitions().ok()?,
            };
            for of in owned {
                let (partition, frontier) = (&of["partition"], &of["frontier"]);
                let twice = frontiers.insert(partition.as_i64()?, frontier.as_i64()?);
                if twice.is_some() {
                    return None;
                }
            }
        }
        (frontiers.len() == PARTITIONS as usize).then_some(frontiers)
    }
}

fn record(number: u64) -> Outgoing {
    let partition = (number % PARTITIONS as u64) as i32;
    Outgoing::new(&format!("k{}", number % 1_000), number.to_string()).partition(partition)
}

/// The partition and offset from which a copy was made.
fn origin(copy: &Read) -> (i32, i64) {
    let source = copy.header("sluicegate.source").expect("a source");
    let mut parts = source
        .rsplit('/')
        .map(|part| part.parse().expect("a number"));
    let offset = parts.next().expect("an offset");
    (parts.next().expect("a partition") as i32, offset)
}

/// The time between two copies of a partition.
struct Gap {
    took: Duration,
    partition: i32,
    /// The offset that ended the gap.
    offset: i64,
    /// The number of stops requested during the gap or just before it, because a stopping member still finishes its last record.
    stops: usize,
}

impl Gap {
    /// Maximum time in milliseconds between a stop request and the start of the gap that it causes.
    const BEFORE: i64 = 1_000;
}

impl std::fmt::Display for Gap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:?} without a copy of source/{} before offset {}, in which {} members were stopped",
            self.took, self.partition, self.offset, self.stops
        )
    }
}

/// The results computed from the copies.
#[derive(Default)]
struct Account {
    lost: u64,
    repeated: u64,
    /// The longest gap by partition and number of stops.
    gaps: Vec<Gap>,
}

fn account(client: &Client, told: &[i64]) -> Account {
    let mut account = Account::default();
    // By partition: the time at which each offset was first copied.
    let mut copied: BTreeMap<i32, BTreeMap<i64, i64>> = BTreeMap::new();
    client.for_each("copy", |copy| {
        let (partition, offset) = origin(&copy);
        let offsets = copied.entry(partition).or_default();
        account.repeated += u64::from(offsets.contains_key(&offset));
        let at = offsets.entry(offset).or_insert(copy.timestamp_ms);
        *at = copy.timestamp_ms.min(*at);
    });
    for (partition, (first, end)) in client.offsets("source") {
        let offsets = copied.remove(&partition).unwrap_or_default();
        account.lost += (first..end)
            .filter(|offset| !offsets.contains_key(offset))
            .count() as u64;
        let mut moments: Vec<(i64, i64)> = offsets
            .into_iter()
            .map(|(offset, at)| (at, offset))
            .collect();
        moments.sort_unstable();
        let mut longest: BTreeMap<usize, Gap> = BTreeMap::new();
        for pair in moments.windows(2) {
            let [(from, _), (to, offset)] = [pair[0], pair[1]];
            let within = |at: &&i64| (from - Gap::BEFORE..to).contains(*at);
            let gap = Gap {
                took: Duration::from_millis((to - from) as u64),
                partition,
                offset,
                stops: told.iter().filter(within).count(),
            };
            if longest
                .get(&gap.stops)
                .is_none_or(|so_far| gap.took > so_far.took)
            {
                longest.insert(gap.stops, gap);
            }
        }
        account.gaps.extend(longest.into_values());
    }
    assert!(copied.is_empty(), "copies of partitions that do not exist");
    account
}

/// Lets records flow while `roll` stops members; none may be lost or handled twice. Returns the longest gaps.
fn run(protocol: &str, records: u64, roll: impl FnOnce(&mut Members<'_>)) -> Vec<Gap> {
    let kafka = Kafka::start(&KafkaOptions::default()).unwrap_or_else(|error| panic!("{error:#}"));
    let client = Client::new(kafka.bootstrap());
    client.create_topic("source", PARTITIONS);
    // The append time of a copy is the time at which its record was handled.
    let handled_at = [("message.timestamp.type", "LogAppendTime")];
    client.create_topic_with("copy", PARTITIONS, 1, &handled_at);
    let workdir = workdir(kafka.bootstrap(), protocol);
    let mut members = Members::start(&workdir);
    let load = Steady::new(RATE).at_least(records);
    std::thread::scope(|scope| {
        let producer = scope.spawn(|| client.produce("source", load.numbers().map(record)));
        let ends = load.stops();
        wait_for("the first copies", DEADLINE, || {
            match client.count("copy") {
                0 => Err("none".to_owned()),
                _ => Ok(()),
            }
        });
        roll(&mut members);
        members.settle();
        drop(ends);
        producer.join().expect("the producer");
    });
    client.wait_committed("rolled", "source", DEADLINE);
    let account = account(&client, &members.told);
    let longest = members.stops.iter().max().copied().unwrap_or_default();
    println!(
        "{} stops, {} records: {} lost, {} handled again; the longest stop took {longest:?}",
        members.stops.len(),
        load.made(),
        account.lost,
        account.repeated,
    );
    for stops in 0..=members.stops.len() {
        let of = account.gaps.iter().filter(|gap| gap.stops == stops);
        if let Some(gap) = of.max_by_key(|gap| gap.took) {
            println!("{gap}");
        }
    }
    assert_eq!(
        (account.lost, account.repeated),
        (0, 0),
        "lost, handled again"
    );
    for member in &mut members.all {
        assert!(member.service.stop(STOP_DEADLINE).success());
    }
    account.gaps
}

/// Checks that no gap is longer than two heartbeat intervals and a hand-over.
fn check(gaps: &[Gap], heartbeat: Duration) {
    let most = 2 * heartbeat + HANDOVER_TIME;
    for gap in gaps {
        assert!(gap.took <= most, "{gap}; the bound is {most:?}");
    }
}

fn restart_without_a_pause(protocol: &str, heartbeat: Duration) {
    let (records, stops) = if long() { (400_000, 200) } else { (20_000, 20) };
    let gaps = run(protocol, records, |members| {
        for _ in 0..stops {
            members.stop_one();
            members.pause();
        }
    });
    check(&gaps, heartbeat);
}

#[test]
fn restarts_without_a_pause_repeat_nothing() {
    restart_without_a_pause("classic", HEARTBEAT_INTERVAL);
}

#[test]
fn restarts_under_the_newer_protocol_repeat_nothing() {
    restart_without_a_pause("consumer", BROKER_HEARTBEAT_INTERVAL);
}

#[test]
fn two_concurrent_restarts_leave_no_partition_without_progress() {
    let (records, pairs) = if long() { (400_000, 100) } else { (20_000, 5) };
    let gaps = run("classic", records, |members| {
        for _ in 0..pairs {
            members.stop_one();
            members.pause();
            members.stop_one();
            members.settle();
        }
    });
    check(&gaps, HEARTBEAT_INTERVAL);
}
