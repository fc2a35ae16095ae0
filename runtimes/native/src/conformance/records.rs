//! Records that a handler must tolerate: unusual ones that Kafka allows.

use sluicegate_abi::view::RecordParts;

fn record(index: usize) -> RecordParts {
    RecordParts {
        topic: "conformance".into(),
        partition: 3,
        offset: 100 + index as i64,
        timestamp_ms: 1_357_000_000_000,
        lane: index as u64 + 1,
        epoch: 1,
        attempt: 1,
        ..RecordParts::default()
    }
}

type Change = fn(&mut RecordParts);

/// One record per unusual property, with its description.
pub(super) fn unusual() -> Vec<(&'static str, RecordParts)> {
    let kinds: [(&str, Change); 14] = [
        ("null key and null value", |_| {}),
        ("empty key and empty value", |r| {
            (r.key, r.value) = (Some(Vec::new()), Some(Vec::new()));
        }),
        ("a value that is not UTF-8", |r| {
            r.value = Some(vec![0xff, 0xfe, 0x00, 0x80])
        }),
        ("a key that is not UTF-8", |r| {
            r.key = Some(vec![0xc3, 0x28])
        }),
        ("JSON of another shape", |r| {
            r.value = Some(b"[[[{\"a\":[1e400]}]]]".to_vec())
        }),
        ("an empty JSON object", |r| r.value = Some(b"{}".to_vec())),
        ("a JSON number", |r| r.value = Some(b"3".to_vec())),
        ("JSON nested 10,000 deep", |r| {
            r.value = Some(vec![b'['; 10_000])
        }),
        ("a value of 1 MiB", |r| r.value = Some(vec![b'x'; 1 << 20])),
        ("a hundred headers", |r| {
            let names: Vec<String> = (0..100).map(|i| format!("h{i}")).collect();
            r.set_headers(names.iter().map(|name| (name.as_bytes(), Some(&b"v"[..]))));
        }),
        ("repeated headers, null and not UTF-8", |r| {
            let headers: [(&[u8], Option<&[u8]>); 4] = [
                (b"a", None),
                (b"a", Some(b"")),
                (b"", Some(b"x")),
                (b"\xff", Some(b"\xff")),
            ];
            r.set_headers(headers.into_iter());
        }),
        ("no timestamp", |r| r.timestamp_ms = -1),
        ("no lane", |r| r.lane = 0),
        (
            "a later attempt of a later epoch, at the last offset",
            |r| {
                (r.attempt, r.epoch, r.offset) = (7, u64::MAX, i64::MAX - 1);
            },
        ),
    ];
    let build = |(index, (what, change)): (usize, (&'static str, Change))| {
        let mut parts = record(index);
        change(&mut parts);
        (what, parts)
    };
    kinds.into_iter().enumerate().map(build).collect()
}

/// Four records of one lane, with one of another lane between them.
pub(super) fn one_lane() -> Vec<RecordParts> {
    let mut all: Vec<RecordParts> = (0..5).map(record).collect();
    for (index, parts) in all.iter_mut().enumerate() {
        let key = if index == 2 { "other" } else { "same" };
        parts.key = Some(key.into());
        parts.lane = if index == 2 { 2 } else { 1 };
        parts.value = Some(b"{\"amount\":1}".to_vec());
    }
    all
}
