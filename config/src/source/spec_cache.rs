//! The last good values of a store on disk, for a start while the store is away.
//!
//! The first line names the format and the SHA-256 of the rest, which is JSON: a file that was cut or edited is not used.
//! It holds texts as the store has them, with references unresolved. What is held back is never in it: a start compares what it
//! has with what stands in the store.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::atomic_file;
use crate::bounded_file;
use crate::digest::sha256_hex;
use crate::store::{ControlKey, Entry, KeyKind, KeyVersion, StoreAddress, Tree};

const MAGIC: &str = "sluicegate-handlers-cache-2";
/// Changes that follow each other within this time are written once.
const SPACING: Duration = Duration::from_millis(300);

/// Longest file that is read, in bytes.
const LARGEST: usize = 1 << 30;

/// The values that are good, by key.
pub(super) type GoodValues = BTreeMap<ControlKey, Arc<[u8]>>;

/// What is to be kept.
pub(super) struct Kept {
    pub(super) revision: u64,
    /// [`Tree::identity`] of the store.
    pub(super) identity: Option<Arc<str>>,
    /// The store was read at a lower revision than this since, and what it holds was not taken over.
    pub(super) went_back: bool,
    pub(super) values: GoodValues,
}

impl Kept {
    fn says_as(&self, other: &Self) -> bool {
        self.values == other.values
            && self.identity == other.identity
            && self.went_back == other.went_back
    }
}

/// Where the cache of one store stands.
#[derive(Clone, Debug)]
pub(super) struct SpecCache {
    path: PathBuf,
    /// Where the store is that the values are from: another store's values are not used.
    store: StoreAddress,
}

/// What was in the cache.
pub(super) struct Cached {
    pub(super) saved: Timestamp,
    /// As of [`Kept`].
    pub(super) went_back: bool,
    pub(super) tree: Tree,
}

#[derive(Serialize, Deserialize)]
struct Body {
    store: StoreAddress,
    /// [`Tree::identity`] of the store.
    #[serde(default)]
    identity: Option<String>,
    #[serde(default)]
    went_back: bool,
    saved: String,
    revision: u64,
    values: Vec<Line>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    kind: KeyKind,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    name: String,
    value: String,
}

impl SpecCache {
    pub(super) fn new(path: PathBuf, store: StoreAddress) -> Self {
        Self { path, store }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What it holds; `None` when there is no file yet. It must be of the store of this `identity`, or of one with the same keys
    /// and a server in common: where that is another store now, it is for the caller to tell. A config that names other servers of
    /// another store means that one.
    ///
    /// # Errors
    /// A sentence that says why the file is not used.
    pub(super) fn load(&self, identity: Option<&str>) -> Result<Option<Cached>, String> {
        let read = bounded_file::read_text(&self.path, LARGEST);
        let text = match read.map_err(bounded_file::ReadError::into_io) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("it cannot be read: {error}")),
        };
        let (head, body) = text.split_once('\n').unwrap_or((&text, ""));
        let sum = head
            .strip_prefix(MAGIC)
            .ok_or("it has another format; delete it")?;
        if sum.trim() != sha256_hex(body.as_bytes()) {
            return Err("its checksum is wrong: it was cut or edited; delete it".to_owned());
        }
        let body: Body = serde_json::from_str(body).map_err(|error| error.to_string())?;
        let both = identity.zip(body.identity.as_deref());
        let same = both.is_some_and(|(known, kept)| known == kept);
        if !same && !self.store.may_be(&body.store) {
            return Err(format!(
                "it is of another store ({}); delete it, or name another file in `handlers.cache`",
                body.store
            ));
        }
        let saved = body
            .saved
            .parse()
            .map_err(|error| format!("its time is none: {error}"))?;
        let stamp = KeyVersion {
            revision: body.revision,
            version: 0,
        };
        let entries = body.values.into_iter().filter_map(|line| {
            let value = Arc::from(line.value.into_bytes());
            Some((line.kind.key(&line.name).ok()?, Entry { value, stamp }))
        });
        let tree = Tree {
            revision: body.revision,
            identity: body.identity.map(Arc::from),
            entries: entries.collect(),
            ..Tree::default()
        };
        Ok(Some(Cached {
            saved,
            went_back: body.went_back,
            tree,
        }))
    }

    /// Replaces the file, in one step that readers see whole or not at all.
    ///
    /// # Errors
    /// What the file system says.
    fn save(&self, kept: &Kept) -> std::io::Result<()> {
        let lines = kept.values.iter().map(|(key, value)| Line {
            kind: KeyKind::of(key),
            name: key.handler().unwrap_or_default().to_owned(),
            // Good values are text.
            value: String::from_utf8_lossy(value).into_owned(),
        });
        let body = Body {
            store: self.store.clone(),
            identity: kept.identity.as_deref().map(str::to_owned),
            went_back: kept.went_back,
            saved: Timestamp::now().to_string(),
            revision: kept.revision,
            values: lines.collect(),
        };
        let body = serde_json::to_string(&body)?;
        let folder = self.path.parent().unwrap_or(Path::new(""));
        if !folder.as_os_str().is_empty() {
            std::fs::create_dir_all(folder)?;
        }
        let sum = sha256_hex(body.as_bytes());
        let text = format!("{MAGIC} {sum}\n{body}");
        let new = atomic_file::beside(&self.path, text.as_bytes(), atomic_file::PRIVATE)?;
        new.persist(&self.path)?;
        Ok(())
    }
}

/// Writes a cache on a thread of its own; dropping it writes what is still to be written.
pub(super) struct CacheWriter {
    jobs: Option<Sender<Kept>>,
    thread: Option<JoinHandle<()>>,
}

impl CacheWriter {
    /// # Errors
    /// The system's, when it has no thread to give.
    pub(super) fn start(cache: SpecCache) -> std::io::Result<Self> {
        let (jobs, inbox) = channel();
        let thread = std::thread::Builder::new()
            .name("spec-cache".to_owned())
            .spawn(move || write_all(&cache, &inbox))?;
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
        })
    }

    /// These are the good values from now on.
    pub(super) fn keep(&self, kept: Kept) {
        if let Some(jobs) = &self.jobs {
            // The thread ends only with the sender.
            let _ = jobs.send(kept);
        }
    }
}

impl Drop for CacheWriter {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // A panic has said so already.
            let _ = thread.join();
        }
    }
}

fn write_all(cache: &SpecCache, inbox: &Receiver<Kept>) {
    let mut last: Option<Kept> = None;
    while let Ok(mut newest) = inbox.recv() {
        let end = Instant::now() + SPACING;
        let mut more = true;
        while more {
            match inbox.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(newer) => newest = newer,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => more = false,
            }
        }
        if last.as_ref().is_some_and(|last| last.says_as(&newest)) {
            continue;
        }
        match cache.save(&newest) {
            Ok(()) => last = Some(newest),
            Err(error) => tracing::warn!(
                file = %cache.path().display(),
                %error,
                "the last good handler specs cannot be kept on disk; a start while the store is away would fail"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn etcd(servers: &[&str]) -> StoreAddress {
        StoreAddress {
            kind: "etcd".to_owned(),
            servers: servers.iter().map(|&server| server.to_owned()).collect(),
            below: "/plugins".to_owned(),
        }
    }

    fn values() -> GoodValues {
        let text = |text: &str| Arc::from(text.as_bytes());
        [
            (ControlKey::Spec("a".into()), text("name: a\nü: 1\n")),
            (ControlKey::Enabled("a".into()), text("true")),
            (ControlKey::Logging, text("false")),
        ]
        .into()
    }

    #[test]
    fn what_is_kept_is_found_again_and_nothing_else_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/handlers.cache");
        let cache = SpecCache::new(path.clone(), etcd(&["a"]));
        assert!(cache.load(None).unwrap().is_none());
        let writer = CacheWriter::start(cache.clone()).unwrap();
        let kept = |revision, values| Kept {
            revision,
            identity: Some("cluster 1".into()),
            went_back: revision == 7,
            values,
        };
        writer.keep(kept(6, GoodValues::default()));
        writer.keep(kept(7, values()));
        drop(writer);
        let cached = cache.load(None).unwrap().unwrap();
        assert_eq!(cached.tree.identity.as_deref(), Some("cluster 1"));
        assert_eq!((cached.tree.revision, cached.went_back), (7, true));
        let found = cached.tree.entries.into_iter();
        assert!(found.map(|(key, entry)| (key, entry.value)).eq(values()));

        let refused = |cache: &SpecCache, identity| cache.load(identity).err().unwrap();
        let other = SpecCache::new(path.clone(), etcd(&["b"]));
        let of_another = "of another store (etcd a prefix /plugins)";
        assert!(refused(&other, None).contains(of_another));
        assert!(refused(&other, Some("cluster 2")).contains(of_another));
        // That another store answers at the same address is a matter of doubt.
        assert!(cache.load(Some("cluster 2")).unwrap().is_some());
        // Addresses come and go; the cluster stays.
        assert!(other.load(Some("cluster 1")).unwrap().is_some());
        let larger = SpecCache::new(path.clone(), etcd(&["b", "a"]));
        assert!(larger.load(None).unwrap().is_some());
        let text = std::fs::read_to_string(&path).unwrap();
        for bad in [
            text.replace("true", "false"),
            text[..text.len() - 5].to_owned(),
            "junk".to_owned(),
            String::new(),
        ] {
            std::fs::write(&path, bad).unwrap();
            assert!(cache.load(None).is_err());
        }
    }
}
