//! Which plugin and handler a spec means.

use super::registry::RegistryHarness;
use crate::FindError;

/// Files by name, what a spec says, and what it gets: handler and version, or words of the refusal.
type Case = (
    &'static str,
    &'static [(&'static str, &'static str)],
    (&'static str, &'static str),
    Result<(&'static str, &'static str), &'static [&'static str]>,
);

const ORDERS: (&str, &str) = ("liborders.so", "orders 1.0.0 orders audit");

const CASES: [Case; 13] = [
    (
        "a plugin with a handler of its name",
        &[ORDERS],
        ("orders", "*"),
        Ok(("orders", "1.0.0")),
    ),
    (
        "a further handler of it",
        &[ORDERS],
        ("orders/audit", "*"),
        Ok(("audit", "1.0.0")),
    ),
    (
        "the handler of its name, in full",
        &[ORDERS],
        ("orders/orders", "*"),
        Ok(("orders", "1.0.0")),
    ),
    (
        "its only handler, of another name",
        &[("liborders.so", "orders 1.0.0 audit")],
        ("orders", "*"),
        Ok(("audit", "1.0.0")),
    ),
    (
        "another plugin exports the name in a higher version",
        &[ORDERS, ("libother.so", "other 9.0.0 orders")],
        ("orders", "*"),
        Ok(("orders", "1.0.0")),
    ),
    (
        "another plugin exports the name in a version that the plugin lacks",
        &[ORDERS, ("libother.so", "other 9.0.0 orders")],
        ("orders", "9"),
        Err(&["`orders` has no version that matches `9`; available: 1.0.0"]),
    ),
    (
        "the exporter in full",
        &[ORDERS, ("libother.so", "other 9.0.0 orders")],
        ("other/orders", "*"),
        Ok(("orders", "9.0.0")),
    ),
    (
        "only exporters have the name",
        &[("libb.so", "b 1.0.0 audit x"), ("liba.so", "a 2.0.0 audit")],
        ("audit", "*"),
        Err(&[
            "is named `audit`",
            "write `plugin: a/audit` or `plugin: b/audit`",
        ]),
    ),
    (
        "several handlers, none of the plugin's name",
        &[("liborders.so", "orders 1.0.0 x y")],
        ("orders", "*"),
        Err(&[
            "`orders` 1.0.0 exports several handlers",
            "write `plugin: orders/x` or `plugin: orders/y`",
        ]),
    ),
    (
        "a handler that the plugin does not export",
        &[ORDERS, ("libother.so", "other 1.0.0 copy")],
        ("orders/copy", "*"),
        Err(&[
            "`orders` 1.0.0 exports no handler `copy`",
            "write `plugin: orders/audit` or `plugin: orders/orders`",
        ]),
    ),
    (
        "a handler that the newest version does not export any more",
        &[ORDERS, ("libnew.so", "orders 2.0.0 orders")],
        ("orders/audit", "*"),
        Err(&["`orders` 2.0.0 exports no handler `audit`"]),
    ),
    (
        "a handler of a plugin that is not there",
        &[ORDERS],
        ("other/orders", "*"),
        Err(&["is named `other`; available: orders"]),
    ),
    (
        "a name with a slash takes over nothing",
        &[ORDERS, ("libother.so", "orders/audit 9.0.0 audit orders")],
        ("orders/audit", "*"),
        Ok(("audit", "1.0.0")),
    ),
];

#[test]
fn a_plugin_is_found_by_its_own_name_and_a_handler_of_it_by_both() {
    for (what, files, (plugin, version), expected) in CASES {
        let harness = RegistryHarness::new(files);
        let catalogue = harness.registry.catalogue();
        let found: Result<_, FindError> = catalogue.find(plugin, &version.parse().unwrap());
        match (found, expected) {
            (Ok((artefact, handler)), Ok(expected)) => {
                let found = (handler.as_str(), artefact.identity.version.as_str());
                assert_eq!(found, expected, "{what}");
            }
            (Err(error), Err(words)) => {
                let reason = error.to_string();
                for word in words {
                    assert!(reason.contains(word), "{what}: {reason}");
                }
            }
            (found, _) => panic!("{what}: {found:?}"),
        }
    }
}
