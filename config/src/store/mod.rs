//! Key-value stores that hold control keys: one trait, so that etcd, ZooKeeper and a test's memory are used alike.
//!
//! ```text
//!            ┌ list ─── the whole tree at one revision
//!  Store ────┤ watch ── a Tree kept equal to the store's; each change, repair and outage as a StoreUpdate
//!            │ write ── one key, compared and set, so that two writers do not overwrite each other
//!            └ join ─── a member key that lives as long as its process
//! ```
//!
//! Stores speak [`ControlKey`]s; where a key stands in a store is its own business ([`Store::locate`] says it to people).
//! Above them: the spec source of the service, the bridge between two stores, and the commands that edit keys.

mod claim;
#[cfg(any(test, feature = "testing"))]
pub mod conformance;
mod driver;
mod etcd;
mod failure;
#[cfg(test)]
mod follow_tests;
mod keeper;
mod key;
mod memory;
#[allow(dead_code, reason = "the service's and the bridge's config name it")]
mod path_map;
mod reflector;
#[allow(dead_code, reason = "the service's and the bridge's config name it")]
mod settings;
#[allow(dead_code, reason = "the service's and the bridge's config name it")]
pub(crate) mod table;
mod tree;
pub(crate) mod value;
mod zookeeper;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::member::MemberReport;

pub use etcd::EtcdStore;
pub use key::{ControlKey, KeyNameError};
pub use memory::{MemoryBackup, MemoryStore, MemoryStoreHandle};
pub use path_map::{KeyKind, PathMap, PathMapError};
pub use settings::{Acl, EtcdSettings, Login, TlsFiles, TlsIdentity, ZooKeeperSettings};
pub(crate) use table::{ETCD, ZOOKEEPER};
use tree::bounded;
pub use tree::{Entry, KeyVersion, Tree, TreeChange};
pub use value::check_value;
pub use zookeeper::ZooKeeperStore;

/// Longest value that is read or written, in bytes.
pub const MAX_VALUE: usize = 1024 * 1024;

/// A store of control keys. Calls block up to the store's request timeout; a store runs its own threads.
pub trait Store: Send + Sync {
    /// Where it is; never with credentials.
    fn address(&self) -> StoreAddress;

    /// Its address for people, such as `etcd http://127.0.0.1:2379 prefix /plugins`.
    fn describe(&self) -> String {
        self.address().to_string()
    }

    /// Where `key` stands in this store, for people.
    fn locate(&self, key: &ControlKey) -> String;

    /// Everything below the prefix, as of one moment that is not older than the call.
    ///
    /// # Errors
    /// [`StoreError`] when the store does not answer.
    fn list(&self) -> Result<Tree, StoreError>;

    /// Keeps a [`Tree`] equal to the store's and tells `sink` of each change, until the handle is dropped.
    /// Outages do not end it: it goes on by itself when the store is back (G10).
    /// The first update is [`StoreUpdate::Tree`], or [`StoreUpdate::Unreachable`] when the store is away.
    ///
    /// # Errors
    /// [`StoreError`] only when the watch cannot be started at all, such as for want of a thread.
    fn watch(&self, sink: StoreSink) -> Result<Box<dyn StoreWatch>, StoreError>;

    /// Writes `value` to `key`, or deletes it when there is none, if what stands there is as `expected`.
    /// A delete of a key that is not there is done already.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when something else stands there; nothing is changed then.
    fn write(
        &self,
        key: &ControlKey,
        value: Option<&[u8]>,
        expected: Expected,
    ) -> Result<KeyVersion, StoreError>;

    /// Announces a member under the id of `report`; its key lives as long as the value and the process, and is written
    /// again by itself after an outage that outlived it, or when somebody deletes it. While another process holds the id the
    /// key is awaited for as long as that of a killed process may stand; then another id is taken ([`Membership::status`]).
    ///
    /// # Errors
    /// [`StoreError`] when the id is not usable. An unreachable store is not an error: the key comes later.
    fn join(&self, report: MemberReport) -> Result<Box<dyn Membership>, StoreError>;

    /// The members that are alive, as (id, report), sorted by id.
    ///
    /// # Errors
    /// [`StoreError`] when the store does not answer.
    fn members(&self) -> Result<Vec<(String, Vec<u8>)>, StoreError>;

    /// Earlier values of `key`, newest first, as far back as the store keeps them; at most `limit`.
    ///
    /// # Errors
    /// [`StoreError::NotKept`] when this kind of store keeps none.
    fn history(&self, key: &ControlKey, limit: usize) -> Result<Vec<HistoryEntry>, StoreError>;
}

/// Where a store is. Which one it is tells [`Tree::identity`], once it is read: addresses come and go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreAddress {
    /// `etcd`, `zookeeper` or `memory`.
    pub kind: String,
    /// Its servers, as the config names them.
    pub servers: Vec<String>,
    /// What all keys stand below.
    pub below: String,
}

impl StoreAddress {
    /// Whether both can be the same store: the same keys, and a server in common.
    pub(crate) fn may_be(&self, other: &Self) -> bool {
        self.kind == other.kind
            && self.below == other.below
            && (self.servers.is_empty()
                || (self.servers.iter()).any(|server| other.servers.contains(server)))
    }
}

impl fmt::Display for StoreAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind)?;
        if !self.servers.is_empty() {
            write!(f, " {}", self.servers.join(","))?;
        }
        match (self.kind.as_str(), self.below.as_str()) {
            (_, "") => Ok(()),
            ("zookeeper", root) => write!(f, " root {root}"),
            (_, prefix) => write!(f, " prefix {prefix}"),
        }
    }
}

/// Refuses a value that is too long for `store`.
fn check_length(
    store: &str,
    place: &str,
    value: Option<&[u8]>,
    most: usize,
) -> Result<(), StoreError> {
    if value.is_none_or(|value| value.len() <= most) {
        return Ok(());
    }
    Err(StoreError::Refused {
        store: store.to_owned(),
        what: format!("the write of {place}"),
        reason: format!("the value is longer than {most} bytes; make it smaller"),
    })
}

/// Refuses what cannot be the last part of a path.
fn check_member_id(store: &str, id: &str) -> Result<(), StoreError> {
    let odd = |c: char| c.is_control() || c == '/';
    let fits = !id.is_empty() && id.len() <= 255 && id != "." && id != ".." && !id.contains(odd);
    if fits {
        return Ok(());
    }
    Err(StoreError::Refused {
        store: store.to_owned(),
        what: format!("the member id `{}`", id.escape_debug()),
        reason: "write 1 to 255 characters without a slash".to_owned(),
    })
}

/// Takes updates, in order, on the store's thread; it should hand them on and return soon.
pub type StoreSink = Box<dyn FnMut(StoreUpdate) + Send>;

/// What a watch reports.
#[derive(Clone, Debug)]
pub enum StoreUpdate {
    /// The tree as it stands now, and what has changed since the last one that was reported.
    Tree {
        /// Everything below the prefix.
        tree: Arc<Tree>,
        /// The keys that changed, each once, in the order of their revisions; none where only the revision went back.
        changes: Vec<TreeChange>,
        /// How it was learned.
        cause: Cause,
    },
    /// The store cannot be reached or does not answer; the last tree stays (G10). Told again when the reason changes.
    Unreachable {
        /// Why.
        reason: String,
    },
    /// The store answers again; a tree follows if something changed meanwhile.
    Reachable,
}

/// How a change was learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// By the first reading.
    First,
    /// By an event of the watch.
    Event,
    /// By reading again after an outage, a cancelled watch, a compaction or an expired session. A revision that is lower than
    /// before, or another [`Tree::identity`], tells that the store was restored or replaced.
    Resync,
    /// By the regular re-list, though the watch seemed well: the store dropped events, and this repairs it.
    MissedUpdate,
}

/// A running watch; dropping it stops the watch and waits for the sink's last call to return.
pub trait StoreWatch: Send + Sync {
    /// Asks for a full re-read at once.
    fn reread(&self);
}

/// A member key; dropping it deletes the key.
pub trait Membership: Send + Sync {
    /// Replaces the report; it is written soon under the present id, the newest one wins.
    fn report(&self, report: MemberReport);

    /// Under which id, and what stands in the way of the wanted one.
    fn status(&self) -> MembershipStatus;
}

/// How a membership stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MembershipStatus {
    /// The id under which the member is listed, or will be.
    pub id: String,
    /// Why it is not the wanted one, or not listed yet: a sentence that names the process which holds the id.
    pub clash: Option<String>,
}

/// What a writer expects to stand at a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Anything, or nothing.
    Any,
    /// No value.
    Absent,
    /// The value of this stamp.
    At(KeyVersion),
}

/// An earlier value of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryEntry {
    /// The store's revision of that write.
    pub revision: u64,
    /// The value; `None` where the key was deleted.
    pub value: Option<Vec<u8>>,
}

/// Why a store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached, or did not answer in time. Retryable.
    #[error("{store} cannot be reached: {reason}")]
    Unreachable {
        /// The store, as [`Store::describe`] says.
        store: String,
        /// The cause and what to do.
        reason: String,
    },
    /// It refused: a missing right, a wrong password, a value too large. Terminal.
    #[error("{store} refused {what}: {reason}")]
    Refused {
        /// The store.
        store: String,
        /// What was asked.
        what: String,
        /// The cause and what to do.
        reason: String,
    },
    /// Somebody else changed the key meanwhile. Terminal; read it again.
    #[error("{place} changed meanwhile; look at it and try again")]
    Conflict {
        /// Where the key stands.
        place: String,
    },
    /// It keeps no earlier values. Terminal.
    #[error("{store} keeps no earlier values")]
    NotKept {
        /// The store.
        store: String,
    },
}

impl StoreError {
    /// Whether the same call can succeed later without anybody changing anything.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}
