//! Config of the bridge: a file of its own for `sluicegate bridge`, or the block `bridge:` of the service config.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::control::Side;
use crate::document::{
    Checker, ChoiceValue, Field, FieldType, Lookup, Presence, Section, SectionType, TextRule,
    Trail, parse, read_given_text, resolve, words,
};
use crate::environment::Environment;
use crate::problem::Problems;
use crate::service::{
    ABSOLUTE, ADDRESS, ETCD, EtcdSettings, LOGGING, LoggingConfig, ZOOKEEPER, ZooKeeperSettings,
    parse_address, read_logging,
};

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
        match (1..=128).contains(&text.len()) && text.chars().all(fits) && !text.starts_with('.') {
            true => Ok(()),
            false => Err("write letters, digits, -, _, ~ and dots, at most 128".to_owned()),
        }
    },
    pattern: Some(r"^[A-Za-z0-9_~-][A-Za-z0-9._~-]{0,127}$"),
    numbers: false,
};

static ADMIN: SectionType = SectionType {
    doc: "The bridge's own admin HTTP server: health, metrics and status.",
    fields: &[Field {
        name: "listen",
        doc: "Listen address and port; port 0 selects a free port.",
        kind: FieldType::Text(&ADDRESS),
        need: Presence::Default("127.0.0.1:9601"),
    }],
    later: &[],
};

const ETCD_FIELD: Field = Field {
    name: "etcd",
    doc: "One side; also stores the sync state.",
    kind: FieldType::Object(&ETCD),
    need: Presence::Required,
};

const ZOOKEEPER_FIELD: Field = Field {
    name: "zookeeper",
    doc: "The other side.",
    kind: FieldType::Object(&ZOOKEEPER),
    need: Presence::Required,
};

const PREFERRED_SIDE_FIELD: Field = Field {
    name: "preferred_side",
    doc: "Side whose value wins when both sides changed a key.",
    kind: FieldType::Choice {
        words: words::<Side>,
        later: &[],
    },
    need: Presence::Default("etcd"),
};

const NAME_FIELD: Field = Field {
    name: "name",
    doc: "Identifies the pair's sync state: the same for every bridge of the pair, different for each pair. Derived from prefix and root unless set.",
    kind: FieldType::Text(&NAME),
    need: Presence::Optional,
};

const STATE_PREFIX_FIELD: Field = Field {
    name: "state_prefix",
    doc: "Prefix of the sync state in etcd.",
    kind: FieldType::Text(&ABSOLUTE),
    need: Presence::Default("/sluicegate/bridge"),
};

const RESYNC_INTERVAL_FIELD: Field = Field {
    name: "resync_interval",
    doc: "Period of a full comparison of all keys, with ±20 % jitter.",
    kind: FieldType::Duration {
        min: Duration::from_millis(100),
        max: Duration::from_secs(3_600),
    },
    need: Presence::Default("30s"),
};

const ADMIN_FIELD: Field = Field {
    name: "admin",
    doc: "The bridge's own admin HTTP server.",
    kind: FieldType::Object(&ADMIN),
    need: Presence::Default("{}"),
};

/// `bridge:` of the service config.
pub(crate) static BRIDGE: SectionType = SectionType {
    doc: "A bridge that replicates control keys between an etcd prefix and a ZooKeeper tree.",
    fields: &[
        ETCD_FIELD,
        ZOOKEEPER_FIELD,
        PREFERRED_SIDE_FIELD,
        NAME_FIELD,
        STATE_PREFIX_FIELD,
        RESYNC_INTERVAL_FIELD,
        ADMIN_FIELD,
    ],
    later: &[],
};

/// The file of `sluicegate bridge -c FILE`.
pub(crate) static BRIDGE_FILE: SectionType = SectionType {
    doc: "Config of `sluicegate bridge`.",
    fields: &[
        ETCD_FIELD,
        ZOOKEEPER_FIELD,
        PREFERRED_SIDE_FIELD,
        NAME_FIELD,
        STATE_PREFIX_FIELD,
        RESYNC_INTERVAL_FIELD,
        ADMIN_FIELD,
        Field {
            name: "logging",
            doc: "The bridge's own log.",
            kind: FieldType::Object(&LOGGING),
            need: Presence::Default("{}"),
        },
    ],
    later: &[],
};

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
    let mut checker = Checker::new(file, &BRIDGE_FILE);
    let lookup = Lookup::Anything { environment, base };
    resolve(&mut root, &Trail::Root(""), lookup, &mut checker);
    let section = checker.section(&root, &BRIDGE_FILE, "");
    let config = BridgeConfig::read(&section, base, &mut checker);
    let logging = section.object("logging").and_then(read_logging);
    problems.merge(checker.into_problems());
    match (config, logging) {
        (Some(config), Some(logging)) if problems.is_empty() => Ok((config, logging)),
        _ => Err(problems),
    }
}

impl BridgeConfig {
    /// Reads a block that was checked against [`BRIDGE`] or [`BRIDGE_FILE`]. `None` only where a problem was reported.
    pub(crate) fn read(section: &Section, base: &Path, checker: &mut Checker<'_>) -> Option<Self> {
        let etcd = section.object("etcd");
        let etcd = etcd.and_then(|etcd| EtcdSettings::read(etcd, base, checker));
        let zookeeper = section.object("zookeeper");
        let zookeeper =
            zookeeper.and_then(|zookeeper| ZooKeeperSettings::read(zookeeper, base, checker));
        let (etcd, zookeeper) = (etcd?, zookeeper?);
        let state_prefix = section.text("state_prefix")?.to_owned();
        let name = match section.text("name") {
            Some(name) => name.to_owned(),
            None => pair_name(&etcd.prefix, &zookeeper.root),
        };
        for (what, taken) in [
            ("prefix", &etcd.prefix),
            ("members_prefix", &etcd.members_prefix),
        ] {
            if is_within(&state_prefix, taken) || is_within(taken, &state_prefix) {
                let message = format!(
                    "overlaps `etcd.{what}`, {taken}; the sync state needs a prefix of its own"
                );
                let path = section.path_of("state_prefix");
                checker.report(section.place_of("state_prefix"), &path, message);
            }
        }
        Some(Self {
            etcd,
            zookeeper,
            preferred_side: section.word("preferred_side")?,
            name,
            state_prefix,
            resync_interval: section.duration("resync_interval"),
            admin: parse_address(section.object("admin")?.text("listen")?).ok()?,
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
