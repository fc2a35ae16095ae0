//! What a spec's `plugin` names: a plugin, or one of the handlers that it exports.

use super::HandlerSpec;

impl HandlerSpec {
    /// The name of its plugin, without that of the handler in it.
    pub fn plugin_name(&self) -> &str {
        plugin_and_handler(&self.plugin).0
    }
}

/// The plugin that a spec's `plugin` names, and the handler in it: `NAME` or `NAME/HANDLER`.
pub fn plugin_and_handler(plugin: &str) -> (&str, Option<&str>) {
    match plugin.split_once('/') {
        Some((name, handler)) => (name, Some(handler)),
        None => (plugin, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_is_named_alone_or_with_a_handler_that_it_exports() {
        for (text, name, handler) in [
            ("relay", "relay", None),
            ("orders/audit", "orders", Some("audit")),
            ("a/b/c", "a", Some("b/c")),
        ] {
            assert_eq!(plugin_and_handler(text), (name, handler));
        }
    }
}
