//! A group member: a pump without handlers that checks every delivered offset.

pub(crate) mod batches;

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use sluicegate_config::service::ClientValue;
use sluicegate_engine::source::{
    AssignmentId, BoundsError, CommitEntry, CommitError, CommitResult, Found, Source, SourceEvent,
    StartAt, StartPartition, TopicPartition,
};
use sluicegate_kafka::{ClientSettings, KafkaSource};

pub(crate) fn at(partition: i32) -> TopicPartition {
    TopicPartition {
        topic: "t".into(),
        partition,
    }
}

pub(crate) fn settings(bootstrap: &str, client: &[(&str, &str)]) -> ClientSettings {
    // The mock waits for a group's members for one second less than the session timeout.
    let quick = [
        ("heartbeat.interval.ms", "100"),
        ("session.timeout.ms", "3000"),
    ];
    let client = quick.iter().chain(client);
    ClientSettings {
        bootstrap_servers: bootstrap.into(),
        group_id: "g".into(),
        client: client
            .map(|(key, value)| (key.to_string(), ClientValue::Plain(value.to_string())))
            .collect(),
        producer: Default::default(),
        prefetch_bytes: 32 << 20,
        request_timeout: Duration::from_secs(10),
    }
}

/// Appends `count` records to each partition.
pub(crate) fn produce(bootstrap: &str, partitions: i32, count: usize) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .create()
        .expect("a producer");
    for _ in 0..count {
        for partition in 0..partitions {
            let record = BaseRecord::<(), str>::to("t")
                .payload("x")
                .partition(partition);
            producer.send(record).map_err(|(e, _)| e).expect("queued");
        }
    }
    producer
        .flush(Duration::from_secs(10))
        .expect("acknowledged");
}

struct Owned {
    partition: i32,
    first: Option<i64>,
    next: Option<i64>,
}

pub(crate) struct Member {
    pub(crate) source: KafkaSource,
    /// Where a partition without a commit starts.
    pub(crate) start: fn(&TopicPartition) -> StartAt,
    /// How long a rebalance waits for its answer.
    pub(crate) answers_after: Duration,
    pub(crate) partition_errors: usize,
    pub(crate) missing: Vec<TopicPartition>,
    /// Start offsets reported by the source.
    pub(crate) found: Vec<Found>,
    pub(crate) not_found: Vec<(TopicPartition, String)>,
    pub(crate) recreated: Vec<std::sync::Arc<str>>,
    /// For each missing offset: the due offset, and the client's position.
    pub(crate) lost: Vec<(Option<i64>, Option<i64>)>,
    pub(crate) error_reasons: Vec<String>,
    pub(crate) bounds: Vec<(TopicPartition, Result<Range<i64>, BoundsError>)>,
    pub(crate) commit_answers: Vec<(Vec<CommitResult>, Option<CommitError>)>,
    /// The test does not always poll: the group may drop this member.
    pub(crate) may_lose: bool,
    owned: BTreeMap<AssignmentId, Owned>,
    next_slot: u32,
    waiting: Vec<(Instant, SourceEvent)>,
}

impl Member {
    pub(crate) fn join(settings: &ClientSettings) -> Self {
        let mut source = KafkaSource::new(settings).expect("a client");
        source.subscribe(&["t".into()]).expect("a subscription");
        Self {
            source,
            start: |_| StartAt::Earliest,
            answers_after: Duration::ZERO,
            partition_errors: 0,
            missing: Vec::new(),
            found: Vec::new(),
            not_found: Vec::new(),
            recreated: Vec::new(),
            lost: Vec::new(),
            error_reasons: Vec::new(),
            bounds: Vec::new(),
            commit_answers: Vec::new(),
            may_lose: false,
            owned: BTreeMap::new(),
            next_slot: 0,
            waiting: Vec::new(),
        }
    }

    pub(crate) fn into_source(self) -> KafkaSource {
        self.source
    }

    pub(crate) fn owned(&self) -> Vec<i32> {
        self.owned.values().map(|owned| owned.partition).collect()
    }

    /// One past the last delivered offset of a partition; 0 before the first.
    pub(crate) fn seen(&self, partition: i32) -> usize {
        let next = self.find(partition).and_then(|(_, owned)| owned.next);
        next.unwrap_or(0) as usize
    }

    /// The first delivered offset of a partition.
    pub(crate) fn first(&self, partition: i32) -> Option<i64> {
        self.find(partition).and_then(|(_, owned)| owned.first)
    }

    pub(crate) fn end_offset(&self, partition: i32) -> Option<i64> {
        let (slot, _) = self.find(partition)?;
        self.source.end_offset(slot)
    }

    /// The consumed position of a partition, if known; later records are never before it.
    pub(crate) fn consumed(&mut self, partition: i32) -> Option<i64> {
        let (slot, _) = self.find(partition)?;
        let mut out = Vec::new();
        self.source.consumed(&[slot], &mut out);
        let (_, position) = out.pop()?;
        let owned = self.owned.get_mut(&slot).expect("it is assigned");
        owned.next = owned.next.max(Some(position));
        Some(position)
    }

    pub(crate) fn unowned_records(&self) -> u64 {
        self.source.unowned_records()
    }

    fn find(&self, partition: i32) -> Option<(AssignmentId, &Owned)> {
        let mut all = self.owned.iter();
        let (slot, owned) = all.find(|(_, owned)| owned.partition == partition)?;
        Some((*slot, owned))
    }

    /// One turn of the pump.
    pub(crate) fn turn(&mut self) {
        self.source.wait(Duration::from_millis(20));
        let mut events = Vec::new();
        self.source.events(&mut events);
        let due = Instant::now() + self.answers_after;
        self.waiting.extend(events.into_iter().map(|e| (due, e)));
        let now = Instant::now();
        let (ready, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|(due, _)| *due <= now);
        self.waiting = waiting;
        for (_, event) in ready {
            self.handle(event);
        }
        let mut records = Vec::new();
        self.source.poll(1000, &mut records);
        for record in records {
            let owned = self.owned.get_mut(&record.slot).expect("an assigned slot");
            if let Some(next) = owned.next {
                let partition = owned.partition;
                assert_eq!(record.offset, next, "partition {partition}");
            }
            owned.first.get_or_insert(record.offset);
            owned.next = Some(record.offset + 1);
        }
    }

    #[track_caller]
    pub(crate) fn turn_until(&mut self, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !done(self) {
            assert!(
                Instant::now() < deadline,
                "condition not reached; not found: {:?}; next: {:?}",
                self.not_found,
                self.owned
                    .values()
                    .map(|o| (o.partition, o.next))
                    .collect::<Vec<_>>()
            );
            self.turn();
        }
    }

    fn handle(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Assigned(partitions) => self.assigned(&partitions),
            SourceEvent::Found(found) => self.found(found),
            SourceEvent::NotFound { at, reason } => self.not_found.push((at, reason)),
            SourceEvent::TopicRecreated { topic } => self.recreated.push(topic),
            SourceEvent::ClusterChanged { was, is } => panic!("cluster {was} became {is}"),
            SourceEvent::Revoked { partitions, lost } => self.revoked(&partitions, lost),
            SourceEvent::Committed { results, error } => {
                self.commit_answers.push((results, error));
            }
            SourceEvent::OffsetMissing {
                at, asked, fetched, ..
            } => {
                self.missing.push(at);
                self.lost.push((asked, fetched));
            }
            SourceEvent::PartitionError { reason, .. } => {
                self.partition_errors += 1;
                self.error_reasons.push(reason);
            }
            SourceEvent::ClientError { fatal, reason, .. } => assert!(!fatal, "{reason}"),
            SourceEvent::Bounds { at, bounds } => self.bounds.push((at, bounds)),
            SourceEvent::Statistics(_) => {}
        }
    }

    fn assigned(&mut self, partitions: &[TopicPartition]) {
        for at in partitions {
            let start = (self.start)(at);
            self.source.find(std::slice::from_ref(at), start);
        }
    }

    /// The group's committed offsets of partitions, queried one by one.
    pub(crate) fn committed(&mut self, partitions: &[i32]) -> Vec<Found> {
        let mut all = Vec::new();
        for &partition in partitions {
            self.source.find(&[at(partition)], StartAt::Earliest);
            let deadline = Instant::now() + Duration::from_secs(30);
            let before = all.len();
            while all.len() == before {
                assert!(Instant::now() < deadline, "no answer: {:?}", self.not_found);
                self.source.wait(Duration::from_millis(20));
                let mut events = Vec::new();
                self.source.events(&mut events);
                for event in events {
                    match event {
                        SourceEvent::Found(found) => all.extend(found),
                        other => self.handle(other),
                    }
                }
            }
        }
        all
    }

    fn found(&mut self, found: Vec<Found>) {
        let mut starts = Vec::new();
        for found in found {
            let slot = AssignmentId(self.next_slot);
            self.next_slot += 1;
            let owned = Owned {
                partition: found.at.partition,
                first: None,
                next: Some(found.offset),
            };
            self.owned.insert(slot, owned);
            starts.push(StartPartition {
                slot,
                start: match found.oldest {
                    true => StartAt::Earliest,
                    false => StartAt::Offset(found.offset),
                },
                due: Some(found.offset),
                leader_epoch: found.leader_epoch,
                topic_id: found.topic_id,
                at: found.at.clone(),
            });
            self.found.push(found);
        }
        self.source.start(&starts).expect("the client accepts it");
    }

    fn revoked(&mut self, partitions: &[TopicPartition], lost: bool) {
        assert!(
            !lost || self.may_lose,
            "partitions were lost without notice"
        );
        let entries: Vec<_> = self
            .owned
            .values()
            .filter(|owned| !lost && partitions.contains(&at(owned.partition)))
            .filter_map(|owned| {
                Some(CommitEntry {
                    at: at(owned.partition),
                    offset: owned.next?,
                    leader_epoch: None,
                    metadata: String::new(),
                })
            })
            .collect();
        // The mock refuses commits during a rebalance (a real broker accepts them): then the next owner starts earlier,
        // which loses nothing.
        self.commit(&entries);
        self.source
            .release(partitions)
            .expect("the client accepts it");
        self.owned
            .retain(|_, owned| !partitions.contains(&at(owned.partition)));
    }

    /// Commits and waits for the response; other events received until then are handled later.
    pub(crate) fn commit(
        &mut self,
        entries: &[CommitEntry],
    ) -> (Vec<CommitResult>, Option<CommitError>) {
        if entries.is_empty() {
            return (Vec::new(), None);
        }
        self.source.commit(entries).expect("it is sent");
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            assert!(Instant::now() < deadline, "a commit is not answered");
            self.source.wait(Duration::from_millis(20));
            let mut events = Vec::new();
            self.source.events(&mut events);
            let mut answer = None;
            for event in events {
                match event {
                    SourceEvent::Committed { results, error } => answer = Some((results, error)),
                    other => self.waiting.push((Instant::now(), other)),
                }
            }
            if let Some(answer) = answer {
                return answer;
            }
        }
    }

    /// Moves a running partition.
    pub(crate) fn restart(&mut self, partition: i32, start: StartAt) {
        let (slot, _) = self.find(partition).expect("it is assigned");
        let starts = [StartPartition {
            slot,
            at: at(partition),
            start,
            due: None,
            leader_epoch: None,
            topic_id: Default::default(),
        }];
        self.source.start(&starts).expect("the client accepts it");
        let owned = self.owned.get_mut(&slot).expect("it is assigned");
        owned.next = match start {
            StartAt::Offset(offset) => Some(offset),
            _ => None,
        };
    }

    pub(crate) fn pause_all(&mut self, paused: bool) {
        for slot in self.owned.keys() {
            self.source.pause(*slot, paused);
        }
    }

    /// Commits and releases all partitions, and leaves the group.
    pub(crate) fn leave(mut self) {
        let owned: Vec<_> = self.owned().into_iter().map(at).collect();
        self.revoked(&owned, false);
        let started = Instant::now();
        self.source.close(started + Duration::from_secs(10));
        assert!(
            started.elapsed() < Duration::from_secs(8),
            "the close hangs"
        );
    }
}
