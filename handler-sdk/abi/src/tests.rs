//! End-to-end tests of the ABI: both sides in one process, so that they also run under Miri.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::board::{Board, CancelFlag};
use crate::descriptor::{ABI_MAJOR, Descriptor, DescriptorError, Facts};
use crate::host::{CallEnd as HostCallEnd, CallSink, HostSink, InstanceError, Module, NotTaken};
use crate::plugin::{Call, CallEnd, Emission, Host, Instance, Plugin, Refusal};
use crate::record::{RawOutcome, outcome_code};
use crate::view::{BorrowedRecords, RecordParts};

struct Echo;

struct EchoInstance {
    host: Host,
    config: String,
}

impl Plugin for Echo {
    fn describe() -> String {
        "{}".into()
    }

    fn create(
        host: Host,
        handler: &str,
        instance: &str,
        config: &str,
    ) -> Result<Box<dyn Instance>, Refusal> {
        match handler {
            "echo" if config == "bad" => Err(Refusal::Config("not that one".into())),
            "echo" if config == "panic" => panic!("no start"),
            "echo" => {
                host.log(2, &format!("{instance} starts"));
                Ok(Box::new(EchoInstance {
                    host,
                    config: config.into(),
                }))
            }
            _ => Err(Refusal::Unknown),
        }
    }

    fn shutdown(_: Duration) {}
}

impl Instance for EchoInstance {
    fn handle(&mut self, call: &Call<'_>) -> CallEnd {
        for index in 0..call.len() {
            call.reached(index);
            let record = call.record(index);
            if record.value() == Some(b"panic") {
                let detail = call.detail("said so");
                call.settle(
                    index,
                    RawOutcome {
                        code: outcome_code::PANICKED,
                        detail,
                        ..Default::default()
                    },
                );
                return CallEnd::Spent;
            }
            let (name, value) = record.headers().next().unwrap_or((b"none", None));
            assert!(call.emit(
                index,
                &Emission {
                    topic: std::str::from_utf8(name).unwrap(),
                    key: value,
                    value: record.value(),
                    ..Default::default()
                }
            ));
            self.host.metric(0, "seen", 1.0);
            call.settle(
                index,
                RawOutcome {
                    code: outcome_code::ACK,
                    arg: 7,
                    ..Default::default()
                },
            );
        }
        CallEnd::Usable
    }

    fn health(&mut self) -> Result<(), String> {
        if self.config == "unhealthy" {
            Err("connection lost".into())
        } else {
            Ok(())
        }
    }

    fn assigned(&mut self, topic: &str, partition: i32, epoch: u32) {
        assert!(partition >= 0, "{topic}/{partition} of epoch {epoch}");
    }

    fn revoked(&mut self, _: &str, _: i32, _: u32) {}

    fn drain(&mut self, _: Duration) {}

    fn reconfigure(&mut self, config: &str) -> Result<(), Refusal> {
        match config {
            "bad" => return Err(Refusal::Config("not that one".into())),
            "later" => return Err(Refusal::Failed("not now".into())),
            "panic" => panic!("no change"),
            _ => {}
        }
        self.config = config.into();
        Ok(())
    }
}

impl Drop for EchoInstance {
    fn drop(&mut self) {
        assert!(self.config != "bad drop", "dropped badly");
    }
}

#[derive(Default)]
struct CapturedOutput(Mutex<Vec<String>>);

impl HostSink for CapturedOutput {
    fn log(&self, level: u32, message: &str) {
        self.0.lock().unwrap().push(format!("{level} {message}"));
    }

    fn metric(&self, kind: u32, name: &str, value: f64) {
        self.0
            .lock()
            .unwrap()
            .push(format!("{kind} {name} {value}"));
    }
}

type Emitted = (u32, String, Option<Vec<u8>>, Option<Vec<u8>>);

#[derive(Default)]
struct Collected {
    emits: Vec<Emitted>,
    details: Vec<String>,
}

impl CallSink for Collected {
    fn emit(&mut self, record: u32, e: &Emission<'_>) -> bool {
        self.emits.push((
            record,
            e.topic.into(),
            e.key.map(Into::into),
            e.value.map(Into::into),
        ));
        true
    }

    fn detail(&mut self, text: &str) -> u32 {
        self.details.push(text.into());
        self.details.len() as u32
    }
}

fn record(value: &[u8]) -> RecordParts {
    let mut parts = RecordParts {
        topic: "in".into(),
        value: Some(value.to_vec()),
        ..Default::default()
    };
    parts.set_headers([(&b"out"[..], Some(&b"k"[..]))].into_iter());
    parts
}

#[test]
fn a_call_crosses_the_boundary_and_comes_back() {
    let captured = Arc::new(CapturedOutput::default());
    let mut instance = Module::of::<Echo>()
        .create(captured.clone(), "echo", "echo-1", "")
        .ok()
        .unwrap();
    let parts = [
        record(b"one"),
        record(b"two"),
        record(b"panic"),
        record(b"four"),
    ];
    let records = BorrowedRecords::new(&parts);
    let (board, cancel) = (Board::new(8), CancelFlag::default());
    let mut output = Collected::default();
    let end = instance.handle(&records, 1, 0, &cancel, &board, &mut output);
    assert_eq!(end, HostCallEnd::Spent);
    assert_eq!(board.current(), Some((1, 2)));
    let mut seen = Vec::new();
    assert!(!board.read(2, &mut seen));
    assert!(board.read(1, &mut seen));
    let mut outcomes = [RawOutcome::default(); 4];
    board.close(&mut outcomes);
    assert_eq!(seen, outcomes);
    assert_eq!(board.current(), None);
    assert_eq!(outcomes.map(|o| o.code), [1, 1, outcome_code::PANICKED, 0]);
    assert_eq!((outcomes[0].arg, outcomes[2].detail), (7, 1));
    assert_eq!(output.details, ["said so"]);
    assert_eq!(
        output.emits[1],
        (1, "out".into(), Some(b"k".to_vec()), Some(b"two".to_vec()))
    );
    let again = instance.handle(&records, 2, 0, &cancel, &board, &mut output);
    assert_eq!(
        again,
        HostCallEnd::Spent,
        "a spent instance is not called again"
    );
    assert!(instance.health().is_err());
    drop(instance);
    assert_eq!(
        *captured.0.lock().unwrap(),
        ["2 echo-1 starts", "0 seen 1", "0 seen 1"]
    );
    assert_eq!(
        Arc::strong_count(&captured),
        1,
        "the plugin released the host"
    );
}

#[test]
fn refusals_and_panics_outside_calls_become_errors() {
    let module = Module::of::<Echo>();
    let captured = Arc::new(CapturedOutput::default());
    let make = |handler: &str, config: &str| module.create(captured.clone(), handler, "i", config);
    assert_eq!(make("other", "").err(), Some(Refusal::Unknown));
    assert_eq!(
        make("echo", "bad").err(),
        Some(Refusal::Config("not that one".into()))
    );
    let Some(Refusal::Failed(text)) = make("echo", "panic").err() else {
        panic!("it must fail")
    };
    assert!(
        text.starts_with("it panicked: no start (") && text.contains("tests.rs:"),
        "{text}"
    );
    assert_eq!(
        make("echo", "unhealthy").ok().unwrap().health(),
        Err(InstanceError::Failed("connection lost".into()))
    );
    assert!(
        make("echo", "bad drop")
            .ok()
            .unwrap()
            .destroy()
            .unwrap_err()
            .to_string()
            .starts_with("dropped badly")
    );
    drop(make("echo", "bad drop"));
    let mut instance = make("echo", "").ok().unwrap();
    assert_eq!(instance.assigned("t", 0, 1), Ok(()));
    assert!(
        instance
            .assigned("t", -1, 1)
            .unwrap_err()
            .to_string()
            .starts_with("t/-1 of epoch 1")
    );
    assert!(matches!(
        instance.health(),
        Err(InstanceError::Panicked(text)) if text.contains("panicked earlier")
    ));
    assert_eq!(module.describe(), Ok("{}".into()));
    assert!(module.shutdown(0));
}

#[test]
fn a_new_config_is_applied_or_refused_and_a_panic_in_it_spends_the_instance() {
    let module = Module::of::<Echo>();
    let mut instance = module
        .create(Arc::new(CapturedOutput::default()), "echo", "i", "")
        .ok()
        .unwrap();
    assert_eq!(instance.reconfigure("unhealthy"), Ok(()));
    let lost = Err(InstanceError::Failed("connection lost".into()));
    assert_eq!(instance.health(), lost);
    for (config, refusal) in [
        ("bad", Refusal::Config("not that one".into())),
        ("later", Refusal::Failed("not now".into())),
    ] {
        let refused = instance.reconfigure(config);
        assert_eq!(refused, Err(NotTaken::Refused(refusal)));
        assert_eq!(instance.health(), lost, "the previous config");
    }
    let Err(NotTaken::Spent(text)) = instance.reconfigure("panic") else {
        panic!("it must be spent")
    };
    assert!(text.starts_with("no change ("), "{text}");
    assert!(matches!(
        instance.reconfigure(""),
        Err(NotTaken::Spent(text)) if text.contains("panicked earlier")
    ));
}

#[test]
fn another_thread_reads_a_running_call() {
    let board = Arc::new(Board::new(4));
    board.open(9, 3);
    let writer = Arc::clone(&board);
    let call = std::thread::spawn(move || {
        for (i, slot) in writer.slots().iter().take(3).enumerate() {
            slot.store(RawOutcome {
                code: 1,
                flags: 0,
                detail: 5,
                arg: i as u64 + 1,
            });
        }
        let mut all = [RawOutcome::default(); 3];
        writer.close(&mut all);
        all
    });
    let mut seen = Vec::new();
    while board.read(9, &mut seen) {
        for (i, outcome) in seen.drain(..).enumerate() {
            let whole = RawOutcome {
                code: 1,
                flags: 0,
                detail: 5,
                arg: i as u64 + 1,
            };
            assert!(outcome.code == 0 || outcome == whole, "{outcome:?} is torn");
        }
    }
    assert_eq!(call.join().unwrap()[2].arg, 3);
}

#[test]
fn a_descriptor_reads_back_from_its_bytes() {
    let descriptor = Descriptor::new("orders", "1.2.3", "abc", "orders\nreturns", true);
    let size = size_of::<Descriptor>();
    // SAFETY: the struct is made of integers and byte arrays and has no padding.
    let bytes = unsafe { std::slice::from_raw_parts((&raw const descriptor).cast::<u8>(), size) };
    let facts = Facts::read(bytes).unwrap();
    assert_eq!(
        (facts.name.as_str(), facts.version.as_str()),
        ("orders", "1.2.3")
    );
    assert_eq!((facts.abi_major, facts.panic_unwind), (ABI_MAJOR, true));
    assert_eq!(facts.handlers, ["orders", "returns"]);
    assert!(facts.rustc.starts_with("rustc ") && facts.target.contains('-'));
    assert_eq!(Facts::read(&bytes[..size - 1]), Err(DescriptorError::Short));
    assert_eq!(Facts::read(&[b'x'; 2000]), Err(DescriptorError::Magic));
    assert_eq!(size, 1332, "the layout is frozen");
}
