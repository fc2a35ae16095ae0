//! Situation: a plugin file is replaced while it is in use. Property: generations coexist, each runs the bytes that were
//! verified, and a dropped generation frees its resources.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::Path;
use std::sync::Arc;

use sluicegate_native::NativeRuntime;
use sluicegate_runtime::{
    CallStatus, CreateRequest, HandlerRuntime, LoadError, LoadedPlugin, VerifiedArtefact,
    outcome_code,
};
use support::{CapturedOutput, built, codes, handle, load, records, try_load};

#[test]
fn a_replaced_file_is_loaded_next_to_the_old_generation() {
    let folder = tempfile::tempdir().unwrap();
    let (file, cache) = (
        folder.path().join("libplugin.so"),
        folder.path().join("cache"),
    );
    std::fs::copy(built("sluicegate-handler-relay"), &file).unwrap();
    let old = try_load(&file, &cache, 1).unwrap();
    let captured: Arc<CapturedOutput> = Arc::default();
    let mut old_instance = old
        .create(CreateRequest::new(
            "relay",
            "a",
            r#"{"topic":"out"}"#,
            captured.clone(),
        ))
        .unwrap();

    let next = folder.path().join("next.so");
    std::fs::copy(built("misbehave"), &next).unwrap();
    std::fs::rename(&next, &file).unwrap();
    let new = try_load(&file, &cache, 2).unwrap();
    assert_eq!(
        (old.identity().name.as_str(), new.identity().name.as_str()),
        ("relay", "misbehave")
    );
    assert_ne!(old.identity().sha256, new.identity().sha256);
    let mut new_instance = new
        .create(CreateRequest::new("misbehave", "b", "{}", captured.clone()))
        .unwrap();

    assert_eq!(
        handle(old_instance.as_mut(), &records(&["x"]))
            .2
            .emits
            .len(),
        1
    );
    assert_eq!(
        handle(new_instance.as_mut(), &records(&["x"]))
            .2
            .emits
            .len(),
        0
    );
    assert_eq!(copies(&cache), 2);
    drop(old_instance);
    old.shutdown(100);
    drop(old);
    assert_eq!(copies(&cache), 1, "the old generation's copy is removed");
    assert_eq!(
        codes(&handle(new_instance.as_mut(), &records(&["x"])).1),
        [outcome_code::ACK]
    );
}

#[test]
fn a_file_with_other_bytes_than_the_accepted_ones_is_neither_copied_nor_mapped() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("libplugin.so");
    let cache = folder.path().join("cache");
    std::fs::copy(built("sluicegate-handler-relay"), &file).unwrap();
    let accepted = NativeRuntime.inspect(&file).unwrap();
    let accepted = VerifiedArtefact::new(&file, &accepted);
    std::fs::copy(built("misbehave"), &file).unwrap();
    let error = NativeRuntime.load(&accepted, &cache, 1).err().unwrap();
    assert!(matches!(error, LoadError::Changed { .. }), "{error}");
    assert!(error.is_retryable());
    assert!(error.to_string().contains("has changed since it was read"));
    assert!(!cache.exists(), "no copy was written");
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let cache = cache.display().to_string();
    assert!(!maps.contains(&cache), "the bytes were mapped");
}

#[test]
fn two_loads_of_the_same_bytes_share_no_state() {
    let path = built("misbehave");
    let config = r#"{"rules":[{"when":{"key":true,"exists":true},"do":"drop","times":1}]}"#;
    let (one, two) = (load(&path), load(&path));
    for loaded in [&one, &two] {
        // The rule counts in a static of the library: each image has its own.
        let mut instance = loaded.create("misbehave", config);
        let (_, outcomes, _) = handle(instance.as_mut(), &records(&["a", "b"]));
        assert_eq!(codes(&outcomes), [outcome_code::DROP, outcome_code::ACK]);
    }
}

#[test]
fn two_hundred_generations_are_loaded_and_freed() {
    let path = built("sluicegate-handler-relay");
    let cache = tempfile::tempdir().unwrap();
    let captured: Arc<CapturedOutput> = Arc::default();
    let before = resident_kib();
    for generation in 1..=200 {
        let plugin: Arc<dyn LoadedPlugin> = try_load(&path, cache.path(), generation).unwrap();
        let worker = {
            let (plugin, captured) = (Arc::clone(&plugin), captured.clone());
            std::thread::spawn(move || {
                let mut relay = plugin
                    .create(CreateRequest::new(
                        "relay",
                        "w",
                        r#"{"topic":"out"}"#,
                        captured,
                    ))
                    .unwrap();
                let (status, outcomes, _) = handle(relay.as_mut(), &records(&["v"]));
                (status, codes(&outcomes))
            })
        };
        assert_eq!(
            worker.join().unwrap(),
            (CallStatus::Usable, vec![outcome_code::ACK])
        );
        plugin.shutdown(100);
    }
    assert_eq!(copies(cache.path()), 0);
    let grown = resident_kib().saturating_sub(before) / 200;
    println!("{grown} KiB of resident memory per generation");
    // Debug images are large; the bound only detects other leaks.
    assert!(grown < 8 * 1024, "{grown} KiB per generation");
}

fn copies(cache: &Path) -> usize {
    std::fs::read_dir(cache.join("native")).unwrap().count()
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
