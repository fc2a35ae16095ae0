//! librdkafka's mock cluster: functions that the bindings lack.

use rdkafka::client::{Client, ClientContext};
use rdkafka_sys as sys;

/// Lets the groups of a client's mock cluster form without their usual delay of 3 s.
pub(crate) fn form_groups_at_once<C: ClientContext>(client: &Client<C>) {
    // SAFETY: the client is alive and owns the cluster, if it has one.
    unsafe {
        let cluster = sys::rd_kafka_handle_mock_cluster(client.native_ptr());
        if !cluster.is_null() {
            sys::rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, 0);
        }
    }
}

/// Makes a client's mock cluster keep the requests that it receives.
pub(crate) fn keep_requests<C: ClientContext>(client: &Client<C>) {
    // SAFETY: the client is alive and owns the cluster, if it has one.
    unsafe {
        let cluster = sys::rd_kafka_handle_mock_cluster(client.native_ptr());
        if !cluster.is_null() {
            sys::rd_kafka_mock_start_request_tracking(cluster);
        }
    }
}

/// Number of kept requests of a kind in a client's mock cluster.
pub(crate) fn kept_requests<C: ClientContext>(client: &Client<C>, api_key: i16) -> usize {
    // SAFETY: the client is alive and owns the cluster, if it has one; the array holds `count` requests and is ours.
    unsafe {
        let cluster = sys::rd_kafka_handle_mock_cluster(client.native_ptr());
        if cluster.is_null() {
            return 0;
        }
        let mut count = 0;
        let requests = sys::rd_kafka_mock_get_requests(cluster, &mut count);
        let found = (0..count)
            .filter(|&at| sys::rd_kafka_mock_request_api_key(*requests.add(at)) == api_key)
            .count();
        sys::rd_kafka_mock_request_destroy_array(requests, count);
        found
    }
}
