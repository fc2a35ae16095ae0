//! A member's ephemeral node: created only if no other member's node exists, verified periodically, recreated after an
//! expired session, deleted with the membership.

use std::sync::Arc;
use std::time::Duration;

use sluicegate_config::control::MemberReport;
use sluicegate_config::service::ZooKeeperSettings;
use tokio::time::timeout;
use zookeeper_client::{Client, CreateMode, Error, SessionState, StateWatcher};

use super::super::Membership;
use super::super::claim::Claim;
use super::super::driver::Driver;
use super::super::failure::Failure;
use super::super::keeper::{self, Life, MemberLink, Written};
use super::failure;
use super::session::Sessions;

/// Timeout of the node's deletion when a member leaves.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);
/// Servers check for expired sessions once per tick and enforce a minimum of two ticks; the default tick is 2 s.
const REMOVAL_DELAY: Duration = Duration::from_secs(4);
/// Maximum attempts of one write under contention.
const ATTEMPTS: u32 = 5;

/// A session and its ephemeral node.
struct Node {
    sessions: Arc<Sessions>,
    root: String,
    held: Option<(Client, StateWatcher)>,
}

pub(super) fn join(
    driver: &Arc<Driver>,
    sessions: Arc<Sessions>,
    settings: &ZooKeeperSettings,
    report: MemberReport,
) -> Box<dyn Membership> {
    let life = Life {
        ttl: settings.session_timeout,
        removal: REMOVAL_DELAY,
    };
    let root = settings.members_root.clone();
    let link = Node {
        sessions: Arc::clone(&sessions),
        root: root.clone(),
        held: None,
    };
    let leave = move |driver: &Driver, id| {
        let Some(client) = sessions.current() else {
            return;
        };
        let path = format!("{root}/{id}");
        let left = driver.run(async move { timeout(LEAVE_TIMEOUT, leave(&client, &path)).await });
        if !matches!(left, Some(Ok(Ok(())))) {
            tracing::info!("member node not deleted; it expires with its session");
        }
    };
    keeper::join(driver, link, life, report, Box::new(leave))
}

/// Deletes the node if this session owns it.
async fn leave(client: &Client, path: &str) -> Result<(), Error> {
    match client.check_stat(path).await? {
        Some(stat) if stat.ephemeral_owner == client.session_id().0 => {
            client.delete(path, None).await
        }
        _ => Ok(()),
    }
}

/// The live members, sorted by id.
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

impl Node {
    /// The session, once it is connected. A disconnected session still holds the node; the client reconnects until the
    /// session expires.
    async fn connected(&mut self) -> Result<Client, Failure> {
        self.renew().await?;
        let Some((client, states)) = &mut self.held else {
            return Err(Failure::away("no session is open"));
        };
        let mut state = client.state();
        while state == SessionState::Disconnected {
            tracing::debug!("a member's session is disconnected");
            state = states.changed().await;
        }
        match state {
            SessionState::SyncConnected => Ok(client.clone()),
            state => Err(Failure::Away(format!("the session is {state}"))),
        }
    }

    /// One attempt to store `report` at `path`: the result, or `None` to try again.
    async fn attempt(
        &self,
        client: &Client,
        path: &str,
        report: &[u8],
        claim: &Claim,
    ) -> Result<Option<Written>, Failure> {
        let sessions = &self.sessions;
        let (data, stat) = match sessions.answer(client.get_data(path)).await? {
            Ok(node) => node,
            Err(Error::NoNode) => return self.create(client, path, report).await,
            Err(error) => return Err(failure(&error)),
        };
        let own = stat.ephemeral_owner == client.session_id().0;
        if own && data == report {
            return Ok(Some(Written::Done));
        }
        let answer = match own {
            true => {
                let set = client.set_data(path, report, Some(stat.version));
                sessions.answer(set).await?.map(|_| Some(Written::Done))
            }
            // A node without a session belongs to no live process; a node left by an earlier session of this process is
            // replaced.
            false if stat.ephemeral_owner == 0 || claim.is_own(&data) => {
                let deleted = client.delete(path, Some(stat.version));
                sessions.answer(deleted).await?.map(|()| None)
            }
            false => return Ok(Some(Written::Taken(data))),
        };
        match answer {
            Err(Error::NoNode | Error::BadVersion) => Ok(None),
            answer => answer.map_err(|error| failure(&error)),
        }
    }

    async fn create(
        &self,
        client: &Client,
        path: &str,
        report: &[u8],
    ) -> Result<Option<Written>, Failure> {
        let sessions = &self.sessions;
        let ephemeral = sessions.options(CreateMode::Ephemeral);
        let created = sessions.answer(client.create(path, report, &ephemeral));
        match created.await? {
            Ok(_) => Ok(Some(Written::Done)),
            Err(Error::NoNode) => {
                let persistent = sessions.options(CreateMode::Persistent);
                let made = sessions.answer(client.mkdir(&self.root, &persistent));
                made.await?.map_err(|error| failure(&error))?;
                Ok(None)
            }
            Err(Error::NodeExists) => Ok(None),
            Err(error) => Err(failure(&error)),
        }
    }
}

impl MemberLink for Node {
    /// Sessions renew themselves; an ended one is replaced.
    async fn renew(&mut self) -> Result<(), Failure> {
        let held = self.held.as_ref().map(|(client, _)| client);
        let current = self.sessions.current();
        let lives = held.is_some_and(|client| {
            // A session that stopped answering was discarded.
            let same = current.is_some_and(|now| now.session_id() == client.session_id());
            same && !client.state().is_terminated()
        });
        if !lives {
            self.held = None;
            let client = self.sessions.connected().await?;
            let states = client.state_watcher();
            self.held = Some((client, states));
        }
        Ok(())
    }

    async fn write(&mut self, claim: &Claim, report: &[u8]) -> Result<Written, Failure> {
        let client = self.connected().await?;
        let path = format!("{}/{}", self.root, claim.id());
        for _ in 0..ATTEMPTS {
            if let Some(written) = self.attempt(&client, &path, report, claim).await? {
                return Ok(written);
            }
        }
        Err(Failure::away("too many concurrent writes of the same node"))
    }

    async fn invalidated(&mut self) {
        match &mut self.held {
            Some((_, states)) => drop(states.changed().await),
            None => std::future::pending().await,
        }
    }
}
