//! The fields of the config blocks `etcd:` and `zookeeper:`, shared by every block that configures a store: names,
//! meanings, bounds and defaults.

use std::time::Duration;

use crate::control::check_template;
use crate::document::{ChoiceValue, Field, FieldType, Presence, SectionType, TextRule, words};
use crate::service::Acl;

impl ChoiceValue for Acl {
    const WORDS: &'static [(&'static str, Self)] =
        &[("open", Self::Open), ("creator", Self::Creator)];
}

const fn millis(min: u64, max: u64) -> FieldType {
    FieldType::Duration {
        min: Duration::from_millis(min),
        max: Duration::from_millis(max),
    }
}

const RELIST: Field = Field {
    name: "relist",
    doc: "Interval of full re-reads, with ±20 % jitter; they repair events that a server lost.",
    kind: millis(100, 3_600_000),
    need: Presence::Default("30s"),
};

const REQUEST_TIMEOUT: Field = Field {
    name: "request_timeout",
    doc: "Timeout of a read or a write.",
    kind: millis(100, 60_000),
    need: Presence::Default("5s"),
};

const TLS_FIELD: Field = Field {
    name: "tls",
    doc: "Use TLS for connections to the store.",
    kind: FieldType::Object(&TLS),
    need: Presence::Optional,
};

/// `etcd:` of the service's `handlers` and of the bridge.
pub(crate) static ETCD: SectionType = SectionType {
    doc: "An etcd cluster, version 3.4 or later.",
    fields: &[
        Field {
            name: "endpoints",
            doc: "Member URLs, such as http://127.0.0.1:2379.",
            kind: FieldType::Texts {
                rule: &ENDPOINT,
                min: 1,
                max: 64,
            },
            need: Presence::Required,
        },
        Field {
            name: "prefix",
            doc: "Prefix of the control keys.",
            kind: FieldType::Text(&ABSOLUTE),
            need: Presence::Default("/plugins"),
        },
        Field {
            name: "members_prefix",
            doc: "Prefix of the member keys.",
            kind: FieldType::Text(&ABSOLUTE),
            need: Presence::Default("/sluicegate/members"),
        },
        TLS_FIELD,
        Field {
            name: "username",
            doc: "User name; requires a password.",
            kind: FieldType::Text(&WORD),
            need: Presence::Optional,
        },
        Field {
            name: "password",
            doc: "Password; use ${file:…} or ${env:…}.",
            kind: FieldType::Text(&SECRET),
            need: Presence::Optional,
        },
        REQUEST_TIMEOUT,
        Field {
            name: "keep_alive",
            doc: "Interval of keep-alive pings; etcd closes a connection that pings more often than its --grpc-keepalive-min-time (5s).",
            kind: millis(1_000, 60_000),
            need: Presence::Default("6s"),
        },
        RELIST,
        Field {
            name: "member_ttl",
            doc: "How long a member's key outlives its member.",
            kind: millis(1_000, 600_000),
            need: Presence::Default("10s"),
        },
        Field {
            name: "paths",
            doc: "Path of each control key below the prefix.",
            kind: FieldType::Object(&ETCD_PATHS),
            need: Presence::Default("{}"),
        },
    ],
    later: &[],
};

/// `zookeeper:` of the service's `handlers` and of the bridge.
pub(crate) static ZOOKEEPER: SectionType = SectionType {
    doc: "A ZooKeeper ensemble, version 3.6 or later.",
    fields: &[
        Field {
            name: "servers",
            doc: "Comma-separated host:port list without a path; put the path into root.",
            kind: FieldType::Text(&SERVERS),
            need: Presence::Required,
        },
        Field {
            name: "root",
            doc: "Root node of the control keys.",
            kind: FieldType::Text(&ABSOLUTE),
            need: Presence::Default("/plugins"),
        },
        Field {
            name: "members_root",
            doc: "Root node of the member nodes.",
            kind: FieldType::Text(&ABSOLUTE),
            need: Presence::Default("/sluicegate/members"),
        },
        TLS_FIELD,
        Field {
            name: "digest",
            doc: "User and password of ZooKeeper's digest scheme.",
            kind: FieldType::Object(&DIGEST),
            need: Presence::Optional,
        },
        Field {
            name: "acl",
            doc: "ACL of created nodes: open to everyone, or only to the creator (requires digest).",
            kind: FieldType::Choice {
                words: words::<Acl>,
                later: &[],
            },
            need: Presence::Default("open"),
        },
        REQUEST_TIMEOUT,
        Field {
            name: "session_timeout",
            doc: "How long a session, and with it a member's key, survives a lost connection; the server enforces its own bounds.",
            kind: millis(1_000, 600_000),
            need: Presence::Default("10s"),
        },
        RELIST,
        Field {
            name: "paths",
            doc: "Path of each control key below the root.",
            kind: FieldType::Object(&ZOOKEEPER_PATHS),
            need: Presence::Default("{}"),
        },
    ],
    later: &[],
};

static TLS: SectionType = SectionType {
    doc: "TLS, with a client certificate where the store asks for one.",
    fields: &[
        Field {
            name: "ca_file",
            doc: "Trusted CA certificates, PEM.",
            kind: FieldType::Text(&FILE),
            need: Presence::Required,
        },
        Field {
            name: "cert_file",
            doc: "Client certificate and its chain, PEM; requires key_file.",
            kind: FieldType::Text(&FILE),
            need: Presence::Optional,
        },
        Field {
            name: "key_file",
            doc: "Private key of the client certificate, PEM; requires cert_file.",
            kind: FieldType::Text(&FILE),
            need: Presence::Optional,
        },
        Field {
            name: "server_name",
            doc: "Expected name in the server's certificate, instead of the endpoint's host; etcd only.",
            kind: FieldType::Text(&WORD),
            need: Presence::Optional,
        },
    ],
    later: &[],
};

static DIGEST: SectionType = SectionType {
    doc: "User and password of ZooKeeper's digest scheme.",
    fields: &[
        Field {
            name: "user",
            doc: "User name, without a colon.",
            kind: FieldType::Text(&USER),
            need: Presence::Required,
        },
        Field {
            name: "password",
            doc: "Password; use ${file:…} or ${env:…}.",
            kind: FieldType::Text(&SECRET),
            need: Presence::Required,
        },
    ],
    later: &[],
};

const fn path(name: &'static str, doc: &'static str, default: &'static str) -> Field {
    Field {
        name,
        doc,
        kind: FieldType::Text(&HANDLER_PATH),
        need: Presence::Default(default),
    }
}

const fn service_path(name: &'static str, doc: &'static str, default: &'static str) -> Field {
    Field {
        name,
        doc,
        kind: FieldType::Text(&SERVICE_PATH),
        need: Presence::Default(default),
    }
}

const GATE: &str = "The gate of a handler.";
const SPEC: Field = path("spec", "The spec of a handler.", "{name}/spec");
const CONFIG: Field = path("config", "The config of a handler.", "{name}/config");
const CANARY: Field = path(
    "canary",
    "The canary of a handler (not implemented yet: rejected).",
    "{name}/canary",
);
const ROLLOUT: Field = path("rollout", "A rollout in progress.", "{name}/rollout");
const LOGGING: &str = "The built-in record log.";
const METRICS: &str = "Metrics granularity.";

static ETCD_PATHS: SectionType = SectionType {
    doc: "Path of each control key below the prefix; paths must be distinct.",
    fields: &[
        path("enabled", GATE, "{name}/enabled"),
        SPEC,
        CONFIG,
        CANARY,
        ROLLOUT,
        service_path("logging", LOGGING, "logging/enabled"),
        service_path("metrics_level", METRICS, "metrics/level"),
    ],
    later: &[],
};

static ZOOKEEPER_PATHS: SectionType = SectionType {
    doc: "Path of each control key below the root; paths must be distinct.",
    fields: &[
        path("enabled", GATE, "{name}"),
        SPEC,
        CONFIG,
        CANARY,
        ROLLOUT,
        service_path("logging", LOGGING, "logging"),
        service_path("metrics_level", METRICS, "metrics"),
    ],
    later: &[],
};

fn refuse_if(bad: bool, reason: &str) -> Result<(), String> {
    if bad { Err(reason.to_owned()) } else { Ok(()) }
}

static ENDPOINT: TextRule = TextRule {
    check: |text| {
        let rest = text
            .strip_prefix("http://")
            .or_else(|| text.strip_prefix("https://"));
        let fits = rest.is_some_and(is_host_port);
        refuse_if(
            !fits,
            "write http://host:port or https://host:port; set user and password in their own fields",
        )
    },
    pattern: Some(r"^https?://[^/\s@]+:\d{1,5}$"),
    numbers: false,
};

static SERVERS: TextRule = TextRule {
    check: |text| {
        let all = text.split(',').all(|server| is_host_port(server.trim()));
        refuse_if(
            !all,
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
        refuse_if(
            !fits || own,
            "write an absolute path without a trailing slash, such as /plugins; /zookeeper is reserved by the server",
        )
    },
    pattern: Some(r"^(/[^/\s]+)+$"),
    numbers: false,
};

static WORD: TextRule = TextRule {
    check: |text| {
        let is_invalid = |c: char| c.is_control() || c.is_whitespace();
        refuse_if(
            text.is_empty() || text.contains(is_invalid),
            "write a name without spaces",
        )
    },
    pattern: Some(r"^\S+$"),
    numbers: false,
};

static USER: TextRule = TextRule {
    check: |text| {
        let is_invalid = |c: char| c.is_control() || c == ':';
        refuse_if(
            text.is_empty() || text.contains(is_invalid),
            "write a user name without a colon",
        )
    },
    pattern: Some("^[^:]+$"),
    numbers: false,
};

static SECRET: TextRule = TextRule {
    check: |text| refuse_if(text.is_empty(), "it must not be empty"),
    pattern: Some("^.+$"),
    numbers: true,
};

static FILE: TextRule = TextRule {
    check: |text| refuse_if(text.is_empty() || text.contains('\0'), "it is not a path"),
    pattern: Some("^.+$"),
    numbers: false,
};

static HANDLER_PATH: TextRule = TextRule {
    check: |text| check_template(text, true),
    pattern: Some(r"^[^/\s].*\{name\}|^\{name\}"),
    numbers: false,
};

static SERVICE_PATH: TextRule = TextRule {
    check: |text| check_template(text, false),
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
