//! Lists and watches a prefix of etcd: list at revision R, watch from R + 1, report the end of the watch.

use std::sync::Arc;

use etcd_client::{EventType, GetOptions, KeyValue, WatchOptions, WatchResponse, WatchStream};
use sluicegate_config::control::{ControlKey, PathMap};
use tokio::time::timeout;

use super::super::failure::Failure;
use super::super::reflector::{Listing, WatchConnection, WatchEvent};
use super::super::{Entry, KeyVersion, Tree, TreeChange, bounded};
use super::Shared;
use super::client::failure;

/// Keys per page. With values of up to 1.5 MiB, etcd's own limit, a page stays below `MAX_MESSAGE`.
const PAGE: i64 = 128;
/// Maximum size of a decoded message, in bytes.
const MAX_MESSAGE: usize = 256 * 1024 * 1024;

/// Everything below a prefix, as of one revision.
pub(super) struct Read {
    pub(super) values: Vec<KeyValue>,
    pub(super) revision: i64,
    pub(super) cluster: u64,
}

/// Reads a prefix in pages, all at the revision of the first page.
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
    // A prefix ends with a slash, so incrementing the last byte cannot overflow.
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
            Err(error) => drop(tree.unrecognized_keys.insert(path, error.to_string())),
        }
    }
    // A restore creates a new cluster id; added or removed endpoints do not.
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

/// The change of a watch event, at its own revision: the response that carries it may have a later one.
fn change_of(key: ControlKey, kv: &KeyValue, is_put: bool) -> TreeChange {
    let entry = entry_of(kv);
    match is_put {
        true => TreeChange::put(key, entry),
        false => TreeChange::delete(key, entry.stamp.revision),
    }
}

/// A watch on the prefix, on its own stream.
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

    /// Watches from `revision` on; returns after the server has confirmed the watch.
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
        let limit = self.shared.settings.request_timeout;
        match timeout(limit, stream.message()).await {
            Ok(Ok(Some(answer))) if answer.created() && !answer.canceled() => Ok(stream),
            Ok(Ok(Some(answer))) => Err(Failure::Away(ended(&answer))),
            Ok(Ok(None)) => Err(Failure::away("the watch was closed immediately")),
            Ok(Err(error)) => Err(failure(&error)),
            Err(_) => Err(Failure::Away(format!("no watch within {limit:?}"))),
        }
    }

    fn changes(&self, answer: &WatchResponse) -> WatchEvent {
        let prefix = self.shared.prefix();
        let (mut changes, mut unrecognized) = (Vec::new(), Vec::new());
        for event in answer.events() {
            let Some(kv) = event.kv() else {
                continue;
            };
            let path = path_of(kv.key(), &prefix);
            let is_put = event.event_type() == EventType::Put;
            match self.shared.settings.paths.key(&path) {
                Ok(key) => {
                    unrecognized.push((path, None));
                    changes.push(change_of(key, kv, is_put));
                }
                Err(error) => unrecognized.push((path, is_put.then(|| error.to_string()))),
            }
        }
        let revision = answer.header().map_or(0, |header| header.revision());
        WatchEvent::Changes {
            changes,
            unrecognized,
            revision: u64::try_from(revision).unwrap_or(0),
        }
    }
}

/// The start of a watch after a listing at `revision`: no event is seen twice, and none is missed.
fn first_after(revision: u64) -> i64 {
    i64::try_from(revision).map_or(i64::MAX, |revision| revision.saturating_add(1))
}

/// The reason for the end of a watch, where the server reports it in an ordinary message.
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
    async fn open(&mut self, _known: u64) -> Result<Listing, Failure> {
        self.stream = None;
        let listing = read_all(&self.shared).await?;
        match self.watch(first_after(listing.tree.revision)).await {
            Ok(stream) => self.stream = Some(stream),
            Err(failure) => {
                self.shared.endpoints.fail_over_current();
                return Err(failure);
            }
        }
        Ok(listing)
    }

    async fn list(&mut self, _known: u64) -> Result<Listing, Failure> {
        read_all(&self.shared).await
    }

    async fn next(&mut self) -> WatchEvent {
        let Some(stream) = &mut self.stream else {
            return WatchEvent::Lost(Failure::away("no watch is open"));
        };
        // Cancellation and compaction arrive as ordinary messages, followed by silence.
        let event = match stream.message().await {
            Ok(Some(answer)) if answer.canceled() || answer.compact_revision() > 0 => {
                WatchEvent::Lost(Failure::Away(ended(&answer)))
            }
            Ok(Some(answer)) => return self.changes(&answer),
            Ok(None) => WatchEvent::Lost(Failure::away("the watch was closed")),
            Err(error) => WatchEvent::Lost(failure(&error)),
        };
        self.stream = None;
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_starts_one_past_the_listing() {
        assert_eq!(first_after(0), 1);
        assert_eq!(first_after(41), 42);
        assert_eq!(first_after(u64::MAX), i64::MAX);
    }

    #[test]
    fn a_prefix_range_excludes_its_siblings() {
        assert_eq!(end_of("/plugins/"), b"/plugins0");
        assert_eq!(
            path_of(b"/plugins/auditor/spec", "/plugins/"),
            "auditor/spec"
        );
    }
}
