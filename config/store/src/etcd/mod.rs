//! etcd as a [`Store`]: one key per control key below a prefix, `mod_revision` as the version, leases for members,
//! history until compaction.

mod client;
mod history;
mod link;
mod member;

use std::sync::Arc;

use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use sluicegate_config::control::{ControlKey, MemberReport};
use sluicegate_config::service::EtcdSettings;

use self::client::Endpoints;
use self::link::EtcdLink;
use super::driver::Driver;
use super::failure::Failure;
use super::reflector::WatchTimings;
use super::{
    Expected, HistoryEntry, KeyVersion, MAX_VALUE, Membership, Store, StoreAddress, StoreError,
    StoreSink, StoreWatch, Tree, check_member_id,
};

/// An etcd cluster. Opened by [`EtcdStore::open`]; clones share connections.
#[derive(Clone)]
pub struct EtcdStore {
    shared: Arc<Shared>,
    driver: Arc<Driver>,
}

/// State shared by the tasks of a store.
struct Shared {
    settings: EtcdSettings,
    endpoints: Endpoints,
}

impl EtcdStore {
    /// Opens a store without connecting; calls and watches report an unreachable store.
    ///
    /// # Errors
    /// [`StoreError::Refused`] for TLS files that cannot be read or used.
    pub fn open(settings: EtcdSettings) -> Result<Self, StoreError> {
        let name = address(&settings).to_string();
        let endpoints = Endpoints::new(&settings).map_err(|error| StoreError::Refused {
            store: name.clone(),
            what: "the TLS settings".to_owned(),
            reason: error.to_string(),
        })?;
        let driver = Driver::start(name)?;
        let shared = Arc::new(Shared {
            settings,
            endpoints,
        });
        Ok(Self { shared, driver })
    }
}

impl Shared {
    fn key(&self, key: &ControlKey) -> String {
        let path = self.settings.paths.path(key);
        format!("{}/{path}", self.settings.prefix)
    }

    /// The prefix of every control key.
    fn prefix(&self) -> String {
        format!("{}/", self.settings.prefix)
    }

    fn members_prefix(&self) -> String {
        format!("{}/", self.settings.members_prefix)
    }
}

fn address(settings: &EtcdSettings) -> StoreAddress {
    StoreAddress {
        kind: "etcd".to_owned(),
        servers: settings.endpoints.clone(),
        below: settings.prefix.clone(),
    }
}

impl Store for EtcdStore {
    fn address(&self) -> StoreAddress {
        address(&self.shared.settings)
    }

    fn locate(&self, key: &ControlKey) -> String {
        self.shared.key(key)
    }

    fn list(&self) -> Result<Tree, StoreError> {
        let shared = Arc::clone(&self.shared);
        self.driver.call("the listing", async move {
            link::read_all(&shared).await.map(|listing| listing.tree)
        })
    }

    fn watch(&self, sink: StoreSink) -> Result<Box<dyn StoreWatch>, StoreError> {
        let settings = &self.shared.settings;
        let timings = WatchTimings::new(settings.request_timeout, settings.relist);
        let link = EtcdLink::new(Arc::clone(&self.shared));
        Ok(self.driver.watch(link, timings, sink))
    }

    fn write(
        &self,
        key: &ControlKey,
        value: Option<&[u8]>,
        expected: Expected,
    ) -> Result<KeyVersion, StoreError> {
        let shared = Arc::clone(&self.shared);
        let place = self.locate(key);
        self.driver
            .write(place, value, MAX_VALUE, |place, value| async move {
                write(&shared, &place, value, expected).await
            })
    }

    fn join(&self, report: MemberReport) -> Result<Box<dyn Membership>, StoreError> {
        check_member_id(&self.describe(), &report.id)?;
        Ok(member::join(&self.driver, Arc::clone(&self.shared), report))
    }

    fn members(&self) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let shared = Arc::clone(&self.shared);
        self.driver.call("the listing of members", async move {
            let prefix = shared.members_prefix();
            let read = link::read_prefix(&shared, &prefix).await?;
            let id = |key: &[u8]| String::from_utf8_lossy(&key[prefix.len()..]).into_owned();
            Ok(read
                .values
                .into_iter()
                .map(|kv| (id(kv.key()), kv.value().to_vec()))
                .collect())
        })
    }

    fn history(&self, key: &ControlKey, limit: usize) -> Result<Vec<HistoryEntry>, StoreError> {
        let shared = Arc::clone(&self.shared);
        let place = self.locate(key);
        let what = format!("the history of {place}");
        self.driver.call(
            &what,
            async move { history::of(&shared, &place, limit).await },
        )
    }
}

/// Writes if the present value is as expected; `None` otherwise.
async fn write(
    shared: &Shared,
    place: &str,
    value: Option<Vec<u8>>,
    expected: Expected,
) -> Result<Option<KeyVersion>, Failure> {
    // The read finds an endpoint that answers; the write itself is sent once, since a failed one may have been applied.
    let there = link::read_one(shared, place).await?;
    let known = there.map_or(0, |kv| kv.mod_revision());
    let wanted = match expected {
        Expected::Any => None,
        Expected::Absent => Some(0),
        Expected::At(stamp) => Some(stamp.version),
    };
    if wanted.is_some_and(|wanted| wanted != known) {
        return Ok(None);
    }
    if value.is_none() && known == 0 {
        // Nothing to wait for: every revision is at or past this one.
        return Ok(Some(KeyVersion {
            revision: 0,
            version: 0,
        }));
    }
    let operation = match value {
        Some(value) => TxnOp::put(place, value, None),
        None => TxnOp::delete(place, None),
    };
    let compared = wanted.map(|wanted| Compare::mod_revision(place, CompareOp::Equal, wanted));
    let transaction = match compared {
        Some(compared) => Txn::new().when([compared]),
        None => Txn::new(),
    };
    let transaction = transaction.and_then([operation]);
    let answer = shared
        .endpoints
        .once(|mut client| {
            let transaction = transaction.clone();
            async move { client.txn(transaction).await }
        })
        .await?;
    if !answer.succeeded() {
        return Ok(None);
    }
    let revision = answer.header().map_or(0, |header| header.revision());
    Ok(Some(KeyVersion {
        revision: u64::try_from(revision).unwrap_or(0),
        version: revision,
    }))
}
