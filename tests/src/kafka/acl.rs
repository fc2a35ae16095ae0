//! Access rules of the authorizer, in the words of Kafka's own tool.

use super::USER;

/// A rule about what the test's user may not do.
#[derive(Clone, Debug)]
pub enum Acl {
    /// The user may not read this topic.
    DenyRead {
        /// The topic.
        topic: String,
    },
    /// The user may not write this topic.
    DenyWrite {
        /// The topic.
        topic: String,
    },
}

impl Acl {
    pub(super) fn arguments(&self, add: bool) -> Vec<String> {
        let (operation, topic) = match self {
            Self::DenyRead { topic } => ("Read", topic),
            Self::DenyWrite { topic } => ("Write", topic),
        };
        let mut arguments: Vec<String> = if add {
            vec!["--add".into()]
        } else {
            vec!["--remove".into(), "--force".into()]
        };
        arguments.extend(["--deny-principal".into(), format!("User:{USER}")]);
        arguments.extend([
            "--operation".into(),
            operation.into(),
            "--topic".into(),
            topic.clone(),
        ]);
        arguments
    }
}
