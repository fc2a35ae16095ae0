//! Situation: files and whole folders are replaced. Property: each change is noticed without waiting for the periodic poll.

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use super::registry::put;
use crate::FolderWatch;

/// A watch whose periodic poll never comes.
fn watch(folder: &Path) -> (FolderWatch, Receiver<()>) {
    let (sender, receiver) = channel();
    let watch = FolderWatch::start(folder, Duration::from_secs(3_600), move || {
        // The test may be over.
        let _ = sender.send(());
    });
    (watch.unwrap(), receiver)
}

fn noticed(notices: &Receiver<()>, what: &str) {
    let told = notices.recv_timeout(Duration::from_secs(20));
    assert!(told.is_ok(), "{what} is not noticed");
    // What else the change has caused.
    while notices.recv_timeout(Duration::from_millis(1_500)) != Err(RecvTimeoutError::Timeout) {}
}

#[test]
fn a_plugin_copied_into_the_folder_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let (_watch, notices) = watch(folder.path());
    put(folder.path(), "liba.so", "copy 1.0.0 copy");
    noticed(&notices, "the file");
}

#[test]
fn another_folder_in_its_place_is_noticed_and_watched() {
    let parent = tempfile::tempdir().unwrap();
    let at = |name: &str| parent.path().join(name);
    put(&at("plugins"), "liba.so", "copy 1.0.0 copy");
    put(&at("new"), "liba.so", "copy 2.0.0 copy");
    let (_watch, notices) = watch(&at("plugins"));
    std::fs::rename(at("plugins"), at("old")).unwrap();
    std::fs::rename(at("new"), at("plugins")).unwrap();
    noticed(&notices, "the new folder");
    put(&at("plugins"), "libb.so", "copy 2.1.0 copy");
    noticed(&notices, "a file in the new folder");
    put(&at("old"), "libb.so", "copy 1.1.0 copy");
    let old = notices.recv_timeout(Duration::from_millis(1_500));
    assert_eq!(old, Err(RecvTimeoutError::Timeout), "the old one is left");
}

#[test]
fn a_link_that_leads_to_another_folder_is_noticed() {
    let parent = tempfile::tempdir().unwrap();
    let at = |name: &str| parent.path().join(name);
    for release in ["r1", "r2"] {
        put(&at(release).join("plugins"), "liba.so", "copy 1.0.0 copy");
    }
    // As a volume of a container is switched: the link is not in the folder's own parent.
    std::os::unix::fs::symlink("r1", at("current")).unwrap();
    std::os::unix::fs::symlink("current/plugins", at("plugins")).unwrap();
    let (_watch, notices) = watch(&at("plugins"));
    std::os::unix::fs::symlink("r2", at("next")).unwrap();
    std::fs::rename(at("next"), at("current")).unwrap();
    noticed(&notices, "the link");
    put(&at("r2/plugins"), "libb.so", "copy 2.0.0 copy");
    noticed(&notices, "a file behind the link");
}

#[test]
fn a_folder_that_appears_later_is_watched_then() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("plugins");
    let (_watch, notices) = watch(&folder);
    put(&folder, "liba.so", "copy 1.0.0 copy");
    noticed(&notices, "the folder");
    put(&folder, "libb.so", "copy 2.0.0 copy");
    noticed(&notices, "a file in it");
    let more = notices.recv_timeout(Duration::from_secs(4));
    assert_eq!(
        more,
        Err(RecvTimeoutError::Timeout),
        "it is not polled any more"
    );
}
