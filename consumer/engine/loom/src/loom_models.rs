//! The models.

use std::sync::Arc;

use loom::sync::Notify;
use loom::thread;
use sluicegate_runtime::Emit;

use crate::dispatch::{HandlerIx, Inbox, PumpMessage, RecordId};
use crate::failure::EmitFailure;
use crate::group::{AckGroup, EmitCounts};
use crate::source::Wake;

/// A pump's sleep: a wake ends it, or else the next one.
struct Sleep(Notify);

impl Wake for Sleep {
    fn wake(&self) {
        self.0.notify();
    }
}

const ENTRY: RecordId = RecordId {
    index: 3,
    serial: 9,
};

#[test]
fn no_message_is_left_lying_while_the_pump_sleeps() {
    loom::model(|| {
        let inbox = Arc::new(Inbox::new());
        let sleep = Arc::new(Sleep(Notify::new()));
        inbox.set_waker(sleep.clone());
        let workers: Vec<_> = (0..2)
            .map(|_| {
                let inbox = inbox.clone();
                thread::spawn(move || inbox.push(PumpMessage::PoolFree))
            })
            .collect();
        let mut received = 0;
        let mut messages = Vec::new();
        while received < 2 {
            inbox.take(&mut messages);
            received += messages.len();
            if messages.is_empty() {
                // Were a wake lost, loom would find the run in which this never ends.
                sleep.0.wait();
            }
            messages.clear();
        }
        workers.into_iter().for_each(|worker| {
            worker.join().expect("a worker ends");
        });
        inbox.take(&mut messages);
        assert!(messages.is_empty());
    });
}

fn emit(topic: &str) -> Emit {
    Emit {
        record: 0,
        topic: topic.to_owned(),
        partition: None,
        timestamp_ms: None,
        key: None,
        value: None,
        headers: Vec::new(),
    }
}

#[test]
fn a_group_is_reported_once_with_its_refusal_and_after_its_batch() {
    loom::model(|| {
        let inbox = Arc::new(Inbox::new());
        let records = vec![emit("a"), emit("a")];
        let group = AckGroup::new(inbox.clone(), HandlerIx(1), ENTRY, records, None);
        let (first, second) = (group.ticket(0), group.ticket(1));
        let acknowledged = thread::spawn(move || first.acknowledged());
        let failed = thread::spawn(move || second.failed(EmitFailure::no_room("a")));
        // The batch itself; the worker's own share keeps the answer behind it.
        inbox.push(PumpMessage::PoolFree);
        group.seal();
        acknowledged.join().expect("the producer's thread ends");
        failed.join().expect("the producer's thread ends");
        let mut messages = Vec::new();
        inbox.take(&mut messages);
        assert_eq!(messages.len(), 2, "one batch, one answer");
        assert!(matches!(messages[0], PumpMessage::PoolFree));
        assert!(matches!(
            &messages[1],
            PumpMessage::Produced { handler: HandlerIx(1), entry: ENTRY, refused: Some(refused) } if refused.first == 1
        ));
    });
}

#[test]
fn what_is_acknowledged_is_counted_before_it_is_reported() {
    loom::model(|| {
        let inbox = Arc::new(Inbox::new());
        let counts = Arc::new(EmitCounts::default());
        let records = vec![emit("alerts")];
        let counted = Some(counts.clone());
        let group = AckGroup::new(inbox.clone(), HandlerIx(1), ENTRY, records, counted);
        let ticket = group.ticket(0);
        let producer = thread::spawn(move || ticket.acknowledged());
        group.seal();
        let mut messages = Vec::new();
        inbox.take(&mut messages);
        if !messages.is_empty() {
            assert_eq!(counts.counts().get("alerts"), Some(&1));
        }
        producer.join().expect("the producer's thread ends");
        inbox.take(&mut Vec::new());
        assert_eq!(counts.counts().get("alerts"), Some(&1));
    });
}
