//! Situation: generations share loaded code and end in any order. Property: it ends once it has no user and none of its
//! instances is left.

use std::sync::LazyLock;

use sluicegate_abi::partition::PartitionEvent;
use sluicegate_abi::plugin::{Call, CallEnd, Create, Host, Instance, Plugin, Refusal};
use sluicegate_runtime::{CreateRequest, HandlerInstance, HostServices, LoadedPlugin};
use sluicegate_runtime::{LogLine, MetricKind};

use super::*;
use crate::plugin::NativePlugin;

/// The tests share the counter of shutdowns, a static of the code.
static ALONE: Mutex<()> = Mutex::new(());
static SHUT_DOWN: AtomicU32 = AtomicU32::new(0);
/// Whether a shutdown panics.
static FAILS: AtomicU32 = AtomicU32::new(0);

struct Probe;

impl Plugin for Probe {
    fn describe() -> String {
        r#"{"handlers":[{"name":"probe","config_schema":{}}]}"#.into()
    }
    fn create(_: Host, _: &Create<'_>) -> Result<Box<dyn Instance>, Refusal> {
        Ok(Box::new(Probe))
    }
    fn shutdown(_: Duration) {
        SHUT_DOWN.fetch_add(1, Ordering::SeqCst);
        assert_eq!(FAILS.load(Ordering::SeqCst), 0, "on purpose");
    }
}

impl Instance for Probe {
    fn handle(&mut self, _: &Call<'_>) -> CallEnd {
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

struct Silent;

impl HostServices for Silent {
    fn log(&self, _: &LogLine<'_>) {}
    fn metric(&self, _: MetricKind, _: &str, _: f64) {}
}

fn identity() -> PluginIdentity {
    PluginIdentity {
        name: "probe".to_owned(),
        version: "1.0.0".to_owned(),
        handlers: vec!["probe".to_owned()],
        abi: "1.0".to_owned(),
        toolchain: "test".to_owned(),
        sha256: "00".to_owned(),
    }
}

/// A slot whose code is mapped, and a user of it.
struct Mapped(SharedSlot);

impl Mapped {
    fn new() -> Self {
        SHUT_DOWN.store(0, Ordering::SeqCst);
        FAILS.store(0, Ordering::SeqCst);
        Self(Arc::new(Mutex::new(Slot {
            state: State::Mapped(identity(), Module::of::<Probe>()),
            copy: Weak::new(),
        })))
    }

    fn load(&self) -> Result<NativePlugin, LoadError> {
        let artefact = VerifiedArtefact::new(Path::new("/not/there.so"), &identity());
        NativePlugin::in_slot(Arc::clone(&self.0), &artefact, Path::new("/not/there"), 1)
    }
}

fn create(plugin: &NativePlugin) -> Box<dyn HandlerInstance> {
    static SILENT: LazyLock<Arc<dyn HostServices>> = LazyLock::new(|| Arc::new(Silent));
    let request = CreateRequest::new("probe", "probe-0", "{}", Arc::clone(&SILENT));
    plugin.create(request).unwrap()
}

fn shut_down() -> u32 {
    SHUT_DOWN.load(Ordering::SeqCst)
}

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn code_is_shut_down_with_its_last_user_and_used_again_afterwards() {
    let _alone = alone();
    let mapped = Mapped::new();
    let (one, two) = (mapped.load().unwrap(), mapped.load().unwrap());
    drop(create(&one));
    one.shutdown(100);
    assert_eq!(shut_down(), 0, "another generation uses it");
    drop(one);
    two.shutdown(100);
    two.shutdown(100);
    assert_eq!(shut_down(), 1, "once, however often it is asked for");
    let three = mapped.load().unwrap();
    drop(create(&three));
    let unused = mapped.load().unwrap();
    drop(unused);
    three.shutdown(100);
    assert_eq!(
        shut_down(),
        2,
        "a user that was only dropped does not count"
    );
}

#[test]
fn users_of_loaded_code_cost_no_thread() {
    let _alone = alone();
    let mapped = Mapped::new();
    let first = mapped.load().unwrap();
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let before = threads();
    let many: Vec<_> = (0..200).map(|_| mapped.load().unwrap()).collect();
    assert!(threads() < before + 100, "{} threads", threads());
    drop((many, first));
    assert_eq!(shut_down(), 0, "none of them has had an instance");
}

#[test]
fn code_with_an_instance_on_an_abandoned_thread_is_not_shut_down() {
    let _alone = alone();
    let mapped = Mapped::new();
    let (hung, later) = (mapped.load().unwrap(), mapped.load().unwrap());
    let instance = create(&hung);
    hung.shutdown(100);
    later.shutdown(100);
    assert_eq!(shut_down(), 0, "an instance is left");
    drop((hung, instance));
    assert_eq!(shut_down(), 1, "the instance has come back");
    mapped.load().unwrap().shutdown(100);
    assert_eq!(shut_down(), 1, "it has had no instance since");
}

#[test]
fn code_whose_shutdown_failed_is_not_used_again() {
    let _alone = alone();
    let mapped = Mapped::new();
    let one = mapped.load().unwrap();
    drop(create(&one));
    FAILS.store(1, Ordering::SeqCst);
    one.shutdown(100);
    // The file would have to be read again.
    let error = mapped.load().err().unwrap();
    assert!(matches!(error, LoadError::Unreadable { .. }), "{error}");
}

#[test]
fn code_that_is_late_is_taken_over_once_it_answers_and_not_opened_again() {
    let _alone = alone();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let slow = ControlThread::start("slow").unwrap();
    let opened = slow.begin(Duration::ZERO, move || {
        let _ = wait.recv();
        let module = Module::of::<Probe>();
        Ok((module, module.describe()))
    });
    let Ok(Answered::Late(answer)) = opened else {
        panic!("it has answered already");
    };
    let mapped = Mapped::new();
    lock(&mapped.0).state = State::Pending(identity(), answer);
    for _ in 0..3 {
        let reason = mapped.load().err().unwrap().to_string();
        assert!(reason.contains("did not describe itself"), "{reason}");
    }
    go.send(()).unwrap();
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while mapped.load().is_err() {
        assert!(std::time::Instant::now() < end, "its answer is lost");
        std::thread::yield_now();
    }
}

#[test]
fn what_is_refused_for_good_is_refused_without_reading_the_file() {
    let mapped = Mapped::new();
    lock(&mapped.0).state = State::Refused {
        gate: "layout",
        why: "its type layout differs".to_owned(),
    };
    let reason = mapped.load().err().unwrap().to_string();
    assert_eq!(
        reason,
        "plugin `/not/there.so` failed its layout check: its type layout differs"
    );
}

/// As when a spec of the same file is refused before it has an instance, just while the last generation is released.
#[test]
fn code_is_shut_down_although_its_last_user_was_refused() {
    let _alone = alone();
    let mapped = Mapped::new();
    let (served, refused) = (mapped.load().unwrap(), mapped.load().unwrap());
    drop(create(&served));
    served.shutdown(100);
    drop(served);
    drop(refused);
    assert_eq!(shut_down(), 1);
}
