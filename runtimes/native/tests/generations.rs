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
    build(&file, "sluicegate-handler-relay", "old");
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
    build(&next, "misbehave", "new");
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
    let accepted = accepted(&file);
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
fn two_loads_of_the_same_bytes_share_their_static_state() {
    let folder = tempfile::tempdir().unwrap();
    let (path, config) = (folder.path().join("libplugin.so"), ONCE);
    build(&path, "misbehave", "shared");
    let (one, two) = (load(&path), load(&path));
    let expected = [outcome_code::DROP, outcome_code::ACK, outcome_code::ACK];
    let mut found = Vec::new();
    for (loaded, values) in [(&one, &["a", "b"][..]), (&two, &["a"])] {
        let mut instance = loaded.create("misbehave", config);
        let (_, outcomes, _) = handle(instance.as_mut(), &records(values));
        found.extend(codes(&outcomes));
    }
    assert_eq!(found, expected);
    // Also one after another: the code is never unmapped.
    for loaded in [one, two] {
        loaded.plugin.shutdown(100);
    }
    let third = load(&path);
    let mut instance = third.create("misbehave", config);
    let (_, outcomes, _) = handle(instance.as_mut(), &records(&["a"]));
    assert_eq!(codes(&outcomes), [outcome_code::ACK]);
}

#[test]
fn two_builds_share_no_state() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["one", "two"] {
        let path = folder.path().join(format!("lib{name}.so"));
        build(&path, "misbehave", name);
        let loaded = load(&path);
        let mut instance = loaded.create("misbehave", ONCE);
        let (_, outcomes, _) = handle(instance.as_mut(), &records(&["a", "b"]));
        assert_eq!(codes(&outcomes), [outcome_code::DROP, outcome_code::ACK]);
    }
}

/// More than the limit of loads: a service is rolled out and back for weeks.
#[test]
fn six_hundred_replacements_between_two_builds_are_two_loads_and_freed() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let captured: Arc<CapturedOutput> = Arc::default();
    let builds = ["one", "two"].map(|name| {
        let path = folder.path().join(format!("lib{name}.so"));
        let mark = path.display().to_string();
        build(&path, "sluicegate-handler-relay", &mark);
        accepted(&path)
    });
    let mut resident = Vec::new();
    for generation in 1..=REPLACEMENTS {
        let artefact = &builds[generation as usize % 2];
        let plugin: Arc<dyn LoadedPlugin> =
            NativeRuntime.load(artefact, &cache, generation).unwrap();
        let worker = {
            let (plugin, captured) = (Arc::clone(&plugin), captured.clone());
            let config = r#"{"topic":"out"}"#;
            std::thread::spawn(move || {
                let request = CreateRequest::new("relay", "w", config, captured);
                let mut relay = plugin.create(request).unwrap();
                let (status, outcomes, _) = handle(relay.as_mut(), &records(&["v"]));
                (status, codes(&outcomes))
            })
        };
        assert_eq!(
            worker.join().unwrap(),
            (CallStatus::Usable, vec![outcome_code::ACK])
        );
        plugin.shutdown(100);
        resident.push(resident_kib());
    }
    assert_eq!(copies(&cache), 0);
    assert_eq!(mapped(&cache), 2, "images");
    let grown = resident[resident.len() - 1].saturating_sub(resident[10]);
    println!("{grown} KiB of resident memory for {REPLACEMENTS} generations");
    // Other tests run at the same time; the bound only detects that images are added.
    assert!(grown < 200 * 1024, "{grown} KiB");
}

/// A spec that its handler refuses is retried for as long as it is declared, and so is a file that fails a check once it is mapped.
#[test]
fn what_is_refused_again_and_again_costs_one_load() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let [refuses, broken] = ["librefuses.so", "libbroken.so"].map(|name| folder.path().join(name));
    build(&refuses, "misbehave", "refuses");
    build(&broken, "sluicegate-handler-relay", "broken");
    let mut bytes = std::fs::read(&broken).unwrap();
    let root = b"root_bmodule_bloader";
    while let Some(at) = bytes.windows(root.len()).position(|window| window == root) {
        bytes[at + root.len() - 1] = b'x';
    }
    std::fs::write(&broken, bytes).unwrap();
    let (refuses, broken) = (accepted(&refuses), accepted(&broken));
    for generation in 1..=REPLACEMENTS {
        let plugin = NativeRuntime.load(&refuses, &cache, generation).unwrap();
        let services: Arc<CapturedOutput> = Arc::default();
        let request = CreateRequest::new("misbehave", "w", r#"{"rulez":[]}"#, services);
        assert!(plugin.create(request).is_err());
        plugin.shutdown(100);
        let error = NativeRuntime
            .load(&broken, &cache, generation)
            .err()
            .unwrap();
        assert!(error.to_string().contains("root module"), "{error}");
    }
    assert_eq!(mapped(&cache), 2, "images");
}

/// More than a process may load.
const REPLACEMENTS: u64 = 600;

/// The first record with a key is dropped, counted in a static of the library.
const ONCE: &str = r#"{"rules":[{"when":{"key":true,"exists":true},"do":"drop","times":1}]}"#;

/// Writes a build of the package that no other test has: its code is followed by `mark`.
fn build(path: &Path, package: &str, mark: &str) {
    let mut bytes = std::fs::read(built(package)).unwrap();
    bytes.extend_from_slice(mark.as_bytes());
    std::fs::write(path, bytes).unwrap();
}

/// What the catalogue has accepted.
fn accepted(path: &Path) -> VerifiedArtefact {
    VerifiedArtefact::new(path, &NativeRuntime.inspect(path).unwrap())
}

/// Number of private copies in the cache that are mapped, also if their files are removed.
fn mapped(cache: &Path) -> usize {
    let cache = cache.display().to_string();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let files = maps
        .lines()
        .filter_map(|line| line.find(&cache).map(|at| &line[at..]));
    files.collect::<std::collections::BTreeSet<_>>().len()
}

fn copies(cache: &Path) -> usize {
    std::fs::read_dir(cache.join("sluicegate-native-copies"))
        .unwrap()
        .count()
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
