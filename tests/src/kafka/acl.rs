//! ACLs of the authorizer, as arguments of Kafka's own tool.

use super::USER;

/// A permission or prohibition for the test's user.
#[derive(Clone, Debug)]
pub enum Acl {
    /// Allows all operations on this topic that no other ACL denies. Without it, any ACL on a topic also denies all other
    /// operations.
    AllowTopic {
        /// The topic.
        topic: String,
    },
    /// The user may not read this topic.
    DenyRead {
        /// The topic.
        topic: String,
    },
    /// The user may not be a member of this group.
    DenyGroup {
        /// The group.
        group: String,
    },
    /// The user may not write this topic.
    DenyWrite {
        /// The topic.
        topic: String,
    },
}

impl Acl {
    pub(super) fn arguments(&self, add: bool) -> Vec<String> {
        let (operation, kind, name) = match self {
            Self::AllowTopic { topic } => ("All", "--topic", topic),
            Self::DenyRead { topic } => ("Read", "--topic", topic),
            Self::DenyGroup { group } => ("Read", "--group", group),
            Self::DenyWrite { topic } => ("Write", "--topic", topic),
        };
        let mut arguments: Vec<String> = if add {
            vec!["--add".into()]
        } else {
            vec!["--remove".into(), "--force".into()]
        };
        let principal = match self {
            Self::AllowTopic { .. } => "--allow-principal",
            _ => "--deny-principal",
        };
        arguments.extend([principal.into(), format!("User:{USER}")]);
        arguments.extend([
            "--operation".into(),
            operation.into(),
            kind.into(),
            name.clone(),
        ]);
        arguments
    }
}
