//! Situation: nine handlers (own and shared pools; per record, in batches, async) hang at random and for random times, some
//! until they are released, in creation, health checks, partition and config changes, calls, drain and drop. During that,
//! specs and code change, and another member joins and leaves.
//! Property: threads, memory, queues and images stay bounded and return to the start once the calls return; well-behaved
//! handlers keep the pace that they have without hangs; in the end every record is handled, in order (G1, G4, G8, G14).
//! Alone: the pace of the neighbours, and memory, are measured.
//! Takes: 75 s.
//! Needs: Kafka.
//! Command: `cargo xtask test --scenario hangs`, and with `--long` ten minutes of hangs

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::{Duration, Instant};

use e2e::kafka::Kafka;
use e2e::process::Signal;
use e2e::service::Service;
use e2e::steady::Steady;
use e2e::wait::{stays_by_samples, wait_for};
use e2e::{long, now_ms};

use crate::hanging::account::{Copies, Pace, numbers};
use crate::hanging::bounds::{check_bounds, is_settled, not_returned};
use crate::hanging::samples::Sample;
use crate::hanging::{self, DEAD_LETTERS, DRAIN_TIMEOUT, HANGING, NEIGHBOURS, Stage, TOGGLED};

const DEADLINE: Duration = Duration::from_secs(180);
const SAMPLE_INTERVAL: Duration = Duration::from_millis(200);
/// Memory beyond that of the start that the allocator may keep after a storm: a part of what the backlog has used.
const KEPT_MEMORY_MIB: u64 = 128;
/// Memory that a later storm may leave beyond that which the first one has left.
const GROWN_MEMORY_MIB: u64 = 48;
/// Records in flight of a service that keeps up.
const BACKLOG: u64 = 1_000;
/// How soon threads have ended after the calls that hung have returned.
const RETURN_TIME: Duration = Duration::from_secs(30);

/// How long each part lasts.
struct Form {
    calm: Duration,
    /// Storms, each of which ends with the release of all calls that hang.
    storms: Vec<Storm>,
    upgrade_interval: Duration,
}

/// A time in which calls hang.
#[derive(Clone, Copy)]
struct Storm {
    length: Duration,
    /// Hangs of a hundred that last until its end.
    endless_percent: u64,
}

impl Storm {
    const fn new(seconds: u64, endless_percent: u64) -> Self {
        Self {
            length: Duration::from_secs(seconds),
            endless_percent,
        }
    }
}

impl Form {
    fn new() -> Self {
        match long() {
            true => Self {
                calm: Duration::from_secs(60),
                // In the last one, as many threads hang as may long before its end.
                storms: [10, 10, 20, 40]
                    .map(|percent| Storm::new(150, percent))
                    .into(),
                upgrade_interval: Duration::from_secs(50),
            },
            false => Self {
                calm: Duration::from_secs(15),
                storms: vec![Storm::new(38, 30)],
                upgrade_interval: Duration::from_secs(14),
            },
        }
    }
}

/// What happens to the service: at the same intervals with and without hangs.
struct Events {
    random: fastrand::Rng,
    change_due: Instant,
    upgrade_due: Instant,
    member_due: Instant,
    burst_due: Instant,
}

const CHANGE_INTERVAL: Duration = Duration::from_secs(2);
const MEMBER_INTERVAL: Duration = Duration::from_secs(5);
/// How long a member may take to join before another one is tried: it waits for creations that hang.
const JOIN_TIMEOUT: Duration = Duration::from_secs(9);
const BURST_INTERVAL: Duration = Duration::from_secs(5);

impl Events {
    fn new(form: &Form, random: fastrand::Rng) -> Self {
        let now = Instant::now();
        Self {
            random,
            change_due: now + CHANGE_INTERVAL,
            upgrade_due: now + form.upgrade_interval / 2,
            member_due: now + MEMBER_INTERVAL / 2,
            burst_due: now + BURST_INTERVAL / 2,
        }
    }
}

/// Whether something is due; the next time is then an interval later.
fn is_due(due: &mut Instant, interval: Duration) -> bool {
    let is = Instant::now() >= *due;
    if is {
        *due = Instant::now() + interval;
    }
    is
}

struct Soak<'a> {
    stage: &'a Stage,
    form: Form,
    service: Service,
    second: Option<Second>,
    random: fastrand::Rng,
    bursts: u64,
    /// Names of the marks of calls that hung, by phase.
    seen: BTreeMap<String, BTreeSet<String>>,
    /// The largest values of the samples.
    most: Option<Sample>,
}

/// The second member.
struct Second {
    service: Service,
    started: Instant,
    /// When it was told to stop.
    told: Option<Instant>,
}

impl Second {
    fn new(service: Service) -> Self {
        Self {
            service,
            started: Instant::now(),
            told: None,
        }
    }

    /// Whether it owns partitions, or will not soon.
    fn may_stop(&self) -> bool {
        self.service.partitions().is_ok() || self.started.elapsed() > JOIN_TIMEOUT
    }

    fn stop(&mut self) {
        if self.told.is_none() {
            self.service.process().signal(Signal::TERM);
            self.told = Some(Instant::now());
        }
    }
}

/// The number of bursts and the times in which something was measured.
struct Window {
    bursts: Range<u64>,
    times: Vec<Range<i64>>,
}

impl Soak<'_> {
    fn sample(&mut self) -> Sample {
        assert_eq!(
            self.service.process().exited(),
            None,
            "the service has ended"
        );
        let metrics = self.service.metrics().expect("the service answers");
        let pid = self.service.process().pid();
        let sample = Sample::of(pid, &metrics, &self.stage.marks(), &mut self.seen);
        let most = self.most.get_or_insert_with(|| sample.clone());
        most.threads.workers = most.threads.workers.max(sample.threads.workers);
        most.threads.runtimes = most.threads.runtimes.max(sample.threads.runtimes);
        most.threads.others = most.threads.others.max(sample.threads.others);
        most.failed = most.failed.max(sample.failed);
        most.hung = most.hung.max(sample.hung);
        most.abandoned = sample.abandoned;
        most.resident_mib = most.resident_mib.max(sample.resident_mib);
        most.in_flight = most.in_flight.max(sample.in_flight);
        most.in_flight_bytes = most.in_flight_bytes.max(sample.in_flight_bytes);
        if sample.marks.count() > most.marks.count() {
            most.marks = sample.marks.clone();
        }
        sample
    }

    /// Lets things happen for `length`, and checks every sample. Returns what is to be measured of it.
    fn run(&mut self, length: Duration, check: impl Fn(&Sample)) -> (Range<u64>, Range<i64>) {
        let mut events = Events::new(&self.form, self.random.fork());
        let (from, first_burst) = (now_ms(), self.bursts);
        let mut told = Instant::now();
        stays_by_samples("bounds", length, SAMPLE_INTERVAL, || {
            self.happen(&mut events);
            let sample = self.sample();
            if is_due(&mut told, Duration::from_secs(10)) {
                println!("{sample}");
            }
            check(&sample);
            Ok(())
        });
        let to = now_ms();
        self.end_second();
        (first_burst..self.bursts, from..to)
    }

    fn happen(&mut self, events: &mut Events) {
        if is_due(&mut events.burst_due, BURST_INTERVAL) {
            hanging::burst(&self.stage.client, &self.stage.topics()[2], self.bursts);
            self.bursts += 1;
        }
        if is_due(&mut events.upgrade_due, self.form.upgrade_interval) {
            self.stage.upgrade();
        } else if is_due(&mut events.change_due, CHANGE_INTERVAL) {
            let at = events.random.u64(..);
            match events.random.u8(..8) {
                0 | 1 => self.stage.toggle(),
                2 | 3 => drop(self.stage.renew(at)),
                _ => drop(self.stage.reconfigure(at)),
            }
        }
        if is_due(&mut events.member_due, MEMBER_INTERVAL) {
            match &mut self.second {
                None => {
                    let second = Service::start(&self.stage.workdir, &[]);
                    self.second = Some(Second::new(second));
                }
                Some(second) if second.may_stop() => second.stop(),
                Some(_) => {}
            }
        }
        self.check_second();
    }

    /// Drops the second member once it has stopped, which must not last longer than its drain timeout and 5 s.
    fn check_second(&mut self) {
        let Some(second) = &mut self.second else {
            return;
        };
        let took = second.told.map(|told| told.elapsed());
        if let Some(status) = second.service.process().exited() {
            // Without a stop: it does not start if a creation hangs too long.
            println!("the second member has ended with {status}, {took:?} after its stop");
            self.second = None;
            return;
        }
        let bound = DRAIN_TIMEOUT + Duration::from_secs(5 + 5);
        assert!(took < Some(bound), "the second member does not stop");
    }

    /// Stops the second member, if there is one.
    fn end_second(&mut self) {
        wait_for("the second member to end", DEADLINE, || {
            let Some(second) = &mut self.second else {
                return Ok(());
            };
            second.stop();
            self.check_second();
            Err("it runs".to_owned())
        });
    }

    /// A storm: calls hang until it ends. Then threads, images and memory return to those of `start`.
    fn storm(&mut self, storm: Storm, start: &Sample) -> (Range<u64>, Range<i64>) {
        self.stage.endless(storm.endless_percent);
        self.stage.storm(true);
        let begun = Instant::now();
        let checked = |sample: &Sample| check_bounds(sample, start, begun);
        let measured = self.run(storm.length, checked);
        self.lose();
        let before = self.sample();
        println!("before the release: {before}");
        self.stage.storm(false);
        self.stage.open_all();
        self.wait_returned(start);
        measured
    }

    /// With `--long`: the second member is frozen until its partitions are lost.
    fn lose(&mut self) {
        if !long() {
            return;
        }
        let short = ["--set", "kafka.client.session.timeout.ms=6000"];
        let mut second = Service::start(&self.stage.workdir, &short);
        wait_for("the second member to own partitions", DEADLINE, || {
            // It does not start if a creation hangs too long.
            if second.process().exited().is_some() {
                second = Service::start(&self.stage.workdir, &short);
            }
            second.partitions().map(drop)
        });
        second.process().signal(Signal::STOP);
        let all = 3 * hanging::PARTITIONS as usize;
        wait_for(
            "the first member to own everything",
            DEADLINE,
            || match self.service.partitions()?.len() {
                owned if owned == all => Ok(()),
                owned => Err(format!("{owned} of {all} partitions")),
            },
        );
        second.process().signal(Signal::CONT);
        wait_for("the second member to be back", DEADLINE, || {
            second.partitions().map(drop)
        });
        self.second = Some(Second::new(second));
        self.end_second();
    }

    /// Waits until no call hangs, and threads and images are those of the start.
    fn wait_returned(&mut self, start: &Sample) {
        let released = Instant::now();
        wait_for("what hung to return", RETURN_TIME, || {
            let sample = self.sample();
            match not_returned(&sample, start) {
                Some(what) => Err(format!("{what}; {sample}")),
                None => {
                    println!("{:?} after the release: {sample}", released.elapsed());
                    Ok(())
                }
            }
        });
    }

    /// Waits until the records that waited for calls that hung are handled. Then memory is near that of the start, and does
    /// not grow from storm to storm. Returns the memory.
    fn wait_handled(&mut self, start: &Sample, first: Option<u64>) -> u64 {
        wait_for("the backlog to be handled", DEADLINE, || {
            let in_flight = Sample::in_flight(&self.service.metrics()?);
            (in_flight < BACKLOG)
                .then_some(())
                .ok_or_else(|| format!("{in_flight} records in flight"))
        });
        let sample = self.sample();
        println!("the backlog is handled: {sample}");
        assert!(
            sample.resident_mib <= start.resident_mib + KEPT_MEMORY_MIB,
            "{sample}; at the start {} MiB",
            start.resident_mib
        );
        let first = first.unwrap_or(sample.resident_mib);
        assert!(
            sample.resident_mib <= first + GROWN_MEMORY_MIB,
            "{sample}; after the first storm {first} MiB"
        );
        sample.resident_mib
    }

    /// Waits until no handler is tripped by threads that have returned.
    fn wait_active(&mut self) {
        wait_for("every handler to be active", RETURN_TIME, || {
            match self.sample() {
                sample if sample.failed > 0 => Err(sample.to_string()),
                _ => Ok(()),
            }
        });
    }
}

/// Which phases hung, and how often.
fn check_phases(seen: &BTreeMap<String, BTreeSet<String>>) {
    let counts: BTreeMap<_, _> = seen.iter().map(|(phase, all)| (phase, all.len())).collect();
    println!("calls that hung, as far as seen: {counts:?}");
    let wanted: &[&str] = match long() {
        true => &[
            "new",
            "reconfigure",
            "health",
            "assigned",
            "revoked",
            "lost",
            "handle",
            "drain",
            "drop",
        ],
        false => &["new", "health", "assigned", "handle"],
    };
    for phase in wanted {
        assert!(seen.contains_key(*phase), "nothing hung in {phase}");
    }
}

/// Checks that a neighbour keeps its pace in the storms.
fn check_pace(name: &str, calm: Pace, storm: Pace) {
    println!("{name}: {calm:?}; while others hang: {storm:?}");
    assert!(storm.per_second >= 0.9 * calm.per_second, "{name}");
    let more = Duration::from_secs(1);
    assert!(storm.median <= calm.median + more, "{name}");
    // A partition that changes its owner waits for the calls that hang, up to the drain timeout.
    let more = more + DRAIN_TIMEOUT;
    assert!(storm.late <= calm.late + more, "{name}");
    let more = more + Duration::from_secs(3);
    assert!(storm.longest_gap <= calm.longest_gap + more, "{name}");
}

/// Checks the pace of every neighbour and that nothing is lost.
fn check_copies(stage: &Stage, written: [u64; 3], calm: &Window, storms: &Window) {
    for (name, topic) in NEIGHBOURS.iter().zip([0, 1, 1, 2]) {
        let copies = Copies::read(&stage.client, &stage.copies(name));
        let missing = copies.missing(written[topic], &BTreeSet::new());
        assert!(missing.is_empty(), "{name} lacks {missing:?}");
        assert_eq!(copies.out_of_order(&BTreeSet::new()), None, "{name}");
        if *name == "burst" {
            let rates = [calm, storms].map(|window| copies.burst_pace(window.bursts.clone()));
            println!("records per second in bursts, without and with hangs: {rates:?}");
            assert!(rates[1] >= 0.5 * rates[0], "{rates:?}");
            continue;
        }
        let before = copies.pace(&calm.times[0]);
        for window in &storms.times {
            check_pace(name, before, copies.pace(window));
        }
    }
    let letters = numbers(&stage.client, &stage.letters());
    for one in HANGING.iter().filter(|one| one.name != TOGGLED) {
        let copies = Copies::read(&stage.client, &stage.copies(one.name));
        let letters = match one.name == DEAD_LETTERS {
            true => letters.clone(),
            false => BTreeSet::new(),
        };
        let missing = copies.missing(written[0], &letters);
        let repeated = copies.repeated;
        println!(
            "{}: {} dead letters, {repeated} repeated",
            one.name,
            letters.len()
        );
        assert!(missing.is_empty(), "{} lacks {missing:?}", one.name);
        assert_eq!(copies.out_of_order(&letters), None, "{}", one.name);
    }
}

impl Soak<'_> {
    /// Without hangs, then with hangs. Returns what is to be measured of both.
    fn weather(&mut self) -> (Window, Window) {
        wait_for("the first copies", DEADLINE, || {
            let acked = self.service.outcomes("same", "ack")?;
            (acked > 0).then_some(()).ok_or_else(|| "none".to_owned())
        });
        // Both builds are loaded before anything is measured: images are never unmapped.
        let loaded = self.sample().images;
        self.stage.upgrade();
        wait_for("the other build", DEADLINE, || match self.sample() {
            sample if sample.images > loaded => Ok(()),
            sample => Err(sample.to_string()),
        });
        let (bursts, times) = self.run(self.form.calm, |sample| {
            assert_eq!(sample.marks.count(), 0, "{sample}");
        });
        let calm = Window {
            bursts,
            times: vec![times],
        };
        self.stage.open_all();
        self.wait_active();
        let start = wait_for("what was replaced to be released", RETURN_TIME, || {
            let sample = self.sample();
            match is_settled(&sample) {
                true => Ok(sample),
                false => Err(sample.to_string()),
            }
        });
        println!("at the start: {start}");
        let mut storms = Window {
            bursts: self.bursts..self.bursts,
            times: Vec::new(),
        };
        let mut first = None;
        for storm in self.form.storms.clone() {
            let (bursts, times) = self.storm(storm, &start);
            storms.bursts.end = bursts.end;
            storms.times.push(times);
            self.wait_active();
            let left = self.wait_handled(&start, first);
            first = first.or(Some(left));
        }
        (calm, storms)
    }
}

#[test]
fn handlers_that_hang_in_every_phase_cost_bounded_resources() {
    let kafka = Kafka::shared();
    let stage = Stage::new(kafka.bootstrap());
    let service = Service::ready(&stage.workdir, &[]);
    let mut soak = Soak {
        stage: &stage,
        form: Form::new(),
        service,
        second: None,
        random: e2e::random(),
        bursts: 0,
        seen: BTreeMap::new(),
        most: None,
    };
    let loads = [(); 2].map(|()| Steady::new(hanging::RATE));
    let (calm, storms) = std::thread::scope(|scope| {
        let _stops = loads.each_ref().map(Steady::stops);
        for (topic, load) in stage.topics().iter().zip(&loads) {
            let (client, records) = (&stage.client, load.numbers().map(hanging::record));
            scope.spawn(move || client.produce(topic, records));
        }
        soak.weather()
    });
    let released = Instant::now();
    for topic in stage.topics() {
        stage.client.wait_committed(&stage.group, topic, DEADLINE);
    }
    println!(
        "all is committed {:?} after the producers",
        released.elapsed()
    );
    let last = soak.sample();
    println!("in the end: {last}");
    println!("at most: {}", soak.most.as_ref().expect("samples"));
    soak.service.wait_caught_up(DEADLINE);
    assert!(soak.service.stop(DEADLINE).success());
    check_phases(&soak.seen);
    let [hung, other] = loads.map(|load| load.made());
    let written = [hung, other, soak.bursts * hanging::BURST];
    check_copies(&stage, written, &calm, &storms);
}
