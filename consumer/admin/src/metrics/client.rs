//! librdkafka's statistics as `sluicegate_kafka_client_*`: the ones that show whether the client or the cluster is slow.

use serde_json::Value;

use super::family::Families;

/// Field, metric name, help, and whether it is a counter.
type Field = (&'static str, &'static str, &'static str, bool);

const CLIENT: [Field; 8] = [
    (
        "replyq",
        "reply_queue_operations",
        "Operations waiting to be served by the service",
        false,
    ),
    ("tx", "requests_total", "Requests sent to brokers", true),
    (
        "tx_bytes",
        "sent_bytes_total",
        "Bytes sent to brokers",
        true,
    ),
    (
        "rx",
        "responses_total",
        "Responses received from brokers",
        true,
    ),
    (
        "rx_bytes",
        "received_bytes_total",
        "Bytes received from brokers",
        true,
    ),
    ("rxmsgs", "received_records_total", "Records received", true),
    (
        "rxmsg_bytes",
        "received_records_bytes_total",
        "Bytes of records received",
        true,
    ),
    (
        "metadata_cache_cnt",
        "metadata_cache_topics",
        "Topics in the metadata cache",
        false,
    ),
];

const BROKER: [Field; 7] = [
    (
        "outbuf_cnt",
        "broker_requests_waiting",
        "Requests waiting to be sent",
        false,
    ),
    (
        "waitresp_cnt",
        "broker_requests_in_flight",
        "Requests waiting for a response",
        false,
    ),
    (
        "txerrs",
        "broker_send_errors_total",
        "Requests that could not be sent",
        true,
    ),
    (
        "rxerrs",
        "broker_receive_errors_total",
        "Responses that could not be read",
        true,
    ),
    (
        "req_timeouts",
        "broker_request_timeouts_total",
        "Requests that got no response in time",
        true,
    ),
    (
        "connects",
        "broker_connects_total",
        "Connection attempts",
        true,
    ),
    (
        "disconnects",
        "broker_disconnects_total",
        "Connections lost",
        true,
    ),
];

const PARTITION: [Field; 4] = [
    (
        "fetchq_cnt",
        "partition_fetch_queue_records",
        "Records fetched but not read yet",
        false,
    ),
    (
        "fetchq_size",
        "partition_fetch_queue_bytes",
        "Bytes fetched but not read yet",
        false,
    ),
    (
        "committed_offset",
        "partition_committed_offset",
        "Last committed offset",
        false,
    ),
    (
        "ls_offset",
        "partition_last_stable_offset",
        "Last stable offset of the partition",
        false,
    ),
];

const GROUP: [Field; 2] = [
    (
        "rebalance_cnt",
        "group_rebalances_total",
        "Rebalances of the consumer group",
        true,
    ),
    (
        "assignment_size",
        "group_assigned_partitions",
        "Partitions assigned to the client",
        false,
    ),
];

/// Adds the statistics of one pump's client. Text that is not JSON is ignored.
pub(super) fn add(pump: u32, statistics: &str, families: &mut Families) {
    let Ok(statistics) = serde_json::from_str::<Value>(statistics) else {
        return;
    };
    let pump = pump.to_string();
    let client = [("pump", pump.as_str())];
    fields(&CLIENT, &statistics, &client, families);
    fields(&GROUP, &statistics["cgrp"], &client, families);
    for (name, broker) in objects(&statistics["brokers"]) {
        // Negative numbers stand for bootstrap and logical brokers, which repeat the real ones.
        if broker["nodeid"].as_i64().is_some_and(|id| id >= 0) {
            let labels = [client[0], ("broker", name)];
            fields(&BROKER, broker, &labels, families);
            round_trip(broker, &labels, families);
        }
    }
    for (topic, detail) in objects(&statistics["topics"]) {
        for (number, partition) in objects(&detail["partitions"]) {
            // -1 holds records without a partition; an unfetched partition belongs to another member.
            let fetched = !matches!(partition["fetch_state"].as_str(), Some("none" | "stopped"));
            if number != "-1" && fetched {
                let labels = [client[0], ("topic", topic), ("partition", number)];
                fields(&PARTITION, partition, &labels, families);
            }
        }
    }
}

fn objects(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.as_str(), value))
}

fn fields(table: &[Field], object: &Value, labels: &[(&str, &str)], families: &mut Families) {
    for (field, name, help, is_counter) in table {
        // Negative numbers stand for "not known".
        let Some(value) = object[field].as_f64().filter(|value| *value >= 0.0) else {
            continue;
        };
        let name = format!("sluicegate_kafka_client_{name}");
        if *is_counter {
            families.counter_f64(&name, help, labels, value);
        } else {
            families.gauge(&name, help, labels, value);
        }
    }
}

fn round_trip(broker: &Value, labels: &[(&str, &str)], families: &mut Families) {
    for (field, quantile) in [("p50", "0.5"), ("p99", "0.99")] {
        if let Some(microseconds) = broker["rtt"][field].as_f64() {
            let labels = [labels[0], labels[1], ("quantile", quantile)];
            let help = "Time from a request to its response in the last statistics interval";
            let name = "sluicegate_kafka_client_broker_round_trip_seconds";
            families.gauge(name, help, &labels, microseconds / 1e6);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_labelled_by_client_broker_and_partition() {
        let statistics = r#"{
            "replyq": 2, "tx": 10, "rxmsgs": 7,
            "brokers": {
                "localhost:9092/bootstrap": { "nodeid": -1, "connects": 9 },
                "localhost:9092/1": { "nodeid": 1, "connects": 3, "rtt": { "p50": 1500, "p99": 9000 } }
            },
            "topics": { "flights": { "partitions": {
                "0": { "fetchq_cnt": 42, "fetchq_size": 4200, "committed_offset": -1001, "fetch_state": "active" },
                "1": { "fetchq_cnt": 7, "fetch_state": "none" }, "-1": { "fetchq_cnt": 1 } } } },
            "cgrp": { "rebalance_cnt": 4 }
        }"#;
        let mut families = Families::default();
        add(0, statistics, &mut families);
        add(1, "no json", &mut families);
        let text = families.encode();
        for line in [
            r#"sluicegate_kafka_client_reply_queue_operations{pump="0"} 2"#,
            r#"sluicegate_kafka_client_requests_total{pump="0"} 10"#,
            r#"sluicegate_kafka_client_broker_connects_total{pump="0",broker="localhost:9092/1"} 3"#,
            r#"sluicegate_kafka_client_broker_round_trip_seconds{pump="0",broker="localhost:9092/1",quantile="0.99"} 0.009"#,
            r#"sluicegate_kafka_client_partition_fetch_queue_records{pump="0",topic="flights",partition="0"} 42"#,
            r#"sluicegate_kafka_client_group_rebalances_total{pump="0"} 4"#,
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "no line {line}\nin\n{text}"
            );
        }
        assert!(
            !text.contains("bootstrap")
                && !text.contains("-1")
                && !text.contains(r#"partition="1""#),
            "{text}"
        );
    }
}
