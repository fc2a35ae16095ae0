//! Config of the bridge: a file of its own for `sluicegate bridge`, or the block `bridge:` of the service config.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::logging::LoggingConfig;
use super::rules::ADDRESS;
use super::store_settings::{EtcdSettings, ZooKeeperSettings};
use super::store_table::{ABSOLUTE, Etcd, ZooKeeper};
use crate::control::Side;
use crate::document::{
    Checker, ChoiceValue, Document, Lookup, Reason, Section, SectionFields, TextRule, Trail,
    choice, millis, object, parse, read_given_text, resolve, text,
};
use crate::environment::Environment;
use crate::problem::Problems;
use crate::section;

/// A bridge's config, validated.
#[derive(Clone, Debug, PartialEq)]
pub struct BridgeConfig {
    /// One side.
    pub etcd: EtcdSettings,
    /// The other side.
    pub zookeeper: ZooKeeperSettings,
    /// The side whose value wins a conflict.
    pub preferred_side: Side,
    /// Directory of this pair's sync state below `state_prefix`.
    pub name: String,
    /// Prefix in etcd of the sync state of all pairs.
    pub state_prefix: String,
    /// Period of a full comparison of all keys, with ±20 % jitter.
    pub resync_interval: Duration,
    /// Listen address of the admin HTTP server.
    pub admin: SocketAddr,
}

impl ChoiceValue for Side {
    const WORDS: &'static [(&'static str, Self)] =
        &[("etcd", Self::Etcd), ("zookeeper", Self::ZooKeeper)];
}

static NAME: TextRule = TextRule {
    check: |text| {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
        Reason::unless(
            (1..=128).contains(&text.len()) && text.chars().all(fits) && !text.starts_with('.'),
            "write letters, digits, -, _, ~ and dots, at most 128",
        )
    },
    pattern: Some(r"^[A-Za-z0-9_~-][A-Za-z0-9._~-]{0,127}$"),
    numbers: false,
};

section! {
    /// The bridge's own admin HTTP server: health, metrics and status.
    pub(crate) struct BridgeAdmin {
        /// Listen address and port; port 0 selects a free port.
        listen: SocketAddr = text(&ADDRESS), default "127.0.0.1:9601";
    }
}

section! {
    /// A bridge that replicates control keys between an etcd prefix and a ZooKeeper tree.
    pub(crate) keys Bridge {
        /// One side; also stores the sync state.
        etcd: Etcd = object(), required;
        /// The other side.
        zookeeper: ZooKeeper = object(), required;
        /// Side whose value wins when both sides changed a key.
        preferred_side: Side = choice(&[]), default "etcd";
        /// Identifies the pair's sync state: the same for every bridge of the pair, different for each pair. Derived from prefix and root unless set.
        name: String = text(&NAME), optional;
        /// Prefix of the sync state in etcd.
        state_prefix: String = text(&ABSOLUTE), default "/sluicegate/bridge";
        /// Period of a full comparison of all keys, with ±20 % jitter.
        resync_interval: Duration = millis(100, 3_600_000), default "30s";
        /// The bridge's own admin HTTP server.
        admin: BridgeAdmin = object(), default "{}";
    }
}

section! {
    /// Config of `sluicegate bridge`.
    pub(crate) keys BridgeFile: Bridge {
        /// The bridge's own log.
        logging: LoggingConfig = object(), default "{}";
    }
}

/// Reads the config of `sluicegate bridge` in `file`.
///
/// # Errors
/// All problems found in it.
pub fn load_bridge_config(
    file: &Path,
    environment: &Environment,
) -> Result<(BridgeConfig, LoggingConfig), Problems> {
    read_bridge_config(&read_given_text(file)?, Some(file), environment)
}

/// Reads the config of `sluicegate bridge` from its text; relative paths start at the directory of `file`.
///
/// # Errors
/// All problems found in it.
pub fn read_bridge_config(
    text: &str,
    file: Option<&Path>,
    environment: &Environment,
) -> Result<(BridgeConfig, LoggingConfig), Problems> {
    let base = file.and_then(Path::parent).unwrap_or(Path::new(""));
    let parsed = parse(text, file);
    let mut problems = parsed.problems;
    let Some(mut root) = parsed.root else {
        return Err(problems);
    };
    let mut checker = Checker::new(file, BridgeFile::TYPE);
    let lookup = Lookup::Anything { environment, base };
    resolve(&mut root, &Trail::Root(""), lookup, &mut checker);
    let document: Document<BridgeFile> = Document::check(&root, &mut checker);
    let config = BridgeConfig::read(document.section().base(), base, &mut checker);
    let logging = document.section().get(BridgeFile::logging);
    problems.merge(checker.into_problems());
    match (config, logging) {
        (Some(config), Some(logging)) if problems.is_empty() => Ok((config, logging)),
        _ => Err(problems),
    }
}

impl BridgeConfig {
    /// Reads a checked block; files are relative to `base`. `None` only if a problem was reported.
    pub(crate) fn read(
        section: Section<'_, Bridge>,
        base: &Path,
        checker: &mut Checker<'_>,
    ) -> Option<Self> {
        let etcd = section.object(Bridge::etcd);
        let etcd = etcd.and_then(|etcd| EtcdSettings::read(etcd, base, checker));
        let zookeeper = section.object(Bridge::zookeeper);
        let zookeeper =
            zookeeper.and_then(|zookeeper| ZooKeeperSettings::read(zookeeper, base, checker));
        let (etcd, zookeeper) = (etcd?, zookeeper?);
        let state_prefix = section.get(Bridge::state_prefix)?;
        let name = section.get(Bridge::name);
        for (key, taken) in [
            (Etcd::prefix, &etcd.prefix),
            (Etcd::members_prefix, &etcd.members_prefix),
        ] {
            if is_within(&state_prefix, taken) || is_within(taken, &state_prefix) {
                let key = key.name();
                let message = format!(
                    "overlaps `etcd.{key}`, {taken}; the sync state needs a prefix of its own"
                );
                section.report(Bridge::state_prefix, message, checker);
            }
        }
        Some(Self {
            name: name.unwrap_or_else(|| pair_name(&etcd.prefix, &zookeeper.root)),
            etcd,
            zookeeper,
            preferred_side: section.get(Bridge::preferred_side)?,
            state_prefix,
            resync_interval: section.get(Bridge::resync_interval)?,
            admin: section.get(Bridge::admin)?.listen,
        })
    }

    /// Defaults for two stores, for embedding programs and tests.
    #[must_use]
    pub fn new(etcd: EtcdSettings, zookeeper: ZooKeeperSettings) -> Self {
        Self {
            name: pair_name(&etcd.prefix, &zookeeper.root),
            etcd,
            zookeeper,
            preferred_side: Side::Etcd,
            state_prefix: "/sluicegate/bridge".to_owned(),
            resync_interval: Duration::from_secs(30),
            admin: SocketAddr::from(([127, 0, 0, 1], 9601)),
        }
    }
}

/// Derives the default pair name: `/plugins` and `/a/b` give `plugins~a.b`.
fn pair_name(prefix: &str, root: &str) -> String {
    let part = |path: &str| {
        let letters = path.trim_matches('/').chars().map(|c| match c {
            '/' => '.',
            c if c.is_ascii_alphanumeric() || "-._".contains(c) => c,
            _ => '_',
        });
        letters.collect::<String>()
    };
    format!("{}~{}", part(prefix), part(root))
}

fn is_within(path: &str, above: &str) -> bool {
    path.strip_prefix(above)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<BridgeConfig, Problems> {
        read_bridge_config(text, None, &Environment::default()).map(|(config, _)| config)
    }

    const BLOCK: &str = "etcd: { endpoints: [\"http://127.0.0.1:2379\"] }\nzookeeper: { servers: \"127.0.0.1:2181\", root: /a/b }\n";

    #[test]
    fn a_block_with_only_two_stores_gets_the_defaults() {
        let config = read(BLOCK).unwrap();
        let mut expected = BridgeConfig::new(
            EtcdSettings::new(&["http://127.0.0.1:2379"]),
            ZooKeeperSettings::new("127.0.0.1:2181"),
        );
        expected.zookeeper.root = "/a/b".to_owned();
        expected.name = "plugins~a.b".to_owned();
        assert_eq!(config, expected);
    }

    #[test]
    fn a_bad_config_is_rejected_with_the_remedy() {
        for (more, reason) in [
            ("preferred_side: both\n", "etcd"),
            ("state_prefix: /plugins/state\n", "a prefix of its own"),
            ("state_prefix: /sluicegate\n", "a prefix of its own"),
            ("name: ../x\n", "letters, digits"),
            ("admin: { listen: nowhere }\n", "127.0.0.1:9600"),
            ("prefered_side: etcd\n", "preferred_side"),
        ] {
            let problems = read(&format!("{BLOCK}{more}")).unwrap_err().to_string();
            assert!(problems.contains(reason), "{more}: {problems}");
        }
        let problems = read("preferred_side: etcd\n").unwrap_err().to_string();
        assert!(
            problems.contains("etcd: ") && problems.contains("zookeeper: "),
            "{problems}"
        );
    }
}
