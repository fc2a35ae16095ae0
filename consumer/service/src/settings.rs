//! Maps the service's config to the settings of its parts.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use sluicegate_config::ServiceConfig;
use sluicegate_config::secret::Redaction;
use sluicegate_config::service::{OffsetOutOfRange, Start};
use sluicegate_config::spec::{OnFailure as SpecOnFailure, Order as SpecOrder};
use sluicegate_engine::emit::Emitter;
use sluicegate_engine::engine::EngineSettings;
use sluicegate_engine::flow::FlowSettings;
use sluicegate_engine::queue::{GenerationId, HandlerSettings, OnFailure, Order, Target};
use sluicegate_engine::settlement::RetryPolicy;
use sluicegate_engine::source::StartAt;
use sluicegate_native::NativeRuntime;
use sluicegate_plugins::trial::Trial;
use sluicegate_plugins::{HandlerPlan, HandlerTarget, RegistrySettings};
use sluicegate_pool::HungThreads;

use crate::pump::{JoinGate, Probe, PumpSettings};

/// Interval between two health checks of an instance.
const HEALTH_CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// Timeout of a health check: its worker handles no records until it has ended.
const HEALTH_CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum time to create and check an instance.
const CREATE_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of in-flight records that the whole process may hold.
pub(super) fn in_flight_bytes(config: &ServiceConfig) -> u64 {
    config.processing.memory / 2
}

/// The settings of one pump. Half of the byte budget is for records in flight, an eighth for prefetched ones, and the rest
/// for per-record overhead.
pub(super) fn pump(
    config: &ServiceConfig,
    number: u32,
    join_gate: &Arc<JoinGate>,
    probe: Probe,
) -> PumpSettings {
    let processing = &config.processing;
    PumpSettings {
        number,
        engine: EngineSettings {
            flow: FlowSettings {
                max_uncommitted: i64::try_from(processing.max_uncommitted).unwrap_or(i64::MAX / 2),
                budget_bytes: in_flight_bytes(config) / config.kafka.clients.max(1) as u64,
                stall_timeout_ms: processing.stall_timeout.as_millis() as u64,
                drain_timeout_ms: processing.drain_timeout.as_millis() as u64,
                commit_interval_ms: processing.commit_interval.as_millis() as u64,
                group: config.kafka.group_id.as_str().into(),
                seed: u64::from(std::process::id()) << 32 | u64::from(number + 1),
            },
            start: match config.kafka.start {
                Start::Earliest => StartAt::Earliest,
                Start::Latest => StartAt::Latest,
                Start::Time { unix_ms } => StartAt::Time(unix_ms),
            },
            offset_out_of_range: match processing.offset_out_of_range {
                OffsetOutOfRange::Stop => None,
                OffsetOutOfRange::Earliest => Some(StartAt::Earliest),
                OffsetOutOfRange::Latest => Some(StartAt::Latest),
            },
        },
        join_gate: Arc::clone(join_gate),
        probe,
    }
}

/// The settings of the registry.
pub(super) fn registry(
    config: &ServiceConfig,
    emitter: Arc<dyn Emitter>,
    secrets: Arc<Redaction>,
) -> RegistrySettings {
    RegistrySettings {
        folder: config.plugins.folder.clone(),
        cache: config.plugins.cache.clone(),
        allow_unsigned: config.plugins.allow_unsigned,
        create_timeout: CREATE_TIMEOUT,
        health_interval: HEALTH_CHECK_INTERVAL,
        health_timeout: HEALTH_CHECK_TIMEOUT,
        drain_timeout: config.processing.drain_timeout,
        hung: HungThreads::default(),
        runtimes: vec![Arc::new(NativeRuntime)],
        trial: Some(Trial::by_this_program()),
        emitter,
        secrets,
        provenance: config.emit.provenance,
    }
}

/// The pumps' settings of a handler.
pub(super) fn handler(plan: &HandlerPlan) -> HandlerSettings {
    let spec = &plan.spec;
    HandlerSettings {
        name: plan.name.clone(),
        targets: plan
            .targets
            .iter()
            .map(|one| target_of(one, plan))
            .collect(),
        gate_open: spec.enabled,
        order: match spec.order {
            SpecOrder::Key => Order::Key,
            SpecOrder::Partition => Order::Partition,
            SpecOrder::Unordered => Order::Unordered,
        },
        retry: RetryPolicy {
            max_attempts: spec.retry.max_attempts,
            delay: spec.retry.backoff.delay,
            multiplier: spec.retry.backoff.multiplier,
            max_delay: spec.retry.backoff.max_delay,
            jitter: spec.retry.backoff.jitter,
        },
        dead_letter_topic: Arc::from(spec.dead_letter.topic.as_str()),
        on_failure: match spec.on_failure {
            SpecOnFailure::Hold => OnFailure::Hold,
            SpecOnFailure::DeadLetter => OnFailure::DeadLetter,
        },
        first_call: 1,
        max_in_flight_records: u32::try_from(spec.max_in_flight.records).unwrap_or(u32::MAX),
        max_in_flight_bytes: spec.max_in_flight.bytes,
    }
}

/// A generation that runs records of the handler.
fn target_of(target: &HandlerTarget, plan: &HandlerPlan) -> Target {
    let info = &target.info;
    let generation = GenerationId {
        version: target.version.clone(),
        number: target.generation,
        config_digest: digest(plan.spec.config.expose().to_string().as_bytes()),
        takes_batches: info.takes_batches,
        concurrency: info.concurrency,
        max_batch: NonZeroU32::new(info.max_batch),
        call_timeout_ms: match info.takes_batches {
            true => u64::try_from(plan.spec.timeout.as_millis()).unwrap_or(u64::MAX),
            false => 0,
        },
    };
    Target {
        generation: Arc::new(generation),
        pool: Arc::clone(&target.pool),
        buckets: target.buckets,
        keeps_key_state: info.keeps_key_state,
    }
}

/// A hash of `bytes`; equal bytes have equal hashes within one process.
fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    std::hash::Hasher::write(&mut hasher, bytes);
    std::hash::Hasher::finish(&hasher)
}
