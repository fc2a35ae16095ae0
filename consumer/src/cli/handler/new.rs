//! `sluicegate handler new NAME`: a crate from the SDK's template.

use std::fs;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use sluicegate_sdk::template;

use crate::cli::failure::Failure;
use crate::cli::output;

/// Arguments of `handler new`.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// Name of the handler, its crate and its folder
    name: String,
    /// Language
    #[arg(long, value_enum, default_value = "rust")]
    lang: Language,
    /// Source of the SDK: a folder, or a version in the registry; required unless a source tree contains the program
    #[arg(long, value_name = "PATH|VERSION", env = "SLUICEGATE_SDK")]
    sdk: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Language {
    /// A native plugin
    Rust,
}

/// The SDK dependency of a new crate.
struct Sdk {
    /// The right side of `sluicegate-sdk = …`.
    dependency: String,
    /// Lock file with versions that the SDK is known to build with.
    lock: Option<PathBuf>,
}

/// Writes the crate and prints the next steps.
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Language::Rust = arguments.lang;
    let name = &arguments.name;
    let sdk = sdk(arguments.sdk.as_deref())?;
    let files = template::files(name, &sdk.dependency).map_err(Failure::bad_input)?;
    let folder = Path::new(name);
    if folder.exists() {
        return Err(Failure::bad_input(format!(
            "`{name}` already exists; remove it or choose another name"
        )));
    }
    for (path, text) in files {
        write(&folder.join(path), &text)?;
    }
    if let Some(lock) = sdk.lock {
        fs::copy(&lock, folder.join("Cargo.lock")).map_err(|error| {
            Failure::other(format!("cannot copy `{}`: {error}", lock.display()))
        })?;
    }
    output::show(&format!(
        "created `{name}`\n\
         next:\n  \
           cd {name}\n  \
           sluicegate handler test           # builds it, runs its tests, then the plugin contract checks\n  \
           sluicegate handler build --into PLUGINS   # copies it to the service's `plugins.folder`\n  \
           cp handler.yaml SPECS/{name}.yaml   # to the service's folder of specs; edit `route.topics` first"
    ))
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent)
        .and_then(|()| fs::write(path, text))
        .map_err(|error| Failure::other(format!("cannot write `{}`: {error}", path.display())))
}

fn sdk(given: Option<&str>) -> Result<Sdk, Failure> {
    match given {
        Some(text) if Path::new(text).is_dir() => of_folder(Path::new(text)).ok_or_else(|| {
            Failure::bad_input(format!(
                "`{text}` is not the SDK's folder: it has no Cargo.toml of `sluicegate-sdk`"
            ))
        }),
        Some(version)
            if version.starts_with(|c: char| c.is_ascii_digit() || "=^~*<>".contains(c)) =>
        {
            Ok(Sdk {
                dependency: format!("\"{version}\""),
                lock: None,
            })
        }
        Some(other) => Err(Failure::bad_input(format!(
            "--sdk `{other}` is neither a folder nor a version"
        ))),
        // Never a guessed version from a registry: the owner of that name there would run code in the build.
        None => sdk_of_source_tree().ok_or_else(|| {
            Failure::bad_input(
                "the SDK is not found next to the program or above the current folder; name its source: `--sdk CLONE/handler-sdk`, \
                 or a version in your registry",
            )
        }),
    }
}

/// The SDK of the source tree that contains the current folder or the program.
fn sdk_of_source_tree() -> Option<Sdk> {
    let program = std::env::current_exe().ok();
    let current = std::env::current_dir().ok();
    let starts = [current, program].into_iter().flatten();
    let mut folders = starts.flat_map(|start| {
        start
            .ancestors()
            .map(|above| above.join("handler-sdk"))
            .collect::<Vec<_>>()
    });
    folders.find_map(|folder| of_folder(&folder))
}

fn of_folder(folder: &Path) -> Option<Sdk> {
    let manifest = fs::read_to_string(folder.join("Cargo.toml")).ok()?;
    if !manifest
        .lines()
        .any(|line| line.trim() == "name = \"sluicegate-sdk\"")
    {
        return None;
    }
    let folder = folder.canonicalize().ok()?;
    let lock = folder.parent()?.join("Cargo.lock");
    // A JSON string is also a valid TOML basic string.
    let path = serde_json::to_string(folder.to_str()?).ok()?;
    Some(Sdk {
        dependency: format!("{{ path = {path} }}"),
        lock: lock.is_file().then_some(lock),
    })
}
