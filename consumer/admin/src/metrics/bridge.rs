//! Metrics of a bridge between etcd and ZooKeeper.

use sluicegate_bridge::BridgeReport;
use sluicegate_config::control::Side;

use super::family::Families;

/// Encodes `report`.
pub fn encode_bridge(report: &BridgeReport) -> String {
    let mut families = Families::default();
    families.gauge(
        "sluicegate_build_info",
        "Version of the service; always 1",
        &[("version", env!("CARGO_PKG_VERSION"))],
        1.0,
    );
    super::log(&mut families);
    let sync_state = ("sync_state", &report.sync_state);
    let stores = [
        ("etcd", &report.sides.etcd),
        ("zookeeper", &report.sides.zookeeper),
        sync_state,
    ];
    for (name, store) in stores {
        let help = "1 while the store is reachable";
        let up = f64::from(u8::from(store.reachable));
        let labels = [("store", name)];
        families.gauge("sluicegate_bridge_store_reachable", help, &labels, up);
        let help = "Keys in the store";
        let keys = store.keys as f64;
        families.gauge("sluicegate_bridge_keys", help, &labels, keys);
    }
    families.gauge(
        "sluicegate_bridge_halted",
        "1 while replication is halted because a side is another store or lacks many keys, or the bridge has failed",
        &[],
        f64::from(u8::from(report.halted.is_some() || report.failed.is_some())),
    );
    families.gauge(
        "sluicegate_bridge_unsettled_keys",
        "Keys not yet known to be equal on both sides",
        &[],
        report.unsettled as f64,
    );
    families.gauge(
        "sluicegate_bridge_lag_seconds",
        "Age of the oldest unsettled key",
        &[],
        report.lag_seconds,
    );
    families.gauge(
        "sluicegate_bridge_refused_values",
        "Values not replicated: invalid for their keys, or refused by a store",
        &[],
        report.refused.len() as f64,
    );
    sides(report, &mut families);
    families.counter(
        "sluicegate_bridge_failures_total",
        "Store calls of the bridge that failed",
        &[],
        report.counts.failures,
    );
    families.counter(
        "sluicegate_bridge_overtaken_total",
        "Transfers overtaken by another bridge or a new edit",
        &[],
        report.counts.overtaken,
    );
    families.encode()
}

fn sides(report: &BridgeReport, families: &mut Families) {
    let counts = &report.counts;
    for side in Side::BOTH {
        let name = side.to_string();
        let labels = [("side", name.as_str())];
        let samples = [
            (
                "sluicegate_bridge_writes_total",
                "Values written by the bridge, by target side",
                *counts.writes.of(side),
            ),
            (
                "sluicegate_bridge_deletes_total",
                "Keys deleted by the bridge, by target side",
                *counts.deletes.of(side),
            ),
            (
                "sluicegate_bridge_conflicts_total",
                "Changes overruled in a conflict, by the side that lost its change",
                *counts.conflicts.of(side),
            ),
            (
                "sluicegate_bridge_refusals_total",
                "Refused values, by the side that holds them, and refused writes, by the side that refused them",
                *counts.refusals.of(side),
            ),
            (
                "sluicegate_bridge_repairs_total",
                "Changes that a watch missed and a re-list found",
                *counts.repairs.of(side),
            ),
        ];
        for (metric, help, value) in samples {
            families.counter(metric, help, &labels, value);
        }
    }
}
