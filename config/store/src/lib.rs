//! Key-value stores that hold control keys, behind one trait for etcd, ZooKeeper and the in-memory store.
//!
//! ```text
//!            ┌ list ─── the whole tree at one revision
//!  Store ────┤ watch ── a Tree kept in sync with the store; each change, repair and outage as a StoreUpdate
//!            │ write ── one key, compare-and-set, so that concurrent writers do not overwrite each other
//!            └ join ─── a member key that lives as long as its process
//! ```
//!
//! The interface uses [`ControlKey`]s; the path of a key is internal to each store ([`Store::locate`] shows it to
//! people). Users are the service's spec source, the bridge between two stores, and the commands that edit keys.
//!
//! Two things keep the differences of the stores inside: each value carries a [`KeyVersion`] (etcd's `mod_revision`,
//! ZooKeeper's `mzxid` with the data version), so that readers can order and writers can compare without knowing which
//! store it is; and each tree carries the store's identity, so that a restored or replaced store is recognized
//! (ADR 0025). Calls block, and the async clients run on threads of the store (`driver`), so that callers need no
//! runtime. The suite `store_conformance` of `sluicegate-kit` tests what the trait promises; every store passes it.

mod claim;
pub mod digest;
mod driver;
mod etcd;
mod failure;
#[cfg(test)]
mod follow_tests;
pub mod jitter;
mod keeper;
mod memory;
mod open;
mod reflector;
mod tree;
mod zookeeper;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sluicegate_config::control::{ControlKey, MAX_VALUE, MemberReport};

pub use etcd::EtcdStore;
pub use memory::{MemoryBackup, MemoryStore, MemoryStoreHandle};
pub use open::OpenStore;
use tree::bounded;
pub use tree::{Entry, KeyVersion, Tree, TreeChange};
pub use zookeeper::ZooKeeperStore;

/// A store of control keys. Calls block up to the store's request timeout; each store has its own threads.
pub trait Store: Send + Sync {
    /// The address of the store; never with credentials.
    fn address(&self) -> StoreAddress;

    /// The address as text, such as `etcd http://127.0.0.1:2379 prefix /plugins`.
    fn describe(&self) -> String {
        self.address().to_string()
    }

    /// The path of `key` in this store, for messages.
    fn locate(&self, key: &ControlKey) -> String;

    /// Everything below the prefix, as of one moment no earlier than the call.
    ///
    /// # Errors
    /// [`StoreError`] when the store does not answer.
    fn list(&self) -> Result<Tree, StoreError>;

    /// Keeps a [`Tree`] in sync with the store and reports each change to `sink`, until the handle is dropped. Outages
    /// do not end the watch: it recovers by itself (G10). The first update is [`StoreUpdate::Tree`], or
    /// [`StoreUpdate::Unreachable`] when the store does not answer.
    ///
    /// # Errors
    /// [`StoreError`] only when the watch cannot be started at all, such as for lack of a thread.
    fn watch(&self, sink: StoreSink) -> Result<Box<dyn StoreWatch>, StoreError>;

    /// Writes `value` to `key`, or deletes the key for `None`, if the present value is as `expected`. Deleting an
    /// absent key succeeds.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when the present value is not as expected; nothing is changed then.
    fn write(
        &self,
        key: &ControlKey,
        value: Option<&[u8]>,
        expected: Expected,
    ) -> Result<KeyVersion, StoreError>;

    /// Announces a member under the id of `report`. Its key lives as long as the returned value and the process, and is
    /// rewritten after an outage that outlived it, or when it is deleted. While another process holds the id, the
    /// member waits for as long as the key of a killed process can remain, then uses a replacement id
    /// ([`Membership::status`]).
    ///
    /// # Errors
    /// [`StoreError`] when the id is invalid. An unreachable store is not an error: the key is written later.
    fn join(&self, report: MemberReport) -> Result<Box<dyn Membership>, StoreError>;

    /// The live members, as (id, report), sorted by id.
    ///
    /// # Errors
    /// [`StoreError`] when the store does not answer.
    fn members(&self) -> Result<Vec<(String, Vec<u8>)>, StoreError>;

    /// Earlier values of `key`, newest first, as far back as the store keeps them; at most `limit`.
    ///
    /// # Errors
    /// [`StoreError::NotKept`] when this kind of store keeps no history.
    fn history(&self, key: &ControlKey, limit: usize) -> Result<Vec<HistoryEntry>, StoreError>;
}

/// Address of a store. Addresses can change; [`Tree::identity`] identifies the store once it has been read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreAddress {
    /// `etcd`, `zookeeper` or `memory`.
    pub kind: String,
    /// Its servers, as configured.
    pub servers: Vec<String>,
    /// The prefix or root of all keys.
    pub below: String,
}

impl StoreAddress {
    /// Whether both may be the same store: the same prefix, and a server in common.
    pub fn may_be(&self, other: &Self) -> bool {
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

/// Rejects a value that is too long for `store`.
fn check_length(
    store: &str,
    place: &str,
    value: Option<&[u8]>,
    limit: usize,
) -> Result<(), StoreError> {
    if value.is_none_or(|value| value.len() <= limit) {
        return Ok(());
    }
    Err(StoreError::Refused {
        store: store.to_owned(),
        what: format!("the write of {place}"),
        reason: format!("the value is longer than {limit} bytes; make it smaller"),
    })
}

/// Rejects an id that cannot be the last segment of a path.
fn check_member_id(store: &str, id: &str) -> Result<(), StoreError> {
    let is_invalid = |c: char| c.is_control() || c == '/';
    let fits =
        !id.is_empty() && id.len() <= 255 && id != "." && id != ".." && !id.contains(is_invalid);
    if fits {
        return Ok(());
    }
    Err(StoreError::Refused {
        store: store.to_owned(),
        what: format!("the member id `{}`", id.escape_debug()),
        reason: "write 1 to 255 characters without a slash".to_owned(),
    })
}

/// Receives updates, in order, on the store's thread; it should forward them and return quickly.
pub type StoreSink = Box<dyn FnMut(StoreUpdate) + Send>;

/// An update of a watch.
#[derive(Clone, Debug)]
pub enum StoreUpdate {
    /// The current tree, and the changes since the last reported one.
    Tree {
        /// Everything below the prefix.
        tree: Arc<Tree>,
        /// The changed keys, each once, in the order of their revisions; empty where only the revision reverted.
        changes: Vec<TreeChange>,
        /// How the changes were learned.
        cause: Cause,
    },
    /// The store cannot be reached, does not answer, or refuses to be read; the last tree remains (G10), and attempts
    /// continue. Reported again when the reason changes.
    Unreachable {
        /// Why, and for a refusal what to do.
        reason: String,
    },
    /// The store answers again; a tree follows if something changed during the outage.
    Reachable,
}

/// How a change was learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// By the first listing.
    First,
    /// By an event of the watch.
    Event,
    /// By a re-read after an outage, a cancelled watch, a compaction or an expired session. A revision lower than
    /// before, or a different [`Tree::identity`], shows that the store was restored or replaced.
    Resync,
    /// By the periodic re-list while the watch seemed healthy: the server dropped events, and this repairs it.
    MissedUpdate,
}

/// A running watch; dropping it stops the watch and waits for the sink's last call to return.
pub trait StoreWatch: Send + Sync {
    /// Requests an immediate full re-read.
    fn reread(&self);
}

/// A member key; dropping it deletes the key.
pub trait Membership: Send + Sync {
    /// Replaces the report. It is written asynchronously under the present id; the newest one wins.
    fn report(&self, report: MemberReport);

    /// The present id, and what blocks the wanted one.
    fn status(&self) -> MembershipStatus;
}

/// Status of a membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MembershipStatus {
    /// The id under which the member is listed, or will be.
    pub id: String,
    /// Why it is not the wanted id, or not listed yet: a sentence that names the process which holds the id.
    pub clash: Option<String>,
}

/// The present value that a writer expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Anything, or nothing.
    Any,
    /// No value.
    Absent,
    /// The value of this version.
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

/// Why a store did not execute a call.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached, or did not answer in time. Retryable.
    #[error("{store} cannot be reached: {reason}")]
    Unreachable {
        /// The store, as [`Store::describe`] says.
        store: String,
        /// The cause and the remedy.
        reason: String,
    },
    /// It refused the call: a missing permission, a wrong password, a value too large. Terminal.
    #[error("{store} refused {what}: {reason}")]
    Refused {
        /// The store.
        store: String,
        /// The operation.
        what: String,
        /// The cause and the remedy.
        reason: String,
    },
    /// Another writer changed the key concurrently. Terminal; read it again.
    #[error("{place} was changed concurrently; read it and retry")]
    Conflict {
        /// The place of the key.
        place: String,
    },
    /// It keeps no history. Terminal.
    #[error("{store} keeps no earlier values")]
    NotKept {
        /// The store.
        store: String,
    },
}

impl StoreError {
    /// Whether the same call can succeed later without intervention.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}
