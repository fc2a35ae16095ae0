//! Situation: files that are not usable plugins. Property: each fails the right check, with a message that contains a
//! remedy, and a loaded plugin keeps working.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::{Path, PathBuf};

use object::{Object, ObjectSection, ObjectSymbol};
use sluicegate_abi::descriptor::DESCRIPTOR_SYMBOL;
use sluicegate_native::NativeRuntime;
use sluicegate_runtime::{CallStatus, HandlerRuntime, LoadError};
use support::{built, handle, load, records, try_load};

/// Offsets of the descriptor's fields.
const ABI_MAJOR: usize = 12;
const ABI_MINOR: usize = 14;
const ABI_STABLE_MINOR: usize = 16;
const PANIC_UNWIND: usize = 18;
const NAME: usize = 20;
const TARGET: usize = 180;
const HANDLERS: usize = 308;

/// Offset of the processor in an ELF header.
const E_MACHINE: usize = 18;
/// s390, which no supported service runs on.
const EM_OTHER: u16 = 22;

struct Variants {
    folder: tempfile::TempDir,
    good: Vec<u8>,
    descriptor: usize,
}

impl Variants {
    fn of(path: &Path) -> Self {
        let good = std::fs::read(path).unwrap();
        let file = object::File::parse(good.as_slice()).unwrap();
        let descriptor = offset_of(&file, DESCRIPTOR_SYMBOL);
        Self {
            folder: tempfile::tempdir().unwrap(),
            good,
            descriptor,
        }
    }

    fn write(&self, bytes: &[u8]) -> PathBuf {
        let path = self.folder.path().join("libvariant.so");
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// The good file with other bytes in its descriptor.
    fn patched(&self, at: usize, bytes: &[u8]) -> PathBuf {
        let mut all = self.good.clone();
        all[self.descriptor + at..][..bytes.len()].copy_from_slice(bytes);
        self.write(&all)
    }

    /// The good file with another processor in its ELF header.
    fn of_processor(&self, machine: u16) -> PathBuf {
        let mut all = self.good.clone();
        all[E_MACHINE..][..2].copy_from_slice(&machine.to_le_bytes());
        self.write(&all)
    }

    /// The good file with every `from` turned into `to`, of the same length.
    fn replaced(&self, from: &[u8], to: &[u8]) -> PathBuf {
        assert_eq!(from.len(), to.len());
        let mut all = self.good.clone();
        let mut at = 0;
        let mut found = 0;
        while let Some(next) = all[at..]
            .windows(from.len())
            .position(|window| window == from)
        {
            all[at + next..][..to.len()].copy_from_slice(to);
            at += next + to.len();
            found += 1;
        }
        assert!(found > 0, "nothing to replace");
        self.write(&all)
    }
}

fn offset_of(file: &object::File<'_>, symbol: &str) -> usize {
    let symbol = file
        .dynamic_symbols()
        .find(|s| s.name() == Ok(symbol))
        .expect("the symbol");
    let section = file
        .section_by_index(symbol.section_index().expect("a section"))
        .unwrap();
    let (start, _) = section.file_range().expect("bytes in the file");
    (start + symbol.address() - section.address()) as usize
}

fn refusal(path: &Path) -> (&'static str, String) {
    let cache = tempfile::tempdir().unwrap();
    match try_load(path, cache.path(), 1)
        .err()
        .expect("it is refused")
    {
        LoadError::Refused { gate, source, .. } => (gate, source.to_string()),
        LoadError::Unreadable { source, .. } => ("unreadable", source.to_string()),
        LoadError::Changed { path } => ("changed", path),
    }
}

#[test]
fn each_unusable_file_is_refused_with_its_reason_and_a_loaded_plugin_keeps_working() {
    let path = built("sluicegate-handler-relay");
    let loaded = load(&path);
    let mut relay = loaded.create("relay", r#"{ "topic": "out" }"#);
    let v = Variants::of(&path);
    let table: [(&str, &dyn Fn() -> PathBuf, &str, &str); 19] = [
        (
            "code for another processor",
            &|| v.of_processor(EM_OTHER),
            "descriptor",
            "contains code for another processor",
        ),
        (
            "another ABI major",
            &|| v.patched(ABI_MAJOR, &9u16.to_ne_bytes()),
            "descriptor",
            "built for handler ABI 9.0",
        ),
        (
            "a newer ABI minor",
            &|| v.patched(ABI_MINOR, &7u16.to_ne_bytes()),
            "descriptor",
            "newer than this service's 1.0",
        ),
        (
            "another abi_stable",
            &|| v.patched(ABI_STABLE_MINOR, &10u16.to_ne_bytes()),
            "descriptor",
            "abi_stable 0.10",
        ),
        (
            "panic=abort",
            &|| v.patched(PANIC_UNWIND, &[0]),
            "descriptor",
            "built with panic=abort",
        ),
        (
            "another target",
            &|| v.patched(TARGET, b"sparc"),
            "descriptor",
            "built for sparc",
        ),
        (
            "no name",
            &|| v.patched(NAME, &[0; 64]),
            "descriptor",
            "empty or not UTF-8",
        ),
        (
            "no magic",
            &|| v.patched(0, b"XX"),
            "descriptor",
            "does not begin with SLUICEGT",
        ),
        (
            "no handler",
            &|| v.patched(HANDLERS, &[0; 16]),
            "descriptor",
            "exports no handler",
        ),
        (
            "other handlers",
            &|| v.patched(HANDLERS, b"relax"),
            "description",
            "its descriptor lists [\"relax\"]",
        ),
        (
            "a text file",
            &|| v.write(b"not a library, a text\n"),
            "descriptor",
            "not a shared library",
        ),
        (
            "an empty file",
            &|| v.write(b""),
            "descriptor",
            "not a shared library",
        ),
        (
            "a file cut in half",
            &|| v.write(&v.good[..v.good.len() / 2]),
            "descriptor",
            "truncated",
        ),
        (
            "a file without its end",
            &|| v.write(&v.good[..v.good.len() - 100]),
            "descriptor",
            "truncated",
        ),
        (
            "a bare ELF header",
            &|| v.write(&v.good[..64]),
            "descriptor",
            "truncated",
        ),
        (
            "no descriptor symbol",
            &|| {
                v.replaced(
                    b"SLUICEGATE_PLUGIN_DESCRIPTOR",
                    b"SLUICEGATE_PLUGIN_DESCRIPTXX",
                )
            },
            "descriptor",
            "no symbol SLUICEGATE_PLUGIN_DESCRIPTOR",
        ),
        (
            "no root module symbol",
            &|| v.replaced(b"root_bmodule_bloader", b"root_bmodule_bloadxx"),
            "header",
            "no abi_stable root module",
        ),
        (
            "another layout",
            &|| v.replaced(b"HandlerFunctions", b"HandlerFunctionz"),
            "layout",
            "type layout differs",
        ),
        (
            "not there",
            &|| v.folder.path().join("missing.so"),
            "unreadable",
            "No such file",
        ),
    ];
    for (what, file, gate, words) in table {
        let (by, reason) = refusal(&file());
        println!("{what}: {by}: {reason}");
        assert_eq!(by, gate, "{what}: {reason}");
        assert!(reason.contains(words), "{what}: {reason}");
        assert!(
            reason.len() < 500 && !reason.contains('\n'),
            "{what}: one short line: {reason}"
        );
    }
    let (status, ..) = handle(relay.as_mut(), &records(&["still"]));
    assert_eq!(status, CallStatus::Usable);
}

/// A file that would not fit into memory, as a core dump with a plugin's name.
#[test]
fn a_file_of_more_than_512_mib_is_refused_without_being_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("libcore.so");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(600 << 20).unwrap();
    let started = std::time::Instant::now();
    let refused = NativeRuntime.inspect(&path).unwrap_err();
    assert!(!refused.is_retryable());
    let reason = refused.to_string();
    let words = "has 629145600 bytes, more than 512 MiB; strip its debug information";
    assert!(reason.contains(words), "{reason}");
    assert!(started.elapsed() < std::time::Duration::from_secs(1));
}

#[test]
fn only_a_library_by_name_is_a_plugin() {
    let folder = tempfile::tempdir().unwrap();
    let good = std::fs::read(built("sluicegate-handler-relay")).unwrap();
    for (name, expected) in [
        ("librelay.so", true),
        ("relay.so", true),
        ("relay-1.2.so", true),
        (".librelay.so.AbC123", false),
        (".librelay.so", false),
        (".so", false),
        ("librelay.so~", false),
        ("librelay.so.new", false),
        ("librelay.so.swp", false),
        ("librelay.so.part", false),
        ("librelay.so.1", false),
        ("librelay.dylib", false),
        ("librelay", false),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, &good).unwrap();
        assert_eq!(NativeRuntime.recognises(&path), expected, "{name}");
    }
}

/// The pipe has no writer: opening it would block, and with it the scan of the folder.
#[test]
fn a_pipe_in_the_folder_is_refused_without_blocking() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["libpipe.so", "plugin.yaml"] {
        let made = std::process::Command::new("mkfifo")
            .arg(folder.path().join(name))
            .status();
        assert!(made.unwrap().success());
    }
    let pipe = folder.path().join("libpipe.so");
    let refused = NativeRuntime.inspect(&pipe).unwrap_err().to_string();
    assert!(refused.contains("not a regular file"), "{refused}");
    assert!(!NativeRuntime.recognises(&folder.path().join("plugin.yaml")));
}
