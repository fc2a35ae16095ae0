//! Writes one node: compared by its data version, with parents created as needed, emptied instead of deleted where it
//! has children.

use zookeeper_client::{Client, CreateMode, Error, Stat};

use super::super::failure::Failure;
use super::super::{Expected, KeyVersion};
use super::link::{revision_above, stamp};
use super::{Shared, failure};

/// Maximum attempts of a write without an expected version under contention.
const ATTEMPTS: usize = 16;

/// Result of one attempt.
enum Attempt {
    Done(KeyVersion),
    /// The node changed between read and write.
    Overtaken,
}

/// Writes if the present value is as expected; `None` otherwise.
pub(super) async fn write(
    shared: &Shared,
    path: &str,
    value: Option<Vec<u8>>,
    expected: Expected,
) -> Result<Option<KeyVersion>, Failure> {
    let client = shared.sessions.connected().await?;
    for _ in 0..ATTEMPTS {
        let there = read(shared, &client, path).await?;
        let filled = there.as_ref().filter(|(data, _)| !data.is_empty());
        let as_expected = match expected {
            Expected::Any => true,
            Expected::Absent => filled.is_none(),
            Expected::At(wanted) => filled.is_some_and(|(_, stat)| stamp(stat) == wanted),
        };
        if !as_expected {
            return Ok(None);
        }
        let stat = there.as_ref().map(|(_, stat)| stat);
        let attempt = match (&value, stat) {
            (Some(value), Some(stat)) => set(shared, &client, path, value, stat).await?,
            (Some(value), None) => create(shared, &client, path, value).await?,
            // Nothing to wait for: every revision is at or past this one.
            (None, _) if filled.is_none() => Attempt::Done(KeyVersion {
                revision: 0,
                version: 0,
            }),
            (None, Some(stat)) => delete(shared, &client, path, stat).await?,
            (None, None) => Attempt::Overtaken,
        };
        match attempt {
            Attempt::Done(stamp) => return Ok(Some(stamp)),
            Attempt::Overtaken => {}
        }
    }
    Err(Failure::away("too many concurrent writes of the same node"))
}

async fn read(
    shared: &Shared,
    client: &Client,
    path: &str,
) -> Result<Option<(Vec<u8>, Stat)>, Failure> {
    match shared.sessions.answer(client.get_data(path)).await? {
        Ok(node) => Ok(Some(node)),
        Err(Error::NoNode) => Ok(None),
        Err(error) => Err(failure(&error)),
    }
}

async fn set(
    shared: &Shared,
    client: &Client,
    path: &str,
    value: &[u8],
    there: &Stat,
) -> Result<Attempt, Failure> {
    let request = client.set_data(path, value, Some(there.version));
    match shared.sessions.answer(request).await? {
        Ok(stat) => Ok(Attempt::Done(stamp(&stat))),
        Err(Error::BadVersion | Error::NoNode) => Ok(Attempt::Overtaken),
        Err(error) => Err(failure(&error)),
    }
}

async fn create(
    shared: &Shared,
    client: &Client,
    path: &str,
    value: &[u8],
) -> Result<Attempt, Failure> {
    let options = shared.sessions.options(CreateMode::Persistent);
    let request = client.create(path, value, &options);
    match shared.sessions.answer(request).await? {
        Ok((stat, _)) => Ok(Attempt::Done(stamp(&stat))),
        Err(Error::NodeExists) => Ok(Attempt::Overtaken),
        Err(Error::NoNode) => {
            let parent = path.rsplit_once('/').map_or("/", |(parent, _)| parent);
            let made = shared.sessions.answer(client.mkdir(parent, &options));
            made.await?.map_err(|error| failure(&error))?;
            Ok(Attempt::Overtaken)
        }
        Err(error) => Err(failure(&error)),
    }
}

async fn delete(
    shared: &Shared,
    client: &Client,
    path: &str,
    there: &Stat,
) -> Result<Attempt, Failure> {
    if there.num_children > 0 {
        return set(shared, client, path, b"", there).await;
    }
    let request = client.delete(path, Some(there.version));
    match shared.sessions.answer(request).await? {
        Ok(()) => {}
        // A child was created, or another writer was faster.
        Err(Error::NotEmpty | Error::BadVersion | Error::NoNode) => return Ok(Attempt::Overtaken),
        Err(error) => return Err(failure(&error)),
    }
    // The answer has no revision; the parent's `pzxid` records it.
    let revision = revision_above(shared, client, path).await?;
    remove_empty_parent(shared, client, path).await;
    Ok(Attempt::Done(KeyVersion {
        revision,
        version: 0,
    }))
}

/// Removes the parent if it only contained the deleted node; a writer that needs it creates it again.
async fn remove_empty_parent(shared: &Shared, client: &Client, path: &str) {
    let Some((parent, _)) = path.rsplit_once('/') else {
        return;
    };
    if !parent.starts_with(&format!("{}/", shared.settings.root)) {
        return;
    }
    if let Ok(Some((data, stat))) = read(shared, client, parent).await
        && data.is_empty()
        && stat.num_children == 0
    {
        // A lost race only leaves an empty node, which is not a value.
        let _ = shared
            .sessions
            .answer(client.delete(parent, Some(stat.version)))
            .await;
    }
}
