//! Connection settings of a store: the validated form of the config blocks `etcd:` and `zookeeper:`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::control::{KeyKind, PathMap};
use crate::document::{Checker, Section};
use crate::secret::Secret;

/// Settings of an etcd cluster and the layout of its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdSettings {
    /// URLs of its members, such as `http://127.0.0.1:2379`; at least one.
    pub endpoints: Vec<String>,
    /// Prefix of the control keys, such as `/plugins`.
    pub prefix: String,
    /// Prefix of the member keys.
    pub members_prefix: String,
    /// TLS; if set, every endpoint is `https`, otherwise none.
    pub tls: Option<TlsFiles>,
    /// User and password.
    pub login: Option<Login>,
    /// Timeout of a read or a write.
    pub request_timeout: Duration,
    /// Interval of keep-alive pings on an open connection.
    pub keep_alive: Duration,
    /// Interval of full re-reads, with ±20 % jitter.
    pub relist: Duration,
    /// How long a member's key outlives its member; truncated to whole seconds.
    pub member_ttl: Duration,
    /// Path of each control key below the prefix.
    pub paths: PathMap,
}

/// Settings of a ZooKeeper ensemble and the layout of its nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZooKeeperSettings {
    /// Comma-separated `host:port` list.
    pub servers: String,
    /// Root node of the control keys, such as `/plugins`.
    pub root: String,
    /// Root node of the member nodes.
    pub members_root: String,
    /// TLS on every connection.
    pub tls: Option<TlsFiles>,
    /// User and password of the digest scheme.
    pub digest: Option<Login>,
    /// ACL of created nodes.
    pub acl: Acl,
    /// Timeout of a read or a write.
    pub request_timeout: Duration,
    /// How long a session survives a lost connection.
    pub session_timeout: Duration,
    /// Interval of full re-reads, with ±20 % jitter.
    pub relist: Duration,
    /// Path of each control key below the root.
    pub paths: PathMap,
}

/// A user and the password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The user.
    pub user: String,
    /// The password.
    pub password: Secret,
}

/// PEM files of TLS; read when the store is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates of the trusted authorities.
    pub ca_file: PathBuf,
    /// Client certificate chain and private key, where the store requires them.
    pub identity: Option<TlsIdentity>,
    /// Expected name in the server's certificate, instead of the endpoint's host.
    pub server_name: Option<String>,
}

/// A client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsIdentity {
    /// The certificate and its chain.
    pub cert_file: PathBuf,
    /// Its private key.
    pub key_file: PathBuf,
}

/// ACL of created ZooKeeper nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acl {
    /// All permissions for everyone.
    Open,
    /// All permissions for the creator only.
    Creator,
}

impl EtcdSettings {
    /// Defaults for these endpoints, for embedders and tests.
    #[must_use]
    pub fn new(endpoints: &[&str]) -> Self {
        Self {
            endpoints: endpoints.iter().map(|&url| url.to_owned()).collect(),
            prefix: "/plugins".to_owned(),
            members_prefix: "/sluicegate/members".to_owned(),
            tls: None,
            login: None,
            request_timeout: Duration::from_secs(5),
            keep_alive: Duration::from_secs(6),
            relist: Duration::from_secs(30),
            member_ttl: Duration::from_secs(10),
            paths: PathMap::etcd(),
        }
    }

    /// Reads a block that was checked against [`crate::service::ETCD`]; files are relative to `base`. `None` only where a
    /// problem was reported.
    pub(crate) fn read(section: &Section, base: &Path, checker: &mut Checker<'_>) -> Option<Self> {
        let listed = section.texts("endpoints");
        let tls = tls(section, base, checker);
        for endpoint in listed {
            let is_tls = endpoint.text.starts_with("https://");
            if is_tls != section.holds("tls") {
                let message = match is_tls {
                    true => "is https: add `tls` with the `ca_file` to trust",
                    false => "is http, but `tls` is set: write https://",
                };
                checker.report(&endpoint.place, &endpoint.path, message);
            }
        }
        let login = match (section.text("username"), section.text("password")) {
            (Some(user), Some(password)) => Some(Login {
                user: user.to_owned(),
                password: Secret::new(password),
            }),
            (None, None) => None,
            (user, _) => {
                let (given, missing) = match user {
                    Some(_) => ("username", "password"),
                    None => ("password", "username"),
                };
                let message = format!("needs `{missing}` too");
                checker.report(section.place_of(given), &section.path_of(given), message);
                None
            }
        };
        check_disjoint(section, "prefix", "members_prefix", checker);
        Some(Self {
            endpoints: listed.iter().map(|listed| listed.text.clone()).collect(),
            prefix: section.text("prefix")?.to_owned(),
            members_prefix: section.text("members_prefix")?.to_owned(),
            tls,
            login,
            request_timeout: section.duration("request_timeout"),
            keep_alive: section.duration("keep_alive"),
            relist: section.duration("relist"),
            member_ttl: section.duration("member_ttl"),
            paths: paths(section, checker)?,
        })
    }
}

impl ZooKeeperSettings {
    /// Defaults for these servers, for embedders and tests.
    #[must_use]
    pub fn new(servers: &str) -> Self {
        Self {
            servers: servers.to_owned(),
            root: "/plugins".to_owned(),
            members_root: "/sluicegate/members".to_owned(),
            tls: None,
            digest: None,
            acl: Acl::Open,
            request_timeout: Duration::from_secs(5),
            session_timeout: Duration::from_secs(10),
            relist: Duration::from_secs(30),
            paths: PathMap::zookeeper(),
        }
    }

    /// Reads a block that was checked against [`crate::service::ZOOKEEPER`]; files are relative to `base`. `None` only where
    /// a problem was reported.
    pub(crate) fn read(section: &Section, base: &Path, checker: &mut Checker<'_>) -> Option<Self> {
        let tls = tls(section, base, checker);
        if tls.as_ref().is_some_and(|tls| tls.server_name.is_some()) {
            let path = section.path_of("tls");
            let message = "`server_name` is only for etcd: ZooKeeper's certificate must match the host in `servers`";
            checker.report(section.place_of("tls"), &path, message);
        }
        let digest = section.object("digest").and_then(|digest| {
            Some(Login {
                user: digest.text("user")?.to_owned(),
                password: Secret::new(digest.text("password")?),
            })
        });
        let acl: Acl = section.word("acl")?;
        if acl == Acl::Creator && !section.holds("digest") {
            let path = section.path_of("acl");
            let message = "`creator` needs `digest`: without a login there is no creator";
            checker.report(section.place_of("acl"), &path, message);
        }
        check_disjoint(section, "root", "members_root", checker);
        Some(Self {
            servers: section.text("servers")?.replace(' ', ""),
            root: section.text("root")?.to_owned(),
            members_root: section.text("members_root")?.to_owned(),
            tls,
            digest,
            acl,
            request_timeout: section.duration("request_timeout"),
            session_timeout: section.duration("session_timeout"),
            relist: section.duration("relist"),
            paths: paths(section, checker)?,
        })
    }
}

fn tls(section: &Section, base: &Path, checker: &mut Checker<'_>) -> Option<TlsFiles> {
    let tls = section.object("tls")?;
    let file = |name: &str| tls.text(name).map(|text| base.join(text));
    let identity = match (file("cert_file"), file("key_file")) {
        (Some(cert_file), Some(key_file)) => Some(TlsIdentity {
            cert_file,
            key_file,
        }),
        (None, None) => None,
        (cert, _) => {
            let (given, missing) = match cert {
                Some(_) => ("cert_file", "key_file"),
                None => ("key_file", "cert_file"),
            };
            let message = format!("needs `{missing}` too");
            checker.report(tls.place_of(given), &tls.path_of(given), message);
            None
        }
    };
    Some(TlsFiles {
        ca_file: file("ca_file")?,
        identity,
        server_name: tls.text("server_name").map(str::to_owned),
    })
}

/// Member keys and control keys must not overlap.
fn check_disjoint(section: &Section, keys: &str, members: &str, checker: &mut Checker<'_>) {
    let (Some(one), Some(two)) = (section.text(keys), section.text(members)) else {
        return;
    };
    let below = |one: &str, two: &str| {
        one.strip_prefix(two)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    if below(one, two) || below(two, one) {
        let message = format!("`{two}` and `{keys}` `{one}` overlap; use separate paths");
        checker.report(
            section.place_of(members),
            &section.path_of(members),
            message,
        );
    }
}

fn paths(section: &Section, checker: &mut Checker<'_>) -> Option<PathMap> {
    let paths = section.object("paths")?;
    let word = |kind: KeyKind| {
        let of = KeyKind::ALL.iter().find(|(_, of)| *of == kind);
        of.map_or("", |(word, _)| word)
    };
    if !KeyKind::ALL.iter().all(|(word, _)| paths.holds(word)) {
        return None;
    }
    let map = PathMap::new(|kind| paths.text(word(kind)).unwrap_or_default());
    map.map_err(|error| {
        let place = paths.place_of(error.template);
        checker.report(place, &paths.path_of(error.template), error.reason);
    })
    .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::{SectionType, parse};
    use crate::service::{ETCD, ZOOKEEPER};

    fn read<T>(
        text: &str,
        table: &'static SectionType,
        read: impl Fn(&Section, &Path, &mut Checker<'_>) -> Option<T>,
    ) -> Result<T, String> {
        let root = parse(text, None).root.expect("a document");
        let mut checker = Checker::new(None, table);
        let section = checker.section(&root, table, "");
        let settings = read(&section, Path::new("/etc/gate"), &mut checker);
        let problems = checker.into_problems();
        match settings {
            Some(settings) if problems.is_empty() => Ok(settings),
            _ => Err(problems.to_string()),
        }
    }

    fn etcd(text: &str) -> Result<EtcdSettings, String> {
        read(text, &ETCD, EtcdSettings::read)
    }

    fn zookeeper(text: &str) -> Result<ZooKeeperSettings, String> {
        read(text, &ZOOKEEPER, ZooKeeperSettings::read)
    }

    #[test]
    fn omitted_fields_have_the_defaults() {
        let read = etcd("endpoints: ['http://127.0.0.1:2379']").expect("settings");
        assert_eq!(read, EtcdSettings::new(&["http://127.0.0.1:2379"]));
        let read = zookeeper("servers: 'a:2181, b:2181'").expect("settings");
        assert_eq!(read, ZooKeeperSettings::new("a:2181,b:2181"));
    }

    #[test]
    fn secrets_are_not_printed_and_files_are_relative_to_the_config() {
        let read = etcd(
            "{endpoints: ['https://e:2379'], username: u, password: 12345, tls: {ca_file: ca.pem}}",
        )
        .expect("settings");
        assert!(!format!("{read:?}").contains("12345"));
        let login = read.login.expect("a login");
        assert_eq!(login.password.expose(), "12345");
        let tls = read.tls.expect("tls");
        assert_eq!(tls.ca_file, Path::new("/etc/gate/ca.pem"));
    }

    #[test]
    fn every_problem_names_its_field_and_the_remedy() {
        let cases: &[(&str, &str)] = &[
            ("{}", "endpoints: is missing"),
            ("endpoints: []", "endpoints: expected 1 to 64 entries"),
            ("endpoints: [localhost]", "write http://host:port"),
            ("endpoints: ['http://u:p@e:1']", "their own fields"),
            ("endpoints: ['https://e:1']", "add `tls`"),
            (
                "{endpoints: ['http://e:1'], tls: {ca_file: a}}",
                "write https://",
            ),
            (
                "{endpoints: ['https://e:1'], tls: {}}",
                "tls.ca_file: is missing",
            ),
            (
                "{endpoints: ['https://e:1'], tls: {ca_file: a, key_file: b}}",
                "tls.key_file: needs `cert_file`",
            ),
            (
                "{endpoints: ['http://e:1'], username: u}",
                "username: needs `password`",
            ),
            (
                "{endpoints: ['http://e:1'], prefix: plugins}",
                "write an absolute path",
            ),
            (
                "{endpoints: ['http://e:1'], prefix: /sluicegate}",
                "use separate paths",
            ),
            (
                "{endpoints: ['http://e:1'], paths: {spec: '{name}/enabled'}}",
                "paths.spec: `{name}/enabled` and `{name}/enabled` can produce the same path",
            ),
            (
                "{endpoints: ['http://e:1'], paths: {spec: spec}}",
                "use {name} exactly once",
            ),
        ];
        for (text, wanted) in cases {
            let problems = etcd(text).expect_err(text);
            assert!(problems.contains(wanted), "{text}: {problems}");
        }
        let cases: &[(&str, &str)] = &[
            ("servers: a", "write host:port"),
            ("servers: a:1/chroot", "put a path into `root`"),
            ("{servers: 'a:1', acl: creator}", "needs `digest`"),
            (
                "{servers: 'a:1', digest: {user: u}}",
                "digest.password: is missing",
            ),
            (
                "{servers: 'a:1', root: /zookeeper}",
                "reserved by the server",
            ),
            (
                "{servers: 'a:1', tls: {ca_file: a, server_name: b}}",
                "only for etcd",
            ),
        ];
        for (text, wanted) in cases {
            let problems = zookeeper(text).expect_err(text);
            assert!(problems.contains(wanted), "{text}: {problems}");
        }
    }
}
