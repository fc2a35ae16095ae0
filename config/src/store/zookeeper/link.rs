//! Reading and watching a tree of ZooKeeper nodes: a persistent recursive watch says where to read again.
//!
//! The watch is set before the first reading, so that nothing falls between. It is given up at any loss of the connection:
//! ZooKeeper does not tell what happened meanwhile, and the client does not set it again.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use zookeeper_client::{
    AddWatchMode, Client, Error, EventType, MultiWriteError, PersistentWatcher, SessionState, Stat,
    WatchedEvent,
};

use super::super::failure::Failure;
use super::super::follow::{Heard, Link, Listing};
use super::super::{Entry, Stamp, Tree, TreeChange, bounded};
use super::{Shared, failure};

/// Most nodes that are asked for at once, and most notices that are taken together.
const AT_ONCE: usize = 256;

/// Everything below the root. It is not of one moment: only what was known before it began, which is `known`, and is
/// missing in it counts as deleted. One that is older than `known` is proved to be what the ensemble holds.
pub(super) async fn read_all(
    shared: &Shared,
    client: &Client,
    known: u64,
) -> Result<Listing, Failure> {
    let listing = read_synced(shared, client, known).await?;
    if listing.tree.revision >= known {
        return Ok(listing);
    }
    take_part(shared, client).await?;
    read_synced(shared, client, known).await
}

/// Passes a check through the ensemble's majority: a leader that does not know yet that it leads no more answers a sync
/// from what it has, but gets no such request through.
async fn take_part(shared: &Shared, client: &Client) -> Result<(), Failure> {
    let mut writer = client.new_multi_writer();
    let added = writer.add_check_version(&shared.settings.root, 0);
    added.map_err(|error| failure(&error))?;
    let committed = writer.commit();
    let answered = shared.sessions.answer(async {
        match committed.await {
            // Whether the root has this version does not matter.
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
            // A restored root is the same one; one that was made anew is not.
            let (made, at) = (stat.czxid, stat.ctime);
            tree.identity = Some(format!("root {root} made at {at} by {made:x}").into());
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
                    Err(reason) => drop(tree.strangers.insert(path, reason)),
                }
            }
        }
        level = children(shared, client, &below).await?;
    }
    Ok(Listing { tree })
}

/// The newest write that a node knows of: of its data, or of its list of children.
pub(super) fn newest(stat: &Stat) -> u64 {
    u64::try_from(stat.mzxid.max(stat.pzxid)).unwrap_or(0)
}

/// The newest write that is seen from the lowest node that is there.
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

/// The nodes at these paths below the root; all are asked for before the first answer is awaited.
async fn read_nodes(
    shared: &Shared,
    client: &Client,
    paths: &[String],
) -> Result<Vec<(String, Node)>, Failure> {
    let root = &shared.settings.root;
    let full: Vec<String> = paths.iter().map(|path| format!("{root}/{path}")).collect();
    let asked: Vec<_> = full.iter().map(|path| client.get_data(path)).collect();
    let mut nodes = Vec::with_capacity(paths.len());
    for (path, answer) in paths.iter().zip(asked) {
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
        let asked: Vec<_> = full.iter().map(|path| client.list_children(path)).collect();
        for (path, answer) in paths.iter().zip(asked) {
            match shared.sessions.answer(answer).await? {
                Ok(names) => found.extend(names.iter().map(|name| format!("{path}/{name}"))),
                Err(Error::NoNode) => {}
                Err(error) => return Err(failure(&error)),
            }
        }
    }
    Ok(found)
}

/// What a node is: a control key with or without a value, nothing, or a stranger for a reason.
fn place(
    shared: &Shared,
    path: &str,
    data: &[u8],
    stat: &Stat,
) -> Result<Option<TreeChange>, String> {
    let key = match shared.settings.paths.key(path) {
        Ok(key) => key,
        // A node without data holds others together.
        Err(_) if data.is_empty() => return Ok(None),
        Err(reason) => return Err(reason),
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

/// The stamp of a node's data.
pub(super) fn stamp(stat: &Stat) -> Stamp {
    Stamp {
        revision: u64::try_from(stat.mzxid).unwrap_or(0),
        version: i64::from(stat.version),
    }
}

/// A persistent recursive watch on the root.
pub(super) struct ZooKeeperLink {
    shared: Arc<Shared>,
    watch: Option<(Client, PersistentWatcher)>,
    /// Paths that notices named and that are not read yet, below the root.
    dirty: BTreeMap<String, ()>,
    /// The newest write that a notice named.
    noticed: u64,
}

impl ZooKeeperLink {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            watch: None,
            dirty: BTreeMap::new(),
            noticed: 0,
        }
    }

    /// Takes a notice in; a reason when the watch is over.
    fn note(&mut self, event: &WatchedEvent) -> Result<(), String> {
        if event.event_type == EventType::Session {
            return match event.session_state {
                SessionState::SyncConnected => Ok(()),
                state => Err(format!("the session is {state}")),
            };
        }
        // Servers before 3.9 do not say which write a notice is of; only a full reading is safe then.
        let zxid = u64::try_from(event.zxid)
            .map_err(|_| "the server's notices have no revision; reading again".to_owned())?;
        let settings = &self.shared.settings;
        let below = event.path.strip_prefix(settings.root.as_str());
        let below = below.and_then(|path| path.strip_prefix('/'));
        // What is too deep for a control key no listing sees, so that it must not count as known either.
        if below.is_some_and(|path| path.split('/').count() > settings.paths.depth()) {
            return Ok(());
        }
        self.noticed = self.noticed.max(zxid);
        if let Some(path) = below {
            self.dirty.insert(path.to_owned(), ());
        }
        Ok(())
    }

    /// Waits for a notice, and takes what has come with it.
    async fn wait(&mut self) -> Result<(), String> {
        loop {
            let Some((_, watcher)) = &mut self.watch else {
                return Err("there is no watch".to_owned());
            };
            let event = match self.dirty.is_empty() {
                true => watcher.changed().await,
                false => {
                    let polled =
                        pin!(watcher.changed()).poll(&mut Context::from_waker(Waker::noop()));
                    match polled {
                        Poll::Ready(event) => event,
                        Poll::Pending => return Ok(()),
                    }
                }
            };
            self.note(&event)?;
            if self.dirty.len() >= AT_ONCE {
                return Ok(());
            }
        }
    }

    /// Reads what notices named. They stay named until it is read, so that a dropped future loses nothing.
    async fn read_dirty(&mut self) -> Result<Heard, Failure> {
        let Some((client, _)) = &self.watch else {
            return Err(Failure::away("there is no watch"));
        };
        let revision = self.noticed;
        let paths: Vec<String> = self.dirty.keys().cloned().collect();
        let (mut changes, mut strangers) = (Vec::new(), Vec::new());
        for (path, node) in read_nodes(&self.shared, client, &paths).await? {
            let found = match &node {
                Some((data, stat)) => place(&self.shared, &path, data, stat),
                None => {
                    let key = self.shared.settings.paths.key(&path).ok();
                    // What is read is not older than any notice that has come.
                    Ok(key.map(|key| TreeChange::delete(key, revision)))
                }
            };
            match found {
                Ok(change) => {
                    changes.extend(change);
                    strangers.push((path, None));
                }
                Err(reason) => strangers.push((path, Some(reason))),
            }
        }
        self.dirty.clear();
        Ok(Heard::Changes {
            changes,
            strangers,
            revision,
        })
    }
}

impl Link for ZooKeeperLink {
    async fn open(&mut self, known: u64) -> Result<Listing, String> {
        self.watch = None;
        self.dirty.clear();
        // Of another history, should the store have been restored meanwhile.
        self.noticed = 0;
        let sessions = &self.shared.sessions;
        let client = sessions.connected().await.map_err(Failure::reason)?;
        let root = &self.shared.settings.root;
        let watching = client.watch(root, AddWatchMode::PersistentRecursive);
        let watcher = sessions.answer(watching).await.map_err(Failure::reason)?;
        let watcher = watcher.map_err(|error| failure(&error).reason())?;
        let listing = read_all(&self.shared, &client, known).await;
        let listing = listing.map_err(Failure::reason)?;
        self.watch = Some((client, watcher));
        Ok(listing)
    }

    async fn list(&mut self, known: u64) -> Result<Listing, String> {
        let Some((client, _)) = &self.watch else {
            return Err("there is no watch".to_owned());
        };
        let listing = read_all(&self.shared, client, known).await;
        listing.map_err(Failure::reason)
    }

    async fn next(&mut self) -> Heard {
        let heard = match self.wait().await {
            Ok(()) => self.read_dirty().await.map_err(Failure::reason),
            Err(reason) => Err(reason),
        };
        heard.unwrap_or_else(|reason| {
            self.watch = None;
            Heard::Lost(reason)
        })
    }
}
