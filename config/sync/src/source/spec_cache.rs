//! On-disk cache of a store's last good values, for a start while the store is unreachable.
//!
//! The first line has the format and the SHA-256 of the rest, which is JSON: a truncated or edited file is not used. Values are
//! stored as in the store, with unresolved references. Content that is held back is never cached, so that a start compares the
//! last applied state with the store.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::atomic_file;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sluicegate_config::bounded_file;
use sluicegate_config::control::{ControlKey, KeyKind};
use sluicegate_store::digest::sha256_hex;
use sluicegate_store::{Entry, KeyVersion, StoreAddress, Tree};

const MAGIC: &str = "sluicegate-handlers-cache-2";
/// Changes within this time are coalesced into one write.
const COALESCE_WINDOW: Duration = Duration::from_millis(300);

/// Maximum file size in bytes.
const LARGEST: usize = 1 << 30;

/// The last good values, by key.
pub(super) type GoodValues = BTreeMap<ControlKey, Arc<[u8]>>;

/// The content to save.
pub(super) struct Kept {
    pub(super) revision: u64,
    /// [`Tree::identity`] of the store.
    pub(super) identity: Option<Arc<str>>,
    /// The store has since been listed at a lower revision, and its content was not applied.
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

/// The cache file of one store.
#[derive(Clone, Debug)]
pub(super) struct SpecCache {
    path: PathBuf,
    /// Address of the store; the values of another store are not used.
    store: StoreAddress,
}

/// Why the cache of a store is not used. No cause needs a remedy while the store answers: the first content that is applied
/// replaces the file.
#[derive(Debug, thiserror::Error)]
pub(super) enum CacheError {
    /// Retryable: the file may be fine.
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// Terminal.
    #[error("unknown format; it is replaced once the store has been read")]
    Format,
    /// Terminal.
    #[error(
        "checksum mismatch: it was truncated or edited; it is replaced once the store has been read"
    )]
    Checksum,
    /// Terminal.
    #[error("{0}; it is replaced once the store has been read")]
    Json(#[from] serde_json::Error),
    /// Terminal. The file may be in use by the service of that store.
    #[error(
        "it belongs to another store ({0}) and is replaced once this one has been read; to keep it, set `handlers.cache` to another file"
    )]
    OtherStore(StoreAddress),
    /// Terminal.
    #[error("invalid time: {0}; it is replaced once the store has been read")]
    Time(#[from] jiff::Error),
}

/// The content of the cache.
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

    /// Loads the cache; `None` without a file. The cache must be of the store with this `identity`, or of one with the same
    /// prefix and a common server; if another store answers there now, the caller must detect that. A config with other servers and
    /// another store is a different store, whose cache is not used.
    ///
    /// # Errors
    /// The file cannot be used.
    pub(super) fn load(&self, identity: Option<&str>) -> Result<Option<Cached>, CacheError> {
        let read = bounded_file::read_text(&self.path, LARGEST);
        let text = match read.map_err(bounded_file::ReadError::into_io) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let (head, body) = text.split_once('\n').unwrap_or((&text, ""));
        let sum = head.strip_prefix(MAGIC).ok_or(CacheError::Format)?;
        if sum.trim() != sha256_hex(body.as_bytes()) {
            return Err(CacheError::Checksum);
        }
        let body: Body = serde_json::from_str(body)?;
        let both = identity.zip(body.identity.as_deref());
        let same = both.is_some_and(|(known, kept)| known == kept);
        if !same && !self.store.may_be(&body.store) {
            return Err(CacheError::OtherStore(body.store));
        }
        let saved = body.saved.parse()?;
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

    /// Atomically replaces the file.
    ///
    /// # Errors
    /// The file system's error.
    fn save(&self, kept: &Kept) -> std::io::Result<()> {
        let lines = kept.values.iter().map(|(key, value)| Line {
            kind: KeyKind::of(key),
            name: key.handler().unwrap_or_default().to_owned(),
            // Good values are UTF-8.
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
        let new = atomic_file::write_temp(&self.path, text.as_bytes(), atomic_file::PRIVATE)?;
        new.persist(&self.path)?;
        Ok(())
    }
}

/// Writes a cache on its own thread. Dropping it flushes pending writes.
pub(super) struct CacheWriter {
    jobs: Option<Sender<Kept>>,
    thread: Option<JoinHandle<()>>,
}

impl CacheWriter {
    /// # Errors
    /// If no thread can be started.
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

    /// Queues the content for writing.
    pub(super) fn keep(&self, kept: Kept) {
        if let Some(jobs) = &self.jobs {
            // The thread lives as long as the sender.
            let _ = jobs.send(kept);
        }
    }
}

impl Drop for CacheWriter {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // A panic was already reported by the panic hook.
            let _ = thread.join();
        }
    }
}

fn write_all(cache: &SpecCache, inbox: &Receiver<Kept>) {
    let mut last: Option<Kept> = None;
    while let Ok(mut newest) = inbox.recv() {
        let end = Instant::now() + COALESCE_WINDOW;
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
                "cannot write the cache of handler specs; a start while the store is unreachable would fail"
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
    fn a_saved_cache_is_loaded_and_any_other_file_is_rejected() {
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

        let refused = |cache: &SpecCache, identity| cache.load(identity).err().unwrap().to_string();
        let other = SpecCache::new(path.clone(), etcd(&["b"]));
        let of_another = "belongs to another store (etcd a prefix /plugins)";
        assert!(refused(&other, None).contains(of_another));
        assert!(refused(&other, Some("cluster 2")).contains(of_another));
        // Another store at the same address is detected by the caller.
        assert!(cache.load(Some("cluster 2")).unwrap().is_some());
        // Addresses change, the cluster's identity stays.
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
            let why = refused(&cache, None);
            assert!(why.contains("it is replaced once the store"), "{why}");
        }
        let writer = CacheWriter::start(cache.clone()).unwrap();
        writer.keep(kept(8, values()));
        drop(writer);
        assert_eq!(cache.load(None).unwrap().unwrap().tree.revision, 8);
    }
}
