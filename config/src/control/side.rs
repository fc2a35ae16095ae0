//! The two sides of a bridge.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One of the two stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The etcd prefix.
    Etcd,
    /// The ZooKeeper tree.
    ZooKeeper,
}

impl Side {
    /// Both sides.
    pub const BOTH: [Self; 2] = [Self::Etcd, Self::ZooKeeper];

    /// The opposite side.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Etcd => Self::ZooKeeper,
            Self::ZooKeeper => Self::Etcd,
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Etcd => "etcd",
            Self::ZooKeeper => "zookeeper",
        })
    }
}

/// One value per side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair<T> {
    /// The value of the etcd side.
    pub etcd: T,
    /// The value of the ZooKeeper side.
    pub zookeeper: T,
}

impl<T> Pair<T> {
    /// The value of `side`.
    pub fn of(&self, side: Side) -> &T {
        match side {
            Side::Etcd => &self.etcd,
            Side::ZooKeeper => &self.zookeeper,
        }
    }

    /// The value of `side`, mutable.
    pub fn of_mut(&mut self, side: Side) -> &mut T {
        match side {
            Side::Etcd => &mut self.etcd,
            Side::ZooKeeper => &mut self.zookeeper,
        }
    }

    /// Calls `make` for etcd, then for ZooKeeper.
    pub fn from_fn(mut make: impl FnMut(Side) -> T) -> Self {
        Self {
            etcd: make(Side::Etcd),
            zookeeper: make(Side::ZooKeeper),
        }
    }
}
