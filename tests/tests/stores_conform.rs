//! Situation: real etcd and ZooKeeper, with writers and watchers on connections of their own.
//! Property: both stores pass every check that the store in memory passes: list, change, delete, burst, compare and set,
//! reorder, members, outage, restart.
//! Needs: Kafka, ZooKeeper and etcd of its own.
//! Command: `cargo xtask test --scenario stores_conform`

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use e2e::etcd::{Etcd, EtcdOptions};
use e2e::process::Signal;
use e2e::zookeeper::{ZooKeeper, ZooKeeperOptions};
use sluicegate_config::store::conformance::{Bench, run_all};
use sluicegate_config::store::{EtcdSettings, Store, ZooKeeperSettings};

struct EtcdBench(RefCell<Etcd>);

impl Bench for EtcdBench {
    fn open(&self) -> Arc<dyn Store> {
        let mut settings = EtcdSettings::new(&self.0.borrow().endpoints());
        settings.request_timeout = Duration::from_secs(2);
        settings.keep_alive = Duration::from_secs(1);
        settings.open().unwrap_or_else(|error| panic!("{error}"))
    }

    fn set_away(&self, away: bool) {
        let signal = if away { Signal::STOP } else { Signal::CONT };
        self.0.borrow().signal(0, signal);
    }

    fn restart(&self) {
        let mut etcd = self.0.borrow_mut();
        etcd.kill(0);
        etcd.start_again(0)
            .unwrap_or_else(|error| panic!("{error:#}"));
    }
}

struct ZooKeeperBench(RefCell<ZooKeeper>);

impl Bench for ZooKeeperBench {
    fn open(&self) -> Arc<dyn Store> {
        let mut settings = ZooKeeperSettings::new(self.0.borrow().connect());
        settings.request_timeout = Duration::from_secs(2);
        settings.session_timeout = Duration::from_secs(5);
        settings.open().unwrap_or_else(|error| panic!("{error}"))
    }

    fn set_away(&self, away: bool) {
        let signal = if away { Signal::STOP } else { Signal::CONT };
        self.0.borrow().signal(signal);
    }

    fn restart(&self) {
        let mut zookeeper = self.0.borrow_mut();
        zookeeper
            .restart()
            .unwrap_or_else(|error| panic!("{error:#}"));
    }
}

#[test]
fn etcd_conforms() {
    let etcd = Etcd::start_own(&EtcdOptions::default()).unwrap_or_else(|error| panic!("{error:#}"));
    run_all(&EtcdBench(RefCell::new(etcd)));
}

#[test]
fn zookeeper_conforms() {
    let zookeeper = ZooKeeper::start_own(&ZooKeeperOptions::default())
        .unwrap_or_else(|error| panic!("{error:#}"));
    run_all(&ZooKeeperBench(RefCell::new(zookeeper)));
}
