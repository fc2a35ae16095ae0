//! A member's key under a lease: created only if nobody else's stands there, and looked at with each renewal.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use etcd_client::{Compare, CompareOp, Error, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse};

use super::super::Membership;
use super::super::driver::Driver;
use super::super::failure::Failure;
use super::super::keeper::{self, Life, MemberLink, Written};
use super::Shared;
use crate::member::MemberReport;

/// Longest wait for the key's deletion when a member leaves.
const LEAVING: Duration = Duration::from_secs(1);
/// Leases that have lapsed are looked for every half second, and removed through the log.
const REMOVAL: Duration = Duration::from_secs(2);
/// Most attempts of one write while others write the same key.
const ATTEMPTS: u32 = 5;

/// A lease and what stands under it.
struct Lease {
    shared: Arc<Shared>,
    /// 0: there is none. Shared with whoever leaves.
    id: Arc<AtomicI64>,
    /// What this process wrote last and nobody has changed since, as far as it is known.
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
        removal: REMOVAL,
    };
    let id = Arc::new(AtomicI64::new(0));
    let link = Lease {
        shared: Arc::clone(&shared),
        id: Arc::clone(&id),
        wrote: None,
    };
    // Whoever holds the id by now: their key hangs on another lease.
    let leave = move |driver: &Driver, _| {
        let lease = id.load(Ordering::Relaxed);
        if lease == 0 {
            return;
        }
        let left = driver.call(async move {
            let revoked = shared
                .endpoints
                .once(|mut client| async move { client.lease_revoke(lease).await });
            tokio::time::timeout(LEAVING, revoked).await
        });
        if !matches!(left, Some(Ok(Ok(_)))) {
            tracing::info!("the member's key is left to expire");
        }
    };
    keeper::join(driver, link, life, report, Box::new(leave))
}

impl Lease {
    /// Whether the lease lives on.
    async fn keep_alive(&self, lease: i64) -> Result<bool, Failure> {
        // The stream is given up after its first answer, which this waits for.
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

    /// Writes, or only looks where there is nothing to write, if the key is as it was at `known` (0 for none). Else what
    /// stands there.
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
        // One that arrives twice finds what it wrote, which is this process's.
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

    async fn write(
        &mut self,
        id: &str,
        report: &[u8],
        is_own: &(dyn Fn(&[u8]) -> bool + Sync),
    ) -> Result<Written, Failure> {
        let key = format!("{}{id}", self.shared.members_prefix());
        let lease = self.id.load(Ordering::Relaxed);
        if lease == 0 {
            // A key without a lease would stay for ever.
            return Err(Failure::away("there is no lease"));
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
                // What no lease holds belongs to nobody that lives.
                Err(Some(there)) if there.lease() == 0 || is_own(there.value()) => {
                    known = there.mod_revision();
                }
                Err(Some(there)) => return Ok(Written::Taken(there.value().to_vec())),
            }
            new = Some(report);
        }
        Err(Failure::away("others write the same key all the time"))
    }

    async fn disturbed(&mut self) {
        // A lease outlives connections.
        std::future::pending().await
    }
}
