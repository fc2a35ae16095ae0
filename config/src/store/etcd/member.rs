//! A member's key under a lease: kept alive, written again after an expiry, deleted with the membership.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::PutOptions;
use tokio::sync::watch;
use tokio::time::sleep;

use super::super::Membership;
use super::super::driver::{Driver, RunningTask};
use super::super::failure::Failure;
use super::Shared;
use crate::chance::backoff;

/// Longest wait for the key's deletion when a member leaves.
const LEAVING: Duration = Duration::from_secs(1);
/// First and longest wait between attempts to keep the key; what is waited is a random part of it.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_millis(3200));

struct EtcdMember {
    reports: watch::Sender<Vec<u8>>,
    lease: watch::Receiver<i64>,
    shared: Arc<Shared>,
    task: RunningTask,
}

pub(super) fn join(
    driver: &Arc<Driver>,
    shared: Arc<Shared>,
    key: String,
    report: Vec<u8>,
) -> Box<dyn Membership> {
    let (reports, newest) = watch::channel(report);
    let (lease_told, lease) = watch::channel(0);
    let task = driver.task(keep(Arc::clone(&shared), key, newest, lease_told));
    Box::new(EtcdMember {
        reports,
        lease,
        shared,
        task,
    })
}

impl Membership for EtcdMember {
    fn report(&self, report: Vec<u8>) {
        // The task lives as long as the value.
        let _ = self.reports.send(report);
    }
}

impl Drop for EtcdMember {
    fn drop(&mut self) {
        self.task.end();
        let lease = *self.lease.borrow();
        if lease == 0 {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let left = self.task.driver().call(async move {
            let revoked = shared
                .endpoints
                .once(|mut client| async move { client.lease_revoke(lease).await });
            tokio::time::timeout(LEAVING, revoked).await
        });
        if !matches!(left, Some(Ok(Ok(_)))) {
            tracing::info!("the member's key is left to expire");
        }
    }
}

/// Keeps the key for ever.
async fn keep(
    shared: Arc<Shared>,
    key: String,
    mut reports: watch::Receiver<Vec<u8>>,
    lease_told: watch::Sender<i64>,
) {
    let beat = shared.settings.member_ttl / 3;
    let mut failures = 0u32;
    loop {
        let Err(failure) = live(&shared, &key, &mut reports, &lease_told, beat).await else {
            return;
        };
        let reason = failure.reason();
        tracing::debug!(key, reason, "a member's key is not kept; trying again");
        failures = failures.saturating_add(1);
        let (first, longest) = BACKOFF;
        sleep(backoff(first, longest.min(beat), failures)).await;
    }
}

/// One lease's life; ends with the failure that ended it.
async fn live(
    shared: &Shared,
    key: &str,
    reports: &mut watch::Receiver<Vec<u8>>,
    lease_told: &watch::Sender<i64>,
    beat: Duration,
) -> Result<(), Failure> {
    let ttl = i64::try_from(shared.settings.member_ttl.as_secs()).unwrap_or(i64::MAX);
    let granted = shared
        .endpoints
        .call(|mut client| async move { client.lease_grant(ttl.max(1), None).await })
        .await?;
    let lease = granted.id();
    lease_told.send_replace(lease);
    loop {
        let report = reports.borrow_and_update().clone();
        let options = PutOptions::new().with_lease(lease);
        shared
            .endpoints
            .call(|mut client| {
                let (report, options) = (report.clone(), options.clone());
                async move { client.put(key, report, Some(options)).await }
            })
            .await?;
        // Nobody reports any more: the member is leaving.
        loop {
            tokio::select! {
                changed = reports.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return Ok(()),
                },
                () = sleep(beat) => beat_once(shared, lease).await?,
            }
        }
    }
}

async fn beat_once(shared: &Shared, lease: i64) -> Result<(), Failure> {
    // The stream is given up after its first answer, which this waits for; an expired lease is an error.
    let beaten = shared
        .endpoints
        .call(|mut client| async move { client.lease_keep_alive(lease).await })
        .await?;
    drop(beaten);
    Ok(())
}
