//! Situation: real etcd and ZooKeeper with TLS, client certificates, and users.
//! Property: the stores connect with the right certificates and passwords and report the reason with wrong ones; a token that
//! the server no longer accepts is requested again.
//! Needs: Kafka, ZooKeeper and etcd of its own.
//! Mostly waits: for tokens.
//! Command: `cargo xtask test --scenario stores_secured`

use std::sync::Arc;
use std::time::Duration;

use sluicegate_config::Secret;
use sluicegate_config::service::{
    Acl, EtcdSettings, Login, TlsFiles, TlsIdentity, ZooKeeperSettings,
};
use sluicegate_kit::store_conformance::Record;
use sluicegate_store::{Expected, OpenStore, Store, StoreError};

use crate::stores::{
    DETECTION_DEADLINE, RECOVERY_DEADLINE, assert_recovered, change_during_outage, gate, put,
    watched,
};
use base64::Engine;
use e2e::certificates::Certificates;
use e2e::etcd::{Etcd, EtcdOptions};
use e2e::zookeeper::{ZooKeeper, ZooKeeperOptions};
use serde_json::json;

fn open_etcd(settings: &EtcdSettings) -> Arc<dyn Store> {
    settings.open().unwrap_or_else(|error| panic!("{error}"))
}

fn open_zookeeper(settings: &ZooKeeperSettings) -> Arc<dyn Store> {
    settings.open().unwrap_or_else(|error| panic!("{error}"))
}

fn trusting(files: &Certificates) -> TlsFiles {
    TlsFiles {
        ca_file: files.ca.clone(),
        identity: None,
        server_name: None,
    }
}

fn identified(files: &Certificates) -> TlsFiles {
    TlsFiles {
        identity: Some(TlsIdentity {
            cert_file: files.client_certificate.clone(),
            key_file: files.client_key.clone(),
        }),
        ..trusting(files)
    }
}

/// Checks that a watch sees a write over the secured connection.
fn works(store: &dyn Store) {
    let key = gate("auditor");
    let (record, _watch) = Record::watch(store);
    put(store, &key, "true");
    record.until_value(&key, Some("true"), DETECTION_DEADLINE);
    let member = store
        .join(crate::stores::report("host-1", 1))
        .unwrap_or_else(|error| panic!("{error}"));
    e2e::wait::wait_for("the member", DETECTION_DEADLINE, || match store.members() {
        Ok(members) if members.len() == 1 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    drop(member);
}

fn is_away(store: &dyn Store) {
    let refused = store.list();
    assert!(
        matches!(&refused, Err(StoreError::Unreachable { .. })),
        "{refused:?}"
    );
}

/// Checks that the store connects with the right certificates and not with wrong ones; without a client certificate only if the
/// server requires none.
fn asks_for_certificates(
    client_certificates: bool,
    files: &Certificates,
    open: impl Fn(TlsFiles) -> Arc<dyn Store>,
) {
    works(&*open(identified(files)));
    let plain = open(trusting(files));
    match client_certificates {
        true => is_away(&*plain),
        false => works(&*plain),
    }
    let elsewhere = tempfile::tempdir().expect("a folder");
    let others = Certificates::make(elsewhere.path()).unwrap_or_else(|error| panic!("{error:#}"));
    is_away(&*open(trusting(&others)));
}

#[test]
fn etcd_over_tls_with_and_without_a_client_certificate() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = Certificates::make(folder.path()).unwrap_or_else(|error| panic!("{error:#}"));
    for client_certificates in [false, true] {
        let etcd = Etcd::start_own(&EtcdOptions {
            tls: Some(files.clone()),
            client_certificates,
            ..EtcdOptions::default()
        })
        .unwrap_or_else(|error| panic!("{error:#}"));
        let open = |tls: TlsFiles| {
            let mut settings = EtcdSettings::new(&[etcd.endpoint()]);
            settings.request_timeout = Duration::from_secs(3);
            settings.tls = Some(tls);
            open_etcd(&settings)
        };
        asks_for_certificates(client_certificates, &files, open);
        works(&*open(TlsFiles {
            server_name: Some("localhost".to_owned()),
            ..identified(&files)
        }));
    }
    let mut missing = EtcdSettings::new(&["https://127.0.0.1:1"]);
    missing.tls = Some(TlsFiles {
        ca_file: folder.path().join("nowhere.pem"),
        ..trusting(&files)
    });
    let refused = missing.open().err().expect("the file does not exist");
    assert!(refused.to_string().contains("nowhere.pem"), "{refused}");
}

#[test]
fn zookeeper_over_tls_with_and_without_a_client_certificate() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = Certificates::make(folder.path()).unwrap_or_else(|error| panic!("{error:#}"));
    for client_certificates in [false, true] {
        let zookeeper = ZooKeeper::start_own(&ZooKeeperOptions {
            tls: Some(files.clone()),
            client_certificates,
        })
        .unwrap_or_else(|error| panic!("{error:#}"));
        let open = |tls: TlsFiles| {
            let mut settings = ZooKeeperSettings::new(zookeeper.secure());
            settings.request_timeout = Duration::from_secs(3);
            settings.tls = Some(tls);
            open_zookeeper(&settings)
        };
        asks_for_certificates(client_certificates, &files, open);
    }
}

#[test]
fn etcd_with_a_user_and_an_expired_token() {
    let mut etcd =
        Etcd::start_own(&EtcdOptions::default()).unwrap_or_else(|error| panic!("{error:#}"));
    let encoded = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let below = |prefix: &str| json!({ "permType": "READWRITE", "key": encoded(prefix), "range_end": encoded(&format!("{}0", prefix.trim_end_matches('/'))) });
    for (path, body) in [
        (
            "/v3/auth/user/add",
            json!({ "name": "root", "password": "top" }),
        ),
        (
            "/v3/auth/user/grant",
            json!({ "user": "root", "role": "root" }),
        ),
        (
            "/v3/auth/user/add",
            json!({ "name": "gate", "password": "secret" }),
        ),
        ("/v3/auth/role/add", json!({ "name": "gate" })),
        (
            "/v3/auth/role/grant",
            json!({ "name": "gate", "perm": below("/plugins/") }),
        ),
        (
            "/v3/auth/role/grant",
            json!({ "name": "gate", "perm": below("/sluicegate/members/") }),
        ),
        (
            "/v3/auth/user/grant",
            json!({ "user": "gate", "role": "gate" }),
        ),
    ] {
        if path == "/v3/auth/user/grant" && body["role"] == "root" {
            etcd.ask(0, "/v3/auth/role/add", &json!({ "name": "root" }), None)
                .unwrap_or_else(|error| panic!("{error:#}"));
        }
        etcd.ask(0, path, &body, None)
            .unwrap_or_else(|error| panic!("{error:#}"));
    }
    etcd.ask(0, "/v3/auth/enable", &json!({}), None)
        .unwrap_or_else(|error| panic!("{error:#}"));

    let with = |user: &str, password: &str| {
        let mut settings = EtcdSettings::new(&[etcd.endpoint()]);
        settings.login = Some(Login {
            user: user.to_owned(),
            password: Secret::new(password),
        });
        settings
    };
    let settings = with("gate", "secret");
    let store = open_etcd(&settings);
    works(&*store);
    let wrong = open_etcd(&with("gate", "guessed")).list();
    assert!(
        matches!(&wrong, Err(StoreError::Refused { reason, .. }) if reason.contains("authentication failed")),
        "{wrong:?}"
    );
    let anonymous = open_etcd(&EtcdSettings::new(&[etcd.endpoint()])).list();
    assert!(
        matches!(&anonymous, Err(StoreError::Refused { .. })),
        "{anonymous:?}"
    );
    let mut outside = settings.clone();
    outside.prefix = "/elsewhere".to_owned();
    let refused = open_etcd(&outside).write(&gate("auditor"), Some(b"true"), Expected::Any);
    assert!(
        matches!(&refused, Err(StoreError::Refused { reason, .. }) if reason.contains("permission denied")),
        "{refused:?}"
    );

    // Simple tokens exist only in the server's memory: after a restart the current one is refused.
    let key = gate("auditor");
    let (record, _watch) = watched(&*store, &key);
    etcd.kill(0);
    etcd.start_again(0)
        .unwrap_or_else(|error| panic!("{error:#}"));
    change_during_outage(&*store, &key, "false");
    assert_recovered(&record, &key, "false");
    put(&*store, &key, "true");
    record.until_value(&key, Some("true"), RECOVERY_DEADLINE);
}

#[test]
fn zookeeper_with_digest_and_creator_only_nodes() {
    let zookeeper = ZooKeeper::start_own(&ZooKeeperOptions::default())
        .unwrap_or_else(|error| panic!("{error:#}"));
    let with = |password: &str| {
        let mut settings = ZooKeeperSettings::new(zookeeper.connect());
        settings.acl = Acl::Creator;
        settings.digest = Some(Login {
            user: "gate".to_owned(),
            password: Secret::new(password),
        });
        settings
    };
    let store = open_zookeeper(&with("secret"));
    works(&*store);
    let key = gate("auditor");
    for other in [with("guessed"), ZooKeeperSettings::new(zookeeper.connect())] {
        let other = open_zookeeper(&other);
        for refused in [
            other.list().map(drop),
            other.write(&key, Some(b"false"), Expected::Any).map(drop),
        ] {
            assert!(
                matches!(&refused, Err(StoreError::Refused { reason, .. }) if reason.contains("not authorized")),
                "{refused:?}"
            );
        }
    }
    let (record, _watch) = watched(&*store, &key);
    change_during_outage(&*store, &key, "false");
    assert_recovered(&record, &key, "false");
}
