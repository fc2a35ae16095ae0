//! `sluicegate explain TOPIC/PARTITION[/OFFSET]`.

use std::str::FromStr;

use sluicegate_engine::status::Explanation;
use sluicegate_pool::clock::now_ms;

use super::admin_client::{Admin, segment};
use super::failure::Failure;
use super::output::Output;

/// Arguments of `explain`.
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// Partition or record to explain
    #[arg(value_name = "TOPIC/PARTITION[/OFFSET]")]
    target: Target,
    #[command(flatten)]
    admin: Admin,
    #[command(flatten)]
    output: Output,
}

/// A partition, or one of its records.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    topic: String,
    partition: i32,
    offset: Option<i64>,
}

impl FromStr for Target {
    /// The text that clap prints.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let (topic, partition, offset) = match parts[..] {
            [topic, partition] => (topic, partition, None),
            [topic, partition, offset] => (topic, partition, Some(offset)),
            _ => {
                return Err(
                    "expected TOPIC/PARTITION[/OFFSET], such as flights/3 or flights/3/41970"
                        .to_owned(),
                );
            }
        };
        let partition = partition.parse();
        let offset = offset.map(str::parse).transpose();
        match (topic, partition, offset) {
            ("", ..) => {
                Err("the topic is missing; expected TOPIC/PARTITION, such as flights/3".to_owned())
            }
            (topic, Ok(partition), Ok(offset)) => Ok(Self {
                topic: topic.to_owned(),
                partition,
                offset,
            }),
            _ => Err("partition and offset are numbers, as in flights/3/41970".to_owned()),
        }
    }
}

/// Queries the service and prints its answer.
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let target = &arguments.target;
    let mut path = format!(
        "/api/v1/explain/{}/{}",
        segment(&target.topic),
        target.partition
    );
    if let Some(offset) = target.offset {
        path.push_str(&format!("/{offset}"));
    }
    let explanation: Explanation = arguments.admin.get(&path)?;
    arguments
        .output
        .print(&explanation, |found| found.sentence(now_ms()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_partition_or_a_record() {
        let target = |offset| Target {
            topic: "flights".to_owned(),
            partition: 3,
            offset,
        };
        assert_eq!("flights/3".parse(), Ok(target(None)));
        assert_eq!("flights/3/41970".parse(), Ok(target(Some(41970))));
        for bad in ["flights", "flights/x", "flights/3/x", "/3", "a/1/2/3", ""] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }
}
