//! A consumer group of this process: its pumps, and all that is said to them and asked of them together.
//!
//! ```text
//!  control thread ── plan, topics ──► Group ──► every pump          RunningGroup: start, stop, failure
//!  admin          ◄── reports, explain ── Group ◄── pumps
//! ```
//!
//! What the pumps of one group share is here and nothing of another group is: the id, the clients, who has joined, whether
//! all have applied a plan. A service has one group.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sluicegate_config::ServiceConfig;
use sluicegate_engine::routing::RoutingIndex;
use sluicegate_engine::source::{Source, SourceError, TopicPartition};
use sluicegate_engine::status::{Explanation, PumpReport};
use sluicegate_kafka::reach::answers;
use sluicegate_kafka::{ClientSettings, KafkaEmitter, KafkaSource, RecordBuf};
use sluicegate_plugins::HandlerTable;

use super::{StartError, settings};
use crate::pump::{JoinGate, Probe, Pump, PumpAddress, PumpError, PumpHandle, StopReport};

/// A group, for requests from any thread.
pub(super) struct Group {
    id: Arc<str>,
    pumps: Vec<GroupPump>,
}

struct GroupPump {
    address: PumpAddress,
    /// Whether it has joined, by its last report: an unresponsive pump has not left the group.
    joined: AtomicBool,
}

/// Result of a request to every pump.
pub(super) struct Delivery {
    /// Every pump has answered: what was sent is applied.
    pub(super) applied: bool,
    /// Why a pump could not subscribe to its topics.
    pub(super) refused: Option<SourceError>,
}

impl Group {
    pub(super) fn new(id: &str, pumps: Vec<PumpAddress>) -> Self {
        let pumps = pumps.into_iter().map(|address| GroupPump {
            address,
            joined: AtomicBool::new(false),
        });
        Self {
            id: id.into(),
            pumps: pumps.collect(),
        }
    }

    /// The group id.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Sends the plan to every pump, each of which applies routes, handlers and topics in one step.
    pub(super) fn apply(
        &self,
        plan: &HandlerTable,
        index: &Arc<RoutingIndex>,
        topics: &[String],
        record_log: bool,
        wait: Duration,
    ) -> Delivery {
        self.ask_all(|pump| {
            let handlers = plan.handlers.iter();
            let handlers = handlers.map(|plan| (plan.ix, settings::handler(plan)));
            let result = pump.apply(index.clone(), handlers.collect(), topics.to_vec(), wait);
            if let Some(Ok(())) = result {
                pump.set_record_log(record_log);
            }
            result
        })
    }

    /// Changes the subscription of every pump.
    pub(super) fn subscribe(&self, topics: &[String], wait: Duration) -> Delivery {
        self.ask_all(|pump| pump.subscribe(topics.to_vec(), wait))
    }

    fn ask_all(&self, ask: impl Fn(&PumpAddress) -> Option<Result<(), SourceError>>) -> Delivery {
        let mut delivery = Delivery {
            applied: true,
            refused: None,
        };
        for pump in &self.pumps {
            match ask(&pump.address) {
                Some(Ok(())) => {}
                Some(Err(error)) => delivery.refused = Some(error),
                None => delivery.applied = false,
            }
        }
        delivery
    }

    /// How often its pumps have met a topic that does not exist or denies writes.
    pub(super) fn missed_topics(&self) -> u64 {
        let pumps = self.pumps.iter();
        pumps.map(|pump| pump.address.missed_topics()).sum()
    }

    /// The pumps' reports, and the numbers of those that did not respond; one deadline covers all of them.
    pub(super) fn reports(&self, deadline: Duration) -> (Vec<PumpReport>, Vec<u32>) {
        let (mut reports, mut unresponsive) = (Vec::new(), Vec::new());
        let end = Instant::now() + deadline;
        for (number, pump) in (0..).zip(&self.pumps) {
            let left = end.saturating_duration_since(Instant::now());
            match pump.address.report(left) {
                Some(report) => {
                    // Can become false again: a pump without topics counts as joined until it has some.
                    pump.joined.store(report.joined, Ordering::Relaxed);
                    reports.push(report);
                }
                None => unresponsive.push(number),
            }
        }
        (reports, unresponsive)
    }

    /// The numbers of the pumps that have not joined, by their last reports.
    pub(super) fn not_joined(&self) -> Vec<u32> {
        let pumps = (0..).zip(&self.pumps);
        let waiting = pumps.filter(|(_, pump)| !pump.joined.load(Ordering::Relaxed));
        waiting.map(|(number, _)| number).collect()
    }

    /// What blocks a partition's frontier, from the pump that owns it.
    pub(super) fn explain(
        &self,
        at: &TopicPartition,
        offset: Option<i64>,
        deadline: Duration,
    ) -> Option<Explanation> {
        let mut pumps = self.pumps.iter();
        pumps.find_map(|pump| pump.address.explain(at.clone(), offset, deadline))
    }
}

/// A group whose pumps run, for who started them.
pub(super) struct RunningGroup {
    group: Arc<Group>,
    pumps: Vec<PumpHandle>,
}

impl RunningGroup {
    /// Starts the pumps, one per client. They subscribe with the first plan.
    ///
    /// # Errors
    /// A pump's thread could not be started; those that were started are stopped.
    pub(super) fn start(
        config: &ServiceConfig,
        client: &ClientSettings,
        emitter: &Arc<KafkaEmitter>,
        join_gate: &Arc<JoinGate>,
    ) -> Result<Self, StartError> {
        let clients = config.kafka.clients;
        let start = |number| {
            let client = client.of_client(number, clients);
            let connection = client.connection();
            let ask = Arc::new(move || answers(&connection));
            let probe = Probe::new(ask, client.reconnect_backoff_max());
            let source = move || -> Result<Box<dyn Source<Record = RecordBuf>>, SourceError> {
                Ok(Box::new(KafkaSource::new(&client)?))
            };
            let settings = settings::pump(config, number as u32, join_gate, probe);
            Pump::spawn(settings, Box::new(source), emitter.clone())
                .map_err(StartError::part("pump thread"))
        };
        let pumps = (0..clients).map(start).collect::<Result<Vec<_>, _>>()?;
        let addresses = pumps.iter().map(|pump| pump.address().clone()).collect();
        Ok(Self {
            group: Arc::new(Group::new(&client.group_id, addresses)),
            pumps,
        })
    }

    /// The group.
    pub(super) fn group(&self) -> &Arc<Group> {
        &self.group
    }

    /// Whether one of its pumps has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.pumps.iter().any(PumpHandle::is_finished)
    }

    /// Begins the stop of every pump.
    pub(super) fn stop(&self) {
        for pump in &self.pumps {
            pump.address().stop();
        }
    }

    /// Waits for every pump to drain, commit and leave. Returns what was not finished.
    ///
    /// # Errors
    /// The first failure of a pump.
    pub(super) fn join_until(&mut self, deadline: Instant) -> Result<StopReport, PumpError> {
        let mut result = Ok(StopReport::default());
        for pump in &mut self.pumps {
            let ended = pump.join_until(deadline);
            result = match (result, ended) {
                (Ok(mut sum), Ok(report)) => {
                    sum += report;
                    Ok(sum)
                }
                (Err(error), _) | (_, Err(error)) => Err(error),
            };
        }
        result
    }
}
