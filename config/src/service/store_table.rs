//! The fields of the config blocks `etcd:` and `zookeeper:`, shared by every block that configures a store, each declared
//! once: name, type, bounds, default and doc.

use std::path::PathBuf;
use std::time::Duration;

use crate::control::{KeyKind, check_template, etcd_template, zookeeper_template};
use crate::document::{
    ChoiceValue, Key, Reason, SectionFields, TextRule, choice, millis, object, text, texts,
};
use crate::section;

/// ACL of created ZooKeeper nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acl {
    /// All permissions for everyone.
    Open,
    /// All permissions for the creator only.
    Creator,
}

impl ChoiceValue for Acl {
    const WORDS: &'static [(&'static str, Self)] =
        &[("open", Self::Open), ("creator", Self::Creator)];
}

section! {
    /// An etcd cluster, version 3.4 or later.
    pub(crate) keys Etcd {
        /// Member URLs, such as http://127.0.0.1:2379.
        endpoints: Vec<String> = texts(&ENDPOINT, 1, 64), required;
        /// Prefix of the control keys.
        prefix: String = text(&ABSOLUTE), default "/plugins";
        /// Prefix of the member keys.
        members_prefix: String = text(&ABSOLUTE), default "/sluicegate/members";
        /// Use TLS for connections to the store.
        tls: Tls = object(), optional;
        /// User name; requires a password.
        username: String = text(&WORD), optional;
        /// Password; use ${file:…} or ${env:…}.
        password: String = text(&SECRET), optional;
        /// Timeout of a read or a write.
        request_timeout: Duration = millis(100, 60_000), default "5s";
        /// Interval of keep-alive pings; etcd closes a connection that pings more often than its --grpc-keepalive-min-time (5s).
        keep_alive: Duration = millis(1_000, 60_000), default "6s";
        /// Interval of full re-reads, with ±20 % jitter; they repair events that a server lost.
        relist: Duration = millis(100, 3_600_000), default "30s";
        /// How long a member's key outlives its member.
        member_ttl: Duration = millis(1_000, 600_000), default "10s";
        /// Path of each control key below the prefix.
        paths: EtcdPaths = object(), default "{}";
    }
}

section! {
    /// A ZooKeeper ensemble, version 3.6 or later.
    pub(crate) keys ZooKeeper {
        /// Comma-separated host:port list without a path; put the path into root.
        servers: String = text(&SERVERS), required;
        /// Root node of the control keys.
        root: String = text(&ABSOLUTE), default "/plugins";
        /// Root node of the member nodes.
        members_root: String = text(&ABSOLUTE), default "/sluicegate/members";
        /// Use TLS for connections to the store.
        tls: Tls = object(), optional;
        /// User and password of ZooKeeper's digest scheme.
        digest: Digest = object(), optional;
        /// ACL of created nodes: open to everyone, or only to the creator (requires digest).
        acl: Acl = choice(&[]), default "open";
        /// Timeout of a read or a write.
        request_timeout: Duration = millis(100, 60_000), default "5s";
        /// How long a session, and with it a member's key, survives a lost connection; the server enforces its own bounds.
        session_timeout: Duration = millis(1_000, 600_000), default "10s";
        /// Interval of full re-reads, with ±20 % jitter; they repair events that a server lost.
        relist: Duration = millis(100, 3_600_000), default "30s";
        /// Path of each control key below the root.
        paths: ZooKeeperPaths = object(), default "{}";
    }
}

section! {
    /// TLS, with a client certificate where the store asks for one.
    pub(crate) keys Tls {
        /// Trusted CA certificates, PEM.
        ca_file: PathBuf = text(&FILE), required;
        /// Client certificate and its chain, PEM; requires key_file.
        cert_file: PathBuf = text(&FILE), optional;
        /// Private key of the client certificate, PEM; requires cert_file.
        key_file: PathBuf = text(&FILE), optional;
        /// Expected name in the server's certificate, instead of the endpoint's host; etcd only.
        server_name: String = text(&WORD), optional;
    }
}

section! {
    /// User and password of ZooKeeper's digest scheme.
    pub(crate) keys Digest {
        /// User name, without a colon.
        user: String = text(&USER), required;
        /// Password; use ${file:…} or ${env:…}.
        password: String = text(&SECRET), required;
    }
}

/// The paths of control keys in a store.
pub(crate) trait PathFields: SectionFields + Sized {
    /// The field of a kind; `None` for a key whose path is fixed.
    fn key(kind: KeyKind) -> Option<Key<Self, String>>;
}

/// The paths of a store, whose defaults are its templates.
macro_rules! paths {
    ($section:ident, $template:ident, $about:literal) => {
        section! {
            #[doc = $about]
            pub(crate) keys $section {
                /// The gate of a handler.
                enabled: String = text(&HANDLER_PATH), default $template(KeyKind::Enabled);
                /// The spec of a handler.
                spec: String = text(&HANDLER_PATH), default $template(KeyKind::Spec);
                /// The config of a handler.
                config: String = text(&HANDLER_PATH), default $template(KeyKind::Config);
                /// The canary of a handler (not implemented yet: rejected).
                canary: String = text(&HANDLER_PATH), default $template(KeyKind::Canary);
                /// A rollout in progress.
                rollout: String = text(&HANDLER_PATH), default $template(KeyKind::Rollout);
                /// The built-in record log.
                logging: String = text(&SERVICE_PATH), default $template(KeyKind::Logging);
                /// Metrics granularity.
                metrics_level: String = text(&SERVICE_PATH), default $template(KeyKind::MetricsLevel);
            }
        }

        impl PathFields for $section {
            fn key(kind: KeyKind) -> Option<Key<Self, String>> {
                Some(match kind {
                    KeyKind::Enabled => Self::enabled,
                    KeyKind::Spec => Self::spec,
                    KeyKind::Config => Self::config,
                    KeyKind::Canary => Self::canary,
                    KeyKind::Rollout => Self::rollout,
                    KeyKind::Logging => Self::logging,
                    KeyKind::MetricsLevel => Self::metrics_level,
                    KeyKind::Bridge => return None,
                })
            }
        }
    };
}

paths!(
    EtcdPaths,
    etcd_template,
    "Path of each control key below the prefix; paths must be distinct."
);
paths!(
    ZooKeeperPaths,
    zookeeper_template,
    "Path of each control key below the root; paths must be distinct."
);

static ENDPOINT: TextRule = TextRule {
    check: |text| {
        let rest = text
            .strip_prefix("http://")
            .or_else(|| text.strip_prefix("https://"));
        let fits = rest.is_some_and(is_host_port);
        Reason::unless(
            fits,
            "write http://host:port or https://host:port; set user and password in their own fields",
        )
    },
    pattern: Some(r"^https?://[^/\s@]+:\d{1,5}$"),
    numbers: false,
};

static SERVERS: TextRule = TextRule {
    check: |text| {
        let all = text.split(',').all(|server| is_host_port(server.trim()));
        Reason::unless(
            all,
            "write host:port, comma-separated if several; put a path into `root`",
        )
    },
    pattern: Some(r"^[^,/\s]+:\d{1,5}(\s*,\s*[^,/\s]+:\d{1,5})*$"),
    numbers: false,
};

pub(crate) static ABSOLUTE: TextRule = TextRule {
    check: |text| {
        let fits = text.strip_prefix('/').is_some_and(|rest| {
            rest.split('/').all(|segment| {
                let is_invalid = |c: char| c.is_control() || c.is_whitespace();
                !segment.is_empty()
                    && segment != "."
                    && segment != ".."
                    && !segment.contains(is_invalid)
            })
        });
        let own = text == "/zookeeper" || text.starts_with("/zookeeper/");
        Reason::unless(
            fits && !own,
            "write an absolute path without a trailing slash, such as /plugins; /zookeeper is reserved by the server",
        )
    },
    pattern: Some(r"^(/[^/\s]+)+$"),
    numbers: false,
};

static WORD: TextRule = TextRule {
    check: |text| {
        let is_invalid = |c: char| c.is_control() || c.is_whitespace();
        Reason::unless(
            !text.is_empty() && !text.contains(is_invalid),
            "write a name without spaces",
        )
    },
    pattern: Some(r"^\S+$"),
    numbers: false,
};

static USER: TextRule = TextRule {
    check: |text| {
        let is_invalid = |c: char| c.is_control() || c == ':';
        Reason::unless(
            !text.is_empty() && !text.contains(is_invalid),
            "write a user name without a colon",
        )
    },
    pattern: Some("^[^:]+$"),
    numbers: false,
};

static SECRET: TextRule = TextRule {
    check: |text| Reason::unless(!text.is_empty(), "it must not be empty"),
    pattern: Some("^.+$"),
    numbers: true,
};

static FILE: TextRule = TextRule {
    check: |text| Reason::unless(!text.is_empty() && !text.contains('\0'), "it is not a path"),
    pattern: Some("^.+$"),
    numbers: false,
};

static HANDLER_PATH: TextRule = TextRule {
    check: |text| Ok(check_template(text, true)?),
    pattern: Some(r"^[^/\s].*\{name\}|^\{name\}"),
    numbers: false,
};

static SERVICE_PATH: TextRule = TextRule {
    check: |text| Ok(check_template(text, false)?),
    pattern: Some(r"^[^/\s{}]+(/[^/\s{}]+)*$"),
    numbers: false,
};

fn is_host_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let is_invalid = |c: char| c.is_whitespace() || c.is_control() || "/@?#".contains(c);
    let bare_v6 = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
    !host.is_empty()
        && !bare_v6
        && !host.contains(is_invalid)
        && port.parse::<u16>().is_ok_and(|port| port > 0)
}
