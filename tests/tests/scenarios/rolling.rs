//! Situation: processes of one group are stopped with SIGTERM at random moments 0 to 2 s apart and started again at once, so that
//! joins, hand-overs and stops overlap, while records flow at a steady rate; everything at shipped defaults. Either without
//! a pause, when most members stop while they still join; or two at a time, after which the group may settle.
//! Property: nothing is lost, nothing is handled twice (G1, G3), every stop ends within its deadline, and no partition is without
//! progress for longer than two heartbeat intervals and a second.
//! Alone: its silences are measured in seconds.
//! Needs: Kafka of its own.
//! Command: `cargo xtask test --scenario rolling`, and with `--long` 200 stops each and 400,000 records

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use e2e::client::{Client, Outgoing, Read};
use e2e::kafka::{Kafka, KafkaOptions};
use e2e::long;
use e2e::process::Signal;
use e2e::service::Service;
use e2e::wait::wait_for;
use e2e::workdir::Workdir;

const PARTITIONS: i32 = 12;
const MEMBERS: usize = 3;
const SOON: Duration = Duration::from_secs(120);
/// The shipped `heartbeat.interval.ms`: members hear of a rebalance at a heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// The broker's `group.consumer.heartbeat.interval.ms`, which holds under the newer protocol.
const BROKERS_HEARTBEAT: Duration = Duration::from_secs(5);
/// What a hand-over takes beside the heartbeats: a rebalance, the look-ups and the first fetch.
const HAND_OVER: Duration = Duration::from_secs(1);
/// The shipped `processing.drain_timeout`, and what a stop may take beyond it.
const STOP_DEADLINE: Duration = Duration::from_secs(20 + 5);
/// Time between two looks at the members.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Records written in a second: each partition gets one every 12 ms.
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
    /// When it was told to stop.
    stopping: Option<Instant>,
    /// It has had an assignment since its start.
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

    /// Starts it again if it has ended, and gives how long its stop took.
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
        // A process that is told before it has come to its first line dies of the signal: it is no member of anything.
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
    /// How long each stop took.
    stops: Vec<Duration>,
    /// When each was told, in milliseconds since 1970, as the broker stamps copies.
    told: Vec<i64>,
    random: u64,
}

impl<'a> Members<'a> {
    fn start(workdir: &'a Workdir) -> Self {
        let mut all: Vec<Member> = (0..MEMBERS).map(|_| Member::start(workdir)).collect();
        for member in &mut all {
            member.service.wait_ready();
        }
        let random = seed();
        println!("seed {random:#x}");
        Self {
            workdir,
            all,
            stops: Vec::new(),
            told: Vec::new(),
            random,
        }
    }

    /// Starts members again whose stop is over.
    fn look(&mut self) {
        let ended = self
            .all
            .iter_mut()
            .filter_map(|member| member.restart_if_over(self.workdir));
        self.stops.extend(ended);
        std::thread::sleep(POLL_INTERVAL);
    }

    /// Stops a member at random, as soon as one is found that can: somebody else has to be there to take what it gives back,
    /// since a group of which nobody is left owns nothing.
    fn stop_one(&mut self) {
        let deadline = Instant::now() + SOON;
        loop {
            assert!(Instant::now() < deadline, "no member can be stopped");
            let victim = (next(&mut self.random) % MEMBERS as u64) as usize;
            let stays = |(place, member): (usize, &mut Member)| {
                place != victim && member.stopping.is_none() && member.has_joined()
            };
            if self.all[victim].stopping.is_none() && self.all.iter_mut().enumerate().any(stays) {
                self.all[victim].service.process().signal(Signal::TERM);
                self.all[victim].stopping = Some(Instant::now());
                self.told.push(now_ms());
                return;
            }
            self.look();
        }
    }

    fn pause(&mut self) {
        let over = Instant::now() + Duration::from_millis(next(&mut self.random) % 2_000);
        while Instant::now() < over {
            self.look();
        }
    }

    /// Waits until every partition has an owner, every member has some, and each owner has handled records.
    fn settle(&mut self) {
        let deadline = Instant::now() + SOON;
        let mut first: Option<BTreeMap<i64, i64>> = None;
        loop {
            assert!(Instant::now() < deadline, "the group does not settle");
            self.look();
            let seen = self.frontiers();
            match (seen, &first) {
                (None, _) => first = None,
                (Some(seen), None) => first = Some(seen),
                (Some(seen), Some(first)) => {
                    if first.iter().all(|(at, from)| seen[at] > *from) {
                        return;
                    }
                }
            }
        }
    }

    /// The frontier of every partition by its number, while each has one owner and each member some.
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

/// Writes records at a steady rate until `over`, and at least `records`.
fn produce(client: &Client, records: u64, over: &AtomicBool, written: &AtomicU64) {
    let started = Instant::now();
    let mut number = 0;
    let numbers = std::iter::from_fn(|| {
        if number >= records && over.load(Ordering::Relaxed) {
            return None;
        }
        let due = started + Duration::from_micros(number * 1_000_000 / RATE);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let partition = (number % PARTITIONS as u64) as i32;
        number += 1;
        written.store(number, Ordering::Relaxed);
        Some(
            Outgoing::new(&format!("k{}", number % 1_000), number.to_string()).partition(partition),
        )
    });
    client.produce("source", numbers);
}

/// Partition and offset that a copy was made from.
fn origin(copy: &Read) -> (i32, i64) {
    let source = copy.header("sluicegate.source").expect("a source");
    let mut parts = source
        .rsplit('/')
        .map(|part| part.parse().expect("a number"));
    let offset = parts.next().expect("an offset");
    (parts.next().expect("a partition") as i32, offset)
}

/// A time between two copies of a partition.
struct Silence {
    took: Duration,
    partition: i32,
    /// The offset that ended it.
    offset: i64,
    /// How many members were told to stop meanwhile, or just before: the first of them ends its last record within a moment.
    stops: usize,
}

impl Silence {
    /// How long before a silence begins the stop can have been told that causes it.
    const BEFORE: i64 = 1_000;
}

impl std::fmt::Display for Silence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:?} without a copy of source/{} before offset {}, in which {} members were told to stop",
            self.took, self.partition, self.offset, self.stops
        )
    }
}

/// What the copies say.
#[derive(Default)]
struct Account {
    lost: u64,
    repeated: u64,
    /// The longest silence of each partition and number of stops.
    silences: Vec<Silence>,
}

fn account(client: &Client, told: &[i64]) -> Account {
    let mut account = Account::default();
    // By partition: the moment at which each offset was copied first.
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
        let mut longest: BTreeMap<usize, Silence> = BTreeMap::new();
        for pair in moments.windows(2) {
            let [(from, _), (to, offset)] = [pair[0], pair[1]];
            let within = |at: &&i64| (from - Silence::BEFORE..to).contains(*at);
            let silence = Silence {
                took: Duration::from_millis((to - from) as u64),
                partition,
                offset,
                stops: told.iter().filter(within).count(),
            };
            if longest
                .get(&silence.stops)
                .is_none_or(|so_far| silence.took > so_far.took)
            {
                longest.insert(silence.stops, silence);
            }
        }
        account.silences.extend(longest.into_values());
    }
    assert!(copied.is_empty(), "copies of partitions that are not there");
    account
}

fn now_ms() -> i64 {
    let clock = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("a clock after 1970");
    clock.as_millis() as i64
}

/// Numbers that differ from run to run, and that a failure names.
fn seed() -> u64 {
    let clock = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("a clock after 1970");
    clock.as_nanos() as u64 | 1
}

fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state >> 1
}

/// Has records flow while members are stopped as `roll` says; nothing may be lost or handled twice. Gives the longest silences.
fn run(protocol: &str, records: u64, roll: impl FnOnce(&mut Members<'_>)) -> Vec<Silence> {
    let kafka = Kafka::start(&KafkaOptions::default()).unwrap_or_else(|error| panic!("{error:#}"));
    let client = Client::new(kafka.bootstrap());
    client.create_topic("source", PARTITIONS);
    // The time at which a copy is written tells when its record was handled.
    let handled_at = [("message.timestamp.type", "LogAppendTime")];
    client.create_topic_with("copy", PARTITIONS, 1, &handled_at);
    let workdir = workdir(kafka.bootstrap(), protocol);
    let mut members = Members::start(&workdir);
    let (over, written) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let producer = scope.spawn(|| produce(&client, records, &over, &written));
        // Ends the producer also when a stop fails.
        struct Over<'a>(&'a AtomicBool);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let ends = Over(&over);
        wait_for("the first copies", SOON, || match client.count("copy") {
            0 => Err("none".to_owned()),
            _ => Ok(()),
        });
        roll(&mut members);
        members.settle();
        drop(ends);
        producer.join().expect("the producer");
    });
    client.wait_committed("rolled", "source", SOON);
    let account = account(&client, &members.told);
    let longest = members.stops.iter().max().copied().unwrap_or_default();
    println!(
        "{} stops, {} records: {} lost, {} handled again; the longest stop took {longest:?}",
        members.stops.len(),
        written.load(Ordering::Relaxed),
        account.lost,
        account.repeated,
    );
    for stops in 0..=members.stops.len() {
        let of = account
            .silences
            .iter()
            .filter(|silence| silence.stops == stops);
        if let Some(silence) = of.max_by_key(|silence| silence.took) {
            println!("{silence}");
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
    account.silences
}

/// No silence is longer than two heartbeat intervals and a hand-over.
fn check(silences: &[Silence], heartbeat: Duration) {
    let most = 2 * heartbeat + HAND_OVER;
    for silence in silences {
        assert!(silence.took <= most, "{silence}; the bound is {most:?}");
    }
}

fn restart_without_a_pause(protocol: &str, heartbeat: Duration) {
    let (records, stops) = if long() { (400_000, 200) } else { (20_000, 20) };
    let silences = run(protocol, records, |members| {
        for _ in 0..stops {
            members.stop_one();
            members.pause();
        }
    });
    check(&silences, heartbeat);
}

#[test]
fn restarts_without_a_pause_repeat_nothing() {
    restart_without_a_pause("classic", HEARTBEAT);
}

#[test]
fn restarts_under_the_newer_protocol_repeat_nothing() {
    restart_without_a_pause("consumer", BROKERS_HEARTBEAT);
}

#[test]
fn two_restarts_at_once_leave_no_partition_alone() {
    let (records, pairs) = if long() { (400_000, 100) } else { (20_000, 5) };
    let silences = run("classic", records, |members| {
        for _ in 0..pairs {
            members.stop_one();
            members.pause();
            members.stop_one();
            members.settle();
        }
    });
    check(&silences, HEARTBEAT);
}
