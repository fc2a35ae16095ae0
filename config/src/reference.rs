//! The reference pages of the service config and of a handler's spec, made from the tables that reading follows.

use crate::bridge::BRIDGE_FILE;
use crate::document::{FieldType, Presence, SectionType, join};
use crate::service::{SERVICE, owned_client_keys};
use crate::spec::SPEC;

const CONFIG_HEAD: &str = "# Service config

The file that `sluicegate run -c FILE` reads: YAML, unknown keys refused. Made from the table that reading follows; a test
holds it to that.

- `${env:NAME}` and `${file:PATH}` stand for values from elsewhere, in any value. What they give never shows in logs, errors or
  the API. `$${` stands for the characters `${`.
- `SLUICEGATE__KAFKA__GROUP_ID=x` in the environment replaces `kafka.group_id`; `--set kafka.group_id=x` replaces both. Below
  `kafka.client` and `kafka.producer`, `_` in the variable's name stands for `.`: `SLUICEGATE__KAFKA__CLIENT__SESSION_TIMEOUT_MS`.
- Relative paths begin at the folder of the config file.
- Durations have units (`100ms`, `1.5s`, `1h30m`), sizes too (`256MiB`, `10kB`).
- At most 1 MiB, 64 levels and 50,000 values, aliases expanded.
";

const BRIDGE_HEAD: &str = "# Bridge config

The file that `sluicegate bridge -c FILE` reads, and, without `logging`, the block `bridge:` of the service config. Made from
the table that reading follows; a test holds it to that. `${env:NAME}` and `${file:PATH}` stand for values from elsewhere.
";

const HANDLER_HEAD: &str = "# Handler spec

One handler as an operator declares it: YAML or JSON, one a file, unknown fields refused. Made from the table that reading
follows; a test holds it to that.
";

const PREDICATES: &str = "
## Topics

`orders` is that topic. `orders.*` is a glob: `*` stands for any run of characters (dots too), `?` for one. `/^orders-[0-9]+$/` is
a regex ([syntax](https://docs.rs/regex/latest/regex/#syntax)), which matches anywhere in the name unless it is anchored.

Globs and regexes leave out internal topics (names that begin with `__`) and dead-letter topics of any handler; an exact name
reaches both. New topics are found within `topic.metadata.refresh.interval.ms` (30 s unless set below `kafka.client`); the log says
which topics patterns take in and leave out.

A spec is refused when its dead letters, or what its plugin says that it emits, would come back to its own route, and specs when
their dead letters would go round between them. A record that comes back all the same is written to one dead-letter topic 16 times
at most; then it holds its lane until the handler has another `dead_letter.topic` or its gate is shut.

## Conditions

`route.when` is a tree. A branch is `{ all: […] }`, `{ any: […] }` or `{ not: … }`. A leaf names what it looks at, and one test or more,
which then all have to hold:

| leaf | looks at |
|---|---|
| `{ header: NAME, … }` | the values of the header; the test holds if any of them passes |
| `{ key: true, … }` | the key |
| `{ partition: true, … }` | the partition number; with `equals`, `in`, `lt`, `le`, `gt` and `ge` only |

| test | holds for |
|---|---|
| `equals: x` | the same bytes |
| `in: [x, y]` | the same bytes as one of them |
| `exists: true` / `false` | a header that is there, a key that is not null / the opposite |
| `prefix: x`, `suffix: x` | bytes that begin or end so |
| `regex: x` | UTF-8 text in which the regex matches somewhere |
| `lt`, `le`, `gt`, `ge: n` | UTF-8 text that is a decimal number less than, at most, greater than, at least `n` |

At most 16 levels and 1,024 branches and leaves.
";

/// The page on the service config, as Markdown.
pub fn config_page() -> String {
    let mut page = CONFIG_HEAD.to_owned();
    page.push_str(&table(&SERVICE));
    page.push_str("\n## Keys of librdkafka that are refused\n\n| key under `kafka.client` or `kafka.producer` | why |\n|---|---|\n");
    for (key, reason) in owned_client_keys() {
        page.push_str(&format!("| `{key}` | {reason} |\n"));
    }
    page.push_str("| `*_cb` | is a callback and cannot be set from a text |\n");
    page.push_str("\nA key that only consumers have is refused under `kafka.producer`, one that only producers have under `kafka.client`.\n");
    page
}

/// The page on the bridge's config, as Markdown.
pub fn bridge_page() -> String {
    let mut page = BRIDGE_HEAD.to_owned();
    page.push_str(&table(&BRIDGE_FILE));
    page
}

/// The page on handler specs, as Markdown.
pub fn handler_page() -> String {
    let mut page = HANDLER_HEAD.to_owned();
    page.push_str(&table(&SPEC));
    page.push_str(PREDICATES);
    page
}

fn table(object: &'static SectionType) -> String {
    let mut rows = String::from("\n| field | wants | default | meaning |\n|---|---|---|---|\n");
    fill(object, "", &mut rows);
    rows
}

fn fill(object: &'static SectionType, path: &str, rows: &mut String) {
    for field in object.fields {
        let path = join(path, field.name);
        if let FieldType::Object(inner) = &field.kind {
            fill(inner, &path, rows);
            continue;
        }
        let default = match field.need {
            Presence::Required => "required".to_owned(),
            Presence::Optional => "none".to_owned(),
            Presence::Default(text) => format!("`{text}`"),
        };
        let wants = field.kind.wants();
        let meaning = field.doc.replace('*', "\\*").replace('<', "\\<");
        rows.push_str(&format!(
            "| `{path}` | {wants} | {default} | {meaning} |
"
        ));
    }
}
