//! Topics that must be there before the first record is written to them: dead-letter topics (G7).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;

use crate::source::ClientSettings;

/// A topic that the service will write to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NeededTopic {
    /// Its name.
    pub name: String,
    /// The topic whose partition count it gets when it is made.
    pub like: String,
    /// Whether it may be made.
    pub create: bool,
}

/// Why a topic that is needed is not there.
#[derive(Debug, thiserror::Error)]
pub enum TopicError {
    /// It is missing and must not be made.
    #[error("topic {name} is missing: create it, or allow it with dead_letter.create: true")]
    Missing {
        /// Its name.
        name: String,
    },
    /// The broker refuses to make it.
    #[error("cannot create topic {name}: {reason}; create it, or give the service the right to")]
    Refused {
        /// Its name.
        name: String,
        /// The broker's words.
        reason: String,
    },
    /// The cluster does not answer.
    #[error("cannot ask the cluster for its topics: {0}")]
    Unreachable(#[from] KafkaError),
}

/// Makes sure that every topic of `needed` is there; makes those that are missing and may be made.
///
/// # Errors
/// The first topic that is missing in the end, or that the cluster cannot be asked.
pub async fn ensure_topics(
    settings: &ClientSettings,
    needed: &[NeededTopic],
) -> Result<(), TopicError> {
    if needed.is_empty() {
        return Ok(());
    }
    let admin: AdminClient<DefaultClientContext> = settings.connection().create()?;
    let admin = Arc::new(admin);
    let there = partition_counts(&admin, settings.request_timeout).await?;
    let (wanted, refused): (Vec<_>, Vec<_>) = needed
        .iter()
        .filter(|topic| !there.contains_key(&topic.name))
        .partition(|topic| topic.create);
    if let Some(topic) = refused.first() {
        return Err(TopicError::Missing {
            name: topic.name.clone(),
        });
    }
    let mut new: BTreeMap<&str, NewTopic<'_>> = BTreeMap::new();
    for topic in wanted {
        // -1 is the broker's own default: the source topic may not be there yet either.
        let partitions = there.get(&topic.like).copied().unwrap_or(-1);
        let made = NewTopic::new(&topic.name, partitions, TopicReplication::Fixed(-1));
        new.insert(&topic.name, made);
    }
    if new.is_empty() {
        return Ok(());
    }
    let options = AdminOptions::new()
        .request_timeout(Some(settings.request_timeout))
        .operation_timeout(Some(settings.request_timeout));
    for made in admin.create_topics(new.values(), &options).await? {
        match made {
            Ok(name) => tracing::info!(topic = name, "created the topic"),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((name, code)) => {
                return Err(TopicError::Refused {
                    name,
                    reason: code.to_string(),
                });
            }
        }
    }
    Ok(())
}

async fn partition_counts(
    admin: &Arc<AdminClient<DefaultClientContext>>,
    timeout: Duration,
) -> Result<BTreeMap<String, i32>, KafkaError> {
    let admin = Arc::clone(admin);
    // The metadata request blocks its thread. It asks for all topics: asking for one by name could create it.
    let asked = tokio::task::spawn_blocking(move || {
        let metadata = admin.inner().fetch_metadata(None, timeout)?;
        let topics = metadata.topics().iter();
        Ok(topics
            .filter(|topic| topic.error().is_none())
            .map(|topic| (topic.name().to_owned(), topic.partitions().len() as i32))
            .collect())
    });
    asked.await.unwrap_or(Err(KafkaError::Canceled))
}
