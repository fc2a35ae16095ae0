//! Parses the service config and its overrides into [`ServiceConfig`].

use std::path::{Path, PathBuf};

use super::client_keys::ClientRole;
use super::table::{DEFAULT_FOLDER, DEFAULT_RESCAN, Handlers, ListedReferences, SpecFolder};
use super::{
    BridgeConfig, EtcdSettings, HandlersConfig, HandlersFrom, KafkaConfig, PluginsConfig,
    ServiceConfig, ZooKeeperSettings, client_keys, overrides,
};
use crate::document::{
    Checker, Document, Lookup, Node, Place, References, Section, SectionFields, Trail, parse,
    parse_duration, read_given_text, resolve,
};
use crate::environment::Environment;
use crate::problem::Problems;

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
    let mut checker = Checker::new(file, ServiceConfig::TYPE);
    overrides::from_environment(&mut root, environment, &mut checker);
    overrides::from_sets(&mut root, sets, &mut checker);
    let lookup = Lookup::Anything { environment, base };
    resolve(&mut root, &Trail::Root(""), lookup, &mut checker);
    let document = Document::check(&root, &mut checker);
    let section = document.section();
    let handlers = handlers(section, base, &mut checker);
    let config = build(section, base, handlers.clone(), &mut checker);
    problems.merge(checker.into_problems());
    Examined {
        config,
        handlers: handlers.filter(|_| !unreadable),
        problems,
    }
}

/// `None` only if a problem was reported.
fn build(
    section: Section<'_, ServiceConfig>,
    base: &Path,
    handlers: Option<HandlersConfig>,
    checker: &mut Checker<'_>,
) -> Option<ServiceConfig> {
    let bridge = match section.object(ServiceConfig::bridge) {
        Some(bridge) => BridgeConfig::read(bridge, base, checker).map(Some),
        None => Some(None),
    };
    let kafka = section.object(ServiceConfig::kafka)?;
    let mut map = |key, role| {
        let path = kafka.path_of(key);
        Some(client_keys::read(
            kafka.node(key)?,
            &path,
            role,
            base,
            checker,
        ))
    };
    let client = map(KafkaConfig::client, ClientRole::Consumer);
    let producer = map(KafkaConfig::producer, ClientRole::Producer);
    let plugins = section.get(ServiceConfig::plugins);
    let plugins = plugins.map(|plugins| PluginsConfig {
        folder: base.join(plugins.folder),
        cache: base.join(plugins.cache),
        ..plugins
    });
    let kafka = KafkaConfig::read(kafka, client, producer);
    ServiceConfig::read(section, kafka, handlers, plugins, bridge)
}

fn handlers(
    section: Section<'_, ServiceConfig>,
    base: &Path,
    checker: &mut Checker<'_>,
) -> Option<HandlersConfig> {
    let handlers = section.object(ServiceConfig::handlers)?;
    let sources = [
        Handlers::file.any(),
        Handlers::etcd.any(),
        Handlers::zookeeper.any(),
    ];
    let given: Vec<_> = sources
        .into_iter()
        .filter(|source| handlers.holds(*source))
        .collect();
    if let [first, second, ..] = given[..] {
        let first = first.name();
        let message = format!("conflicts with `{first}`; specs come from exactly one source");
        handlers.report(second, message, checker);
    }
    let from = match (
        handlers.object(Handlers::etcd),
        handlers.object(Handlers::zookeeper),
    ) {
        (Some(etcd), _) => HandlersFrom::Etcd(Box::new(EtcdSettings::read(etcd, base, checker)?)),
        (None, Some(zookeeper)) => {
            let settings = ZooKeeperSettings::read(zookeeper, base, checker)?;
            HandlersFrom::ZooKeeper(Box::new(settings))
        }
        (None, None) => match handlers.object(Handlers::file) {
            Some(file) => HandlersFrom::File {
                folder: base.join(file.get(SpecFolder::folder)?),
                rescan: file.get(SpecFolder::rescan).unwrap_or_default(),
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
        cache: base.join(handlers.get(Handlers::cache)?),
        require_fresh: handlers.get(Handlers::require_fresh).unwrap_or_default(),
        member_id: handlers.get(Handlers::member_id),
        references: references(handlers, base, checker)?,
    })
}

/// Variables and files that a store's specs may reference: only listed ones.
fn references(
    handlers: Section<'_, Handlers>,
    base: &Path,
    checker: &mut Checker<'_>,
) -> Option<References> {
    let Some(listed) = handlers.object(Handlers::references) else {
        return Some(References::default());
    };
    let folder = listed.get(ListedReferences::folder);
    let folder = folder.map(|folder| base.join(folder));
    if let Some(folder) = &folder
        && real(base).starts_with(real(folder))
    {
        let message =
            "contains the service config and its secrets; use a dedicated folder below it";
        listed.report(ListedReferences::folder, message, checker);
        return None;
    }
    let env = listed.texts(ListedReferences::env).iter();
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
