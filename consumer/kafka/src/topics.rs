//! Topics that the service needs on the cluster: lists them, and creates missing dead-letter topics (G7).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;
use rdkafka::error::KafkaError;

use crate::ffi::{NewTopic, TopicNotCreated, create_topics};
use crate::reach::{NoBroker, wait_for_broker};
use crate::settings::ClientSettings;

/// Maximum length of a topic name in Kafka.
const MAX_NAME: usize = 249;

/// Maximum number of topics per create request.
const TOPICS_PER_REQUEST: usize = 100;
/// Maximum number of topics named in a log line; the others are counted.
const MAX_LISTED: usize = 20;

/// The first topics of a list, for a log line.
pub fn listed(topics: &[String]) -> String {
    let mut text = topics[..topics.len().min(MAX_LISTED)].join(", ");
    if let Some(more) = topics
        .len()
        .checked_sub(MAX_LISTED)
        .filter(|more| *more > 0)
    {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

/// Topics of a cluster with their partition counts.
pub type ClusterTopics = BTreeMap<String, i32>;

/// A topic that the service will write to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NeededTopic {
    /// Its name.
    pub name: String,
    /// Partition count if it is created.
    pub partitions: i32,
    /// Whether it may be created.
    pub create: bool,
}

/// Why a needed topic does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// It is missing and must not be created.
    #[error("topic {name} is missing: create it, or allow it with dead_letter.create: true")]
    Missing {
        /// Its name.
        name: String,
    },
    /// It cannot be created under this name.
    #[error("topic {name} cannot be created: {reason}; choose another dead_letter.topic")]
    BadName {
        /// Its name.
        name: String,
        /// The reason.
        reason: String,
    },
    /// The broker rejects its creation.
    #[error("cannot create topic {name}: {source}; create it, or grant the service the right to")]
    Refused {
        /// Its name.
        name: String,
        /// The broker's error.
        source: TopicNotCreated,
    },
}

impl TopicError {
    /// The topic.
    pub fn name(&self) -> &str {
        match self {
            Self::Missing { name } | Self::BadName { name, .. } | Self::Refused { name, .. } => {
                name
            }
        }
    }

    /// Why the topic does not exist, without its name.
    pub fn cause(&self) -> String {
        match self {
            Self::Missing { .. } => "it is missing and dead_letter.create is false".to_owned(),
            Self::BadName { reason, .. } => reason.clone(),
            Self::Refused { source, .. } => source.to_string(),
        }
    }

    /// What to do.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "create the topic, or allow it with dead_letter.create: true",
            Self::BadName { .. } => "choose another dead_letter.topic",
            Self::Refused { .. } => "create the topic, or grant the service the right to",
        }
    }
}

/// Lists and creates topics of a cluster. Its calls block their thread.
pub struct TopicAdmin {
    admin: AdminClient<DefaultClientContext>,
    timeout: Duration,
}

impl TopicAdmin {
    /// Creates a client of its own; it connects with the first call.
    ///
    /// # Errors
    /// If librdkafka rejects the config, with its error.
    pub fn new(settings: &ClientSettings) -> Result<Self, KafkaError> {
        Ok(Self {
            admin: settings.connection().create()?,
            timeout: settings.request_timeout,
        })
    }

    /// The topics of the cluster that the service is authorized to see.
    ///
    /// # Errors
    /// If no broker answers in time.
    pub fn topics(&self) -> Result<ClusterTopics, KafkaError> {
        // All of them: a metadata request for one name could create it.
        let metadata = self.admin.inner().fetch_metadata(None, self.timeout)?;
        let topics = metadata.topics().iter();
        Ok(topics
            .filter(|topic| topic.error().is_none())
            .map(|topic| (topic.name().to_owned(), topic.partitions().len() as i32))
            .collect())
    }

    /// Creates the topics of `needed` that are missing and may be created, and adds them to `there`, the cluster's
    /// topics. Returns the topics that still do not exist, each with the reason.
    ///
    /// # Errors
    /// If the cluster does not answer.
    pub fn ensure(
        &self,
        needed: impl IntoIterator<Item = NeededTopic>,
        there: &mut ClusterTopics,
    ) -> Result<Vec<TopicError>, KafkaError> {
        let (wanted, mut faults) = missing(needed, there);
        if wanted.is_empty() {
            return Ok(faults);
        }
        let mut created = Vec::new();
        for portion in wanted.chunks(TOPICS_PER_REQUEST) {
            let answers = create_topics(self.admin.inner(), portion, self.timeout)?;
            for (topic, answer) in portion.iter().zip(answers) {
                let name = topic.name.clone();
                match answer {
                    Ok(newly) => {
                        if newly {
                            created.push(name.clone());
                        }
                        there.insert(name, topic.partitions);
                    }
                    Err(source) => faults.push(TopicError::Refused { name, source }),
                }
            }
        }
        if !created.is_empty() {
            let count = created.len();
            tracing::info!(count, topics = %listed(&created), "created dead-letter topics");
        }
        Ok(faults)
    }
}

/// The topics of `needed` to create, and those that cannot exist.
fn missing(
    needed: impl IntoIterator<Item = NeededTopic>,
    there: &ClusterTopics,
) -> (Vec<NewTopic>, Vec<TopicError>) {
    let mut wanted: Vec<NewTopic> = Vec::new();
    let mut faults = Vec::new();
    let needed: Vec<NeededTopic> = needed
        .into_iter()
        .filter(|topic| !there.contains_key(&topic.name))
        .collect();
    if needed.is_empty() {
        return (wanted, faults);
    }
    // Kafka derives the same metric name from both topics and therefore rejects the second.
    let metric = |name: &str| name.replace('.', "_");
    let taken: BTreeMap<String, &str> = there
        .keys()
        .map(|name| (metric(name), name.as_str()))
        .collect();
    for topic in needed {
        let name = topic.name;
        let bad = |name, reason| TopicError::BadName { name, reason };
        if !topic.create {
            faults.push(TopicError::Missing { name });
        } else if name.len() > MAX_NAME {
            let length = name.len();
            let reason =
                format!("it has {length} characters, and a topic name has at most {MAX_NAME}");
            faults.push(bad(name, reason));
        } else if let Some(other) = taken.get(&metric(&name)) {
            let reason =
                format!("it collides with topic {other}: to Kafka `.` and `_` are the same");
            faults.push(bad(name, reason));
        } else {
            wanted.push(NewTopic {
                name,
                partitions: topic.partitions,
            });
        }
    }
    (wanted, faults)
}

/// A [`TopicAdmin`] that is created on first use.
pub struct LazyTopicAdmin {
    settings: ClientSettings,
    admin: Option<Arc<TopicAdmin>>,
}

impl LazyTopicAdmin {
    /// For the cluster of these settings.
    pub fn new(settings: ClientSettings) -> Self {
        Self {
            settings,
            admin: None,
        }
    }

    /// The client.
    ///
    /// # Errors
    /// As [`TopicAdmin::new`].
    pub fn get(&mut self) -> Result<Arc<TopicAdmin>, KafkaError> {
        if let Some(admin) = &self.admin {
            return Ok(admin.clone());
        }
        let admin = Arc::new(TopicAdmin::new(&self.settings)?);
        self.admin = Some(admin.clone());
        Ok(admin)
    }

    /// Waits until the cluster answers, so that a wrong address is reported early during startup.
    ///
    /// # Errors
    /// [`NoBroker`].
    pub fn wait_for_broker(&self) -> Result<(), NoBroker> {
        wait_for_broker(&self.settings.connection(), None, |text| {
            tracing::warn!("{text}");
        })
    }

    /// Closes the client's connections until it is needed again.
    pub fn rest(&mut self) {
        self.admin = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needed(name: &str, create: bool) -> NeededTopic {
        NeededTopic {
            name: name.to_owned(),
            partitions: 3,
            create,
        }
    }

    #[test]
    fn every_topic_that_cannot_exist_is_reported_with_its_cause() {
        let there = ClusterTopics::from([("there.dlt".to_owned(), 1), ("b_x_dlt".to_owned(), 1)]);
        let long = format!("{}.dlt", "c".repeat(247));
        let (wanted, faults) = missing(
            [
                needed("there.dlt", false),
                needed("b_x.dlt", true),
                needed(&long, true),
                needed("d.dlt", false),
                needed("e.dlt", true),
            ],
            &there,
        );
        let wanted: Vec<&str> = wanted.iter().map(|topic| topic.name.as_str()).collect();
        assert_eq!(wanted, ["e.dlt"]);
        let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert!(faults[0].contains("b_x.dlt") && faults[0].contains("collides with topic b_x_dlt"));
        assert!(faults[1].contains("it has 251 characters"), "{faults:?}");
        assert!(faults[2].contains("topic d.dlt is missing"), "{faults:?}");
    }
}
