//! The models.

use std::sync::Arc;

use loom::sync::Notify;
use loom::thread;

use crate::dispatch::{Inbox, PumpMessage};
use crate::source::Wake;

/// A pump's sleep: a wake ends it, or else the next one.
struct Sleep(Notify);

impl Wake for Sleep {
    fn wake(&self) {
        self.0.notify();
    }
}

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
