//! A handler's crate: runs cargo and reads its messages.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use sluicegate_admin::logging;

use crate::cli::failure::Failure;

/// The argument that names the crate.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct CrateFolder {
    /// Folder of the handler's crate
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    path: PathBuf,
    /// Build without optimisation: quicker to build, much slower to run
    #[arg(long)]
    debug: bool,
}

impl CrateFolder {
    /// Builds the crate and returns the plugin's path.
    pub(super) fn build(&self) -> Result<PathBuf, Failure> {
        let mut command = self.cargo("build")?;
        command.args(["--lib", "--message-format", "json-render-diagnostics"]);
        // cargo prints progress and diagnostics itself; only its JSON messages are read here.
        let way = match self.debug {
            true => "",
            false => " with optimisation",
        };
        logging::say(&format!(
            "building the plugin{way}; the first build compiles the SDK and what it depends on, which can take minutes"
        ));
        let output = command
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .output();
        let output = output.map_err(no_cargo)?;
        if !output.status.success() {
            return Err(Failure::other(
                "the plugin does not build; see cargo's output above",
            ));
        }
        let messages = String::from_utf8_lossy(&output.stdout);
        let mut files = messages.lines().filter_map(plugin_file);
        files.next_back().ok_or_else(|| {
            Failure::bad_input(format!(
                "`{}` does not build a plugin; its Cargo.toml needs `crate-type = [\"cdylib\", \"rlib\"]` under [lib]",
                self.path.display()
            ))
        })
    }

    /// Runs the crate's own tests, with the profile of [`Self::build`]: what they and the plugin depend on is compiled once.
    pub(super) fn test(&self) -> Result<(), Failure> {
        logging::say(
            "building and running the crate's tests; the first build compiles the SDK and what it depends on, which can take \
             minutes",
        );
        let status = self.cargo("test")?.status().map_err(no_cargo)?;
        if status.success() {
            return Ok(());
        }
        Err(Failure::other(
            "the crate's tests fail; see cargo's output above",
        ))
    }

    fn cargo(&self, what: &str) -> Result<Command, Failure> {
        let manifest = self.path.join("Cargo.toml");
        if !manifest.is_file() {
            return Err(Failure::bad_input(format!(
                "`{}` is not a crate: it has no Cargo.toml; run this in the handler's folder, or set --path",
                self.path.display()
            )));
        }
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command
            .arg(what)
            .current_dir(&self.path)
            .stdin(Stdio::null());
        if !self.debug {
            command.arg("--release");
        }
        Ok(command)
    }
}

fn no_cargo(error: std::io::Error) -> Failure {
    Failure::other(format!(
        "cannot run cargo: {error}; install Rust from https://rustup.rs"
    ))
}

/// The dynamic library named by a cargo message, if any.
fn plugin_file(line: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(line).ok()?;
    let kinds = message["target"]["crate_types"].as_array()?;
    if message["reason"] != "compiler-artifact" || !kinds.iter().any(|kind| kind == "cdylib") {
        return None;
    }
    let files = message["filenames"]
        .as_array()?
        .iter()
        .filter_map(Value::as_str)
        .map(Path::new);
    let mut libraries = files.filter(|file| {
        file.extension()
            .is_some_and(|e| e == std::env::consts::DLL_EXTENSION)
    });
    libraries.next().map(Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plugin_is_the_dynamic_library_among_cargos_messages() {
        let extension = std::env::consts::DLL_EXTENSION;
        let line = format!(
            r#"{{"reason":"compiler-artifact","target":{{"crate_types":["cdylib","rlib"]}},
               "filenames":["/t/libx.{extension}","/t/libx.rlib"]}}"#
        );
        assert_eq!(
            plugin_file(&line),
            Some(PathBuf::from(format!("/t/libx.{extension}")))
        );
        let library = line.replace(r#""cdylib","#, "");
        assert_eq!(plugin_file(&library), None);
        assert_eq!(plugin_file("   Compiling x"), None);
    }
}
