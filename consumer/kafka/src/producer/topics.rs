//! The topics to which a producer has been given records: naming a topic with each record costs a lock of the whole producer.

use std::collections::HashMap;
use std::ffi::CString;
use std::hash::BuildHasherDefault;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rapidhash::fast::RapidHasher;
use rdkafka::ClientContext;
use rdkafka::client::Client;
use rdkafka::types::RDKafkaErrorCode;
use sluicegate_engine::emit::ProducerRecord;

use crate::ffi::{Handle, Topic, produce};

/// Maximum number of topics that are kept; records of further ones name theirs. A handler can emit to any number of names.
const MAX_TOPICS: usize = 1_024;

/// Names are from handlers, of which there are few: no random seed is needed.
type Handles = HashMap<Box<str>, Arc<Handle>, BuildHasherDefault<RapidHasher<'static>>>;

/// Must be dropped before the producer.
#[derive(Default)]
pub(super) struct Topics {
    handles: ArcSwap<Handles>,
    changing: Mutex<()>,
}

impl Topics {
    /// Gives a record to the producer.
    ///
    /// # Errors
    /// librdkafka's code.
    pub(super) fn produce<C: ClientContext>(
        &self,
        client: &Client<C>,
        record: &ProducerRecord<'_>,
        opaque: u64,
    ) -> Result<(), RDKafkaErrorCode> {
        let is_known = match self.handles.load().get(record.topic) {
            None => false,
            Some(handle) => {
                let produced = produce(client, &Topic::Known(handle), record, opaque);
                if !produced.is_err_and(is_of_topic) {
                    return produced;
                }
                true
            }
        };
        if is_known {
            // A topic that refuses is searched again, as one that was never used.
            self.change(|handles| _ = handles.remove(record.topic));
        }
        let Ok(name) = CString::new(record.topic) else {
            return Err(RDKafkaErrorCode::InvalidTopic);
        };
        produce(client, &Topic::Named(&name), record, opaque)?;
        if self.handles.load().len() < MAX_TOPICS
            && let Some(handle) = Handle::of(client, &name)
        {
            self.change(|handles| _ = handles.insert(record.topic.into(), Arc::new(handle)));
        }
        Ok(())
    }

    fn change(&self, change: impl FnOnce(&mut Handles)) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut handles = Handles::clone(&self.handles.load());
        change(&mut handles);
        self.handles.store(Arc::new(handles));
    }
}

/// Whether the topic is why a record was refused.
fn is_of_topic(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::UnknownTopic
            | Code::UnknownTopicOrPartition
            | Code::UnknownPartition
            | Code::TopicAuthorizationFailed
    )
}
