//! Writing one node: compared by its data version, parents made as needed, emptied where it has children.

use zookeeper_client::{Client, CreateMode, Error, Stat};

use super::super::failure::Failure;
use super::super::{Expected, KeyVersion};
use super::link::{revision_above, stamp};
use super::{Shared, failure};

/// How often a write that names no version is tried again when somebody else was faster.
const ATTEMPTS: usize = 16;

/// What one attempt came to.
enum Attempt {
    Done(KeyVersion),
    /// The node changed between the reading and the writing.
    Overtaken,
}

/// Writes if what stands there is as expected; `None` if it is not.
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
    Err(Failure::away("others write the same node all the time"))
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
    let asked = client.set_data(path, value, Some(there.version));
    match shared.sessions.answer(asked).await? {
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
    let asked = client.create(path, value, &options);
    match shared.sessions.answer(asked).await? {
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
    let asked = client.delete(path, Some(there.version));
    match shared.sessions.answer(asked).await? {
        Ok(()) => {}
        // A child came meanwhile, or somebody else was faster.
        Err(Error::NotEmpty | Error::BadVersion | Error::NoNode) => return Ok(Attempt::Overtaken),
        Err(error) => return Err(failure(&error)),
    }
    // The delete itself is not told; its parent's list of children knows it.
    let revision = revision_above(shared, client, path).await?;
    sweep(shared, client, path).await;
    Ok(Attempt::Done(KeyVersion {
        revision,
        version: 0,
    }))
}

/// Removes the parent if it only held the deleted node; somebody who needs it makes it again.
async fn sweep(shared: &Shared, client: &Client, path: &str) {
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
        // Losing a race only leaves an empty node, which is no value.
        let _ = shared
            .sessions
            .answer(client.delete(parent, Some(stat.version)))
            .await;
    }
}
