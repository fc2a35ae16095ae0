//! Validation rules for strings in the service config.

use std::net::SocketAddr;

use jiff::Timestamp;

use super::Start;
use crate::document::{Checked, FieldValue, Reason, TextRule, TextValue};

/// The name of an environment variable.
pub(crate) static VARIABLE: TextRule = TextRule {
    check: |text| {
        Reason::unless(
            !text.is_empty() && !text.contains(['=', '\0', '{', '}', '$']),
            "not the name of an environment variable; write it without ${env:…}",
        )
    },
    pattern: Some(r"^[^=${}]+$"),
    numbers: false,
};

/// A file or folder.
pub(crate) static PATH: TextRule = TextRule {
    check: |text| Reason::unless(!text.is_empty() && !text.contains('\0'), "not a valid path"),
    pattern: Some("^.+$"),
    numbers: false,
};

/// A comma-separated broker list.
pub(crate) static BROKERS: TextRule = TextRule {
    check: |text| {
        let all = text.split(',').all(|broker| is_broker(broker.trim()));
        Reason::unless(all, "write host:port, comma-separated if several")
    },
    pattern: Some(r"^[^,\s]+(\s*,\s*[^,\s]+)*$"),
    numbers: false,
};

/// A consumer group's name.
pub(crate) static GROUP: TextRule = TextRule {
    check: |text| {
        let bad = text.is_empty()
            || text.len() > 255
            || text.contains(|c: char| c.is_control() || c.is_whitespace());
        Reason::unless(!bad, "a group has 1 to 255 characters without spaces")
    },
    pattern: Some(r"^\S{1,255}$"),
    numbers: false,
};

/// A member id, which becomes part of a key's path.
pub(crate) static MEMBER: TextRule = TextRule {
    check: |text| {
        let fits = !text.is_empty()
            && text.len() <= 128
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        Reason::unless(
            fits,
            "an id has 1 to 128 letters, digits, -, _ and ., and starts with a letter or digit",
        )
    },
    pattern: Some("^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"),
    numbers: true,
};

/// A start position.
pub(crate) static START: TextRule = TextRule {
    check: |text| {
        Reason::unless(
            parse_start(text).is_some(),
            "write earliest, latest or an RFC 3339 time such as 2026-01-31T00:00:00Z",
        )
    },
    pattern: Some(r"^(earliest|latest|\d{4}-\d{2}-\d{2}[Tt ].*)$"),
    numbers: false,
};

/// A listen address.
pub(crate) static ADDRESS: TextRule = TextRule {
    check: |text| {
        Reason::unless(
            parse_address(text).is_some(),
            "write an IP address and a port, such as 127.0.0.1:9600 or [::]:9600",
        )
    },
    pattern: Some(r"^.+:\d{1,5}$"),
    numbers: false,
};

/// A log level or filter.
pub(crate) static LEVEL: TextRule = TextRule {
    check: check_level,
    pattern: None,
    numbers: false,
};

fn is_broker(text: &str) -> bool {
    let address = text.split_once("://").map_or(text, |(_, address)| address);
    let (host, port) = match address.rsplit_once(':') {
        Some((host, port)) if !host.ends_with(':') => (host, Some(port)),
        _ => (address, None),
    };
    let host_fits = !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || c == '/');
    host_fits && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// Parses `kafka.start`.
fn parse_start(text: &str) -> Option<Start> {
    match text {
        "earliest" => Some(Start::Earliest),
        "latest" => Some(Start::Latest),
        _ => {
            let unix_ms = text.parse::<Timestamp>().ok()?.as_millisecond();
            Some(Start::Time { unix_ms })
        }
    }
}

impl FieldValue for Start {
    fn of(checked: &Checked) -> Option<Self> {
        parse_start(checked.text()?)
    }
}

impl TextValue for Start {}

impl FieldValue for SocketAddr {
    fn of(checked: &Checked) -> Option<Self> {
        parse_address(checked.text()?)
    }
}

impl TextValue for SocketAddr {}

/// Parses `admin.listen`.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let numeric = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.to_owned(),
    };
    numeric.parse().ok()
}

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

fn check_level(text: &str) -> Result<(), Reason> {
    let is_level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
    let fits = text.split(',').map(str::trim).all(|part| {
        part.rsplit_once('=').map_or_else(
            || is_level(part),
            |(target, level)| !target.is_empty() && is_level(level),
        )
    });
    Reason::unless(
        fits,
        "write off, error, warn, info, debug or trace, or a filter such as info,sluicegate_engine::flow=debug",
    )
}
