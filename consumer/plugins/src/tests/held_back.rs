//! Specs that wait because it is not clear which file they mean: one that cannot be read yet, or several builds of one version.

use std::path::Path;

use sluicegate_config::HandlerSpec;

use super::registry::{RegistryHarness, age, put, spec};

/// Bytes that the runtime of these tests cannot read.
fn unreadable(folder: &Path, file: &str) {
    put(folder, file, "");
    std::fs::write(folder.join(file), [0xff]).unwrap();
    age(&folder.join(file));
}

fn other() -> HandlerSpec {
    HandlerSpec {
        plugin: "other".to_owned(),
        ..spec("other", "*", "a")
    }
}

#[test]
fn a_spec_waits_for_a_file_that_may_be_newer_and_cannot_be_read() {
    type Hide = fn(&Path);
    let cases: [(&str, Hide); 4] = [
        ("libcopy-2.so", |folder| unreadable(folder, "libcopy-2.so")),
        ("copy/liba.so", |folder| {
            put(folder, "copy/plugin.yaml", "name: copy");
            unreadable(folder, "copy/liba.so");
        }),
        ("copy", |folder| {
            std::fs::create_dir(folder.join("copy")).unwrap();
            let manifest = folder.join("copy/plugin.yaml");
            std::os::unix::fs::symlink("plugin.yaml", manifest).unwrap();
        }),
        ("copy.so", |folder| {
            std::os::unix::fs::symlink("copy.so", folder.join("copy.so")).unwrap();
        }),
    ];
    for (at, hide) in cases {
        for replaced in [true, false] {
            let files = [
                ("libold.so", "copy 1.0.0 copy"),
                ("libother.so", "other 1.0.0 other"),
            ];
            let mut harness = RegistryHarness::new(&files);
            let folder = harness.folder.path().to_owned();
            hide(&folder);
            harness.registry.catalogue().scan();
            let applied = harness.apply(&[spec("one", "*", "a"), other()]);
            let [refusal] = &applied.refusals[..] else {
                panic!("{at}: {:?}", applied.refusals);
            };
            let words = format!("{at}` may have a newer version of plugin `copy` than 1.0.0");
            assert!(refusal.reason.contains(&words), "{at}: {}", refusal.reason);
            let served: Vec<_> = applied.plan.handlers.iter().map(|h| &*h.name).collect();
            assert_eq!(served, ["other"], "{at}");
            let pinned = harness.registry.catalogue();
            let pinned = pinned.find("copy", &"1.0.0".parse().unwrap());
            assert!(pinned.is_ok(), "{at}: nothing newer is wanted");

            let path = folder.join(at);
            match path.is_dir() {
                true => std::fs::remove_dir_all(&path).unwrap(),
                false => std::fs::remove_file(&path).unwrap(),
            }
            if replaced {
                put(&folder, "libcopy-2.so", "copy 2.0.0 copy");
            }
            harness.rescan();
            let applied = harness.apply(&[spec("one", "*", "a"), other()]);
            assert_eq!(applied.refusals, [], "{at}");
            let expected = if replaced { "2.0.0" } else { "1.0.0" };
            assert_eq!(
                &*applied.plan.handlers[0].targets[0].version, expected,
                "{at}"
            );
        }
    }
}

#[test]
fn a_handler_that_runs_is_not_stopped_by_a_file_that_cannot_be_read() {
    let mut harness = RegistryHarness::new(&[("libold.so", "copy 1.0.0 copy")]);
    let before = harness.apply(&[spec("one", "*", "a")]);
    unreadable(harness.folder.path(), "libcopy-2.so");
    harness.rescan();
    let applied = harness.apply(&[spec("one", "*", "a")]);
    assert_eq!(applied.refusals, []);
    let generation = |at: usize| [&before, &applied][at].plan.handlers[0].generation();
    assert_eq!(generation(0), generation(1));
    let newer = harness.apply(&[spec("one", "2", "a")]).refusals.remove(0);
    let words = "available: 1.0.0; not usable: cannot read plugin";
    assert!(newer.reason.contains(words), "{}", newer.reason);
    harness.apply(&[spec("one", "*", "a")]);
    put(harness.folder.path(), "libcopy-2.so", "copy 2.0.0 copy");
    let next = harness.rescan().unwrap();
    assert_eq!(&*next.plan.handlers[0].targets[0].version, "2.0.0");
}

#[test]
fn only_a_file_with_the_plugins_name_is_waited_for() {
    for name in ["libcopyist.so", "libcopy-audit.so", "libnew.so"] {
        let mut harness = RegistryHarness::new(&[("libold.so", "copy 1.0.0 copy")]);
        unreadable(harness.folder.path(), name);
        harness.registry.catalogue().scan();
        let applied = harness.apply(&[spec("one", "*", "a")]);
        assert_eq!(applied.refusals, [], "{name}");
        assert_eq!(harness.registry.catalogue().problems().len(), 1, "{name}");
    }
}

#[test]
fn two_builds_of_one_version_are_named_and_neither_is_chosen() {
    let files = [
        ("liba.so", "copy 1.1.0 copy"),
        ("libb.so", "copy 1.1.0 copy more"),
        ("libc.so", "copy 1.0.0 copy"),
    ];
    let mut harness = RegistryHarness::new(&files);
    let applied = harness.apply(&[spec("newest", "*", "a"), spec("older", "1.0.0", "a")]);
    let served: Vec<_> = applied.plan.handlers.iter().map(|h| &*h.name).collect();
    assert_eq!(served, ["older"]);
    let reason = &applied.refusals[0].reason;
    let problems = harness.registry.catalogue().problems();
    let [problem] = &problems[..] else {
        panic!("{problems:?}");
    };
    for words in [
        "several builds of version 1.1.0",
        "liba.so` has the SHA-256 copy 1.1.0 copy",
        "libb.so` has the SHA-256 copy 1.1.0 copy more",
    ] {
        assert!(reason.contains(words), "{reason}");
        let told = format!("{}: {}", problem.what, problem.cause);
        assert!(told.contains(words), "{told}");
    }
    harness.registry.catalogue().scan();
    assert_eq!(harness.registry.catalogue().problems(), problems);
    std::fs::remove_file(harness.folder.path().join("liba.so")).unwrap();
    let applied = harness.rescan().unwrap();
    assert_eq!(applied.refusals, []);
    let found = applied.plan.handler("newest").unwrap();
    assert_eq!(&*found.targets[0].version, "1.1.0");
    assert_eq!(harness.registry.catalogue().problems(), []);
}

#[test]
fn two_files_with_the_same_bytes_are_one_build() {
    let files = [
        ("liba.so", "copy 1.0.0 copy"),
        ("libb.so", "copy 1.0.0 copy"),
    ];
    let mut harness = RegistryHarness::new(&files);
    assert_eq!(harness.apply(&[spec("one", "*", "a")]).refusals, []);
    assert_eq!(harness.registry.catalogue().problems(), []);
}

#[test]
fn another_build_does_not_replace_the_one_that_runs() {
    let mut harness = RegistryHarness::new(&[("liba.so", "copy 1.0.0 copy")]);
    let before = harness.apply(&[spec("one", "*", "a")]);
    put(harness.folder.path(), "libb.so", "copy 1.0.0 copy more");
    let after = harness.rescan().unwrap();
    let generation = |at: usize| [&before, &after][at].plan.handlers[0].generation();
    assert_eq!(generation(0), generation(1));
    assert_eq!(harness.registry.catalogue().problems().len(), 1);
}
