//! The plugins folder: unreadable files and folders, files that are not plugins.

use sluicegate_config::{HandlerSpec, Snapshot};
use sluicegate_engine::status::ProblemKind;

use super::registry::{RegistryHarness, age, put, spec};
use crate::Applied;

/// A temporarily unreadable folder (an unmounted volume, no file descriptor left) has not lost its plugins.
#[test]
fn temporarily_unreadable_plugins_stay_known() {
    let mut harness = RegistryHarness::new(&[
        ("liba.so", "copy 1.0.0 copy"),
        ("pack/libb.so", "other 1.0.0 other"),
    ]);
    let folder = harness.folder.path().to_owned();
    put(&folder, "pack/plugin.yaml", "name: other");
    let both = |name: &str| {
        [
            spec("one", "*", "a"),
            HandlerSpec {
                plugin: "other".into(),
                ..spec(name, "*", "a")
            },
        ]
    };
    let accepted =
        |applied: &Applied| assert!(applied.refusals.is_empty(), "{:?}", applied.refusals);
    accepted(&harness.apply(&both("two")));
    assert!(harness.registry.catalogue().problems().is_empty());

    let away = folder.with_extension("away");
    std::fs::rename(&folder, &away).unwrap();
    assert!(harness.rescan().is_none(), "nothing is removed");
    let problem = harness.registry.catalogue().problems().remove(0);
    assert!(problem.cause.contains("cannot be read"), "{problem:?}");
    // A regular file in place of the folder cannot be listed either.
    std::fs::write(&folder, "").unwrap();
    assert!(harness.rescan().is_none());
    let known = |plugin: &str| {
        harness
            .registry
            .catalogue()
            .find(plugin, &"*".parse().unwrap())
    };
    assert!(known("copy").is_ok() && known("other").is_ok());
    std::fs::remove_file(&folder).unwrap();
    std::fs::rename(&away, &folder).unwrap();
    assert!(harness.rescan().is_none());
    assert!(harness.registry.catalogue().problems().is_empty());

    // The contents of an unreadable file are unknown; it is read once it is readable.
    std::fs::write(folder.join("liba.so"), [0xff]).unwrap();
    age(&folder.join("liba.so"));
    assert!(harness.rescan().is_none());
    accepted(&harness.apply(&both("two")));
    std::fs::remove_file(folder.join("liba.so")).unwrap();
    std::os::unix::fs::symlink("liba.so", folder.join("liba.so")).unwrap();
    assert!(harness.rescan().is_none());
    std::fs::remove_file(folder.join("liba.so")).unwrap();
    put(&folder, "liba.so", "copy 1.1.0 copy");
    let next = harness.rescan().unwrap();
    assert_eq!(&*next.plan.handlers[0].targets[0].version, "1.1.0");
    std::fs::remove_file(folder.join("liba.so")).unwrap();
    let gone = harness.rescan().unwrap();
    assert_eq!(
        &*gone.plan.handlers[0].targets[0].version, "1.1.0",
        "the active generation continues"
    );
    assert!(
        harness
            .registry
            .catalogue()
            .find("copy", &"*".parse().unwrap())
            .is_err()
    );
}

/// A folder whose manifest cannot be examined is still the package that it was; others may never have been one.
#[test]
fn a_package_whose_manifest_cannot_be_examined_stays_known() {
    let harness = RegistryHarness::new(&[("pack/libb.so", "other 1.0.0 other")]);
    let folder = harness.folder.path().to_owned();
    put(&folder, "pack/plugin.yaml", "name: other");
    let catalogue = harness.registry.catalogue();
    catalogue.scan();
    let is_known = || catalogue.find("other", &"*".parse().unwrap()).is_ok();
    assert!(is_known());
    std::fs::create_dir(folder.join("closed")).unwrap();
    for package in ["pack", "closed"] {
        let manifest = folder.join(package).join("plugin.yaml");
        let _ = std::fs::remove_file(&manifest);
        std::os::unix::fs::symlink("plugin.yaml", &manifest).unwrap();
    }
    catalogue.scan();
    assert!(is_known());
    let problem = catalogue.problems().remove(0);
    assert!(problem.cause.contains("pack/plugin.yaml"), "{problem:?}");
    assert!(!problem.cause.contains("closed"), "{problem:?}");
    std::fs::remove_file(folder.join("pack/plugin.yaml")).unwrap();
    catalogue.scan();
    assert!(!is_known(), "a folder without a manifest is not a package");
    assert!(catalogue.problems().is_empty());
}

/// `handler build --into` and the copy of a spec may follow each other within milliseconds.
#[test]
fn a_plugin_file_that_is_still_new_is_waited_for_and_not_rejected() {
    let mut harness = RegistryHarness::new(&[]);
    std::fs::write(harness.folder.path().join("liba.so"), "copy 1.0.0 copy").unwrap();
    let applied = harness.apply(&[spec("one", "*", "a")]);
    assert!(applied.refusals.is_empty(), "{:?}", applied.refusals);
    assert_eq!(&*applied.plan.handlers[0].targets[0].version, "1.0.0");
    // A missing one is rejected at once.
    let missing = HandlerSpec {
        plugin: "other".into(),
        ..spec("two", "*", "a")
    };
    assert_eq!(harness.apply(&[missing]).refusals.len(), 1);
}

/// Between the scan that accepted a file and its loading, another one takes its place.
#[test]
fn a_file_that_changed_since_the_scan_is_not_loaded_and_the_next_scan_finds_it() {
    let mut harness = RegistryHarness::new(&[("liba.so", "copy 1.0.0 copy")]);
    let snapshot = Snapshot::new(1, [spec("one", "*", "a")]);
    assert!(harness.registry.settle(&snapshot).prepares);
    put(harness.folder.path(), "liba.so", "copy 1.1.0 copy");
    while harness.registry.prepare_next() {}
    let refused = harness.registry.current();
    let reason = &refused.refusals[0].reason;
    assert!(reason.contains("has changed since it was read"), "{reason}");
    assert!(refused.plan.handlers.is_empty() && harness.loads() == 0);
    let next = harness.rescan().unwrap();
    assert_eq!(&*next.plan.handlers[0].targets[0].version, "1.1.0");
    assert!(harness.apply(&[spec("one", "*", "a")]).refusals.is_empty());
}

#[test]
fn an_unreadable_file_is_reported_as_such_with_and_without_known_contents() {
    for known in ["copy 1.0.0 copy", "?"] {
        let harness = RegistryHarness::new(&[("liba.so", known)]);
        let file = harness.folder.path().join("liba.so");
        let shown = || {
            harness.registry.catalogue().scan();
            harness.registry.catalogue().problems()
        };
        assert_eq!(shown().len(), usize::from(known == "?"));
        // Invalid UTF-8, which the runtime of these tests cannot read.
        std::fs::write(&file, [0xff]).unwrap();
        age(&file);
        let [problem] = &shown()[..] else {
            panic!("{:?}", shown());
        };
        assert!(problem.what.contains("cannot be read"), "{problem:?}");
        let known_stays = problem.what.contains("stay in use");
        assert_eq!(known_stays, known != "?", "{problem:?}");
        assert!(problem.cause.contains("UTF-8"), "{problem:?}");
        std::fs::remove_file(&file).unwrap();
        assert!(shown().is_empty());
    }
}

#[test]
fn a_file_that_is_not_a_plugin_is_reported_until_it_is_replaced_or_removed() {
    let harness = RegistryHarness::new(&[("liba.so", "copy 1.0.0 copy")]);
    let folder = harness.folder.path().to_owned();
    let shown = || harness.registry.catalogue().problems();
    for repaired in [true, false] {
        put(&folder, "libbroken.so", "?");
        harness.registry.catalogue().scan();
        let since_ms = shown()[0].since_ms;
        harness.registry.catalogue().scan();
        let [problem] = &shown()[..] else {
            panic!("{:?}", shown());
        };
        assert_eq!(problem.kind, ProblemKind::PluginRefused);
        assert_eq!(problem.since_ms, since_ms);
        assert!(problem.what.contains("libbroken.so"), "{problem:?}");
        assert!(!problem.cause.is_empty() && !problem.remedy.is_empty());
        match repaired {
            true => put(&folder, "libbroken.so", "b 1.0.0 b"),
            false => std::fs::remove_file(folder.join("libbroken.so")).unwrap(),
        }
        harness.registry.catalogue().scan();
        assert!(shown().is_empty(), "{:?}", shown());
    }
}

#[test]
fn a_non_file_with_a_plugin_name_is_reported_until_it_is_a_file() {
    let harness = RegistryHarness::new(&[("liba.so", "copy 1.0.0 copy")]);
    let folder = harness.folder.path().to_owned();
    let shown = || {
        harness.registry.catalogue().scan();
        harness.registry.catalogue().problems()
    };
    let target = folder.join("not-there");
    std::os::unix::fs::symlink(&target, folder.join("libgone.so")).unwrap();
    std::os::unix::net::UnixListener::bind(folder.join("libsocket.so")).unwrap();
    std::os::unix::fs::symlink(&target, folder.join("README")).unwrap();
    let problems = shown();
    let whats: Vec<&str> = problems.iter().map(|one| one.what.as_str()).collect();
    assert_eq!(problems.len(), 2, "{whats:?}");
    assert!(
        whats
            .iter()
            .any(|what| what.ends_with("libgone.so` is a broken link"))
    );
    assert!(
        whats
            .iter()
            .any(|what| what.ends_with("libsocket.so` is not a regular file"))
    );
    let since: Vec<i64> = problems.iter().map(|one| one.since_ms).collect();
    let again: Vec<i64> = shown().iter().map(|one| one.since_ms).collect();
    assert_eq!(since, again);
    std::fs::remove_file(folder.join("libsocket.so")).unwrap();
    put(&folder, "not-there", "b 1.0.0 b");
    assert_eq!(shown(), []);
}
