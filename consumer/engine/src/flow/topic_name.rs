//! Topic names that are never freed: a hung call may read one after the pump that created it has ended.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use sluicegate_abi::record::TopicName;

use crate::partition::commit::TopicUuid;

/// All topics that were ever assigned to this process, one entry per topic id: this memory is leaked on purpose.
static NAMES: Mutex<BTreeSet<&'static [u8]>> = Mutex::new(BTreeSet::new());

/// Name and id, valid for as long as the process lives.
pub(super) fn kept(topic: &str, id: TopicUuid) -> TopicName<'static> {
    if !id.is_known() {
        let name = std::str::from_utf8(keep(topic.as_bytes())).unwrap_or_default();
        return TopicName::plain(name);
    }
    let joined = keep(&TopicName::joined(topic, id.0.to_be_bytes()));
    TopicName::from_joined(joined).unwrap_or(TopicName::plain(""))
}

fn keep(bytes: &[u8]) -> &'static [u8] {
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(&kept) = names.get(bytes) {
        return kept;
    }
    let kept: &'static [u8] = Box::leak(bytes.into());
    names.insert(kept);
    kept
}
