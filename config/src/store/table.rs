//! The fields of the config blocks `etcd:` and `zookeeper:`, the same wherever a store is named: names, meanings, bounds and defaults.

use std::time::Duration;

use super::Acl;
use super::path_map::check_template;
use crate::document::{ChoiceValue, Field, FieldType, Presence, SectionType, TextRule, words};

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
    doc: "Time between full re-reads, give or take a fifth; they repair events that a server lost.",
    kind: millis(100, 3_600_000),
    need: Presence::Default("30s"),
};

const REQUEST_TIMEOUT: Field = Field {
    name: "request_timeout",
    doc: "How long a read or a write may take.",
    kind: millis(100, 60_000),
    need: Presence::Default("5s"),
};

const TLS_FIELD: Field = Field {
    name: "tls",
    doc: "Speak TLS to the store.",
    kind: FieldType::Object(&TLS),
    need: Presence::Optional,
};

/// `etcd:` of the service's `handlers` and of the bridge.
pub(crate) static ETCD: SectionType = SectionType {
    doc: "An etcd cluster, version 3.4 or later.",
    fields: &[
        Field {
            name: "endpoints",
            doc: "URLs of its members, such as http://127.0.0.1:2379.",
            kind: FieldType::Texts {
                rule: &ENDPOINT,
                min: 1,
                max: 64,
            },
            need: Presence::Required,
        },
        Field {
            name: "prefix",
            doc: "What control keys stand below.",
            kind: FieldType::Text(&ABSOLUTE),
            need: Presence::Default("/plugins"),
        },
        Field {
            name: "members_prefix",
            doc: "What the members' keys stand below.",
            kind: FieldType::Text(&ABSOLUTE),
            need: Presence::Default("/sluicegate/members"),
        },
        TLS_FIELD,
        Field {
            name: "username",
            doc: "User to log in as; needs a password.",
            kind: FieldType::Text(&WORD),
            need: Presence::Optional,
        },
        Field {
            name: "password",
            doc: "Password of the user; write ${file:…} or ${env:…}.",
            kind: FieldType::Text(&SECRET),
            need: Presence::Optional,
        },
        REQUEST_TIMEOUT,
        Field {
            name: "keep_alive",
            doc: "Time between pings of an open connection; etcd closes one that pings more often than its --grpc-keepalive-min-time (5s).",
            kind: millis(1_000, 60_000),
            need: Presence::Default("6s"),
        },
        RELIST,
        Field {
            name: "member_ttl",
            doc: "How long a member's key outlives a member that is gone.",
            kind: millis(1_000, 600_000),
            need: Presence::Default("10s"),
        },
        Field {
            name: "paths",
            doc: "Where each control key stands below the prefix.",
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
            doc: "Comma-separated host:port list, without a path; the root says where keys stand.",
            kind: FieldType::Text(&SERVERS),
            need: Presence::Required,
        },
        Field {
            name: "root",
            doc: "Node that control keys stand below.",
            kind: FieldType::Text(&ABSOLUTE),
            need: Presence::Default("/plugins"),
        },
        Field {
            name: "members_root",
            doc: "Node that the members' keys stand below.",
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
            doc: "Rights on nodes that are made: open to everybody, or the creator's alone (needs digest).",
            kind: FieldType::Choice {
                words: words::<Acl>,
                later: &[],
            },
            need: Presence::Default("open"),
        },
        REQUEST_TIMEOUT,
        Field {
            name: "session_timeout",
            doc: "How long a session, and with it a member's key, outlives a lost connection; the server has bounds of its own.",
            kind: millis(1_000, 600_000),
            need: Presence::Default("10s"),
        },
        RELIST,
        Field {
            name: "paths",
            doc: "Where each control key stands below the root.",
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
            doc: "Certificates of the authorities that are trusted, PEM.",
            kind: FieldType::Text(&FILE),
            need: Presence::Required,
        },
        Field {
            name: "cert_file",
            doc: "Own certificate and its chain, PEM; needs key_file.",
            kind: FieldType::Text(&FILE),
            need: Presence::Optional,
        },
        Field {
            name: "key_file",
            doc: "Private key of the own certificate, PEM; needs cert_file.",
            kind: FieldType::Text(&FILE),
            need: Presence::Optional,
        },
        Field {
            name: "server_name",
            doc: "Name to look for in the server's certificate instead of the endpoint's host; etcd alone.",
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
            doc: "User, without a colon.",
            kind: FieldType::Text(&USER),
            need: Presence::Required,
        },
        Field {
            name: "password",
            doc: "Password; write ${file:…} or ${env:…}.",
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
const CONFIG: Field = path("config", "The own config of a handler.", "{name}/config");
const CANARY: Field = path("canary", "The canary of a handler.", "{name}/canary");
const ROLLOUT: Field = path("rollout", "A rollout in progress.", "{name}/rollout");
const LOGGING: &str = "The built-in record log.";
const METRICS: &str = "How fine metrics are.";

static ETCD_PATHS: SectionType = SectionType {
    doc: "Where each control key stands below the prefix; no two may meet.",
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
    doc: "Where each control key stands below the root; no two may meet.",
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
            "write http://host:port or https://host:port; user and password have fields of their own",
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
            "write host:port, several with commas between them; a path goes into `root`",
        )
    },
    pattern: Some(r"^[^,/\s]+:\d{1,5}(\s*,\s*[^,/\s]+:\d{1,5})*$"),
    numbers: false,
};

pub(crate) static ABSOLUTE: TextRule = TextRule {
    check: |text| {
        let fits = text.strip_prefix('/').is_some_and(|rest| {
            rest.split('/').all(|segment| {
                let odd = |c: char| c.is_control() || c.is_whitespace();
                !segment.is_empty() && segment != "." && segment != ".." && !segment.contains(odd)
            })
        });
        let own = text == "/zookeeper" || text.starts_with("/zookeeper/");
        refuse_if(
            !fits || own,
            "write an absolute path without a slash at its end, such as /plugins; /zookeeper is the server's own",
        )
    },
    pattern: Some(r"^(/[^/\s]+)+$"),
    numbers: false,
};

static WORD: TextRule = TextRule {
    check: |text| {
        let odd = |c: char| c.is_control() || c.is_whitespace();
        refuse_if(
            text.is_empty() || text.contains(odd),
            "write a name without spaces",
        )
    },
    pattern: Some(r"^\S+$"),
    numbers: false,
};

static USER: TextRule = TextRule {
    check: |text| {
        let odd = |c: char| c.is_control() || c == ':';
        refuse_if(
            text.is_empty() || text.contains(odd),
            "write a user without a colon",
        )
    },
    pattern: Some("^[^:]+$"),
    numbers: false,
};

static SECRET: TextRule = TextRule {
    check: |text| refuse_if(text.is_empty(), "it is empty"),
    pattern: Some("^.+$"),
    numbers: true,
};

static FILE: TextRule = TextRule {
    check: |text| refuse_if(text.is_empty() || text.contains('\0'), "it is no path"),
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
    let odd = |c: char| c.is_whitespace() || c.is_control() || "/@?#".contains(c);
    let bare_v6 = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
    !host.is_empty()
        && !bare_v6
        && !host.contains(odd)
        && port.parse::<u16>().is_ok_and(|port| port > 0)
}
