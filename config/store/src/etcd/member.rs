//! A member's key under a lease: created only if no other member's key exists, and verified with each renewal.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use etcd_client::{Compare, CompareOp, Error, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse};
use sluicegate_config::control::MemberReport;

use super::super::Membership;
use super::super::claim::Claim;
use super::super::driver::Driver;
use super::super::failure::Failure;
use super::super::keeper::{self, Life, MemberLink, Written};
use super::Shared;

/// Timeout of the key's deletion when a member leaves.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);
/// etcd checks for expired leases every 500 ms and revokes them through the raft log; this bounds both.
const REMOVAL_DELAY: Duration = Duration::from_secs(2);
/// Maximum attempts of one write under contention.
const ATTEMPTS: u32 = 5;

/// A lease and the key under it.
struct Lease {
    shared: Arc<Shared>,
    /// 0 for no lease. Shared with the `leave` callback.
    id: Arc<AtomicI64>,
    /// The last write of this process, as long as it is not known to have been changed.
    wrote: Option<Wrote>,
}

struct Wrote {
    key: String,
    report: Vec<u8>,
    revision: i64,
    lease: i64,
}

pub(super) fn join(
    driver: &Arc<Driver>,
    shared: Arc<Shared>,
    report: MemberReport,
) -> Box<dyn Membership> {
    let life = Life {
        ttl: shared.settings.member_ttl,
        removal: REMOVAL_DELAY,
    };
    let id = Arc::new(AtomicI64::new(0));
    let link = Lease {
        shared: Arc::clone(&shared),
        id: Arc::clone(&id),
        wrote: None,
    };
    // If another process holds the id by now, its key is attached to a different lease.
    let leave = move |driver: &Driver, _| {
        let lease = id.load(Ordering::Relaxed);
        if lease == 0 {
            return;
        }
        let left = driver.run(async move {
            let revoked = shared
                .endpoints
                .once(|mut client| async move { client.lease_revoke(lease).await });
            tokio::time::timeout(LEAVE_TIMEOUT, revoked).await
        });
        if !matches!(left, Some(Ok(Ok(_)))) {
            tracing::info!("member key not deleted; it expires with its lease");
        }
    };
    keeper::join(driver, link, life, report, Box::new(leave))
}

impl Lease {
    /// Whether the lease still exists.
    async fn keep_alive(&self, lease: i64) -> Result<bool, Failure> {
        // The stream is dropped after its first answer.
        self.shared
            .endpoints
            .call(|mut client| async move {
                match client.lease_keep_alive(lease).await {
                    Ok(_) => Ok(true),
                    Err(Error::LeaseKeepAliveError(_)) => Ok(false),
                    Err(error) => Err(error),
                }
            })
            .await
    }

    async fn grant(&self) -> Result<(), Failure> {
        let ttl = i64::try_from(self.shared.settings.member_ttl.as_secs()).unwrap_or(i64::MAX);
        let granted = self
            .shared
            .endpoints
            .call(|mut client| async move { client.lease_grant(ttl.max(1), None).await })
            .await?;
        self.id.store(granted.id(), Ordering::Relaxed);
        Ok(())
    }

    /// Writes `report`, or only verifies the key if `report` is `None`, provided that the key is at revision `known` (0
    /// for absent). Otherwise returns the present value.
    async fn attempt(
        &self,
        key: &str,
        report: Option<&[u8]>,
        known: i64,
        lease: i64,
    ) -> Result<Result<i64, Option<KeyValue>>, Failure> {
        let as_known = Compare::mod_revision(key, CompareOp::Equal, known);
        let put = report.map(|report| {
            let options = PutOptions::new().with_lease(lease);
            TxnOp::put(key, report, Some(options))
        });
        let transaction = Txn::new()
            .when([as_known])
            .and_then(put.into_iter().collect::<Vec<_>>())
            .or_else([TxnOp::get(key, None)]);
        // A retried transaction finds its own value.
        let answer = self
            .shared
            .endpoints
            .call(|mut client| {
                let transaction = transaction.clone();
                async move { client.txn(transaction).await }
            })
            .await?;
        if answer.succeeded() {
            let revision = answer.header().map_or(0, |header| header.revision());
            return Ok(Ok(if report.is_some() { revision } else { known }));
        }
        let there = answer.op_responses().into_iter().find_map(|one| match one {
            TxnOpResponse::Get(mut got) => got.take_kvs().pop(),
            _ => None,
        });
        Ok(Err(there))
    }
}

impl MemberLink for Lease {
    async fn renew(&mut self) -> Result<(), Failure> {
        let lease = self.id.load(Ordering::Relaxed);
        if lease == 0 || !self.keep_alive(lease).await? {
            self.id.store(0, Ordering::Relaxed);
            self.grant().await?;
        }
        Ok(())
    }

    async fn write(&mut self, claim: &Claim, report: &[u8]) -> Result<Written, Failure> {
        let key = format!("{}{}", self.shared.members_prefix(), claim.id());
        let lease = self.id.load(Ordering::Relaxed);
        if lease == 0 {
            // A key without a lease would never expire.
            return Err(Failure::away("no lease is held"));
        }
        let wrote = self.wrote.take().filter(|wrote| wrote.key == key);
        let mut known = wrote.as_ref().map_or(0, |wrote| wrote.revision);
        let same = |wrote: &Wrote| wrote.report == report && wrote.lease == lease;
        let mut new = (!wrote.as_ref().is_some_and(same)).then_some(report);
        for _ in 0..ATTEMPTS {
            match self.attempt(&key, new, known, lease).await? {
                Ok(revision) => {
                    self.wrote = Some(Wrote {
                        key,
                        report: report.to_vec(),
                        revision,
                        lease,
                    });
                    return Ok(Written::Done);
                }
                Err(None) => known = 0,
                // A key without a lease belongs to no live process.
                Err(Some(there)) if there.lease() == 0 || claim.is_own(there.value()) => {
                    known = there.mod_revision();
                }
                Err(Some(there)) => return Ok(Written::Taken(there.value().to_vec())),
            }
            new = Some(report);
        }
        Err(Failure::away("too many concurrent writes of the same key"))
    }

    async fn invalidated(&mut self) {
        // A lease outlives connections.
        std::future::pending().await
    }
}
