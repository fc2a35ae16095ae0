//! The plugins folder while it cannot be read.

use sluicegate_config::HandlerSpec;

use super::registry::{Shop, age, put, spec};
use crate::admin::ProblemKind;
use crate::handlers::Applied;

/// A folder that is away for a moment (an unmounted volume, no descriptor left to open it with) has not lost its plugins.
#[test]
fn plugins_that_cannot_be_read_at_present_stay_known() {
    let mut shop = Shop::new(&[
        ("liba.so", "copy 1.0.0 copy"),
        ("pack/libb.so", "other 1.0.0 other"),
    ]);
    let folder = shop.folder.path().to_owned();
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
    let well = |applied: &Applied| assert!(applied.refusals.is_empty(), "{:?}", applied.refusals);
    well(&shop.apply(&both("two")));
    assert!(shop.registry.catalogue().problems().is_empty());

    let away = folder.with_extension("away");
    std::fs::rename(&folder, &away).unwrap();
    assert!(shop.rescan().is_none(), "nothing is gone");
    let problem = shop.registry.catalogue().problems().remove(0);
    assert!(problem.cause.contains("cannot be read"), "{problem:?}");
    // A file in its place cannot be listed either.
    std::fs::write(&folder, "").unwrap();
    assert!(shop.rescan().is_none());
    let known = |plugin: &str| {
        shop.registry
            .catalogue()
            .find(plugin, &"*".parse().unwrap())
    };
    assert!(known("copy").is_ok() && known("other").is_ok());
    std::fs::remove_file(&folder).unwrap();
    std::fs::rename(&away, &folder).unwrap();
    assert!(shop.rescan().is_none());
    assert!(shop.registry.catalogue().problems().is_empty());

    // Of a file that cannot be read it is not known what it is; it is read once it can be.
    std::fs::write(folder.join("liba.so"), [0xff]).unwrap();
    age(&folder.join("liba.so"));
    assert!(shop.rescan().is_none());
    well(&shop.apply(&both("two")));
    std::fs::remove_file(folder.join("liba.so")).unwrap();
    std::os::unix::fs::symlink("liba.so", folder.join("liba.so")).unwrap();
    assert!(shop.rescan().is_none());
    std::fs::remove_file(folder.join("liba.so")).unwrap();
    put(&folder, "liba.so", "copy 1.1.0 copy");
    let next = shop.rescan().unwrap();
    assert_eq!(&*next.plan.handlers[0].version, "1.1.0");
    std::fs::remove_file(folder.join("liba.so")).unwrap();
    let gone = shop.rescan().unwrap();
    assert_eq!(
        &*gone.plan.handlers[0].version, "1.1.0",
        "what runs goes on"
    );
    assert!(
        shop.registry
            .catalogue()
            .find("copy", &"*".parse().unwrap())
            .is_err()
    );
}

/// `handler build --into` and the copy of a spec follow one another within milliseconds.
#[test]
fn a_plugin_that_has_only_just_come_is_waited_for_and_not_refused() {
    let mut shop = Shop::new(&[]);
    std::fs::write(shop.folder.path().join("liba.so"), "copy 1.0.0 copy").unwrap();
    let applied = shop.apply(&[spec("one", "*", "a")]);
    assert!(applied.refusals.is_empty(), "{:?}", applied.refusals);
    assert_eq!(&*applied.plan.handlers[0].version, "1.0.0");
    // One that is not there is refused at once.
    let missing = HandlerSpec {
        plugin: "other".into(),
        ..spec("two", "*", "a")
    };
    assert_eq!(shop.apply(&[missing]).refusals.len(), 1);
}

#[test]
fn a_file_that_cannot_be_read_shows_as_that_whatever_is_known_of_it() {
    for known in ["copy 1.0.0 copy", "?"] {
        let shop = Shop::new(&[("liba.so", known)]);
        let file = shop.folder.path().join("liba.so");
        let shown = || {
            shop.registry.catalogue().scan();
            shop.registry.catalogue().problems()
        };
        assert_eq!(shown().len(), usize::from(known == "?"));
        // It is no text, so that the runtime of these tests cannot read it.
        std::fs::write(&file, [0xff]).unwrap();
        age(&file);
        let [problem] = &shown()[..] else {
            panic!("{:?}", shown());
        };
        assert!(problem.what.contains("cannot be read"), "{problem:?}");
        let stays = problem.what.contains("stays in use");
        assert_eq!(stays, known != "?", "{problem:?}");
        assert!(problem.cause.contains("UTF-8"), "{problem:?}");
        std::fs::remove_file(&file).unwrap();
        assert!(shown().is_empty());
    }
}

#[test]
fn a_file_that_is_no_plugin_shows_until_it_is_replaced_or_gone() {
    let shop = Shop::new(&[("liba.so", "copy 1.0.0 copy")]);
    let folder = shop.folder.path().to_owned();
    let shown = || shop.registry.catalogue().problems();
    for mended in [true, false] {
        put(&folder, "libbroken.so", "?");
        shop.registry.catalogue().scan();
        let since_ms = shown()[0].since_ms;
        shop.registry.catalogue().scan();
        let [problem] = &shown()[..] else {
            panic!("{:?}", shown());
        };
        assert_eq!(problem.kind, ProblemKind::PluginRefused);
        assert_eq!(problem.since_ms, since_ms);
        assert!(problem.what.contains("libbroken.so"), "{problem:?}");
        assert!(!problem.cause.is_empty() && !problem.remedy.is_empty());
        match mended {
            true => put(&folder, "libbroken.so", "b 1.0.0 b"),
            false => std::fs::remove_file(folder.join("libbroken.so")).unwrap(),
        }
        shop.registry.catalogue().scan();
        assert!(shown().is_empty(), "{:?}", shown());
    }
}

#[test]
fn what_has_a_plugins_name_and_is_no_file_shows_until_it_is_one() {
    let shop = Shop::new(&[("liba.so", "copy 1.0.0 copy")]);
    let folder = shop.folder.path().to_owned();
    let shown = || {
        shop.registry.catalogue().scan();
        shop.registry.catalogue().problems()
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
            .any(|what| what.ends_with("libgone.so` is a link that leads nowhere"))
    );
    assert!(
        whats
            .iter()
            .any(|what| what.ends_with("libsocket.so` is no regular file"))
    );
    let since: Vec<i64> = problems.iter().map(|one| one.since_ms).collect();
    let again: Vec<i64> = shown().iter().map(|one| one.since_ms).collect();
    assert_eq!(since, again);
    std::fs::remove_file(folder.join("libsocket.so")).unwrap();
    put(&folder, "not-there", "b 1.0.0 b");
    assert_eq!(shown(), []);
}
