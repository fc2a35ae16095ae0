//! The reference pages match the field tables. `UPDATE_REFERENCE=1 cargo test -p sluicegate-config` regenerates them.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::path::Path;

use sluicegate_config::reference::{bridge_page, config_page, handler_page};

fn is_written(name: &str, page: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../docs/reference")
        .join(name);
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, page).unwrap();
    }
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        written == page,
        "docs/reference/{name} is out of date: run `UPDATE_REFERENCE=1 cargo test -p sluicegate-config`"
    );
}

#[test]
fn the_page_on_the_service_config_is_up_to_date() {
    let page = config_page();
    assert!(page.contains("| `kafka.group_id` |") && page.contains("| `enable.auto.commit` |"));
    is_written("service-config.md", &page);
}

#[test]
fn the_page_on_handler_specs_is_up_to_date() {
    let page = handler_page();
    assert!(page.contains("| `retry.backoff.jitter` | a number from 0 to 1 | `0.2` |"));
    is_written("handler-spec.md", &page);
}

#[test]
fn the_page_on_the_bridge_config_is_up_to_date() {
    let page = bridge_page();
    assert!(page.contains("| `preferred_side` |") && page.contains("| `etcd.endpoints` |"));
    is_written("bridge-config.md", &page);
}
