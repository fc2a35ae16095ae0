//! The path of a value as a linked list that is formatted only for messages: building a path string per value of a deep tree
//! would take time quadratic in the text.

use std::fmt;

use super::{Node, Value, shortened};

/// Maximum number of steps shown.
const SHOWN: usize = 16;

/// A path from the root of a tree to one of its values.
#[derive(Clone, Copy)]
pub enum Trail<'a> {
    /// The root, by its own dotted path.
    Root(&'a str),
    /// A key of a map.
    Key(&'a Trail<'a>, &'a str),
    /// An entry of a list.
    Index(&'a Trail<'a>, usize),
}

impl Trail<'_> {
    /// The node at this path below `root`, or its nearest existing ancestor.
    pub fn find<'n>(&self, root: &'n Node) -> &'n Node {
        let (above, below) = match self {
            Self::Root(_) => return root,
            Self::Key(above, key) => {
                let above = above.find(root);
                let entry = match &above.value {
                    Value::Map(entries) => entries.iter().find(|entry| entry.key == *key),
                    Value::Scalar(_) | Value::List(_) => None,
                };
                (above, entry.map(|entry| &entry.value))
            }
            Self::Index(above, index) => {
                let above = above.find(root);
                let item = match &above.value {
                    Value::List(items) => items.get(*index),
                    Value::Scalar(_) | Value::Map(_) => None,
                };
                (above, item)
            }
        };
        below.unwrap_or(above)
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, left: usize) -> fmt::Result {
        let above = match self {
            Self::Root(path) => return f.write_str(path),
            Self::Key(above, _) | Self::Index(above, _) => above,
        };
        let is_top = matches!(above, Self::Root(""));
        match left {
            0 => f.write_str("…")?,
            _ => above.write(f, left - 1)?,
        }
        match self {
            Self::Key(_, key) if is_top => f.write_str(&shortened(key)),
            Self::Key(_, key) => write!(f, ".{}", shortened(key)),
            Self::Index(_, index) => write!(f, "[{index}]"),
            Self::Root(_) => Ok(()),
        }
    }
}

/// Formats as a dotted path; a long one is reduced to its last steps.
impl fmt::Display for Trail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, SHOWN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trail_is_a_dotted_path_and_a_long_one_keeps_its_end() {
        let root = Trail::Root("config");
        let list = Trail::Key(&root, "list");
        let item = Trail::Index(&list, 2);
        assert_eq!(item.to_string(), "config.list[2]");
        let top = Trail::Root("");
        assert_eq!(Trail::Key(&top, "a").to_string(), "a");
        let long = "k".repeat(1_000);
        assert!(Trail::Key(&root, &long).to_string().len() < 100);
        fn deeper(trail: &Trail<'_>, levels: usize) -> String {
            match levels {
                0 => trail.to_string(),
                _ => deeper(&Trail::Key(trail, "x"), levels - 1),
            }
        }
        assert_eq!(deeper(&root, 100), format!("…{}", ".x".repeat(17)));
    }
}
