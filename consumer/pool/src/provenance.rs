//! Provenance headers of emitted records: `emit.provenance` in the service config.

use sluicegate_abi::header_block::{self, Headers};
use sluicegate_engine::dispatch::Batch;
use sluicegate_runtime::RawRecord;

/// `topic/partition/offset` of the input record.
const SOURCE: &[u8] = b"sluicegate.source";
/// `name@version` of the handler.
const HANDLER: &[u8] = b"sluicegate.handler";
/// Fencing token of the assignment.
const EPOCH: &[u8] = b"sluicegate.epoch";
/// Number of the attempt for the input record, counted from 1.
const ATTEMPT: &[u8] = b"sluicegate.attempt";

/// Adds the headers to all records that `batch` emitted. They replace headers of the same names, so that a copied record names
/// the origin of the copy.
pub(super) fn add(batch: &mut Batch, handler: &str) {
    let mut block = Vec::new();
    let emits = &mut batch.output.emits;
    for place in 0..emits.len() {
        let Some(emit) = emits.get(place) else { break };
        let Some(record) = batch.records.get(emit.record as usize) else {
            continue;
        };
        block.clear();
        write(record, handler, emit.to.headers, &mut block);
        emits.set_headers(place, &block);
    }
}

fn write(record: &RawRecord, handler: &str, given: &[u8], block: &mut Vec<u8>) {
    let view = record.view();
    let source = format!("{}/{}/{}", view.topic(), record.partition, record.offset);
    let (epoch, attempt) = (record.epoch.to_string(), record.attempt.to_string());
    let own: [(&[u8], &str); 4] = [
        (SOURCE, &source),
        (HANDLER, handler),
        (EPOCH, &epoch),
        (ATTEMPT, &attempt),
    ];
    let mut headers: Vec<(&[u8], Option<&[u8]>)> = Headers::new(given)
        .filter(|(name, _)| own.iter().all(|(taken, _)| name != taken))
        .collect();
    headers.extend(
        own.iter()
            .map(|(name, value)| (*name, Some(value.as_bytes()))),
    );
    header_block::write(block, headers.into_iter());
}

#[cfg(test)]
mod tests {
    use sluicegate_abi::view::RecordParts;
    use sluicegate_runtime::Emit;

    use super::*;

    #[test]
    fn provenance_headers_replace_those_of_the_input_record() {
        let mut given = Vec::new();
        let headers: [(&[u8], Option<&[u8]>); 3] =
            [(b"a", Some(b"1")), (SOURCE, Some(b"old/0/1")), (b"b", None)];
        header_block::write(&mut given, headers.into_iter());
        let record = RecordParts {
            topic: "flights".to_owned(),
            partition: 3,
            offset: 41,
            epoch: 7,
            attempt: 2,
            ..RecordParts::default()
        };
        let mut batch = Batch::new();
        batch.records.push(record.leaked());
        batch.output.emits.extend([Emit::new(0, "t", None)]);
        batch.output.emits.set_headers(0, &given);
        add(&mut batch, "late@1.2.0");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let seen: Vec<String> =
            Headers::new(batch.output.emits.get(0).expect("it is there").to.headers)
                .map(|(name, value)| {
                    format!("{}={}", text(name), value.map_or("null".into(), text))
                })
                .collect();
        assert_eq!(
            seen,
            [
                "a=1",
                "b=null",
                "sluicegate.source=flights/3/41",
                "sluicegate.handler=late@1.2.0",
                "sluicegate.epoch=7",
                "sluicegate.attempt=2",
            ]
        );
    }
}
