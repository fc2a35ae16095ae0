//! Records in a cluster, and an engine that reads them as a pump does.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use sluicegate_config::service::ClientValue;
use sluicegate_config::spec::{Predicate, Route, Test, TopicPattern};
use sluicegate_engine::dispatch::{HandlerIx, Inbox, PumpMessage};
use sluicegate_engine::engine::{Engine, EngineSettings};
use sluicegate_engine::event::{Effect, Event, Observation};
use sluicegate_engine::flow::FlowSettings;
use sluicegate_engine::queue::HandlerSettings;
use sluicegate_engine::routing::RoutingIndex;
use sluicegate_engine::source::{Source, SourceEvent, StartAt};
use sluicegate_kafka::{ClientSettings, KafkaSource, RecordBuf};
use sluicegate_kit::engine_doubles::{HeldPool, NoEmitter};
use sluicegate_runtime::{RawOutcome, outcome_code};

/// The key of the rare records.
const RARE: &str = "rare";
const VALUE: usize = 1_000;

/// Appends `records` records of 1 KB to each of a topic's partitions; every `rare`-th is rare.
pub(crate) fn produce(bootstrap: &str, topic: &str, partitions: i32, records: i64, rare: i64) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("queue.buffering.max.messages", "1000000")
        .create()
        .expect("a producer");
    let value = vec![b'v'; VALUE];
    for partition in 0..partitions {
        for offset in 0..records {
            let key = match offset % rare {
                0 => RARE.to_owned(),
                _ => format!("k{offset}"),
            };
            let record = BaseRecord::<String, Vec<u8>>::to(topic)
                .key(&key)
                .payload(&value)
                .partition(partition);
            producer.send(record).map_err(|(e, _)| e).expect("queued");
        }
        producer
            .flush(Duration::from_secs(30))
            .expect("acknowledged");
    }
}

/// Routes the rare records of topic `t` to the first handler and the others to the second.
pub(crate) fn by_rarity(
    handlers: [HandlerSettings; 2],
) -> (Arc<RoutingIndex>, Vec<(HandlerIx, HandlerSettings)>) {
    let is_rare = Predicate::Key(Test::Equals(RARE.into()));
    let others = Predicate::Not(Box::new(is_rare.clone()));
    let route = |when| Route {
        topics: vec![TopicPattern::Exact("t".into())],
        when,
    };
    let ixs = [HandlerIx(0), HandlerIx(1)];
    let routes = ixs.into_iter().zip([is_rare, others].map(route));
    let index = RoutingIndex::compile(1, routes.collect()).expect("a topic's name");
    let named = ixs.into_iter().zip(handlers).map(|(ix, settings)| {
        let name = format!("h{}", ix.0).into();
        (ix, HandlerSettings { name, ..settings })
    });
    (index, named.collect())
}

/// A source and an engine that read topics, turn by turn, as a pump does.
pub(crate) struct Reader {
    pub(crate) engine: Engine<RecordBuf>,
    pub(crate) source: KafkaSource,
    pub(crate) effects: VecDeque<Effect>,
    /// When the group first assigned partitions.
    pub(crate) assigned: Option<Instant>,
    read: i64,
    /// Number of turns so far.
    pub(crate) turns: u64,
}

impl Reader {
    pub(crate) fn new(
        bootstrap: &str,
        group: &str,
        flow: FlowSettings,
        plan: (Arc<RoutingIndex>, Vec<(HandlerIx, HandlerSettings)>),
        topics: &[&str],
        client: &[(&str, &str)],
    ) -> Self {
        let engine = EngineSettings {
            flow,
            start: StartAt::Earliest,
            offset_out_of_range: None,
        };
        let mut engine = Engine::new(engine, Arc::new(NoEmitter), Arc::new(Inbox::new()));
        engine.apply(plan.0, plan.1);
        let source = KafkaSource::new(&settings(bootstrap, group, client)).expect("a client");
        let mut reader = Self {
            engine,
            source,
            effects: VecDeque::new(),
            assigned: None,
            read: 0,
            turns: 0,
        };
        let topics: Vec<String> = topics.iter().map(|topic| topic.to_string()).collect();
        let subscribed = reader.source.subscribe(&topics);
        subscribed.expect("a subscription");
        reader
    }

    /// Reads until `records` have been read, passing each turn to `turn`. The engine's clock moves only there.
    pub(crate) fn read(&mut self, records: i64, mut turn: impl FnMut(&mut Self)) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.read < records {
            assert!(Instant::now() < deadline, "{} records were read", self.read);
            self.turn(&mut turn);
        }
    }

    /// Takes events and polls once.
    pub(crate) fn turn(&mut self, turn: &mut impl FnMut(&mut Self)) {
        let (mut events, mut polled) = (Vec::new(), Vec::new());
        self.source.events(&mut events);
        for event in events {
            if let SourceEvent::Assigned(_) = event {
                self.assigned.get_or_insert_with(Instant::now);
            }
            let membership = self.source.membership();
            self.step(Event::Source(event, membership));
            self.carry_out();
        }
        let quota = self.engine.read_quota(1_024);
        self.source.poll(quota, &mut polled);
        let read = polled.len();
        self.read += read as i64;
        self.step(Event::Records(&mut polled));
        self.turns += 1;
        turn(self);
        self.step(Event::TurnEnd { rebalancing: false });
        self.carry_out();
        if quota > 0 && read == 0 {
            self.source.wait(Duration::from_millis(10));
        }
    }

    /// Tells the engine what the client knows about its partitions.
    pub(crate) fn observe(&mut self) {
        let seen = self.engine.slots().into_iter().map(|slot| Observation {
            slot,
            end: self.source.end_offset(slot),
            fetch: self.source.fetch_state(slot),
        });
        let seen: Vec<_> = seen.collect();
        self.step(Event::Observed(&seen));
    }

    pub(crate) fn step(&mut self, event: Event<'_, RecordBuf>) {
        self.engine.step(event, &mut self.effects);
    }

    /// Carries out what a start of partitions needs, and their release: the group can take them away after an outage.
    fn carry_out(&mut self) {
        while let Some(effect) = self.effects.pop_front() {
            match effect {
                Effect::Find { partitions, start } => self.source.find(&partitions, start),
                Effect::Start(partitions) => self.source.start(&partitions).expect("a client"),
                Effect::Release(partitions) => self.source.release(&partitions).expect("a client"),
                Effect::LearnPositions(slots) => {
                    let mut positions = Vec::new();
                    self.source.consumed(&slots, &mut positions);
                    self.step(Event::Positions(&positions));
                }
                // Nothing is committed or left here.
                _ => {}
            }
        }
    }

    /// Finishes every batch of a pool: records for which `retries` asks for a retry, the others succeed.
    pub(crate) fn finish(&mut self, pool: &HeldPool, retries: impl Fn(i64) -> bool) {
        for mut batch in pool.take() {
            // A worker does not start later records of a lane that is retried.
            let mut retried = Vec::new();
            let outcomes = batch.records.iter().map(|record| {
                let code = if retried.contains(&record.lane) {
                    outcome_code::NOT_RUN
                } else if retries(record.offset) {
                    retried.push(record.lane);
                    outcome_code::RETRY
                } else {
                    outcome_code::ACK
                };
                RawOutcome {
                    code,
                    ..RawOutcome::default()
                }
            });
            batch.outcomes = outcomes.collect();
            self.step(Event::Message(PumpMessage::Finished(batch)));
        }
        self.engine.dispatch();
    }

    pub(crate) fn close(mut self) {
        drop(self.engine);
        let _ = self.source.close(Instant::now() + Duration::from_secs(5));
    }
}

/// Of requests other than fetches.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

fn settings(bootstrap: &str, group: &str, client: &[(&str, &str)]) -> ClientSettings {
    let quick = [
        ("heartbeat.interval.ms", "100"),
        ("session.timeout.ms", "6000"),
    ];
    let plain =
        |(key, value): &(&str, &str)| (key.to_string(), ClientValue::Plain(value.to_string()));
    ClientSettings {
        bootstrap_servers: bootstrap.into(),
        group_id: group.into(),
        client: quick.iter().chain(client).map(plain).collect(),
        producer: Default::default(),
        prefetch_bytes: 32 << 20,
        request_timeout: REQUEST_TIMEOUT,
    }
}
