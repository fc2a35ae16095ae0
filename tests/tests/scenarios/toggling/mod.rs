//! Shared by the scenarios `toggles` and `outages`: records at a steady rate through a handler whose gate is toggled and one whose
//! gate stays open, and the evaluation of where each toggle switched each partition.

use std::collections::BTreeMap;
use std::time::Duration;

use e2e::client::{Client, Outgoing};
use e2e::kafka::Kafka;
use e2e::service::Service;
use e2e::steady::{Load, Steady};
use e2e::wait::wait_for;
use e2e::workdir::Workdir;
use e2e::{control, now_ms, unique};
use sluicegate_config::control::ControlKey;
use sluicegate_store::Store;

pub(crate) use crate::stores::put;

pub(crate) const DEADLINE: Duration = Duration::from_secs(120);
const PARTITIONS: u64 = 6;
/// Records per second.
const RATE: u64 = 20_000;
/// Records that flow before the first toggle.
const WARM_UP_RECORDS: u64 = 2_000;
/// Maximum number of unacked records in a service that keeps up: the records of 100 ms.
const MAX_LAG: u64 = RATE / 10;
/// Offsets of each partition that are processed in a new state before the next toggle.
const MIN_OFFSETS: u64 = 100;

/// A record with its number and its creation time; they go round-robin over the partitions.
fn record(number: u64) -> Outgoing {
    let partition = i32::try_from(number % PARTITIONS).expect("it is small");
    let value = format!("{number}:{}", now_ms());
    Outgoing::new(&format!("k{}", number % 1_009), value).partition(partition)
}

/// One toggle of the gate.
pub(crate) struct Toggle {
    open: bool,
    /// The number of records counted in the previous state.
    before: u64,
    /// When it could take effect: at the acknowledgement of the write, or the end of the outage.
    pub(crate) since_ms: i64,
}

/// The outcome counted for a record at an open or a closed gate.
fn outcome_of(open: bool) -> &'static str {
    if open { "ack" } else { "skipped" }
}

/// Records flowing through the service: the gate of handler `moved` is toggled, that of `steady` stays open.
pub(crate) struct Flow {
    client: Client,
    pub(crate) service: Service,
    _workdir: Workdir,
    group: String,
    source: String,
    /// The copies of `moved`, with their append times.
    copy: String,
    /// The copies of `steady`, likewise.
    steady: String,
    load: Load,
    pub(crate) toggles: Vec<Toggle>,
}

/// The evaluation of a run.
pub(crate) struct Reckoning {
    /// Records produced.
    pub(crate) sent: u64,
    /// For each toggle, milliseconds until the last partition had switched.
    pub(crate) latencies_ms: Vec<i64>,
    /// The longest time without a record through the handler whose gate stays open.
    pub(crate) longest_gap: Duration,
}

impl Flow {
    /// Starts a service with the source `handlers` (YAML), which reads `read`; specs are written to `written`.
    pub(crate) fn start(handlers: &str, written: &dyn Store, read: &dyn Store) -> Self {
        let kafka = Kafka::shared();
        let client = Client::new(kafka.bootstrap());
        let (source, group) = (unique("toggled"), unique("group"));
        let (copy, steady) = (unique("copy"), unique("steady"));
        let partitions = i32::try_from(PARTITIONS).expect("it is small");
        client.create_topic(&source, partitions);
        // Copies get the broker's append time; their values keep the record's own time.
        let append_time = [("message.timestamp.type", "LogAppendTime")];
        for topic in [&copy, &steady] {
            client.create_topic_with(topic, partitions, 1, &append_time);
        }
        let workdir = control::workdir(kafka.bootstrap(), &group, handlers);
        workdir.plugins(&["relay"]);
        for (name, target) in [("moved", &copy), ("steady", &steady)] {
            let spec = format!(
                "name: {name}\nplugin: relay\nversion: \"*\"\nroute: {{ topics: [{source}] }}\n\
                 config: {{ topic: {target} }}\n"
            );
            let key = ControlKey::Spec(name.into());
            put(written, &key, &spec);
            wait_for("the spec", DEADLINE, || {
                let tree = read.list().map_err(|error| error.to_string())?;
                tree.get(&key).map(|_| ()).ok_or("not there".to_owned())
            });
        }
        let service = Service::ready(&workdir, &[]);
        let load = Load::start(&client, &source, Steady::new(RATE), record);
        // The backlog from the start must not count in the latency of a toggle.
        wait_for("the service to keep up", DEADLINE, || {
            let made = load.made();
            match service.outcomes("moved", "ack")? {
                acked if acked >= WARM_UP_RECORDS && acked + MAX_LAG >= made => Ok(()),
                acked => Err(format!("{acked} of {made}")),
            }
        });
        Self {
            client,
            service,
            _workdir: workdir,
            group,
            source,
            copy,
            steady,
            load,
            toggles: Vec::new(),
        }
    }

    fn outcomes(&self, handler: &str, outcome: &str) -> u64 {
        let counted = self.service.outcomes(handler, outcome);
        counted.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Toggles the gate and waits until the new state has taken effect.
    pub(crate) fn toggle(&mut self, store: &dyn Store) {
        self.move_gate(store);
        self.await_switch();
    }

    /// Toggles the gate by a write to `store`; its latency counts from the acknowledgement.
    pub(crate) fn move_gate(&mut self, store: &dyn Store) {
        let open = self.toggles.len() % 2 == 1;
        let before = self.outcomes("moved", outcome_of(open));
        let key = ControlKey::Enabled("moved".into());
        put(store, &key, if open { "true" } else { "false" });
        self.toggles.push(Toggle {
            open,
            before,
            since_ms: now_ms(),
        });
    }

    /// Waits until the last toggle has taken effect in every partition.
    pub(crate) fn await_switch(&self) {
        let Some(last) = self.toggles.last() else {
            return;
        };
        let outcome = outcome_of(last.open);
        self.service
            .wait_outcomes("moved", outcome, last.before + 1, DEADLINE);
        // The state is active: records produced from now on are processed in it. Partitions are filled round-robin.
        let offset = self.load.made() / PARTITIONS + 1;
        let past = i64::try_from(offset + MIN_OFFSETS).expect("it is small");
        wait_for("every partition to pass the offset", DEADLINE, || {
            let partitions = self.service.partitions()?;
            let behind = partitions
                .iter()
                .find(|row| row["frontier"].as_i64() < Some(past));
            behind.map_or(Ok(()), |row| Err(format!("not past {past}: {row}")))
        });
    }

    /// Ends the flow and checks that every record was handled or counted as skipped, none twice, and that each toggle switched
    /// each partition at one offset.
    pub(crate) fn reckon(mut self) -> Reckoning {
        let sent = self.load.end();
        self.client
            .wait_committed(&self.group, &self.source, DEADLINE);
        assert_eq!(self.outcomes("steady", "ack"), sent);
        let (acked, skipped) = (
            self.outcomes("moved", "ack"),
            self.outcomes("moved", "skipped"),
        );
        assert_eq!(acked + skipped, sent, "handled {acked}, skipped {skipped}");
        assert!(self.service.stop(DEADLINE).success());
        Reckoning {
            sent,
            latencies_ms: latencies(
                &self.client,
                &self.source,
                &self.copy,
                &self.toggles,
                sent,
                acked,
            ),
            longest_gap: longest_gap(&self.client, &self.steady, sent),
        }
    }
}

/// The longest time between one copy and the next.
fn longest_gap(client: &Client, steady: &str, sent: u64) -> Duration {
    let mut times = Vec::new();
    client.for_each(steady, |record| times.push(record.timestamp_ms));
    assert_eq!(times.len() as u64, sent, "copies of the steady handler");
    times.sort_unstable();
    let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
    Duration::from_millis(gaps.max().unwrap_or_default().unsigned_abs())
}

/// For each toggle, the time from when it could take effect until the last partition had switched.
fn latencies(
    client: &Client,
    source: &str,
    copy: &str,
    toggles: &[Toggle],
    sent: u64,
    acked: u64,
) -> Vec<i64> {
    let mut made_ms: BTreeMap<i32, Vec<(u64, i64)>> = BTreeMap::new();
    client.for_each(source, |record| {
        let (number, made) = parts(&record.text());
        made_ms
            .entry(record.partition)
            .or_default()
            .push((number, made));
    });
    let mut copied_ms: BTreeMap<u64, i64> = BTreeMap::new();
    client.for_each(copy, |record| {
        let (number, _) = parts(&record.text());
        let twice = copied_ms.insert(number, record.timestamp_ms);
        assert!(twice.is_none(), "record {number} was handled twice");
    });
    assert_eq!(copied_ms.len() as u64, acked, "one copy per ack");
    assert_eq!(made_ms.values().map(Vec::len).sum::<usize>() as u64, sent);
    let mut worst = vec![i64::MIN; toggles.len()];
    for (partition, records) in &made_ms {
        // The state changes, in offset order: one per toggle.
        let handled = |at: usize| copied_ms.get(&records[at].0);
        let switches: Vec<usize> = (1..records.len())
            .filter(|&at| handled(at).is_some() != handled(at - 1).is_some())
            .collect();
        assert_eq!(
            switches.len(),
            toggles.len(),
            "switch-overs of partition {partition}: {:?}, moves at {:?}",
            switches.iter().map(|&at| records[at].1).collect::<Vec<_>>(),
            toggles
                .iter()
                .map(|toggle| toggle.since_ms)
                .collect::<Vec<_>>(),
        );
        for ((at, toggle), worst) in switches.iter().zip(toggles).zip(&mut worst) {
            let switched_ms = match (handled(*at), handled(at - 1)) {
                (Some(first), _) => *first,
                // The last record before was still in flight, or the first one after was not produced yet.
                (None, before) => records[*at].1.max(before.copied().unwrap_or_default()),
            };
            assert_eq!(handled(*at).is_some(), toggle.open);
            *worst = (*worst).max(switched_ms - toggle.since_ms);
        }
    }
    worst
}

fn parts(text: &str) -> (u64, i64) {
    let parts = text.split_once(':');
    let parts = parts.and_then(|(number, made)| Some((number.parse().ok()?, made.parse().ok()?)));
    parts.unwrap_or_else(|| panic!("{text} is not a record of this test"))
}
