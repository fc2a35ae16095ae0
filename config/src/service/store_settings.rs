//! Connection settings of a store: the validated form of the config blocks `etcd:` and `zookeeper:`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::store_table::{Acl, Digest, Etcd, PathFields, Tls, ZooKeeper};
use crate::control::{KeyKind, PathMap};
use crate::document::{Checker, FieldValue, Key, Section};
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

    /// Reads a checked block; files are relative to `base`. `None` only if a problem was reported.
    pub(crate) fn read(
        section: Section<'_, Etcd>,
        base: &Path,
        checker: &mut Checker<'_>,
    ) -> Option<Self> {
        let listed = section.texts(Etcd::endpoints);
        let tls = tls(section.object(Etcd::tls), base, checker);
        for endpoint in listed {
            let is_tls = endpoint.text.starts_with("https://");
            if is_tls != section.holds(Etcd::tls) {
                let message = match is_tls {
                    true => "is https: add `tls` with the `ca_file` to trust",
                    false => "is http, but `tls` is set: write https://",
                };
                checker.report(&endpoint.place, &endpoint.path, message);
            }
        }
        let login = both(section, Etcd::username, Etcd::password, checker);
        check_disjoint(section, Etcd::prefix, Etcd::members_prefix, checker);
        Some(Self {
            endpoints: listed.iter().map(|listed| listed.text.clone()).collect(),
            prefix: section.get(Etcd::prefix)?,
            members_prefix: section.get(Etcd::members_prefix)?,
            tls,
            login: login.map(|(user, password)| Login {
                user,
                password: Secret::new(&password),
            }),
            request_timeout: section.get(Etcd::request_timeout).unwrap_or_default(),
            keep_alive: section.get(Etcd::keep_alive).unwrap_or_default(),
            relist: section.get(Etcd::relist).unwrap_or_default(),
            member_ttl: section.get(Etcd::member_ttl).unwrap_or_default(),
            paths: paths(section.object(Etcd::paths)?, checker)?,
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

    /// Reads a checked block; files are relative to `base`. `None` only if a problem was reported.
    pub(crate) fn read(
        section: Section<'_, ZooKeeper>,
        base: &Path,
        checker: &mut Checker<'_>,
    ) -> Option<Self> {
        let tls = tls(section.object(ZooKeeper::tls), base, checker);
        if tls.as_ref().is_some_and(|tls| tls.server_name.is_some()) {
            let message = "`server_name` is only for etcd: ZooKeeper's certificate must match the host in `servers`";
            section.report(ZooKeeper::tls, message, checker);
        }
        let digest = section.object(ZooKeeper::digest).and_then(|digest| {
            Some(Login {
                user: digest.get(Digest::user)?,
                password: Secret::new(&digest.get(Digest::password)?),
            })
        });
        let acl = section.get(ZooKeeper::acl)?;
        if acl == Acl::Creator && !section.holds(ZooKeeper::digest) {
            let message = "`creator` needs `digest`: a creator exists only with a login";
            section.report(ZooKeeper::acl, message, checker);
        }
        check_disjoint(section, ZooKeeper::root, ZooKeeper::members_root, checker);
        Some(Self {
            servers: section.get(ZooKeeper::servers)?.replace(' ', ""),
            root: section.get(ZooKeeper::root)?,
            members_root: section.get(ZooKeeper::members_root)?,
            tls,
            digest,
            acl,
            request_timeout: section.get(ZooKeeper::request_timeout).unwrap_or_default(),
            session_timeout: section.get(ZooKeeper::session_timeout).unwrap_or_default(),
            relist: section.get(ZooKeeper::relist).unwrap_or_default(),
            paths: paths(section.object(ZooKeeper::paths)?, checker)?,
        })
    }
}

fn tls(tls: Option<Section<'_, Tls>>, base: &Path, checker: &mut Checker<'_>) -> Option<TlsFiles> {
    let tls = tls?;
    let identity = both(tls, Tls::cert_file, Tls::key_file, checker);
    Some(TlsFiles {
        ca_file: base.join(tls.get(Tls::ca_file)?),
        identity: identity.map(|(cert_file, key_file)| TlsIdentity {
            cert_file: base.join(cert_file),
            key_file: base.join(key_file),
        }),
        server_name: tls.get(Tls::server_name),
    })
}

/// Two fields that are set together or not at all.
fn both<S, T: FieldValue>(
    section: Section<'_, S>,
    one: Key<S, T>,
    two: Key<S, T>,
    checker: &mut Checker<'_>,
) -> Option<(T, T)> {
    let (given, missing) = match (section.get(one), section.get(two)) {
        (Some(one), Some(two)) => return Some((one, two)),
        (None, None) => return None,
        (Some(_), None) => (one, two),
        (None, Some(_)) => (two, one),
    };
    let message = format!("needs `{}` too", missing.name());
    section.report(given, message, checker);
    None
}

/// Member keys and control keys must not overlap.
fn check_disjoint<S>(
    section: Section<'_, S>,
    keys: Key<S, String>,
    members: Key<S, String>,
    checker: &mut Checker<'_>,
) {
    let (Some(one), Some(two)) = (section.get(keys), section.get(members)) else {
        return;
    };
    let below = |one: &str, two: &str| {
        one.strip_prefix(two)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    if below(&one, &two) || below(&two, &one) {
        let keys = keys.name();
        let message = format!("`{two}` and `{keys}` `{one}` overlap; use separate paths");
        section.report(members, message, checker);
    }
}

fn paths<P: PathFields>(paths: Section<'_, P>, checker: &mut Checker<'_>) -> Option<PathMap> {
    let read = |(_, kind): (_, KeyKind)| Some((kind, paths.get(P::key(kind)?)?));
    let read: Vec<(KeyKind, String)> = KeyKind::ALL.into_iter().map(read).collect::<Option<_>>()?;
    let template = |kind| read.iter().find(|(of, _)| *of == kind);
    PathMap::new(|kind| template(kind).map_or("", |(_, text)| text))
        .map_err(|error| {
            if let Some(key) = P::key(error.kind) {
                paths.report(key, error.reason, checker);
            }
        })
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::{Document, SectionFields, parse};

    fn read<S: SectionFields, T>(
        text: &str,
        read: impl Fn(Section<'_, S>, &Path, &mut Checker<'_>) -> Option<T>,
    ) -> Result<T, String> {
        let root = parse(text, None).root.expect("a document");
        let mut checker = Checker::new(None, S::TYPE);
        let document = Document::check(&root, &mut checker);
        let settings = read(document.section(), Path::new("/etc/gate"), &mut checker);
        let problems = checker.into_problems();
        match settings {
            Some(settings) if problems.is_empty() => Ok(settings),
            _ => Err(problems.to_string()),
        }
    }

    fn etcd(text: &str) -> Result<EtcdSettings, String> {
        read(text, EtcdSettings::read)
    }

    fn zookeeper(text: &str) -> Result<ZooKeeperSettings, String> {
        read(text, ZooKeeperSettings::read)
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
