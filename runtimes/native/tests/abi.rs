//! Situation: plugins that were built with this ABI, with one function less and with one more. Property: those of this and of an earlier
//! minor load and work, those of a later one are refused (`docs/reference/abi.md`).
//!
//! `cargo xtask abi-plugins` has built them; they are not built again, so that they stay what a released minor has accepted.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::{Path, PathBuf};
use std::time::Duration;

use object::{Object, ObjectSection, ObjectSymbol};
use sluicegate_abi::descriptor::DESCRIPTOR_SYMBOL;
use sluicegate_runtime::{
    CallStatus, InstanceError, LoadError, NotTaken, PartitionChange, PartitionEvent, outcome_code,
};
use support::{codes, handle, load, records, try_load};

fn kept(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/binaries");
    folder.join(format!("lib{name}.so"))
}

fn refusal(path: &Path) -> (&'static str, String) {
    let cache = tempfile::tempdir().unwrap();
    let loaded = try_load(path, cache.path(), 1);
    match loaded.err().expect("it is refused") {
        LoadError::Refused { gate, source, .. } => (gate, source.to_string()),
        other => ("another gate", other.to_string()),
    }
}

#[test]
fn plugins_of_this_and_an_earlier_minor_load_and_all_functions_work() {
    for name in ["abi-1.0", "abi-less"] {
        let loaded = load(&kept(name));
        assert_eq!(loaded.plugin.identity().abi, "1.0", "{name}");
        let mut instance = loaded.create("abi-copies", r#"{"topic":"out"}"#);
        let event = |change, partition| PartitionEvent {
            change,
            topic: "in",
            partition,
            epoch: 1 << 40,
            start_offset: Some(7),
            deadline: Some(Duration::from_secs(1)),
        };
        let assigned = event(PartitionChange::Assigned, 3);
        assert_eq!(instance.partition(&assigned), Ok(()), "{name}");
        let refused = instance.partition(&event(PartitionChange::Assigned, 99));
        assert_eq!(refused, Err(InstanceError::Failed("not this one".into())));
        let (status, outcomes, output) = handle(instance.as_mut(), &records(&["a", "drop"]));
        assert_eq!(status, CallStatus::Usable, "{name}");
        assert_eq!(codes(&outcomes), [outcome_code::ACK, outcome_code::DROP]);
        assert_eq!(output.details, ["as it says"]);
        let copies: Vec<_> = (output.emits.iter())
            .map(|emit| (emit.record, emit.to.topic, emit.to.key, emit.to.value))
            .collect();
        assert_eq!(
            copies,
            [
                (0, "out", Some(&b"k0"[..]), Some(&b"a"[..])),
                (1, "out", Some(&b"k1"[..]), Some(&b"drop"[..]))
            ]
        );
        assert_eq!(instance.health(), Ok(()));
        assert_eq!(instance.reconfigure(r#"{"topic":"unhealthy"}"#), Ok(()));
        let why = InstanceError::Failed("as its config says".into());
        assert_eq!(instance.health(), Err(why));
        let refused = instance.reconfigure("{}");
        assert_eq!(refused, Err(NotTaken::Refused("name a topic".into())));
        assert_eq!(instance.partition(&event(PartitionChange::Lost, 3)), Ok(()));
        assert_eq!(instance.drain(100), Ok(()));
        drop(instance);
        loaded.plugin.shutdown(100);
        assert_eq!(
            loaded.captured.text(),
            "Info: worker 0 of generation 1\nInfo: Assigned in/3 1099511627776\n\
             Info: Assigned in/99 1099511627776\nCounter copies 1\nCounter copies 1\n\
             Info: Lost in/3 1099511627776",
            "{name}"
        );
    }
}

#[test]
fn a_plugin_of_a_later_minor_is_refused_also_if_it_does_not_say_so() {
    let later = kept("abi-more");
    let (gate, reason) = refusal(&later);
    assert_eq!(gate, "descriptor", "{reason}");
    assert!(reason.contains("newer than this service's 1.0"), "{reason}");
    // With the minor of this service in its descriptor.
    let mut bytes = std::fs::read(&later).unwrap();
    let file = object::File::parse(bytes.as_slice()).unwrap();
    let symbol = file
        .dynamic_symbols()
        .find(|symbol| symbol.name() == Ok(DESCRIPTOR_SYMBOL))
        .unwrap();
    let section = file.section_by_index(symbol.section_index().unwrap());
    let section = section.unwrap();
    let (start, _) = section.file_range().unwrap();
    let minor = (start + symbol.address() - section.address()) as usize + 14;
    bytes[minor..minor + 2].copy_from_slice(&0_u16.to_ne_bytes());
    let folder = tempfile::tempdir().unwrap();
    let silent = folder.path().join("libsilent.so");
    std::fs::write(&silent, bytes).unwrap();
    let (gate, reason) = refusal(&silent);
    assert_eq!(gate, "layout", "{reason}");
}
