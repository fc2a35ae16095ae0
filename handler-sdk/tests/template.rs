//! Situation: a new handler crate, created from the template and not edited. Property: it builds, its tests pass, and it
//! produces a library. It resolves offline from this workspace's lock file and builds into a subfolder of this target.

use std::path::{Path, PathBuf};
use std::process::Command;

use sluicegate_sdk::template;

#[test]
fn an_unedited_crate_builds_and_passes_its_tests() {
    let folder = tempfile::tempdir().expect("a folder");
    let sdk = format!("{{ path = {:?} }}", env!("CARGO_MANIFEST_DIR"));
    for (path, text) in template::files("my-handler", &sdk).expect("a good name") {
        let file = folder.path().join(path);
        std::fs::create_dir_all(file.parent().expect("inside the folder")).expect("a folder");
        std::fs::write(file, text).expect("a file");
    }
    // The same versions as here: nothing is resolved online, and build artefacts are shared between runs.
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.lock");
    std::fs::copy(lock, folder.path().join("Cargo.lock")).expect("a lock file");
    let target = target_folder();
    for command in ["test", "build"] {
        let out = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args([command, "--offline", "--target-dir"])
            .arg(&target)
            .current_dir(folder.path())
            .output()
            .expect("cargo runs");
        let said = String::from_utf8_lossy(&out.stderr) + String::from_utf8_lossy(&out.stdout);
        assert!(
            out.status.success(),
            "cargo {command} of an unedited crate fails:\n{said}"
        );
        assert!(
            !said.contains("warning:"),
            "cargo {command} of an unedited crate warns:\n{said}"
        );
    }
    assert!(target.join("debug/libmy_handler.so").is_file());
}

/// Next to the running test's own artefacts, kept between runs.
fn target_folder() -> PathBuf {
    let test = std::env::current_exe().expect("the test's own file");
    let target = test
        .ancestors()
        .find(|folder| folder.join("CACHEDIR.TAG").is_file())
        .expect("a target folder");
    target.join("template")
}
