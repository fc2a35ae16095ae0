//! `sluicegate handler` as an author runs it: accepted names, and the output of a failing build.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::path::Path;
use std::process::{Command, Output};

use sluicegate_config::{Environment, read_spec};

fn handler(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sluicegate"))
        .arg("handler")
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap()
}

#[test]
fn a_new_handler_has_a_name_that_is_valid_in_a_spec() {
    let folder = tempfile::tempdir().unwrap();
    for name in [
        "late",
        "late-2",
        "record",
        "my_handler",
        "a-",
        "-a",
        "Late",
        "1st",
        "logging",
        "metrics",
        "match",
        "a--b",
        "../up",
        "",
        "a.b",
    ] {
        let made = handler(folder.path(), &["new", "--sdk", "0.1", "--", name]);
        let printed = String::from_utf8_lossy(&made.stderr).into_owned();
        match made.status.code() {
            Some(0) => {
                let steps = String::from_utf8_lossy(&made.stdout);
                assert!(steps.contains("build --into PLUGINS "), "{steps}");
                let copied = format!("cp handler.yaml SPECS/{name}.yaml ");
                assert!(steps.contains(&copied), "{steps}");
                let spec = std::fs::read_to_string(folder.path().join(name).join("handler.yaml"));
                let read = read_spec(&spec.unwrap(), None, &Environment::default());
                assert_eq!(read.map(|spec| spec.name), Ok(name.to_owned()));
            }
            code => {
                assert_eq!(code, Some(2), "{name}: {printed}");
                assert!(
                    printed.contains("cannot be a handler's name"),
                    "{name}: {printed}"
                );
                assert!(!folder.path().join(name).join("Cargo.toml").exists());
            }
        }
    }
    assert!(folder.path().join("late-2").exists() && folder.path().join("record").exists());
}

/// A guessed version from a registry would run the code of the owner of the name there.
#[test]
fn a_program_outside_a_source_tree_needs_its_sdk_named() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("sluicegate");
    std::fs::copy(env!("CARGO_BIN_EXE_sluicegate"), &program).unwrap();
    let mut new = Command::new(&program);
    new.args(["handler", "new", "mine"])
        .env_remove("SLUICEGATE_SDK");
    let made = new.current_dir(folder.path()).output().unwrap();
    let printed = String::from_utf8_lossy(&made.stderr).into_owned();
    assert_eq!(made.status.code(), Some(2), "{printed}");
    assert!(printed.contains("--sdk CLONE/handler-sdk"), "{printed}");
    assert!(!folder.path().join("mine").exists());
}

#[test]
fn a_failing_build_shows_the_compiler_errors() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("src")).unwrap();
    let manifest = "[package]\nname = \"typo\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[lib]\ncrate-type = [\"cdylib\"]\n[workspace]\n";
    std::fs::write(folder.path().join("Cargo.toml"), manifest).unwrap();
    let source = "pub fn wrong() -> u32 { let misspelt = 1; mispelt }\n";
    std::fs::write(folder.path().join("src/lib.rs"), source).unwrap();
    let built = handler(folder.path(), &["build", "--debug"]);
    let printed = String::from_utf8_lossy(&built.stderr).into_owned();
    assert_eq!(built.status.code(), Some(1), "{printed}");
    for words in [
        "Compiling typo",
        "error[E0425]: cannot find value `mispelt`",
        "src/lib.rs:1:43",
        "the plugin does not build; see cargo's output above",
    ] {
        assert!(printed.contains(words), "no `{words}` in: {printed}");
    }
    assert!(
        built.stdout.is_empty(),
        "stdout is reserved for the plugin's path"
    );
}
