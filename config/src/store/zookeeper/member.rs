//! A member's ephemeral node: made again after an expired session, deleted with the membership.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use zookeeper_client::{Client, CreateMode, Error, SessionState};

use super::super::Membership;
use super::super::driver::{Driver, RunningTask};
use super::super::failure::Failure;
use super::failure;
use super::session::Sessions;
use crate::chance::backoff;

/// Longest wait for the node's deletion when a member leaves.
const LEAVING: Duration = Duration::from_secs(1);
/// First and longest wait between attempts to keep the node; what is waited is a random part of it.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_millis(3200));

struct ZooKeeperMember {
    reports: watch::Sender<Vec<u8>>,
    sessions: Arc<Sessions>,
    path: String,
    task: RunningTask,
}

pub(super) fn join(
    driver: &Arc<Driver>,
    sessions: Arc<Sessions>,
    path: String,
    check: Duration,
    report: Vec<u8>,
) -> Box<dyn Membership> {
    let (reports, newest) = watch::channel(report);
    let task = driver.task(keep(Arc::clone(&sessions), path.clone(), newest, check));
    Box::new(ZooKeeperMember {
        reports,
        sessions,
        path,
        task,
    })
}

impl Membership for ZooKeeperMember {
    fn report(&self, report: Vec<u8>) {
        // The task lives as long as the value.
        let _ = self.reports.send(report);
    }
}

impl Drop for ZooKeeperMember {
    fn drop(&mut self) {
        self.task.end();
        let Some(client) = self.sessions.current() else {
            return;
        };
        let path = self.path.clone();
        let left = self
            .task
            .driver()
            .call(async move { timeout(LEAVING, leave(&client, &path)).await });
        if !matches!(left, Some(Ok(Ok(())))) {
            tracing::info!("the member's node is left to expire");
        }
    }
}

/// Deletes the node if it is this session's.
async fn leave(client: &Client, path: &str) -> Result<(), Error> {
    match client.check_stat(path).await? {
        Some(stat) if stat.ephemeral_owner == client.session_id().0 => {
            client.delete(path, None).await
        }
        _ => Ok(()),
    }
}

/// The members that are alive, sorted by id.
pub(super) async fn read_all(
    sessions: &Sessions,
    root: &str,
) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    let client = sessions.connected().await?;
    let synced = sessions.answer(client.sync(root)).await?;
    synced.map_err(|error| failure(&error))?;
    let mut ids = match sessions.answer(client.list_children(root)).await? {
        Ok(ids) => ids,
        Err(Error::NoNode) => Vec::new(),
        Err(error) => return Err(failure(&error)),
    };
    ids.sort();
    let mut members = Vec::with_capacity(ids.len());
    for id in ids {
        let path = format!("{root}/{id}");
        match sessions.answer(client.get_data(&path)).await? {
            Ok((report, _)) => members.push((id, report)),
            Err(Error::NoNode) => {}
            Err(error) => return Err(failure(&error)),
        }
    }
    Ok(members)
}

/// Keeps the node for ever.
async fn keep(
    sessions: Arc<Sessions>,
    path: String,
    mut reports: watch::Receiver<Vec<u8>>,
    check: Duration,
) {
    let mut failures = 0u32;
    loop {
        match live(&sessions, &path, &mut reports, check, &mut failures).await {
            Ok(()) => return,
            Err(failure) => {
                let reason = failure.reason();
                tracing::debug!(path, reason, "a member's node is not kept; trying again");
            }
        }
        failures = failures.saturating_add(1);
        let (first, longest) = BACKOFF;
        sleep(backoff(first, longest, failures)).await;
    }
}

/// Keeps the node as long as its session lives; ends with the failure that ended it.
async fn live(
    sessions: &Sessions,
    path: &str,
    reports: &mut watch::Receiver<Vec<u8>>,
    check: Duration,
    failures: &mut u32,
) -> Result<(), Failure> {
    // A session that is only disconnected still holds the node; the client itself tries to reconnect until it expires.
    let held = sessions.current().filter(|client| {
        let state = client.state();
        !state.is_terminated()
    });
    let client = match held {
        Some(client) => client,
        None => sessions.connected().await?,
    };
    let mut states = client.state_watcher();
    loop {
        let report = reports.borrow_and_update().clone();
        put(sessions, &client, path, &report).await?;
        *failures = 0;
        tokio::select! {
            changed = reports.changed() => if changed.is_err() {
                // Nobody reports any more: the member is leaving.
                return Ok(());
            },
            state = states.changed() => match state {
                SessionState::SyncConnected => {}
                SessionState::Disconnected => await_connection(&mut states, path).await?,
                state => return Err(Failure::Away(format!("the session is {state}"))),
            },
            () = sleep(check) => {}
        }
    }
}

async fn await_connection(
    states: &mut zookeeper_client::StateWatcher,
    path: &str,
) -> Result<(), Failure> {
    tracing::debug!(path, "a member's session is disconnected");
    loop {
        match states.changed().await {
            SessionState::SyncConnected => return Ok(()),
            SessionState::Disconnected => {}
            state => return Err(Failure::Away(format!("the session is {state}"))),
        }
    }
}

/// Makes the node, or writes the report into it; one that an earlier session left is replaced.
async fn put(
    sessions: &Sessions,
    client: &Client,
    path: &str,
    report: &[u8],
) -> Result<(), Failure> {
    let parent = path.rsplit_once('/').map_or("/", |(parent, _)| parent);
    loop {
        let ephemeral = sessions.options(CreateMode::Ephemeral);
        let created = sessions.answer(client.create(path, report, &ephemeral));
        match created.await? {
            Ok(_) => return Ok(()),
            Err(Error::NoNode) => {
                let persistent = sessions.options(CreateMode::Persistent);
                let made = sessions.answer(client.mkdir(parent, &persistent));
                made.await?.map_err(|error| failure(&error))?;
                continue;
            }
            Err(Error::NodeExists) => {}
            Err(error) => return Err(failure(&error)),
        }
        let there = sessions.answer(client.get_data(path)).await?;
        let (data, stat) = match there {
            Ok(node) => node,
            Err(Error::NoNode) => continue,
            Err(error) => return Err(failure(&error)),
        };
        let own = stat.ephemeral_owner == client.session_id().0;
        if own && data == report {
            return Ok(());
        }
        let answer = match own {
            true => {
                let set = client.set_data(path, report, None);
                sessions.answer(set).await?.map(drop)
            }
            false => {
                let deleted = client.delete(path, Some(stat.version));
                sessions.answer(deleted).await?
            }
        };
        match answer {
            Ok(()) if own => return Ok(()),
            Ok(()) | Err(Error::NoNode | Error::BadVersion) => {}
            Err(error) => return Err(failure(&error)),
        }
    }
}
