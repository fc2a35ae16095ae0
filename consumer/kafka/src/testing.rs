//! Helpers of the tests that read from the mock cluster.

use std::time::{Duration, Instant};

use sluicegate_engine::source::{
    AssignmentId, Delivery, Source, SourceEvent, StartAt, StartPartition, TopicPartition,
};

use crate::consumer::KafkaSource;
use crate::ffi::RecordBuf;
use crate::settings::ClientSettings;

/// A partition of topic `t`.
pub(crate) fn at(partition: i32) -> TopicPartition {
    TopicPartition {
        topic: "t".into(),
        partition,
    }
}

/// Settings of a client of group `g`.
pub(crate) fn settings(bootstrap: &str) -> ClientSettings {
    ClientSettings {
        bootstrap_servers: bootstrap.into(),
        group_id: "g".into(),
        client: Default::default(),
        producer: Default::default(),
        prefetch_bytes: 32 << 20,
        request_timeout: Duration::from_secs(10),
    }
}

/// Reads `count` records of a topic from the beginning; the slot is the partition number.
pub(crate) fn consume_all(
    bootstrap: &str,
    topic: &str,
    count: usize,
) -> (KafkaSource, Vec<Delivery<RecordBuf>>) {
    let mut source = KafkaSource::new(&settings(bootstrap)).unwrap();
    source.subscribe(&[topic.into()]).unwrap();
    let (mut events, mut out) = (Vec::new(), Vec::new());
    let deadline = Instant::now() + Duration::from_secs(30);
    while out.len() < count {
        assert!(Instant::now() < deadline, "{} records arrived", out.len());
        source.wait(Duration::from_millis(100));
        source.events(&mut events);
        for event in events.drain(..) {
            match event {
                SourceEvent::Assigned(partitions) => source.find(&partitions, StartAt::Earliest),
                SourceEvent::Found(found) => {
                    let starts: Vec<_> = found
                        .into_iter()
                        .map(|found| StartPartition {
                            slot: AssignmentId(found.at.partition as u32),
                            at: found.at,
                            start: StartAt::Earliest,
                            due: Some(found.offset),
                            leader_epoch: None,
                            topic_id: found.topic_id,
                        })
                        .collect();
                    source.start(&starts).unwrap();
                }
                _ => {}
            }
        }
        source.poll(100, &mut out);
    }
    (source, out)
}
