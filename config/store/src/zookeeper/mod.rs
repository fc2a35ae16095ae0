//! ZooKeeper as a [`Store`]: the data of nodes below a root, `mzxid` and the data version as the version, ephemeral
//! nodes for members.
//!
//! A node with empty data has no value. A gate is the data of a handler's node, so deleting a gate empties the node if
//! it has children.

mod link;
mod member;
mod session;
mod write;

use std::sync::Arc;

use sluicegate_config::control::{ControlKey, MemberReport};
use sluicegate_config::service::ZooKeeperSettings;

use self::link::ZooKeeperLink;
use self::session::{Sessions, failure};
use super::driver::Driver;
use super::reflector::WatchTimings;
use super::{
    Expected, HistoryEntry, KeyVersion, Membership, Store, StoreAddress, StoreError, StoreSink,
    StoreWatch, Tree, check_member_id,
};

/// Maximum length of a value, in bytes: a server closes the connection at a packet of 1 MiB, which includes the path
/// and the ACL.
const MAX_VALUE: usize = 1024 * 1024 - 4096;

/// A ZooKeeper ensemble. Opened by [`ZooKeeperStore::open`]; clones share sessions.
#[derive(Clone)]
pub struct ZooKeeperStore {
    shared: Arc<Shared>,
    driver: Arc<Driver>,
}

/// State shared by the tasks of a store.
struct Shared {
    settings: ZooKeeperSettings,
    /// The session of reads, writes and watches.
    sessions: Sessions,
}

impl Shared {
    fn path(&self, key: &ControlKey) -> String {
        format!("{}/{}", self.settings.root, self.settings.paths.path(key))
    }
}

impl ZooKeeperStore {
    /// Opens a store without connecting; calls and watches report an unreachable store.
    ///
    /// # Errors
    /// [`StoreError::Refused`] for TLS files that cannot be read or used.
    pub fn open(settings: ZooKeeperSettings) -> Result<Self, StoreError> {
        let name = address(&settings).to_string();
        let sessions = sessions(&settings)?;
        let driver = Driver::start(name)?;
        let shared = Arc::new(Shared { settings, sessions });
        Ok(Self { shared, driver })
    }
}

fn sessions(settings: &ZooKeeperSettings) -> Result<Sessions, StoreError> {
    Sessions::new(settings).map_err(|error| StoreError::Refused {
        store: address(settings).to_string(),
        what: "the TLS settings".to_owned(),
        reason: error.to_string(),
    })
}

fn address(settings: &ZooKeeperSettings) -> StoreAddress {
    StoreAddress {
        kind: "zookeeper".to_owned(),
        servers: settings.servers.split(',').map(str::to_owned).collect(),
        below: settings.root.clone(),
    }
}

impl Store for ZooKeeperStore {
    fn address(&self) -> StoreAddress {
        address(&self.shared.settings)
    }

    fn locate(&self, key: &ControlKey) -> String {
        self.shared.path(key)
    }

    fn list(&self) -> Result<Tree, StoreError> {
        let shared = Arc::clone(&self.shared);
        self.driver.call("the listing", async move {
            let client = shared.sessions.connected().await?;
            let listing = link::read_all(&shared, &client, 0).await?;
            Ok(listing.tree)
        })
    }

    fn watch(&self, sink: StoreSink) -> Result<Box<dyn StoreWatch>, StoreError> {
        let settings = &self.shared.settings;
        let timings = WatchTimings::new(settings.request_timeout, settings.relist);
        let link = ZooKeeperLink::new(Arc::clone(&self.shared));
        Ok(self.driver.watch(link, timings, sink))
    }

    fn write(
        &self,
        key: &ControlKey,
        value: Option<&[u8]>,
        expected: Expected,
    ) -> Result<KeyVersion, StoreError> {
        let place = self.locate(key);
        if value.is_some_and(<[u8]>::is_empty) {
            return Err(StoreError::Refused {
                store: self.describe(),
                what: format!("the write of {place}"),
                reason: "an empty value means no value in ZooKeeper; delete the key instead"
                    .to_owned(),
            });
        }
        let shared = Arc::clone(&self.shared);
        self.driver
            .write(place, value, MAX_VALUE, |place, value| async move {
                write::write(&shared, &place, value, expected).await
            })
    }

    fn join(&self, report: MemberReport) -> Result<Box<dyn Membership>, StoreError> {
        check_member_id(&self.describe(), &report.id)?;
        let settings = &self.shared.settings;
        // Its own session, which survives short connection losses; the watch replaces its session at once.
        let sessions = Arc::new(sessions(settings)?);
        Ok(member::join(&self.driver, sessions, settings, report))
    }

    fn members(&self) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let shared = Arc::clone(&self.shared);
        self.driver.call("the listing of members", async move {
            member::read_all(&shared.sessions, &shared.settings.members_root).await
        })
    }

    fn history(&self, _key: &ControlKey, _limit: usize) -> Result<Vec<HistoryEntry>, StoreError> {
        Err(StoreError::NotKept {
            store: self.describe(),
        })
    }
}
