//! Situation: files in the plugins folder that are not plugins, or are incompatible: another ABI major, another layout generation,
//! another panic strategy, a truncated file, a text, a library without a descriptor, a damaged one.
//! Property: each is refused with its reason before any of its code runs; a running service continues to serve the old plugin.
//! Needs: Kafka.
//! Mostly waits: for scans.
//! Command: `cargo xtask test --scenario refused_plugins`, and with `--long` plugins actually built with another panic
//! strategy and another layout

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use e2e::artefacts::{self, library_name};
use e2e::client::{Client, Outgoing};
use e2e::kafka::Kafka;
use e2e::service::{Service, run_binary};
use e2e::unique;
use e2e::wait::wait_for;
use e2e::workdir::Workdir;

/// In the refusal of a plugin that ended the process in which it was tried.
const TRIED: &str = "in which it was tried";
const DEADLINE: Duration = Duration::from_secs(60);
const MAGIC: &[u8] = b"SLUICEGT";
// Offsets in the descriptor (handler-sdk/abi/src/descriptor.rs), as an attacker or an old compiler would leave them.
const ABI_MAJOR: usize = 12;
const LAYOUTS: usize = 16;
const PANIC_UNWIND: usize = 18;

/// The relay's bytes with `value` in place of the descriptor's byte at `at`.
fn patched(bytes: &[u8], at: usize, value: u8) -> Vec<u8> {
    let mut patched = bytes.to_vec();
    let places: Vec<usize> = (0..bytes.len() - MAGIC.len())
        .filter(|start| bytes[*start..].starts_with(MAGIC))
        .collect();
    assert!(!places.is_empty(), "the library has no descriptor");
    for place in places {
        patched[place + at] = value;
    }
    patched
}

/// Other bytes where the system's loader finds symbols and relocations: it crashes.
fn damaged(bytes: &[u8]) -> Vec<u8> {
    let mut damaged = bytes.to_vec();
    for byte in &mut damaged[0x400..0x800] {
        *byte ^= 0xff;
    }
    damaged
}

fn library_without_descriptor(folder: &Path) -> Vec<u8> {
    let (source, library) = (folder.join("empty.c"), folder.join("empty.so"));
    std::fs::write(&source, "int nothing_of_ours(void) { return 0; }\n").expect("a source file");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(&source)
        .status();
    assert!(built.expect("a C compiler").success());
    std::fs::read(library).expect("the library")
}

/// The relay built elsewhere: from a copy of the sources with `change` applied, and with `options` for cargo.
fn built_elsewhere(change: impl FnOnce(&Path), options: &[&str]) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    for part in ["Cargo.toml", "Cargo.lock", "handler-sdk", "handlers/relay"] {
        let to = folder.path().join(part);
        std::fs::create_dir_all(to.parent().expect("a folder above")).expect("a folder");
        let mut copy = Command::new("cp");
        copy.arg("-R")
            .arg(artefacts::workspace().join(part))
            .arg(to);
        assert!(copy.status().expect("cp").success());
    }
    let manifest = folder.path().join("Cargo.toml");
    let text = std::fs::read_to_string(&manifest).expect("the workspace's manifest");
    let (before, rest) = text.split_once("members = [").expect("members");
    let (_, after) = rest.split_once(']').expect("an end of the members");
    let members = r#"["handler-sdk", "handler-sdk/abi", "handlers/relay"]"#;
    std::fs::write(&manifest, format!("{before}members = {members}{after}")).expect("a manifest");
    change(folder.path());
    let target = folder.path().join("target");
    let mut cargo = artefacts::cargo();
    cargo
        .current_dir(folder.path())
        .env("CARGO_TARGET_DIR", &target)
        .args(["build", "--package", "sluicegate-handler-relay"])
        .args(options);
    assert!(cargo.status().expect("cargo").success(), "the copy builds");
    std::fs::read(target.join("debug").join(library_name("relay"))).expect("the library")
}

/// Swaps two fields of the record that handlers get: size and names are unchanged, and every handler would misread it.
fn swap_fields_of_the_record(folder: &Path) {
    let file = folder.join("handler-sdk/abi/src/record.rs");
    let text = std::fs::read_to_string(&file).expect("the record");
    let (offset, time) = ("    pub offset: i64,", "    pub timestamp_ms: i64,");
    assert!(text.contains(offset) && text.contains(time));
    let swapped = text.replacen(offset, "    pub swapped: i64,", 1);
    let swapped = swapped.replacen(time, offset, 1);
    let swapped = swapped.replacen("    pub swapped: i64,", time, 1);
    std::fs::write(&file, swapped).expect("a file");
}

/// Plugins actually built that way, which takes minutes; the short form patches descriptors instead.
fn really_built() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let abort = built_elsewhere(|_| (), &["--config", "profile.dev.panic='abort'"]);
    let layout = built_elsewhere(swap_fields_of_the_record, &[]);
    vec![
        ("built with panic=abort", "panic", abort),
        ("built with another layout", "layout", layout),
    ]
}

/// Bad files by name, each with a word that its refusal must contain.
fn bad_files(folder: &Path) -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let relay = std::fs::read(artefacts::plugin("relay")).expect("the relay");
    vec![
        ("another ABI major", "abi", patched(&relay, ABI_MAJOR, 99)),
        (
            "another layout generation",
            "abi_stable",
            patched(&relay, LAYOUTS, 77),
        ),
        (
            "another panic strategy",
            "panic",
            patched(&relay, PANIC_UNWIND, 0),
        ),
        (
            "a truncated file",
            "truncated",
            relay[..relay.len() / 3].to_vec(),
        ),
        (
            "a text",
            "shared library",
            b"this is not a library\n".to_vec(),
        ),
        (
            "a library without a descriptor",
            "descriptor",
            library_without_descriptor(folder),
        ),
        ("damage for the system's loader", TRIED, damaged(&relay)),
    ]
}

#[test]
fn each_is_refused_with_its_reason_and_the_old_one_continues_to_serve() {
    let kafka = Kafka::shared();
    let client = Client::new(kafka.bootstrap());
    let (source, copy, group) = (unique("source"), unique("copy"), unique("group"));
    client.create_topic(&source, 1);
    client.create_topic(&copy, 1);
    let workdir = Workdir::new(kafka.bootstrap(), &group, "");
    workdir.plugins(&["relay"]);
    workdir.spec("copy", &format!("plugin: relay\nversion: \"*\"\nroute: {{ topics: [{source}] }}\nconfig: {{ topic: {copy} }}\n"));
    let mut service = Service::ready(&workdir, &[]);

    let mut bad_files = bad_files(workdir.path());
    if e2e::long() {
        bad_files.extend(really_built());
    }
    for (round, (what, word, bytes)) in (1..).zip(bad_files) {
        let bad = workdir.path().join("bad.so");
        std::fs::write(&bad, bytes).expect("a file");
        let inspected = run_binary(workdir.path(), &["handler", "inspect", "bad.so"]);
        let reason = String::from_utf8_lossy(&inspected.stderr).to_lowercase();
        // Some is found only when loading, which an inspection does not do.
        if !["layout", TRIED].contains(&word) {
            assert!(!inspected.status.success(), "{what} was accepted");
            assert!(reason.contains(word), "{what}: {reason}");
            assert_eq!(
                reason.trim().lines().count(),
                1,
                "{what}: one line: {reason}"
            );
        }

        let told = service.process().log().len();
        workdir.plugin_file(&bad, &library_name("relay"));
        wait_for(&format!("the service to refuse {what}"), DEADLINE, || {
            let log = service.process().log();
            let fresh = log.get(told..).unwrap_or_default().to_lowercase();
            if fresh.contains(word) {
                Ok(())
            } else {
                Err(format!("the log says: {fresh}"))
            }
        });
        client.produce(&source, [Outgoing::new("k", what)]);
        service.wait_outcomes("copy", "ack", round, DEADLINE);
        let page = service.api("handlers/copy").expect("the handler's page");
        assert_eq!(
            (&page["generation"], &page["state"]),
            (&1.into(), &"ACTIVE".into()),
            "{what}: {page}"
        );
    }
    assert!(service.stop(DEADLINE).success());
}

#[test]
fn a_service_does_not_start_with_a_refused_plugin_named_by_a_spec() {
    let workdir = Workdir::new("127.0.0.1:1", "group", "");
    let relay = std::fs::read(artefacts::plugin("relay")).expect("the relay");
    std::fs::write(
        workdir.path().join("plugins").join(library_name("relay")),
        patched(&relay, ABI_MAJOR, 99),
    )
    .expect("a file");
    workdir.spec(
        "copy",
        "plugin: relay\nversion: \"*\"\nroute: { topics: [a] }\nconfig: { topic: b }\n",
    );
    let mut service = Service::start(&workdir, &[]);
    let status = service
        .process()
        .wait(DEADLINE)
        .unwrap_or_else(|error| panic!("{error:#}"));
    let log = service.process().log();
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(
        log.to_lowercase().contains("relay") && log.to_lowercase().contains("abi"),
        "{log}"
    );
}
