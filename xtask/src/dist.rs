//! `cargo xtask dist`: the service and its handlers as they are shipped, with their debug information in separate files next to them.
//!
//! ```text
//!  cargo build --release ─► sluicegate ─┬─ objcopy --only-keep-debug ─► sluicegate.debug
//!                                       └─ objcopy --strip-debug ─────► sluicegate, which names that file
//! ```
//!
//! Debuggers and the backtraces of the service read the line tables from the `.debug` file if it is next to the
//! program; names of functions stay in the program. What was made is run before it is called done.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use e2e::artefacts::{cargo, library_name, workspace};
use e2e::launcher;

/// The handlers that ship with the service, by crate.
const HANDLERS: [&str; 4] = ["relay", "flight-delays", "fraud-detector", "auditor"];

/// Where the files go.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Output folder; `target/dist` by default
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Builds, separates and checks.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if !launcher::works(Command::new("objcopy").arg("--version")) {
        bail!("objcopy is not installed: it separates the debug information (package binutils)");
    }
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace().join("target"), PathBuf::from);
    let out = arguments.out.clone().unwrap_or_else(|| target.join("dist"));
    let plugins = out.join("plugins");
    std::fs::create_dir_all(&plugins)
        .with_context(|| format!("cannot create {}", plugins.display()))?;
    build()?;
    let release = target.join("release");
    let mut files = vec![separate(&release.join("sluicegate"), &out)?];
    for handler in HANDLERS {
        files.push(separate(&release.join(library_name(handler)), &plugins)?);
    }
    print!("{}", table(&files, &out));
    check(&files)?;
    println!("checked: the service starts, and finds the handlers of every plugin");
    Ok(ExitCode::SUCCESS)
}

fn build() -> Result<()> {
    eprintln!("Building with optimisation …");
    let mut command = cargo();
    command.args(["build", "--release", "--package", "sluicegate"]);
    for handler in HANDLERS {
        command.args(["--package", &format!("sluicegate-handler-{handler}")]);
    }
    let status = command.status().context("cannot start cargo")?;
    if !status.success() {
        bail!("cargo build failed: {status}");
    }
    Ok(())
}

/// A shipped file.
struct Shipped {
    path: PathBuf,
    /// Its bytes as built.
    built: u64,
    /// Its bytes as shipped.
    shipped: u64,
    /// Bytes of its debug file.
    debug: u64,
}

/// Writes `file` without debug information to `folder`, and that information to a file next to it.
fn separate(file: &Path, folder: &Path) -> Result<Shipped> {
    let name = file.file_name().context("a file without a name")?;
    let path = folder.join(name);
    let debug = folder.join(format!("{}.debug", name.to_string_lossy()));
    let objcopy = |arguments: &[&str], from: &Path, to: &Path| {
        let mut command = Command::new("objcopy");
        // The link holds the debug file's name only, and its checksum is read from the present folder.
        command
            .current_dir(folder)
            .args(arguments)
            .arg(from)
            .arg(to);
        launcher::run(&mut command)
    };
    let link = format!("--add-gnu-debuglink={}.debug", name.to_string_lossy());
    let compressed = "--compress-debug-sections";
    objcopy(&["--only-keep-debug", compressed], file, &debug)?;
    objcopy(&["--strip-debug", &link], file, &path)?;
    let size = |path: &Path| -> Result<u64> {
        let found = std::fs::metadata(path);
        Ok(found
            .with_context(|| format!("cannot read {}", path.display()))?
            .len())
    };
    Ok(Shipped {
        built: size(file)?,
        shipped: size(&path)?,
        debug: size(&debug)?,
        path,
    })
}

fn table(files: &[Shipped], out: &Path) -> String {
    let mut table = format!(
        "{:28} {:>9} {:>9} {:>9}\n",
        "file", "built", "shipped", "debug"
    );
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    for file in files {
        let name = file.path.strip_prefix(out).unwrap_or(&file.path);
        table.push_str(&format!(
            "{:28} {:>5.1} MiB {:>5.1} MiB {:>5.1} MiB\n",
            name.display(),
            mib(file.built),
            mib(file.shipped),
            mib(file.debug)
        ));
    }
    table
}

/// Runs what was made: the descriptor of a plugin is read from its file, and must have survived.
fn check(files: &[Shipped]) -> Result<()> {
    let Some((service, plugins)) = files.split_first() else {
        return Ok(());
    };
    launcher::run(Command::new(&service.path).arg("--version"))?;
    for plugin in plugins {
        let mut inspect = Command::new(&service.path);
        inspect.args(["handler", "inspect"]).arg(&plugin.path);
        launcher::run(&mut inspect)
            .with_context(|| format!("{} is unusable", plugin.path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_files_relative_to_the_output() {
        let file = Shipped {
            path: "/o/plugins/librelay.so".into(),
            built: 8 << 20,
            shipped: 2 << 20,
            debug: 1 << 20,
        };
        let table = table(&[file], Path::new("/o"));
        let row = table.lines().nth(1).expect("a row");
        let words: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(
            words,
            [
                "plugins/librelay.so",
                "8.0",
                "MiB",
                "2.0",
                "MiB",
                "1.0",
                "MiB"
            ]
        );
    }
}
