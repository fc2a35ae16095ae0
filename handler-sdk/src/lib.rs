//! What the author of a Sluicegate handler depends on.
