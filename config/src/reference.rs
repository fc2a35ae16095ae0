//! The reference pages of the service, bridge and handler configs, generated from the tables that the parser uses.

use crate::document::{FieldType, Presence, SectionFields, SectionType, join};
use crate::service::{BridgeFile, ServiceConfig, owned_client_keys};
use crate::spec::HandlerSpec;

const CONFIG_HEAD: &str = "# Service config

The file that `sluicegate run -c FILE` reads: YAML; unknown keys are rejected. Generated from the parser's field table; a test
keeps it up to date.

- `${env:NAME}` and `${file:PATH}` in any value are replaced by an environment variable or a file's text. Resolved values never
  appear in logs, errors or the API. `$${` is a literal `${`.
- `SLUICEGATE__KAFKA__GROUP_ID=x` in the environment replaces `kafka.group_id`; `--set kafka.group_id=x` replaces both. Below
  `kafka.client` and `kafka.producer`, `_` in the variable's name stands for `.`: `SLUICEGATE__KAFKA__CLIENT__SESSION_TIMEOUT_MS`.
- Relative paths are resolved against the folder of the config file.
- Durations and sizes have units: `100ms`, `1.5s`, `1h30m`; `256MiB`, `10kB`.
- Limits: 1 MiB, 64 levels and 50,000 values after alias expansion.
";

const BRIDGE_HEAD: &str = "# Bridge config

The file that `sluicegate bridge -c FILE` reads, and, without `logging`, the section `bridge:` of the service config. Generated
from the parser's field table; a test keeps it up to date. `${env:NAME}` and `${file:PATH}` work as in the service config.
";

const HANDLER_HEAD: &str = "# Handler spec

Declares one handler: YAML or JSON, one per file; unknown fields are rejected. Generated from the parser's field table; a test
keeps it up to date.
";

const PREDICATES: &str = "
## Plugin

`plugin: orders` means the plugin that is named `orders`, in the newest version that `version` accepts, and runs its handler of that
name, or its only one. `plugin: orders/audit` means the handler `audit` of that plugin. A plugin never stands in for another one by
exporting a handler of its name: a spec that names only such a handler is refused, and so is one that leaves open which of several
handlers it means, with what to write for each. A version that does not export the handler is not passed over for an older one.

## Topics

`orders` is an exact name. `orders.*` is a glob: `*` matches any run of characters (dots too), `?` exactly one. `/^orders-[0-9]+$/`
is a regex ([syntax](https://docs.rs/regex/latest/regex/#syntax)), which matches anywhere in the name unless it is anchored.

Globs and regexes exclude internal topics (names that begin with `__`) and dead-letter topics of any handler; an exact name
matches both. New topics are found within `topic.metadata.refresh.interval.ms` (30 s unless set in `kafka.client`); the log lists
the topics that patterns include and exclude.

A spec is rejected if its dead letters, or the topics that its plugin declares to emit to, would come back to its own route, and
specs are rejected if their dead letters would cycle between them. A record that comes back nevertheless is written to one
dead-letter topic at most 16 times; then it blocks its lane until the handler has another `dead_letter.topic` or its gate is
closed.

## Conditions

`route.when` is a tree. A branch is `{ all: […] }`, `{ any: […] }` or `{ not: … }`. A leaf names a subject and one or more tests, all
of which must hold:

| leaf | subject |
|---|---|
| `{ header: NAME, … }` | the header's values; a test holds if any of them passes |
| `{ key: true, … }` | the key |
| `{ partition: true, … }` | the partition number; supports only `equals`, `in`, `lt`, `le`, `gt` and `ge` |

| test | holds if the value is |
|---|---|
| `equals: x` | the same bytes |
| `in: [x, y]` | the same bytes as one of them |
| `exists: true` / `false` | a present header or a non-null key / the opposite |
| `prefix: x`, `suffix: x` | bytes that start or end with `x` |
| `regex: x` | UTF-8 text in which the regex matches anywhere |
| `lt`, `le`, `gt`, `ge: n` | UTF-8 text that is a decimal number less than, at most, greater than, at least `n` |

Limits: 16 levels, 1,024 branches and leaves.
";

/// Renders the page on the service config as Markdown.
pub fn config_page() -> String {
    let mut page = CONFIG_HEAD.to_owned();
    page.push_str(&table(ServiceConfig::TYPE));
    page.push_str("\n## Rejected librdkafka keys\n\n| key in `kafka.client` or `kafka.producer` | reason |\n|---|---|\n");
    for (key, reason) in owned_client_keys() {
        page.push_str(&format!("| `{key}` | {reason} |\n"));
    }
    page.push_str("| `*_cb` | is a callback and cannot be set in a config |\n");
    page.push_str("\nConsumer-only keys are rejected in `kafka.producer`, producer-only keys in `kafka.client`.\n");
    page
}

/// Renders the page on the bridge's config as Markdown.
pub fn bridge_page() -> String {
    let mut page = BRIDGE_HEAD.to_owned();
    page.push_str(&table(BridgeFile::TYPE));
    page
}

/// Renders the page on handler specs as Markdown.
pub fn handler_page() -> String {
    let mut page = HANDLER_HEAD.to_owned();
    page.push_str(&table(HandlerSpec::TYPE));
    page.push_str(PREDICATES);
    page
}

fn table(object: &'static SectionType) -> String {
    let mut rows = String::from("\n| field | type | default | meaning |\n|---|---|---|---|\n");
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
        let kind = field.kind.expected();
        let meaning = field.doc.replace('*', "\\*").replace('<', "\\<");
        rows.push_str(&format!(
            "| `{path}` | {kind} | {default} | {meaning} |
"
        ));
    }
}
