//! Finds the position of a config key, for problems found only after parsing.

use std::path::Path;

use crate::document::{Value, parse, read_given_text};

/// Line and column of the value at `path` in the YAML file `file`, such as `["kafka", "client", "fetch.min.bytes"]`. `None` if
/// the file does not contain it (an override or a default) or can no longer be read.
#[must_use]
pub fn place_in(file: &Path, path: &[&str]) -> Option<(u32, u32)> {
    let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
    let text = is_file.then(|| read_given_text(file).ok())??;
    let mut node = parse(&text, Some(file)).root?;
    for key in path {
        let Value::Map(entries) = node.value else {
            return None;
        };
        node = entries.into_iter().find(|entry| entry.key == *key)?.value;
    }
    Some((node.place.line, node.place.column))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_only_at_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.yaml");
        let text = "kafka:\n  group_id: g\n  client: { a.b: 1,\n    c.d: 2 }\n";
        std::fs::write(&file, text).unwrap();
        assert_eq!(place_in(&file, &["kafka", "client", "c.d"]), Some((4, 10)));
        assert_eq!(place_in(&file, &["kafka", "group_id"]), Some((2, 13)));
        assert_eq!(place_in(&file, &["kafka", "client", "e"]), None);
        assert_eq!(place_in(&file, &["kafka", "group_id", "x"]), None);
        assert_eq!(place_in(&folder.path().join("other"), &["kafka"]), None);
    }
}
