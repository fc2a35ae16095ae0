//! End-to-end tests of the ABI: both sides in one process, so that they also run under Miri.

use std::ptr::NonNull;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::descriptor::{ABI_MAJOR, Descriptor, DescriptorError, FIRST_SIZE, Facts};
use crate::host::{
    CallEnd as HostCallEnd, CallLimits, CallSink, HostSink, InstanceError, LogLine, Module,
    NotTaken,
};
use crate::module::{
    Ptr, RawBytes, RawCall, RawCreate, RawEmit, RawLog, RawMetric, RawPartitionEvent, SizedStruct,
};
use crate::partition::{PartitionChange, PartitionEvent};
use crate::plugin::{Call, CallEnd, Create, EmitResult, Host, Instance, Plugin, Refusal};
use crate::progress::{CancelFlag, OutcomeSlot, SharedProgress};
use crate::record::{
    Fence, ProducerRecord, RawOutcome, RawRecord, RecordPlace, TopicName, outcome_code,
};
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

    fn create(host: Host, create: &Create<'_>) -> Result<Box<dyn Instance>, Refusal> {
        let (instance, config) = (create.instance, create.config);
        match create.handler {
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
                return CallEnd::Poisoned;
            }
            let (name, value) = record.headers().next().unwrap_or((b"none", None));
            let emitted = ProducerRecord {
                topic: std::str::from_utf8(name).unwrap(),
                key: value,
                value: record.value(),
                ..Default::default()
            };
            assert_eq!(call.emit(index, &emitted), EmitResult::Taken);
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

    fn partition(&mut self, event: &PartitionEvent<'_>) -> Result<(), String> {
        match event.partition {
            -1 => panic!("{event:?}"),
            -2 => Err("no state for it".into()),
            _ => {
                self.host.log(2, &format!("{event:?}"));
                Ok(())
            }
        }
    }

    fn drain(&mut self, deadline: Duration) -> Result<(), String> {
        match deadline.is_zero() {
            true => Err("one is left".into()),
            false => Ok(()),
        }
    }

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
    fn log(&self, line: &LogLine<'_>) {
        let LogLine {
            level,
            target,
            message,
            fields,
        } = line;
        let text = format!("{level} {target} {message} {fields}");
        self.0
            .lock()
            .unwrap()
            .push(text.replace("  ", " ").trim().into());
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
    fn emit(&mut self, record: u32, e: &ProducerRecord<'_>) -> EmitResult {
        self.emits.push((
            record,
            e.topic.into(),
            e.key.map(Into::into),
            e.value.map(Into::into),
        ));
        EmitResult::Taken
    }

    fn detail(&mut self, text: &str) -> u32 {
        self.details.push(text.into());
        self.details.len() as u32
    }
}

fn create<'a>(handler: &'a str, config: &'a str) -> Create<'a> {
    Create {
        handler,
        instance: "echo-1",
        config,
        worker: 3,
        generation: 1 << 40,
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
        .create(captured.clone(), &create("echo", ""))
        .ok()
        .unwrap();
    let parts = [
        record(b"one"),
        record(b"two"),
        record(b"panic"),
        record(b"four"),
    ];
    let records = BorrowedRecords::new(&parts);
    let (progress, cancel) = (SharedProgress::new(8), CancelFlag::default());
    let limits = CallLimits::default();
    let mut output = Collected::default();
    let end = instance.handle(&records, 1, limits, &cancel, &progress, &mut output);
    assert_eq!(end, HostCallEnd::Poisoned);
    assert_eq!(progress.current(), Some((1, 2)));
    let mut seen = Vec::new();
    assert!(!progress.read(2, &mut seen));
    assert!(progress.read(1, &mut seen));
    let mut outcomes = [RawOutcome::default(); 4];
    progress.close(&mut outcomes);
    assert_eq!(seen, outcomes);
    assert_eq!(progress.current(), None);
    assert_eq!(outcomes.map(|o| o.code), [1, 1, outcome_code::PANICKED, 0]);
    assert_eq!((outcomes[0].arg, outcomes[2].detail), (7, 1));
    assert_eq!(output.details, ["said so"]);
    assert_eq!(
        output.emits[1],
        (1, "out".into(), Some(b"k".to_vec()), Some(b"two".to_vec()))
    );
    let again = instance.handle(&records, 2, limits, &cancel, &progress, &mut output);
    assert_eq!(
        again,
        HostCallEnd::Poisoned,
        "a poisoned instance is not called again"
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
    let make =
        |handler: &str, config: &str| module.create(captured.clone(), &create(handler, config));
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
    let event = |partition| PartitionEvent {
        change: PartitionChange::Lost,
        topic: "t",
        partition,
        epoch: 1 << 40,
        start_offset: Some(0),
        deadline: Some(Duration::from_micros(1)),
    };
    assert_eq!(instance.partition(&event(0)), Ok(()));
    let told = PartitionEvent {
        deadline: Some(Duration::from_millis(1)),
        ..event(0)
    };
    let logs = captured.0.lock().unwrap().clone();
    assert_eq!(logs.last(), Some(&format!("2 {told:?}")));
    let refused = InstanceError::Failed("no state for it".into());
    assert_eq!(instance.partition(&event(-2)), Err(refused));
    let refused = InstanceError::Failed("one is left".into());
    assert_eq!(instance.drain(0), Err(refused));
    assert_eq!(instance.drain(1), Ok(()));
    let panicked = instance.partition(&event(-1)).unwrap_err();
    assert!(
        matches!(&panicked, InstanceError::Panicked(text) if text.contains("partition: -1")),
        "{panicked:?}"
    );
    assert!(matches!(
        instance.health(),
        Err(InstanceError::Panicked(text)) if text.contains("panicked earlier")
    ));
    assert_eq!(module.describe(), Ok("{}".into()));
    assert!(module.shutdown(0));
}

#[test]
fn a_new_config_is_applied_or_refused_and_a_panic_in_it_poisons_the_instance() {
    let module = Module::of::<Echo>();
    let mut instance = module
        .create(Arc::new(CapturedOutput::default()), &create("echo", ""))
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
    let Err(NotTaken::Poisoned(text)) = instance.reconfigure("panic") else {
        panic!("it must be poisoned")
    };
    assert!(text.starts_with("no change ("), "{text}");
    assert!(matches!(
        instance.reconfigure(""),
        Err(NotTaken::Poisoned(text)) if text.contains("panicked earlier")
    ));
}

#[test]
fn another_thread_reads_a_running_call() {
    let progress = Arc::new(SharedProgress::new(4));
    progress.open(9, 3);
    let writer = Arc::clone(&progress);
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
    while progress.read(9, &mut seen) {
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
    assert_eq!(size, FIRST_SIZE, "the layout is frozen");
    let longer = [bytes, &[1; 40]].concat();
    assert_eq!(Facts::read(&longer).unwrap(), facts, "of a later minor");
}

/// Of the only partition.
static FENCE: Fence = Fence::new();
/// Acknowledges what may start, and has the partition revoked by the second record.
struct Fenced;
impl Instance for Fenced {
    fn handle(&mut self, call: &Call<'_>) -> CallEnd {
        let ack = RawOutcome {
            code: outcome_code::ACK,
            ..Default::default()
        };
        for index in (0..call.len()).filter(|&index| call.may_start(&call.record(index))) {
            call.settle(index, ack);
            match call.record(index).value() {
                Some(b"lost") => FENCE.close(7),
                Some(b"another's") => FENCE.close(6),
                _ => {}
            }
        }
        assert_eq!(call.record_timeout(), Some(Duration::from_millis(9)));
        CallEnd::Usable
    }
    fn health(&mut self) -> Result<(), String> {
        Ok(())
    }
    fn partition(&mut self, _: &PartitionEvent<'_>) -> Result<(), String> {
        Ok(())
    }
    fn drain(&mut self, _: Duration) -> Result<(), String> {
        Ok(())
    }
    fn reconfigure(&mut self, _: &str) -> Result<(), Refusal> {
        Ok(())
    }
}
impl Plugin for Fenced {
    fn describe() -> String {
        String::new()
    }
    fn create(_: Host, create: &Create<'_>) -> Result<Box<dyn Instance>, Refusal> {
        assert_eq!((create.worker, create.generation), (3, 1 << 40));
        Ok(Box::new(Fenced))
    }
    fn shutdown(_: Duration) {}
    fn extension(name: &str, version: u32) -> *const () {
        match (name, version) {
            ("fences", 2) => (&raw const FENCE).cast(),
            _ => std::ptr::null(),
        }
    }
}

fn fenced(values: &[&'static [u8]]) -> Vec<RawRecord> {
    let place = RecordPlace {
        topic: TopicName::plain("t"),
        partition: 0,
        offset: 0,
        timestamp_ms: 0,
        epoch: 7,
        fence: Some(&FENCE),
    };
    let values = values.iter();
    // SAFETY: the values and the topic's name are static.
    let records = values.map(|value| unsafe { RawRecord::new(place, (None, Some(value), &[])) });
    records.collect()
}

#[test]
fn a_record_may_start_until_its_partition_is_revoked_or_the_call_is_stopped() {
    let module = Module::of::<Fenced>();
    assert_eq!(
        module.extension("fences", 2),
        Some(NonNull::from(&FENCE).cast())
    );
    assert_eq!(module.extension("fences", 1), None);
    let host = Arc::new(CapturedOutput::default());
    let mut instance = module.create(host, &create("fenced", "")).ok().unwrap();
    let limits = CallLimits {
        timeout_ms: 0,
        record_timeout_ms: 9,
    };
    let progress = SharedProgress::new(8);
    let mut codes = |records: &[RawRecord], cancel: &CancelFlag| {
        let mut output = Collected::default();
        instance.handle(records, 1, limits, cancel, &progress, &mut output);
        let mut outcomes = vec![RawOutcome::default(); records.len()];
        progress.close(&mut outcomes);
        outcomes.iter().map(|o| o.code).collect::<Vec<_>>()
    };
    let cancel = CancelFlag::default();
    assert_eq!(codes(&fenced(&[b"a"]), &cancel), [0], "not assigned yet");
    FENCE.admit(7);
    let some = fenced(&[b"a", b"another's", b"lost", b"b"]);
    assert_eq!(codes(&some, &cancel), [1, 1, 1, 0]);
    FENCE.admit(8);
    assert_eq!(codes(&some, &cancel), [0; 4], "of an earlier assignment");
    FENCE.admit(7);
    cancel.stop();
    assert_eq!(codes(&some, &cancel), [0; 4], "stopped");
}

#[test]
fn a_struct_of_another_minor_is_read_as_far_as_both_sides_know_it() {
    /// As in a first minor.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct First {
        size: u32,
        a: u32,
    }
    /// As in a later one.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Later {
        size: u32,
        a: u32,
        b: u64,
    }
    // SAFETY: `repr(C)`, integers, and the size is the first.
    unsafe impl SizedStruct for First {
        const FIRST_SIZE: usize = 8;
    }
    // SAFETY: as above.
    unsafe impl SizedStruct for Later {
        const FIRST_SIZE: usize = 8;
    }
    fn passed<A: SizedStruct, B: SizedStruct>(value: &A) -> Option<B> {
        // SAFETY: the receiver's type is another minor of the same struct, which lives here.
        unsafe { std::mem::transmute::<Ptr<A>, Ptr<B>>(Ptr::of(value)).read() }
    }
    let first = First { size: 8, a: 5 };
    let later = Later {
        size: 16,
        a: 5,
        b: 6,
    };
    assert_eq!(passed(&later), Some(later));
    assert_eq!(
        passed(&first),
        Some(Later {
            size: 8,
            a: 5,
            b: 0
        })
    );
    assert_eq!(passed(&later), Some(First { size: 16, a: 5 }));
    assert_eq!(passed::<_, Later>(&First { size: 4, a: 5 }), None);
}

/// Offsets, sizes and alignments of what crosses the boundary behind a pointer, which `abi_stable` does not check. They may only be
/// appended to: docs/reference/abi.md.
#[test]
fn the_layout_of_structs_is_frozen() {
    macro_rules! layout {
        ($name:ident: $($field:ident)+) => {{
            let fields = [$((stringify!($field), std::mem::offset_of!($name, $field))),+];
            let fields = fields.map(|(field, offset)| format!("{field} {offset}"));
            format!("{} {}: {}", stringify!($name), size_of::<$name>(), fields.join(", "))
        }};
    }
    let layouts = [
        layout!(RawBytes: ptr len),
        layout!(RawRecord: topic key value headers topic_len key_len value_len headers_len offset timestamp_ms lane epoch
            fence partition attempt flags reserved),
        layout!(RawOutcome: code flags detail arg),
        layout!(RawCall: size count record_stride reserved records outcomes progress cancelled output serial timeout_ms
            record_timeout_ms),
        layout!(RawCreate: size worker generation handler instance config),
        layout!(RawEmit: size record flags partition timestamp_ms topic key value headers),
        layout!(RawPartitionEvent: size kind partition reserved epoch start_offset deadline_ms topic),
        layout!(RawLog: size level target message fields),
        layout!(RawMetric: size kind name value),
    ];
    let page = include_str!("../../../docs/reference/abi.md");
    for layout in layouts {
        assert!(
            page.contains(&layout),
            "docs/reference/abi.md lacks: {layout}"
        );
    }
    assert_eq!(size_of::<OutcomeSlot>(), size_of::<RawOutcome>());
    let code = RawOutcome {
        code: 0x0102,
        flags: 0x0304,
        detail: 0x0506_0708,
        arg: 9,
    };
    let slot = OutcomeSlot::default();
    slot.store(code);
    // SAFETY: both are 16 bytes without padding; a slot is what plugins in other languages write an outcome to.
    let outcome = unsafe { std::mem::transmute::<OutcomeSlot, RawOutcome>(slot) };
    assert_eq!(outcome, code);
}
