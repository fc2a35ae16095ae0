//! Parses the service config and its overrides into [`ServiceConfig`].

use std::path::{Path, PathBuf};

use super::client_keys::ClientRole;
use super::rules::{parse_address, parse_start};
use super::table::{DEFAULT_FOLDER, DEFAULT_RESCAN, SERVICE};
use super::{
    AdminConfig, EmitConfig, HandlersConfig, HandlersFrom, KafkaConfig, LoggingConfig,
    PluginsConfig, ProcessingConfig, ServiceConfig, client_keys, overrides,
};
use crate::document::{
    Checker, ChoiceValue, Lookup, Node, Place, References, Section, Trail, parse, parse_duration,
    read_given_text, resolve,
};
use crate::environment::Environment;
use crate::problem::Problems;
use crate::service::BridgeConfig;
use crate::service::{EtcdSettings, ZooKeeperSettings};

/// Reads the service config in `file` with overrides from `environment` (`SLUICEGATE__KAFKA__GROUP_ID=x`) and, with higher
/// precedence, from `sets` (`kafka.group_id=x`).
///
/// # Errors
/// All problems of the file and the overrides.
pub fn load_service_config(
    file: &Path,
    environment: &Environment,
    sets: &[String],
) -> Result<ServiceConfig, Problems> {
    let text = read_given_text(file)?;
    read_service_config(&text, Some(file), environment, sets)
}

/// Parses a service config. Relative paths and `${file:…}` are resolved against the folder of `file`, or the current folder.
///
/// # Errors
/// All problems of the text and the overrides.
pub fn read_service_config(
    text: &str,
    file: Option<&Path>,
    environment: &Environment,
    sets: &[String],
) -> Result<ServiceConfig, Problems> {
    let examined = examine(text, file, environment, sets);
    match examined.config {
        Some(config) if examined.problems.is_empty() => Ok(config),
        _ => Err(examined.problems),
    }
}

/// A possibly incomplete config and its problems.
pub struct Examined {
    pub(crate) config: Option<ServiceConfig>,
    /// The spec source, available even if other parts are invalid.
    pub handlers: Option<HandlersConfig>,
    /// All problems of the text and the overrides; empty if the config is complete and valid.
    pub problems: Problems,
}

/// Parses as much as possible.
pub fn examine(
    text: &str,
    file: Option<&Path>,
    environment: &Environment,
    sets: &[String],
) -> Examined {
    let base = file.and_then(Path::parent).unwrap_or(Path::new(""));
    let parsed = parse(text, file);
    let unreadable = parsed.root.is_none();
    let mut problems = parsed.problems;
    let mut root = parsed
        .root
        .unwrap_or_else(|| Node::empty_map(Place::default()));
    let mut checker = Checker::new(file, &SERVICE);
    overrides::from_environment(&mut root, environment, &mut checker);
    overrides::from_sets(&mut root, sets, &mut checker);
    let lookup = Lookup::Anything { environment, base };
    resolve(&mut root, &Trail::Root(""), lookup, &mut checker);
    let section = checker.section(&root, &SERVICE, "");
    let handlers = handlers(&section, base, &mut checker);
    let config = build(&section, base, handlers.clone(), &mut checker);
    problems.merge(checker.into_problems());
    Examined {
        config,
        handlers: handlers.filter(|_| !unreadable),
        problems,
    }
}

/// `None` only if a problem was reported.
fn build(
    section: &Section,
    base: &Path,
    handlers: Option<HandlersConfig>,
    checker: &mut Checker<'_>,
) -> Option<ServiceConfig> {
    let kafka = kafka(section.object("kafka")?, base, checker);
    let processing = processing(section.object("processing")?);
    let plugins = section.object("plugins")?;
    let logging = section.object("logging")?;
    let bridge = section.object("bridge");
    let bridge = bridge.and_then(|bridge| BridgeConfig::read(bridge, base, checker));
    Some(ServiceConfig {
        kafka: kafka?,
        processing: processing?,
        handlers: handlers?,
        plugins: PluginsConfig {
            folder: path(plugins, "folder", base)?,
            cache: path(plugins, "cache", base)?,
            allow_unsigned: plugins.flag("allow_unsigned"),
        },
        admin: AdminConfig {
            listen: parse_address(section.object("admin")?.text("listen")?).ok()?,
        },
        emit: EmitConfig {
            provenance: section.object("emit")?.flag("provenance"),
        },
        logging: read_logging(logging)?,
        bridge: match section.object("bridge") {
            Some(_) => Some(bridge?),
            None => None,
        },
    })
}

/// `None` only if a problem was reported.
pub(crate) fn read_logging(logging: &Section) -> Option<LoggingConfig> {
    Some(LoggingConfig {
        format: logging.word("format")?,
        level: logging.text("level")?.to_owned(),
    })
}

fn handlers(section: &Section, base: &Path, checker: &mut Checker<'_>) -> Option<HandlersConfig> {
    let handlers = section.object("handlers")?;
    let given: Vec<&str> = ["file", "etcd", "zookeeper"]
        .into_iter()
        .filter(|name| handlers.holds(name))
        .collect();
    if let [first, second, ..] = given[..] {
        let place = handlers.place_of(second).clone();
        let message = format!("conflicts with `{first}`; specs come from exactly one source");
        checker.report(&place, &handlers.path_of(second), message);
    }
    let from = match (handlers.object("etcd"), handlers.object("zookeeper")) {
        (Some(etcd), _) => HandlersFrom::Etcd(Box::new(EtcdSettings::read(etcd, base, checker)?)),
        (None, Some(zookeeper)) => {
            let settings = ZooKeeperSettings::read(zookeeper, base, checker)?;
            HandlersFrom::ZooKeeper(Box::new(settings))
        }
        (None, None) => match handlers.object("file") {
            Some(file) => HandlersFrom::File {
                folder: path(file, "folder", base)?,
                rescan: file.duration("rescan"),
            },
            None if given.is_empty() => HandlersFrom::File {
                folder: base.join(DEFAULT_FOLDER),
                rescan: parse_duration(DEFAULT_RESCAN).ok()?,
            },
            None => return None,
        },
    };
    Some(HandlersConfig {
        from,
        cache: path(handlers, "cache", base)?,
        require_fresh: handlers.flag("require_fresh"),
        member_id: handlers.text("member_id").map(str::to_owned),
        references: references(handlers, base, checker)?,
    })
}

/// Variables and files that a store's specs may reference: only listed ones.
fn references(handlers: &Section, base: &Path, checker: &mut Checker<'_>) -> Option<References> {
    let Some(listed) = handlers.object("references") else {
        return Some(References::default());
    };
    let folder = path(listed, "folder", base);
    if let Some(folder) = &folder
        && real(base).starts_with(real(folder))
    {
        let message =
            "contains the service config and its secrets; use a dedicated folder below it";
        let place = listed.place_of("folder").clone();
        checker.report(&place, &listed.path_of("folder"), message);
        return None;
    }
    let env = listed.texts("env").iter();
    Some(References {
        env: env.map(|listed| listed.text.clone()).collect(),
        folder,
    })
}

/// The canonical path of a folder; the absolute path if it does not exist.
fn real(folder: &Path) -> PathBuf {
    let named = Path::new(".").join(folder);
    named
        .canonicalize()
        .or_else(|_| std::path::absolute(&named))
        .unwrap_or(named)
}

fn kafka(kafka: &Section, base: &Path, checker: &mut Checker<'_>) -> Option<KafkaConfig> {
    let mut map = |name, role| {
        let path = kafka.path_of(name);
        Some(client_keys::read(
            kafka.custom(name)?,
            &path,
            role,
            base,
            checker,
        ))
    };
    let client = map("client", ClientRole::Consumer);
    let producer = map("producer", ClientRole::Producer);
    Some(KafkaConfig {
        bootstrap_servers: kafka.text("bootstrap_servers")?.to_owned(),
        group_id: kafka.text("group_id")?.to_owned(),
        clients: usize::try_from(kafka.count("clients")).ok()?,
        start: parse_start(kafka.text("start")?).ok()?,
        client: client?,
        producer: producer?,
    })
}

fn processing(processing: &Section) -> Option<ProcessingConfig> {
    Some(ProcessingConfig {
        guarantee: ChoiceValue::of(processing.text("guarantee")?)?,
        max_uncommitted: processing.count("max_uncommitted"),
        memory: processing.count("memory"),
        commit_interval: processing.duration("commit_interval"),
        drain_timeout: processing.duration("drain_timeout"),
        stall_timeout: processing.duration("stall_timeout"),
        offset_out_of_range: processing.word("offset_out_of_range")?,
    })
}

fn path(section: &Section, name: &str, base: &Path) -> Option<PathBuf> {
    section.text(name).map(|text| base.join(text))
}
