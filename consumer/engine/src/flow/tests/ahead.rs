//! What stands behind a refused record is written again once that is acknowledged, in one go and within bounds.

use super::chains::{emitted, key, pass};
use super::*;
use crate::emit::{Delivery, EmitFailure, FailureKind};

/// Takes what was sent and answers those for which `broker` has an answer, one message each; the others stay with the producer.
fn answer_some(
    bench: &mut Bench,
    broker: impl Fn(&str) -> Option<Option<FailureKind>>,
) -> Vec<String> {
    let sent = std::mem::take(&mut *bench.emitter.sent.lock().unwrap());
    let mut texts = Vec::new();
    for (text, way, token) in sent {
        texts.push(text.clone());
        let answer = match broker(&text) {
            None => {
                bench.emitter.sent.lock().unwrap().push((text, way, token));
                continue;
            }
            Some(None) => Delivery::acknowledged(token),
            Some(Some(kind)) => Delivery::failed(
                token,
                EmitFailure {
                    kind,
                    topic: "out".into(),
                    error: "e".into(),
                    remedy: "r".into(),
                },
            ),
        };
        bench.flow.receive(PumpMessage::Delivered(vec![answer]));
    }
    bench.flow.dispatch();
    assert_eq!(bench.flow.broken_queue(), None);
    texts
}

#[test]
fn nothing_is_written_ahead_of_a_record_that_was_refused_again() {
    let mut bench = emitted(6);
    bench.answer(|sent, _| (sent == "out 0.0").then_some(FailureKind::Cluster));
    pass(&mut bench, 100..1_000);
    assert_eq!(bench.answer_producer(), ["out 0.0"]);
    // 1 to 5 are written ahead. Their partitions answer in any order: 3 is refused, 4 and 5 are acknowledged, 1 and 2 are not answered.
    answer_some(&mut bench, |sent| match sent {
        "out 3.0" => Some(Some(FailureKind::Cluster)),
        "out 4.0" | "out 5.0" => Some(None),
        _ => None,
    });
    answer_some(&mut bench, |sent| (sent == "out 1.0").then_some(None));
    let mut with_producer: Vec<String> = bench
        .emitter
        .sent
        .lock()
        .unwrap()
        .iter()
        .map(|one| one.0.clone())
        .collect();
    with_producer.sort();
    assert_eq!(
        with_producer,
        ["out 2.0"],
        "4 and 5 follow once 3 is sent again"
    );
}

/// A cluster that refuses one record in twenty: what each record costs does not grow with the chain.
#[test]
fn copies_do_not_grow_with_the_square_of_the_chain() {
    let mut copies = Vec::new();
    for records in [100, 200, 400, 800] {
        let mut bench = Bench::with(1, 1_000_000);
        for offset in 0..records {
            bench.deliver(offset..offset + 1, key);
            bench.finish_emitting(ACK, 1);
        }
        bench.answer(|_, _| Some(FailureKind::Cluster));
        let (mut now_ms, mut written) = (100, 0);
        let seen = std::cell::Cell::new(0_u64);
        while bench.frontier() < records && now_ms < 10_000_000 {
            pass(&mut bench, now_ms..now_ms + 1_000);
            now_ms += 1_000;
            let sent = bench.answer(|_, _| {
                seen.set(seen.get() + 1);
                seen.get()
                    .is_multiple_of(20)
                    .then_some(FailureKind::Cluster)
            });
            written += sent.len();
        }
        assert_eq!(bench.frontier(), records);
        assert_eq!((bench.flow.held_records(), bench.flow.shipments()), (0, 0));
        copies.push(written as f64 / records as f64);
    }
    assert!(copies[3] < 2.0 * copies[0], "{copies:?}");
}
