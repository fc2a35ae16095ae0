//! Situation: real etcd and ZooKeeper, with writers and watchers on separate connections.
//! Property: both stores pass the conformance suite of the in-memory store (list, change, delete, burst, compare-and-set,
//! reorder, members, outage, restart), and spec sources on top of them that of the folder (including malformed values).
//! Needs: Kafka, ZooKeeper and etcd of its own.
//! Command: `cargo xtask test --scenario stores_conform`

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use e2e::etcd::{Etcd, EtcdOptions};
use e2e::process::Signal;
use e2e::wait::wait_for;
use e2e::zookeeper::{ZooKeeper, ZooKeeperOptions};
use sluicegate_config::control::ControlKey;
use sluicegate_config::service::{EtcdSettings, ZooKeeperSettings};
use sluicegate_kit::store_conformance::Bench;
use sluicegate_kit::{source_conformance, store_conformance};
use sluicegate_store::{Expected, OpenStore, Store};
use sluicegate_sync::source::{SpecSource, StoreSource, StoreSourceSettings};

struct EtcdBench(RefCell<Etcd>);

impl Bench for EtcdBench {
    fn open(&self) -> Arc<dyn Store> {
        let mut settings = EtcdSettings::new(&self.0.borrow().endpoints());
        settings.request_timeout = Duration::from_secs(2);
        settings.keep_alive = Duration::from_secs(1);
        settings.member_ttl = Duration::from_secs(2);
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

/// The spec source on top of a store.
struct SourceBench<B> {
    stores: B,
    writer: Arc<dyn Store>,
}

impl<B: Bench> SourceBench<B> {
    fn new(stores: B) -> Self {
        let writer = stores.open();
        Self { stores, writer }
    }
}

impl<B: Bench> source_conformance::Bench for SourceBench<B> {
    fn open(&self) -> Box<dyn SpecSource> {
        let settings = StoreSourceSettings::default();
        Box::new(StoreSource::new(self.stores.open(), settings))
    }

    fn write(&self, handler: &str, text: Option<&str>) {
        let key = ControlKey::spec(handler).expect("a handler's name");
        wait_for("the write", Duration::from_secs(20), || {
            let written = self
                .writer
                .write(&key, text.map(str::as_bytes), Expected::Any);
            written.map_err(|error| error.to_string())
        });
    }

    fn set_away(&self, away: bool) {
        self.stores.set_away(away);
    }

    fn restart(&self) {
        self.stores.restart();
    }
}

#[test]
fn etcd_conforms() {
    let etcd = Etcd::start_own(&EtcdOptions::default()).unwrap_or_else(|error| panic!("{error:#}"));
    let bench = EtcdBench(RefCell::new(etcd));
    store_conformance::run_all(&bench);
    source_conformance::run_all(&SourceBench::new(bench));
}

#[test]
fn zookeeper_conforms() {
    let zookeeper = ZooKeeper::start_own(&ZooKeeperOptions::default())
        .unwrap_or_else(|error| panic!("{error:#}"));
    let bench = ZooKeeperBench(RefCell::new(zookeeper));
    store_conformance::run_all(&bench);
    source_conformance::run_all(&SourceBench::new(bench));
}
