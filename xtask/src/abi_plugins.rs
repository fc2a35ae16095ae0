//! `cargo xtask abi-plugins`: builds the plugins of this ABI, and of an earlier and a later minor, that are kept in
//! `runtimes/native/tests/binaries` and must load, or be refused, as `docs/reference/abi.md` says.
//!
//! They are built from a copy of `handler-sdk/abi`, of which functions are cut out or added. To be run when a minor has been released:
//! its binary is added under a new name, and the old ones stay.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use e2e::artefacts::workspace;
use e2e::launcher::copy_folder;

/// A plugin that acknowledges and copies its records, and uses what the first minor has, except `extension`, to which nothing answers yet.
const PLUGIN: &str = include_str!("abi_plugins/plugin.rs.in");

/// Where the binaries are kept.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Output folder; `runtimes/native/tests/binaries` by default
    #[arg(long)]
    out: Option<PathBuf>,
}

/// A change of a source file of the copy: the text, which occurs once, and what replaces it.
type Change = (&'static str, &'static str, &'static str);

/// Without the functions `extension`, as an earlier minor would lack a later one's.
const LESS: &[Change] = &[
    (
        "module.rs",
        "    /// Host context, name and version of a table of further functions, which lives as long as the process; null if this service\n    /// has none of that name and version. From any thread.\n    pub extension: unsafe extern \"C\" fn(*const (), RawBytes, u32) -> *const (),\n",
        "",
    ),
    (
        "module.rs",
        "    /// Name and version of a table of further functions, which lives as long as the library; null if there is none.\n    pub extension: unsafe extern \"C\" fn(RawBytes, u32) -> *const (),\n",
        "",
    ),
    (
        "plugin/functions.rs",
        "        extension: extension::<P>,\n",
        "",
    ),
    (
        "plugin/mod.rs",
        "self.raw.functions.extension()?;",
        "None::<unsafe extern \"C\" fn(*const (), RawBytes, u32) -> *const ()>?;",
    ),
    ("host.rs", "    detail,\n    extension,\n", "    detail,\n"),
    (
        "host.rs",
        "self.raw.extension()?;",
        "None::<unsafe extern \"C\" fn(RawBytes, u32) -> *const ()>?;",
    ),
];

/// With another function at the end of two tables, and the next minor.
const MORE: &[Change] = &[
    (
        "module.rs",
        "    pub extension: unsafe extern \"C\" fn(*const (), RawBytes, u32) -> *const (),\n",
        "    pub extension: unsafe extern \"C\" fn(*const (), RawBytes, u32) -> *const (),\n    pub later: unsafe extern \"C\" fn(*const ()),\n",
    ),
    (
        "module.rs",
        "    pub extension: unsafe extern \"C\" fn(RawBytes, u32) -> *const (),\n",
        "    pub extension: unsafe extern \"C\" fn(RawBytes, u32) -> *const (),\n    pub later: unsafe extern \"C\" fn(u64) -> i32,\n",
    ),
    (
        "plugin/functions.rs",
        "        extension: extension::<P>,\n",
        "        extension: extension::<P>,\n        later,\n",
    ),
    (
        "plugin/functions.rs",
        "/// # Safety\n/// `context` comes from",
        "unsafe extern \"C\" fn later(_: u64) -> i32 {\n    status::OK\n}\n\n/// # Safety\n/// `context` comes from",
    ),
    (
        "host.rs",
        "    extension,\n",
        "    extension,\n    later: retain,\n",
    ),
    (
        "descriptor.rs",
        "pub const ABI_MINOR: u16 = 0;",
        "pub const ABI_MINOR: u16 = 1;",
    ),
];

/// The binaries, by name.
const VARIANTS: [(&str, &[Change]); 3] = [("abi-1.0", &[]), ("abi-less", LESS), ("abi-more", MORE)];

/// Builds all of them.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let kept = workspace().join("runtimes/native/tests/binaries");
    let out = arguments.out.as_ref().unwrap_or(&kept);
    std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let folder = workspace().join("target/abi-plugins");
    for (name, changes) in VARIANTS {
        let library = build(&folder, name, changes)?;
        let to = out.join(format!("lib{name}.so"));
        std::fs::copy(&library, &to).with_context(|| format!("cannot write {}", to.display()))?;
        let bytes = std::fs::metadata(&to)?.len();
        println!("{} ({} KiB)", to.display(), bytes / 1024);
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds a variant; its library.
fn build(folder: &Path, name: &str, changes: &[Change]) -> Result<PathBuf> {
    let root = folder.join(name);
    let abi = root.join("abi");
    let _ = std::fs::remove_dir_all(&root);
    copy_folder(&workspace().join("handler-sdk/abi/src"), &abi.join("src"))?;
    std::fs::copy(
        workspace().join("handler-sdk/abi/build.rs"),
        abi.join("build.rs"),
    )?;
    for (file, from, to) in changes {
        let path = abi.join("src").join(file);
        let text = std::fs::read_to_string(&path)?;
        std::fs::write(
            &path,
            changed(&text, from, to).with_context(|| format!("{name}: {file}"))?,
        )?;
    }
    std::fs::write(abi.join("Cargo.toml"), ABI_MANIFEST)?;
    std::fs::create_dir_all(root.join("src"))?;
    std::fs::write(root.join("src/lib.rs"), PLUGIN)?;
    std::fs::write(root.join("Cargo.toml"), MANIFEST)?;
    let target = folder.join("target");
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--release"])
        .current_dir(&root)
        .env("CARGO_TARGET_DIR", &target)
        .env("RUSTFLAGS", without_paths(&root))
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("cargo cannot build {name}");
    }
    Ok(target.join("release/libabi_plugin.so"))
}

/// Compiler flags with which no path of this machine stays in the binary.
fn without_paths(root: &Path) -> String {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cargo")));
    let sources = home.map(|home| home.join("registry/src"));
    let folders = sources.and_then(|folder| std::fs::read_dir(folder).ok());
    let registries = folders.into_iter().flatten().flatten();
    let mut flags = format!("--remap-path-prefix={}=/build", root.display());
    for registry in registries {
        flags += &format!(" --remap-path-prefix={}=/crates", registry.path().display());
    }
    flags
}

/// The text with one occurrence replaced.
fn changed(text: &str, from: &str, to: &str) -> Result<String> {
    match text.matches(from).count() {
        1 => Ok(text.replace(from, to)),
        times => bail!("the text to change occurs {times} times: {from:?}"),
    }
}

const ABI_MANIFEST: &str = r#"[package]
name = "sluicegate-abi"
version = "1.0.0"
edition = "2024"

[dependencies]
abi_stable = { version = "=0.11.3", default-features = false }
"#;

const MANIFEST: &str = r#"[package]
name = "abi-plugin"
version = "1.0.0"
edition = "2024"

[lib]
crate-type = ["cdylib"]

[dependencies]
sluicegate-abi = { path = "abi" }

[profile.release]
opt-level = "z"
lto = true
codegen-units = 1
panic = "unwind"
strip = true

[workspace]
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_changes_fit_the_sources() {
        for (name, changes) in VARIANTS {
            let mut texts = std::collections::BTreeMap::new();
            for (file, from, to) in changes {
                let path = workspace().join("handler-sdk/abi/src").join(file);
                let read = || std::fs::read_to_string(&path).expect("the source is there");
                let text = texts.entry(file).or_insert_with(read);
                *text = changed(text, from, to)
                    .unwrap_or_else(|error| panic!("{name}: {file}: {error:#}"));
            }
        }
    }
}
