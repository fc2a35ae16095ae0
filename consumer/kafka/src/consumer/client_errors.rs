//! Maps librdkafka's client error codes to kinds and remedies.

use rdkafka::types::RDKafkaErrorCode as Code;
use sluicegate_engine::source::ClientErrorKind as Kind;

/// The result for an unclassified error.
const OTHER: (Kind, &str) = (Kind::Other, "the client keeps retrying");

/// The kind of a client error, and what an operator can do.
pub(super) fn judge(code: Option<Code>) -> (Kind, &'static str) {
    let Some(code) = code else {
        return OTHER;
    };
    match code {
        Code::AllBrokersDown => (
            Kind::AllBrokersDown,
            "check that the brokers run and that kafka.bootstrap_servers and the network reach them",
        ),
        Code::Resolve => (
            Kind::Connection,
            "the name cannot be resolved: correct kafka.bootstrap_servers, the brokers' advertised.listeners or the DNS",
        ),
        Code::BrokerTransportFailure
        | Code::OperationTimedOut
        | Code::RequestTimedOut
        | Code::BrokerNotAvailable
        | Code::NetworkException => (
            Kind::Connection,
            "check that the broker runs and that the network reaches it",
        ),
        Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::IllegalSASLState => (
            Kind::Login,
            "correct sasl.mechanism, sasl.username and sasl.password under kafka.client",
        ),
        Code::SSL => (
            Kind::Login,
            "correct security.protocol and the ssl.* keys under kafka.client",
        ),
        Code::TopicAuthorizationFailed => (
            Kind::Topic,
            "grant the service DESCRIBE and READ on the topic",
        ),
        Code::UnknownTopicOrPartition | Code::UnknownTopic => (
            Kind::Topic,
            "create the topic, or grant the service DESCRIBE and READ on it",
        ),
        Code::InvalidTopic => (
            Kind::Topic,
            "invalid topic name: correct the route of the handler",
        ),
        code => of_group(code).map_or(OTHER, |remedy| (Kind::Group, remedy)),
    }
}

/// The remedy for a group error, if it is one.
fn of_group(code: Code) -> Option<&'static str> {
    Some(match code {
        Code::GroupAuthorizationFailed => "grant the service READ on the group",
        Code::InconsistentGroupProtocol => {
            "a member of the group uses other assignors or another group.protocol, perhaps another application: use \
             another kafka.group_id, or set partition.assignment.strategy under kafka.client"
        }
        Code::InvalidGroupId => "use another kafka.group_id",
        Code::GroupMaxSizeReached => {
            "the brokers' group.max.size is reached: raise it or run fewer members"
        }
        Code::InvalidSessionTimeout => {
            "set session.timeout.ms under kafka.client within the brokers' group.min.session.timeout.ms and \
             group.max.session.timeout.ms"
        }
        Code::CoordinatorNotAvailable | Code::NotCoordinator | Code::CoordinatorLoadInProgress => {
            "the group coordinator is unavailable: check the brokers"
        }
        Code::PollExceeded => {
            "the process was not scheduled for max.poll.interval.ms: check its CPU time"
        }
        Code::UnknownMemberId
        | Code::IllegalGeneration
        | Code::RebalanceInProgress
        | Code::FencedInstanceId
        | Code::AssignmentLost => "the member rejoins the group automatically",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_classified_by_what_clears_them() {
        for (code, kind) in [
            (Code::AllBrokersDown, Kind::AllBrokersDown),
            (Code::BrokerTransportFailure, Kind::Connection),
            (Code::Resolve, Kind::Connection),
            (Code::Authentication, Kind::Login),
            (Code::SSL, Kind::Login),
            (Code::GroupAuthorizationFailed, Kind::Group),
            (Code::InconsistentGroupProtocol, Kind::Group),
            (Code::TopicAuthorizationFailed, Kind::Topic),
            (Code::UnknownTopicOrPartition, Kind::Topic),
            (Code::BadMessage, Kind::Other),
        ] {
            assert_eq!(judge(Some(code)).0, kind, "{code:?}");
        }
        assert_eq!(judge(None).0, Kind::Other);
    }
}
