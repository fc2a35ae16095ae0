//! Earlier values of a key: etcd keeps every revision until compaction and replays them to a watch.

use std::time::Duration;

use etcd_client::{EventType, GetOptions, WatchOptions, WatchResponse};
use tokio::time::timeout;

use super::super::HistoryEntry;
use super::super::failure::Failure;
use super::Shared;
use super::client::failure;
use super::link::read_one;

/// A replay without events for this long is complete, if the newest revision is unknown.
const IDLE_TIMEOUT: Duration = Duration::from_secs(1);

/// Result of one replay.
enum Replay {
    All(Vec<HistoryEntry>),
    /// Revisions before this one are compacted.
    CompactedTo(i64),
}

/// The values of `key`, newest first.
pub(super) async fn of(
    shared: &Shared,
    key: &str,
    limit: usize,
) -> Result<Vec<HistoryEntry>, Failure> {
    let newest = read_one(shared, key).await?.map(|kv| kv.mod_revision());
    let mut past = Vec::new();
    let mut from = 1;
    // A compaction between two attempts moves the start forward again.
    let replayed = loop {
        match replay(shared, key, from, newest).await? {
            Replay::All(replayed) => break replayed,
            Replay::CompactedTo(revision) => from = revision,
        }
    };
    if from > 1 {
        past.extend(oldest(shared, key, from).await?);
    }
    let first_replayed = replayed.first().map(|first| first.revision);
    past.retain(|old| Some(old.revision) != first_replayed);
    past.extend(replayed);
    past.reverse();
    past.truncate(limit);
    Ok(past)
}

/// The value at `revision`, the oldest one that is kept.
async fn oldest(
    shared: &Shared,
    key: &str,
    revision: i64,
) -> Result<Option<HistoryEntry>, Failure> {
    let options = GetOptions::new().with_revision(revision);
    let answer = shared.endpoints.call(|mut client| {
        let options = options.clone();
        async move { client.get(key, Some(options)).await }
    });
    match answer.await {
        Ok(mut answer) => Ok(answer.take_kvs().pop().map(|kv| HistoryEntry {
            revision: u64::try_from(kv.mod_revision()).unwrap_or(0),
            value: Some(kv.value().to_vec()),
        })),
        Err(Failure::Compacted) => Ok(None),
        Err(failure) => Err(failure),
    }
}

async fn replay(
    shared: &Shared,
    key: &str,
    from: i64,
    newest: Option<i64>,
) -> Result<Replay, Failure> {
    let options = WatchOptions::new().with_start_revision(from);
    let mut stream = shared
        .endpoints
        .once(|mut client| {
            let options = options.clone();
            async move { client.watch(key, Some(options)).await }
        })
        .await?;
    let limit = match newest {
        Some(_) => shared.settings.request_timeout,
        None => IDLE_TIMEOUT,
    };
    let mut past: Vec<HistoryEntry> = Vec::new();
    let end = newest.and_then(|revision| u64::try_from(revision).ok());
    while end.is_none() || past.last().map(|last| last.revision) < end {
        let answer = match timeout(limit, stream.message()).await {
            Ok(Ok(Some(answer))) => answer,
            Ok(Ok(None)) => return Err(Failure::away("the replay was closed")),
            Ok(Err(error)) => return Err(failure(&error)),
            Err(_) if newest.is_none() => break,
            Err(_) => return Err(Failure::Away(format!("no answer within {limit:?}"))),
        };
        if answer.compact_revision() > 0 {
            return Ok(Replay::CompactedTo(answer.compact_revision()));
        }
        if answer.canceled() {
            return Err(Failure::Refused(answer.cancel_reason().to_owned()));
        }
        past.extend(events(&answer));
    }
    Ok(Replay::All(past))
}

fn events(answer: &WatchResponse) -> impl Iterator<Item = HistoryEntry> {
    answer.events().iter().filter_map(|event| {
        let kv = event.kv()?;
        Some(HistoryEntry {
            revision: u64::try_from(kv.mod_revision()).unwrap_or(0),
            value: (event.event_type() == EventType::Put).then(|| kv.value().to_vec()),
        })
    })
}
