//! The suites that must catch mutants, as arguments of `cargo test`.

/// The pump's core with scripted collaborators.
pub(super) const SIMULATION: &[&str] = &["-p", "sluicegate-engine", "--test", "simulation"];
/// The tests in the modules of the service's crates.
pub(super) const ROUTING: &[&str] = &["-p", "sluicegate-engine", "--lib", "routing::"];
pub(super) const LEDGER: &[&str] = &["-p", "sluicegate-engine", "--lib", "ledger::"];
pub(super) const POOL: &[&str] = &["-p", "sluicegate-pool", "--lib"];
pub(super) const PLUGINS: &[&str] = &["-p", "sluicegate-plugins", "--lib"];
pub(super) const RECALL: &[&str] = &["-p", "sluicegate-pool", "--lib", "tests::recall"];
pub(super) const ENDING: &[&str] = &["-p", "sluicegate-pool", "--lib", "tests::ending"];
pub(super) const WATCHDOG: &[&str] = &["-p", "sluicegate-pool", "--lib", "tests::watchdog"];
/// What all kinds of plugins have in common.
pub(super) const RUNTIME: &[&str] = &["-p", "sluicegate-runtime", "--lib"];
/// Both sides of the ABI in one process.
pub(super) const ABI: &[&str] = &["-p", "sluicegate-abi", "--lib"];
/// The SDK's contract with authors.
pub(super) const SDK_RULES: &[&str] = &["-p", "sluicegate-sdk", "--test", "rules"];
pub(super) const SDK_ROOM: &[&str] = &["-p", "sluicegate-sdk", "--test", "room"];
pub(super) const SDK_OUTAGES: &[&str] = &["-p", "sluicegate-sdk", "--test", "unavailable"];
pub(super) const COMMIT: &[&str] = &["-p", "sluicegate-engine", "--lib", "commit"];
pub(super) const OUTAGE: &[&str] = &["-p", "sluicegate-kafka", "--test", "with_engine", "outage"];
pub(super) const FLOW: &[&str] = &["-p", "sluicegate-engine", "--lib", "flow::tests"];
/// A handler's queue, part by part.
pub(super) const QUEUE: &[&str] = &["-p", "sluicegate-engine", "--lib", "queue::"];
pub(super) const STARTS: &[&str] = &["-p", "sluicegate-engine", "--lib", "source::starts"];
pub(super) const KAFKA: &[&str] = &["-p", "sluicegate-kafka", "--lib"];
pub(super) const GAP_DETECTOR: &[&str] = &[
    "-p",
    "sluicegate-kafka",
    "--lib",
    "consumer::gap_detector::",
];
pub(super) const STATUS: &[&str] = &["-p", "sluicegate-engine", "--lib", "status::"];
pub(super) const CLI: &[&str] = &["-p", "sluicegate", "--lib", "cli::"];
pub(super) const SERVICE_LIB: &[&str] = &["-p", "sluicegate-service", "--lib"];
pub(super) const PUMP: &[&str] = &["-p", "sluicegate-service", "--lib", "pump::"];
/// The Kafka source on an in-process cluster.
pub(super) const SOURCE: &[&str] = &["-p", "sluicegate-kafka", "--test", "kafka_source"];
/// The engine with the Kafka source, on an in-process cluster.
pub(super) const READING: &[&str] = &["-p", "sluicegate-kafka", "--test", "with_engine"];
pub(super) const RAW: &[&str] = &["-p", "sluicegate-kafka", "--lib", "ffi::"];
/// The log writer, and the connections of the admin HTTP.
pub(super) const LOGGING: &[&str] = &["-p", "sluicegate-admin", "--lib", "logging::"];
pub(super) const CONNECTIONS: &[&str] = &["-p", "sluicegate-admin", "--lib", "http::"];
pub(super) const EMIT: &[&str] = &["-p", "sluicegate-engine", "--lib", "emit::"];
pub(super) const SETTLEMENT: &[&str] = &["-p", "sluicegate-engine", "--lib", "settlement::"];
/// Conflicts between specs.
pub(super) const SPECS: &[&str] = &["-p", "sluicegate-config", "--lib", "spec::"];
/// The folder of specs.
pub(super) const FOLDER: &[&str] = &["-p", "sluicegate-sync", "--lib", "folder::"];
/// References in values of a store.
pub(super) const REFERENCES: &[&str] = &["-p", "sluicegate-sync", "--test", "store_references"];
/// The cost of hostile specs.
pub(super) const HOSTILE: &[&str] = &["-p", "sluicegate-config", "--test", "hostile_specs"];
/// Plugins that were built with this ABI, an earlier and a later one.
pub(super) const NATIVE_ABI: &[&str] = &["-p", "sluicegate-native", "--test", "abi"];
/// Repeated loads of one plugin.
pub(super) const GENERATIONS: &[&str] = &["-p", "sluicegate-native", "--test", "generations"];
/// Loaded code and its users, and private copies.
pub(super) const NATIVE: &[&str] = &["-p", "sluicegate-native", "--lib"];

/// Bridges between two in-memory stores, with delays and crashes.
pub(super) const BRIDGE: &[&str] = &["-p", "sluicegate-bridge", "--test", "bridge_simulation"];
/// Running bridges between two in-memory stores.
pub(super) const BRIDGE_RUNNING: &[&str] = &["-p", "sluicegate-bridge", "--test", "bridge_running"];
/// Snapshots built from the keys of a store.
pub(super) const STORE_SOURCE: &[&str] = &["-p", "sluicegate-sync", "--test", "store_source"];
/// The stores: their trees, and their watch loop on a scripted connection.
pub(super) const STORES: &[&str] = &["-p", "sluicegate-store", "--lib"];
/// On real servers: members of a Kafka group, a cancelled etcd watch, and a ZooKeeper watch whose connection is briefly lost.
pub(super) const ETCD: &[&str] = &["-p", "e2e", "--test", "scenarios", "behind_the_watchs_back"];
pub(super) const BRIDGE_PATHS: &[&str] = &[
    "-p",
    "e2e",
    "--test",
    "scenarios",
    "a_bridge_with_other_paths",
];
pub(super) const FIRST_JOIN: &[&str] = &[
    "-p",
    "e2e",
    "--test",
    "scenarios",
    "within_their_first_join",
];
pub(super) const COORDINATORS: &[&str] = &[
    "-p",
    "e2e",
    "--test",
    "scenarios",
    "after_the_coordinator_has_moved",
];
pub(super) const ZOOKEEPER: &[&str] = &["-p", "e2e", "--test", "scenarios", "connection_is_lost"];
/// The handler that writes to databases; those that are not in the environment are left out.
pub(super) const AUDITOR: &[&str] = &["-p", "sluicegate-handler-auditor", "--test", "kit"];
