//! Reading and watching a prefix of etcd: list at revision R, watch from R + 1, and say so when the watch is over.

use std::sync::Arc;

use etcd_client::{EventType, GetOptions, KeyValue, WatchOptions, WatchResponse, WatchStream};
use tokio::time::timeout;

use super::super::failure::Failure;
use super::super::reflector::{Listing, WatchConnection, WatchEvent};
use super::super::{ControlKey, Entry, KeyVersion, PathMap, Tree, TreeChange, bounded};
use super::Shared;
use super::client::failure;

/// Keys of one page; with values of up to 1.5 MiB, which is what etcd takes, a page stays below the limit of a message.
const PAGE: i64 = 128;
/// Longest message that is decoded, in bytes.
const MAX_MESSAGE: usize = 256 * 1024 * 1024;

/// Everything below a prefix, as of one revision.
pub(super) struct Read {
    pub(super) values: Vec<KeyValue>,
    pub(super) revision: i64,
    pub(super) cluster: u64,
}

/// Reads a prefix in pages, all as of the first one's revision.
pub(super) async fn read_prefix(shared: &Shared, prefix: &str) -> Result<Read, Failure> {
    let end = end_of(prefix);
    let mut from = prefix.as_bytes().to_vec();
    let mut read = Read {
        values: Vec::new(),
        revision: 0,
        cluster: 0,
    };
    loop {
        let options = GetOptions::new()
            .with_range(end.clone())
            .with_limit(PAGE)
            .with_revision(read.revision);
        let mut page = shared
            .endpoints
            .call(|client| {
                let (from, options) = (from.clone(), options.clone());
                let mut kv = client.kv_client().max_decoding_message_size(MAX_MESSAGE);
                async move { kv.get(from, Some(options)).await }
            })
            .await?;
        if let Some(header) = page.header().filter(|_| read.revision == 0) {
            read.revision = header.revision();
            read.cluster = header.cluster_id();
        }
        read.values.extend(page.take_kvs());
        match read.values.last().filter(|_| page.more()) {
            Some(last) => from = [last.key(), b"\0"].concat(),
            None => return Ok(read),
        }
    }
}

/// The key's value now.
pub(super) async fn read_one(shared: &Shared, key: &str) -> Result<Option<KeyValue>, Failure> {
    let mut answer = shared
        .endpoints
        .call(|mut client| async move { client.get(key, None).await })
        .await?;
    Ok(answer.take_kvs().pop())
}

/// The first key that does not begin with `prefix`.
fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    // A prefix ends with a slash, which is not the last byte there is.
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

/// Everything below the prefix of control keys.
pub(super) async fn read_all(shared: &Shared) -> Result<Listing, Failure> {
    let prefix = shared.prefix();
    let read = read_prefix(shared, &prefix).await?;
    let revision = u64::try_from(read.revision).unwrap_or(0);
    let mut tree = Tree {
        revision,
        floor: revision,
        ..Tree::default()
    };
    for kv in &read.values {
        let path = path_of(kv.key(), &prefix);
        let entry = entry_of(kv);
        let key = shared.settings.paths.key(&path);
        match key {
            Ok(key) => drop(tree.entries.insert(key, entry)),
            Err(reason) => drop(tree.unrecognized_keys.insert(path, reason)),
        }
    }
    // A restore makes another cluster of it, and an address more or less does not.
    let identity = format!(
        "cluster {:016x} prefix {}{}",
        read.cluster,
        shared.settings.prefix,
        shared.settings.paths.differences(&PathMap::etcd())
    );
    tree.identity = Some(identity.into());
    Ok(tree.into())
}

fn path_of(key: &[u8], prefix: &str) -> String {
    let path = key.strip_prefix(prefix.as_bytes()).unwrap_or(key);
    String::from_utf8_lossy(path).into_owned()
}

fn entry_of(kv: &KeyValue) -> Entry {
    let revision = kv.mod_revision();
    Entry {
        value: bounded(kv.value()),
        stamp: KeyVersion {
            revision: u64::try_from(revision).unwrap_or(0),
            version: revision,
        },
    }
}

/// An event of a watch, at its own revision: the response that brings it may be of a later one.
fn change_of(key: ControlKey, kv: &KeyValue, is_put: bool) -> TreeChange {
    let entry = entry_of(kv);
    match is_put {
        true => TreeChange::put(key, entry),
        false => TreeChange::delete(key, entry.stamp.revision),
    }
}

/// A watch on the prefix, on a stream of its own.
pub(super) struct EtcdLink {
    shared: Arc<Shared>,
    stream: Option<WatchStream>,
}

impl EtcdLink {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            stream: None,
        }
    }

    /// Watches from `revision` on, once the server says that it does.
    async fn watch(&self, revision: i64) -> Result<WatchStream, Failure> {
        let prefix = self.shared.prefix();
        let options = WatchOptions::new()
            .with_range(end_of(&prefix))
            .with_start_revision(revision);
        let endpoints = &self.shared.endpoints;
        let mut stream = endpoints
            .once(|client| {
                let (prefix, options) = (prefix.clone(), options.clone());
                let mut watch = client.watch_client().max_decoding_message_size(MAX_MESSAGE);
                async move { watch.watch(prefix, Some(options)).await }
            })
            .await?;
        let patience = self.shared.settings.request_timeout;
        match timeout(patience, stream.message()).await {
            Ok(Ok(Some(answer))) if answer.created() && !answer.canceled() => Ok(stream),
            Ok(Ok(Some(answer))) => Err(Failure::Away(ended(&answer))),
            Ok(Ok(None)) => Err(Failure::away("the watch was closed at once")),
            Ok(Err(error)) => Err(failure(&error)),
            Err(_) => Err(Failure::Away(format!("no watch within {patience:?}"))),
        }
    }

    fn changes(&self, answer: &WatchResponse) -> WatchEvent {
        let prefix = self.shared.prefix();
        let (mut changes, mut strangers) = (Vec::new(), Vec::new());
        for event in answer.events() {
            let Some(kv) = event.kv() else {
                continue;
            };
            let path = path_of(kv.key(), &prefix);
            let is_put = event.event_type() == EventType::Put;
            match self.shared.settings.paths.key(&path) {
                Ok(key) => {
                    strangers.push((path, None));
                    changes.push(change_of(key, kv, is_put));
                }
                Err(reason) => strangers.push((path, is_put.then_some(reason))),
            }
        }
        let revision = answer.header().map_or(0, |header| header.revision());
        WatchEvent::Changes {
            changes,
            strangers,
            revision: u64::try_from(revision).unwrap_or(0),
        }
    }
}

/// Where a watch begins after a listing of `revision`: nothing is seen twice, and nothing falls between.
fn first_after(revision: u64) -> i64 {
    i64::try_from(revision).map_or(i64::MAX, |revision| revision.saturating_add(1))
}

/// Why a watch is over, where the server says so in an ordinary message.
fn ended(answer: &WatchResponse) -> String {
    match (answer.compact_revision(), answer.cancel_reason()) {
        (1.., _) => format!(
            "the watch was cancelled: revisions before {} are compacted",
            answer.compact_revision()
        ),
        (_, "") => "the watch was cancelled by the server".to_owned(),
        (_, reason) => format!("the watch was cancelled by the server: {reason}"),
    }
}

impl WatchConnection for EtcdLink {
    async fn open(&mut self, _known: u64) -> Result<Listing, String> {
        self.stream = None;
        let listing = read_all(&self.shared).await.map_err(Failure::reason)?;
        match self.watch(first_after(listing.tree.revision)).await {
            Ok(stream) => self.stream = Some(stream),
            Err(failure) => {
                self.shared.endpoints.leave_current();
                return Err(failure.reason());
            }
        }
        Ok(listing)
    }

    async fn list(&mut self, _known: u64) -> Result<Listing, String> {
        read_all(&self.shared).await.map_err(Failure::reason)
    }

    async fn next(&mut self) -> WatchEvent {
        let Some(stream) = &mut self.stream else {
            return WatchEvent::Lost("there is no watch".to_owned());
        };
        // A cancel and a compaction are ordinary messages, with silence after them.
        let heard = match stream.message().await {
            Ok(Some(answer)) if answer.canceled() || answer.compact_revision() > 0 => {
                WatchEvent::Lost(ended(&answer))
            }
            Ok(Some(answer)) => return self.changes(&answer),
            Ok(None) => WatchEvent::Lost("the watch was closed".to_owned()),
            Err(error) => WatchEvent::Lost(failure(&error).reason()),
        };
        self.stream = None;
        heard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_begins_one_past_the_listing() {
        assert_eq!(first_after(0), 1);
        assert_eq!(first_after(41), 42);
        assert_eq!(first_after(u64::MAX), i64::MAX);
    }

    #[test]
    fn a_prefix_ends_before_its_neighbours() {
        assert_eq!(end_of("/plugins/"), b"/plugins0");
        assert_eq!(
            path_of(b"/plugins/auditor/spec", "/plugins/"),
            "auditor/spec"
        );
    }
}
