//! Lists and watches a tree of ZooKeeper nodes: notices of a persistent recursive watch name the nodes to read again.
//!
//! The watch is set before the first reading, so that no change is missed. It is dropped at any connection loss:
//! ZooKeeper does not report what happened during the loss, and the client does not set the watch again.
//!
//! Servers before 3.9 do not report the zxid of a notice. Then everything is read again while the watch continues: a
//! client receives the notice of a delete before any answer that shows it, so each delete is known to have been
//! reported.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use sluicegate_config::control::{ControlKey, PathMap};
use zookeeper_client::{
    AddWatchMode, Client, Error, EventType, MultiWriteError, PersistentWatcher, SessionState, Stat,
    WatchedEvent,
};

use super::super::failure::Failure;
use super::super::reflector::{Listing, WatchConnection, WatchEvent};
use super::super::{Entry, KeyVersion, Tree, TreeChange, bounded};
use super::{Shared, failure};

/// Maximum number of nodes requested at once, and of notices processed together.
const AT_ONCE: usize = 256;

/// Lists everything below the root. The listing is not atomic: only keys known before it began, up to the revision
/// `known`, count as deleted when missing. A listing older than `known` is verified to be the state of the ensemble.
pub(super) async fn read_all(
    shared: &Shared,
    client: &Client,
    known: u64,
) -> Result<Listing, Failure> {
    let listing = read_synced(shared, client, known).await?;
    if listing.tree.revision >= known {
        return Ok(listing);
    }
    commit_check(shared, client).await?;
    read_synced(shared, client, known).await
}

/// Commits a version check through the ensemble's majority: a leader that does not know yet that it was deposed still
/// answers a sync, but cannot commit.
async fn commit_check(shared: &Shared, client: &Client) -> Result<(), Failure> {
    let mut writer = client.new_multi_writer();
    let added = writer.add_check_version(&shared.settings.root, 0);
    added.map_err(|error| failure(&error))?;
    let committed = writer.commit();
    let answered = shared.sessions.answer(async {
        match committed.await {
            // The result of the check does not matter, only that it was committed.
            Ok(_) | Err(MultiWriteError::OperationFailed { .. }) => Ok(()),
            Err(MultiWriteError::RequestFailed { source }) => Err(source),
        }
    });
    answered.await?.map_err(|error| failure(&error))
}

async fn read_synced(shared: &Shared, client: &Client, known: u64) -> Result<Listing, Failure> {
    let root = &shared.settings.root;
    let sessions = &shared.sessions;
    let synced = sessions.answer(client.sync(root)).await?;
    synced.map_err(|error| failure(&error))?;
    let mut tree = Tree {
        floor: known,
        ..Tree::default()
    };
    let mut level = match sessions.answer(client.get_children(root)).await? {
        Ok((children, stat)) => {
            tree.revision = newest(&stat);
            // A restored root keeps its identity; a recreated one has a different one.
            let (made, at) = (stat.czxid, stat.ctime);
            let paths = shared.settings.paths.differences(&PathMap::zookeeper());
            tree.identity = Some(format!("root {root} made at {at} by {made:x}{paths}").into());
            children
        }
        Err(Error::NoNode) => {
            tree.revision = revision_above(shared, client, root).await?;
            Vec::new()
        }
        Err(error) => return Err(failure(&error)),
    };
    for depth in 1..=shared.settings.paths.depth() {
        let mut below = Vec::new();
        for paths in level.chunks(AT_ONCE) {
            for (path, node) in read_nodes(shared, client, paths).await? {
                let Some((data, stat)) = node else {
                    continue;
                };
                tree.revision = tree.revision.max(newest(&stat));
                if stat.num_children > 0 && depth < shared.settings.paths.depth() {
                    below.push(path.clone());
                }
                match place(shared, &path, &data, &stat) {
                    Ok(Some(TreeChange { key, entry, .. })) => {
                        tree.entries.extend(entry.map(|entry| (key, entry)));
                    }
                    Ok(None) => {}
                    Err(reason) => drop(tree.unrecognized_keys.insert(path, reason)),
                }
            }
        }
        level = children(shared, client, &below).await?;
    }
    Ok(tree.into())
}

/// The newest write recorded in a node: of its data, or of its list of children.
pub(super) fn newest(stat: &Stat) -> u64 {
    u64::try_from(stat.mzxid.max(stat.pzxid)).unwrap_or(0)
}

/// The newest write recorded in the nearest existing ancestor.
pub(super) async fn revision_above(
    shared: &Shared,
    client: &Client,
    path: &str,
) -> Result<u64, Failure> {
    let mut path = path;
    loop {
        path = match path.rsplit_once('/') {
            Some(("", _)) | None => "/",
            Some((parent, _)) => parent,
        };
        match shared.sessions.answer(client.check_stat(path)).await? {
            Ok(Some(stat)) => return Ok(newest(&stat)),
            Ok(None) | Err(Error::NoNode) if path != "/" => {}
            Ok(None) => return Ok(0),
            Err(error) => return Err(failure(&error)),
        }
    }
}

type Node = Option<(Vec<u8>, Stat)>;

/// Reads the nodes at these paths below the root; all requests are sent before the first answer is awaited.
async fn read_nodes(
    shared: &Shared,
    client: &Client,
    paths: &[String],
) -> Result<Vec<(String, Node)>, Failure> {
    let root = &shared.settings.root;
    let full: Vec<String> = paths.iter().map(|path| format!("{root}/{path}")).collect();
    let requests: Vec<_> = full.iter().map(|path| client.get_data(path)).collect();
    let mut nodes = Vec::with_capacity(paths.len());
    for (path, answer) in paths.iter().zip(requests) {
        let node = match shared.sessions.answer(answer).await? {
            Ok(node) => Some(node),
            Err(Error::NoNode) => None,
            Err(error) => return Err(failure(&error)),
        };
        nodes.push((path.clone(), node));
    }
    Ok(nodes)
}

/// The paths of all children of these nodes.
async fn children(
    shared: &Shared,
    client: &Client,
    paths: &[String],
) -> Result<Vec<String>, Failure> {
    let root = &shared.settings.root;
    let full: Vec<String> = paths.iter().map(|path| format!("{root}/{path}")).collect();
    let mut found = Vec::new();
    for (paths, full) in paths.chunks(AT_ONCE).zip(full.chunks(AT_ONCE)) {
        let requests: Vec<_> = full.iter().map(|path| client.list_children(path)).collect();
        for (path, answer) in paths.iter().zip(requests) {
            match shared.sessions.answer(answer).await? {
                Ok(names) => found.extend(names.iter().map(|name| format!("{path}/{name}"))),
                Err(Error::NoNode) => {}
                Err(error) => return Err(failure(&error)),
            }
        }
    }
    Ok(found)
}

/// Classifies a node: a control key with or without a value, nothing, or an unrecognized path with the reason that
/// [`Tree::unrecognized_keys`] shows.
fn place(
    shared: &Shared,
    path: &str,
    data: &[u8],
    stat: &Stat,
) -> Result<Option<TreeChange>, String> {
    let key = match shared.settings.paths.key(path) {
        Ok(key) => key,
        // A node without data only contains others.
        Err(_) if data.is_empty() => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let stamp = stamp(stat);
    Ok(Some(match data.is_empty() {
        true => TreeChange::delete(key, stamp.revision),
        false => {
            let value = bounded(data);
            TreeChange::put(key, Entry { value, stamp })
        }
    }))
}

/// The version of a node's data.
pub(super) fn stamp(stat: &Stat) -> KeyVersion {
    KeyVersion {
        revision: u64::try_from(stat.mzxid).unwrap_or(0),
        version: i64::from(stat.version),
    }
}

/// A persistent recursive watch on the root.
pub(super) struct ZooKeeperLink {
    shared: Arc<Shared>,
    watch: Option<(Client, PersistentWatcher)>,
    /// Paths below the root that notices named and that are not read yet.
    dirty: BTreeMap<String, ()>,
    /// The newest write that a notice named.
    noticed: u64,
    /// Whether a notice came without a zxid.
    unnumbered: bool,
    /// Keys that notices reported as deleted or emptied, without a confirming reading yet.
    deleted: BTreeSet<ControlKey>,
    /// The part of them that was reported before the current reading began.
    deletes_before_read: BTreeSet<ControlKey>,
}

impl ZooKeeperLink {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            watch: None,
            dirty: BTreeMap::new(),
            noticed: 0,
            unnumbered: false,
            deleted: BTreeSet::new(),
            deletes_before_read: BTreeSet::new(),
        }
    }

    /// Processes a notice; an error when the watch has ended.
    fn on_notice(&mut self, event: &WatchedEvent) -> Result<(), Failure> {
        if event.event_type == EventType::Session {
            return match event.session_state {
                SessionState::SyncConnected => Ok(()),
                state => Err(Failure::Away(format!("the session is {state}"))),
            };
        }
        self.on_node_notice(event.event_type, &event.path, event.zxid);
        Ok(())
    }

    /// Processes a notice about the node at `path`, caused by the write `zxid` unless that is negative.
    fn on_node_notice(&mut self, event_type: EventType, path: &str, zxid: i64) {
        let settings = &self.shared.settings;
        let below = path.strip_prefix(settings.root.as_str());
        let below = below.and_then(|path| path.strip_prefix('/'));
        // Listings do not reach nodes deeper than any control key, so such notices must not advance the known revision
        // either.
        if below.is_some_and(|path| path.split('/').count() > settings.paths.depth()) {
            return;
        }
        if matches!(
            event_type,
            EventType::NodeDeleted | EventType::NodeDataChanged
        ) {
            let key = below.and_then(|path| settings.paths.key(path).ok());
            self.deleted.extend(key);
        }
        // Servers before 3.9 do not report the zxid; only a full reading is safe then.
        let Ok(zxid) = u64::try_from(zxid) else {
            self.unnumbered = true;
            return;
        };
        self.noticed = self.noticed.max(zxid);
        if let Some(path) = below {
            self.dirty.insert(path.to_owned(), ());
        }
    }

    /// Waits for a notice, then processes all that have arrived with it.
    async fn wait(&mut self) -> Result<(), Failure> {
        while self.dirty.is_empty() && !self.unnumbered {
            let (_, watcher) = self.watch.as_mut().ok_or_else(no_watch)?;
            let event = watcher.changed().await;
            self.on_notice(&event)?;
        }
        self.take_notices(AT_ONCE)
    }

    /// Processes the notices that have arrived, until `most` nodes are to be read.
    fn take_notices(&mut self, most: usize) -> Result<(), Failure> {
        while self.dirty.len() < most {
            let (_, watcher) = self.watch.as_mut().ok_or_else(no_watch)?;
            let polled = pin!(watcher.changed()).poll(&mut Context::from_waker(Waker::noop()));
            let Poll::Ready(event) = polled else {
                return Ok(());
            };
            self.on_notice(&event)?;
        }
        Ok(())
    }

    /// Lists everything, then processes the notices that have arrived by then.
    async fn read(&mut self, known: u64) -> Result<Listing, Failure> {
        self.deletes_before_read.append(&mut self.deleted);
        let (client, _) = self.watch.as_ref().ok_or_else(no_watch)?;
        let listing = read_all(&self.shared, client, known).await?;
        // The notice of a delete arrives before any answer that shows it.
        self.take_notices(usize::MAX)?;
        let mut deletes_seen = std::mem::take(&mut self.deletes_before_read);
        deletes_seen.extend(self.deleted.iter().cloned());
        // A delete after the reading passed shows in the next one.
        self.deleted.retain(|key| listing.tree.get(key).is_some());
        Ok(Listing {
            deletes_seen,
            ..listing
        })
    }

    /// Reads the nodes named by notices. The paths are kept until the read completes, so a dropped future loses
    /// nothing.
    async fn read_dirty(&mut self) -> Result<WatchEvent, Failure> {
        let Some((client, _)) = &self.watch else {
            return Err(no_watch());
        };
        let revision = self.noticed;
        let paths: Vec<String> = self.dirty.keys().cloned().collect();
        let mut nodes = Vec::with_capacity(paths.len());
        for paths in paths.chunks(AT_ONCE) {
            nodes.append(&mut read_nodes(&self.shared, client, paths).await?);
        }
        let (mut changes, mut unrecognized) = (Vec::new(), Vec::new());
        for (path, node) in nodes {
            let key = self.shared.settings.paths.key(&path).ok();
            if let Some(key) = &key {
                self.deleted.remove(key);
            }
            let found = match &node {
                Some((data, stat)) => place(&self.shared, &path, data, stat),
                // The reading is not older than any received notice.
                None => Ok(key.map(|key| TreeChange::delete(key, revision))),
            };
            match found {
                Ok(change) => {
                    changes.extend(change);
                    unrecognized.push((path, None));
                }
                Err(reason) => unrecognized.push((path, Some(reason))),
            }
        }
        self.dirty.clear();
        Ok(WatchEvent::Changes {
            changes,
            unrecognized,
            revision,
        })
    }
}

fn no_watch() -> Failure {
    Failure::away("no watch is open")
}

impl WatchConnection for ZooKeeperLink {
    async fn open(&mut self, known: u64) -> Result<Listing, Failure> {
        // Deletes reported by a lost watch still count; the reason for its loss is irrelevant here.
        let _ = self.take_notices(usize::MAX);
        self.watch = None;
        self.dirty.clear();
        self.unnumbered = false;
        // The old value would belong to a different history if the store was restored.
        self.noticed = 0;
        let sessions = &self.shared.sessions;
        let client = sessions.connected().await?;
        let root = &self.shared.settings.root;
        let watching = client.watch(root, AddWatchMode::PersistentRecursive);
        let watcher = sessions.answer(watching).await?;
        let watcher = watcher.map_err(|error| failure(&error))?;
        self.watch = Some((client, watcher));
        self.read(known).await
    }

    async fn list(&mut self, known: u64) -> Result<Listing, Failure> {
        self.read(known).await
    }

    async fn next(&mut self) -> WatchEvent {
        let event = match self.wait().await {
            Ok(()) if std::mem::take(&mut self.unnumbered) => Ok(WatchEvent::Unnumbered),
            Ok(()) => self.read_dirty().await,
            Err(failure) => Err(failure),
        };
        // The next opening processes the remaining notices of a lost watch.
        event.unwrap_or_else(WatchEvent::Lost)
    }
}

#[cfg(test)]
mod tests {
    use sluicegate_config::service::ZooKeeperSettings;

    use super::super::sessions;
    use super::*;

    fn link() -> ZooKeeperLink {
        let settings = ZooKeeperSettings::new("127.0.0.1:1");
        let sessions = sessions(&settings).expect("no files are read");
        ZooKeeperLink::new(Arc::new(Shared { settings, sessions }))
    }

    #[test]
    fn an_unnumbered_notice_records_deleted_keys_and_requests_a_full_reading() {
        let mut link = link();
        link.on_node_notice(EventType::NodeDeleted, "/plugins/auditor/spec", -1);
        link.on_node_notice(EventType::NodeDataChanged, "/plugins/auditor", -1);
        link.on_node_notice(EventType::NodeCreated, "/plugins/other/spec", -1);
        let spec = ControlKey::Spec("auditor".to_owned());
        let gate = ControlKey::Enabled("auditor".to_owned());
        assert_eq!(link.deleted, [spec.clone(), gate].into());
        assert!(link.unnumbered && link.dirty.is_empty());
        assert_eq!(link.noticed, 0, "no revision is invented");

        let mut link = self::link();
        link.on_node_notice(EventType::NodeDeleted, "/plugins/auditor/state/cursor", -1);
        assert!(!link.unnumbered, "listings do not reach this depth");
        link.on_node_notice(EventType::NodeDeleted, "/plugins/auditor/spec", 7);
        assert_eq!(link.deleted, [spec].into());
        assert!(!link.unnumbered && link.dirty.contains_key("auditor/spec"));
        assert_eq!(link.noticed, 7);
    }
}
