//! State of a client's connection to the cluster and its group: the last error of each kind, with its start time and count,
//! kept until a success clears it.
//!
//! ```text
//!  no broker connected  ◄─ AllBrokersDown, statistics without one │ cleared by a record, an assignment, a commit, statistics
//!  connection           ◄─ errors of one broker                   │ cleared when not repeated
//!  login, topic, other  ◄─ errors                                 │ cleared when not repeated; topic also by an assignment
//!  group                ◄─ errors, partitions lost                │ cleared by an assignment, a commit, a membership
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use sluicegate_engine::clock::WallClock;
use sluicegate_engine::partition::trouble::{LogLimit, Trouble};
use sluicegate_engine::source::{ClientErrorKind, Membership};
use sluicegate_engine::status::{ProblemKind, ServiceProblem};

/// An error not repeated within this time is cleared: librdkafka repeats a broker's errors every 30 s.
const ERROR_EXPIRY_MS: u64 = 75_000;
/// The same for a topic error, which librdkafka reports only once: by then the topic watch has listed the topics.
const TOPIC_ERROR_EXPIRY_MS: u64 = 300_000;
/// An error that lasts less than this is not reported: brokers close idle connections, and groups rebalance.
const REPORT_DELAY_MS: u64 = 3_000;
/// A first join that takes longer than this is reported: something blocks it.
const JOIN_REPORT_DELAY_MS: u64 = 10_000;
/// How long a member without partitions (KIP-848) may still receive some before it counts as joined.
const EMPTY_ASSIGNMENT_DELAY_MS: u64 = 2_000;
/// Interval between two membership queries to the client while it joins.
const QUERY_INTERVAL_MS: u64 = 500;

/// The client's state in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    /// Not subscribed to any topic.
    Idle,
    /// Joining, for the first time or because its membership was `lost`.
    Joining { since_ms: u64, lost: bool },
    /// A member, with or without partitions.
    Member,
}

/// State of one client; times are on the flow's clock.
pub(super) struct ClientState {
    group_id: Arc<str>,
    group: Group,
    errors: BTreeMap<ClientErrorKind, Trouble>,
    log: BTreeMap<ClientErrorKind, LogLimit>,
    /// When the last broker connection was lost.
    unreachable_ms: Option<u64>,
    /// Whether the outage was logged, so that its end is logged too.
    outage_logged: bool,
    queried_ms: u64,
    /// Since when the client has reported itself a member without an assignment.
    member_ms: Option<u64>,
}

impl ClientState {
    pub(super) fn new(group_id: Arc<str>) -> Self {
        Self {
            group_id,
            group: Group::Idle,
            errors: BTreeMap::new(),
            log: BTreeMap::new(),
            unreachable_ms: None,
            outage_logged: false,
            queried_ms: 0,
            member_ms: None,
        }
    }

    /// Whether the client is a member of the group.
    pub(super) fn is_member(&self) -> bool {
        self.group == Group::Member
    }

    /// Whether the brokers reject the login: an outage that another client would only repeat. An old rejection, which may
    /// still be shown as the last known cause of an outage, says nothing about a login now.
    pub(super) fn is_login_refused(&self, now_ms: u64) -> bool {
        let refused = self.errors.get(&ClientErrorKind::Login);
        refused.is_some_and(|trouble| now_ms.saturating_sub(trouble.last_ms) < ERROR_EXPIRY_MS)
    }

    /// Since when no broker is connected.
    pub(super) fn unreachable_ms(&self) -> Option<u64> {
        self.unreachable_ms
    }

    /// Resets the state for a new client. An outage lasts until that client reaches a broker: readiness counts it from its
    /// beginning.
    pub(super) fn renew(&mut self, now_ms: u64) {
        let is_away = self.unreachable_ms.is_some();
        self.errors
            .retain(|kind, _| is_away && *kind == ClientErrorKind::AllBrokersDown);
        self.group = Group::Joining {
            since_ms: now_ms,
            lost: false,
        };
        self.member_ms = None;
    }

    /// The subscription changed; `to_any` is false for an empty one.
    pub(super) fn subscribed(&mut self, to_any: bool, now_ms: u64) {
        match (to_any, self.group) {
            (false, _) => {
                self.group = Group::Idle;
                self.errors.remove(&ClientErrorKind::Group);
            }
            (true, Group::Idle) => {
                self.group = Group::Joining {
                    since_ms: now_ms,
                    lost: false,
                };
            }
            (true, _) => {}
        }
    }

    /// Records an error of the client. The first is logged, then one per minute and kind.
    pub(super) fn error(&mut self, kind: ClientErrorKind, reason: &str, remedy: &str, now_ms: u64) {
        if kind == ClientErrorKind::AllBrokersDown {
            self.unreachable_ms.get_or_insert(now_ms);
        }
        match self.errors.get_mut(&kind) {
            Some(known) => {
                known.again(reason, remedy, now_ms);
            }
            None => {
                self.errors
                    .insert(kind, Trouble::new(reason, remedy, now_ms));
            }
        }
        // Redundant in the log: the connection or login error already names the cause.
        let is_redundant = kind == ClientErrorKind::AllBrokersDown
            && [ClientErrorKind::Connection, ClientErrorKind::Login]
                .iter()
                .any(|kind| self.errors.contains_key(kind));
        if is_redundant {
            self.outage_logged = true;
            return;
        }
        if let Some(times) = self.log.entry(kind).or_default().count(now_ms) {
            self.outage_logged |= self.unreachable_ms.is_some();
            tracing::warn!(
                group = &*self.group_id,
                reason,
                times,
                remedy,
                "kafka client error; retrying"
            );
        }
    }

    /// A broker has answered, with a record, an assignment or a commit: ends an outage.
    pub(super) fn broker_answered(&mut self, now_ms: u64) {
        if self.unreachable_ms.is_none() {
            return;
        }
        self.reached(now_ms);
    }

    fn reached(&mut self, now_ms: u64) {
        self.errors.remove(&ClientErrorKind::AllBrokersDown);
        self.errors.remove(&ClientErrorKind::Login);
        let Some(since_ms) = self.unreachable_ms.take() else {
            return;
        };
        self.errors.remove(&ClientErrorKind::Connection);
        if std::mem::take(&mut self.outage_logged) {
            let seconds = now_ms.saturating_sub(since_ms) / 1_000;
            tracing::info!(seconds, "a Kafka broker answers again");
        }
    }

    /// Reads the state of the broker connections from the client's JSON statistics.
    pub(super) fn statistics(&mut self, json: &str, now_ms: u64) {
        // Matches broker states only: librdkafka writes the group's state in lower case.
        if json.contains(r#""state":"UP""#) {
            self.reached(now_ms);
        } else {
            self.unreachable_ms.get_or_insert(now_ms);
        }
    }

    /// The group has sent an assignment, which may be empty.
    pub(super) fn assigned(&mut self, now_ms: u64) {
        self.broker_answered(now_ms);
        self.joined();
        self.errors.remove(&ClientErrorKind::Topic);
    }

    fn joined(&mut self) {
        self.group = Group::Member;
        self.errors.remove(&ClientErrorKind::Group);
    }

    /// The member has lost all its partitions without a revoke.
    pub(super) fn lost(&mut self, now_ms: u64) {
        if self.group == Group::Member {
            self.group = Group::Joining {
                since_ms: now_ms,
                lost: true,
            };
            self.member_ms = None;
        }
    }

    /// The group has accepted a commit.
    pub(super) fn committed(&mut self, now_ms: u64) {
        self.broker_answered(now_ms);
        self.errors.remove(&ClientErrorKind::Group);
    }

    /// Whether a membership query to the client is due: under KIP-848, no event reports an empty assignment.
    pub(super) fn membership_query_due(&mut self, now_ms: u64) -> bool {
        let joining = matches!(self.group, Group::Joining { .. });
        if !joining || now_ms.saturating_sub(self.queried_ms) < QUERY_INTERVAL_MS {
            return false;
        }
        self.queried_ms = now_ms;
        true
    }

    /// Handles the answer to a membership query: a member without partitions also counts as joined.
    pub(super) fn membership(&mut self, membership: Membership, now_ms: u64) {
        let is_member = membership.generation.is_some_and(|epoch| epoch > 0);
        if !membership.assigned_by_broker || !is_member {
            self.member_ms = None;
            return;
        }
        let since_ms = *self.member_ms.get_or_insert(now_ms);
        if now_ms.saturating_sub(since_ms) >= EMPTY_ASSIGNMENT_DELAY_MS {
            self.broker_answered(now_ms);
            self.joined();
        }
    }

    /// Removes expired errors.
    pub(super) fn forget_old(&mut self, now_ms: u64) {
        let unreachable = self.unreachable_ms.is_some();
        let joining = matches!(self.group, Group::Joining { .. });
        let connection = self.errors.get(&ClientErrorKind::Connection);
        let connection_ms = connection.map_or(0, |trouble| trouble.last_ms);
        self.errors.retain(|kind, trouble| {
            let quiet_ms = now_ms.saturating_sub(trouble.last_ms);
            match kind {
                // The broker that rejected the login has become unreachable: the connection error is the cause now.
                ClientErrorKind::Login if trouble.last_ms + ERROR_EXPIRY_MS < connection_ms => {
                    false
                }
                ClientErrorKind::AllBrokersDown
                | ClientErrorKind::Connection
                | ClientErrorKind::Login
                    if unreachable =>
                {
                    true
                }
                ClientErrorKind::Group if joining => true,
                ClientErrorKind::Topic => quiet_ms < TOPIC_ERROR_EXPIRY_MS,
                _ => quiet_ms < ERROR_EXPIRY_MS,
            }
        });
    }

    /// Problems between the client and its cluster.
    pub(super) fn problems(&self, now_ms: u64, clock: WallClock) -> Vec<ServiceProblem> {
        use ClientErrorKind as Kind;
        let mut problems = Vec::new();
        let unreachable = self.unreachable(now_ms);
        if let Some(trouble) = &unreachable {
            let what = "no Kafka broker answers".to_owned();
            problems.push(trouble.problem(ProblemKind::KafkaUnreachable, what, clock));
        }
        for (kind, trouble) in &self.errors {
            let lasts = trouble.last_ms - trouble.since_ms >= REPORT_DELAY_MS;
            let (kind, what) = match kind {
                Kind::AllBrokersDown => continue,
                Kind::Connection if unreachable.is_some() || !lasts => continue,
                Kind::Connection => (ProblemKind::BrokerUnreachable, "a broker does not answer"),
                Kind::Login => (
                    ProblemKind::KafkaLogin,
                    "the brokers reject the client's login",
                ),
                Kind::Group => continue,
                Kind::Topic => (ProblemKind::Topic, "a subscribed topic cannot be read"),
                Kind::Other => (ProblemKind::Client, "the Kafka client reports an error"),
            };
            problems.push(trouble.problem(kind, what.to_owned(), clock));
        }
        problems.extend(self.group_problem(now_ms, clock));
        problems
    }

    /// An outage of all brokers, with the last error as its cause.
    fn unreachable(&self, now_ms: u64) -> Option<Trouble> {
        let since_ms = self.unreachable_ms?;
        if now_ms.saturating_sub(since_ms) < REPORT_DELAY_MS {
            return None;
        }
        let causes = [
            ClientErrorKind::Login,
            ClientErrorKind::Connection,
            ClientErrorKind::AllBrokersDown,
        ];
        let known = causes.iter().find_map(|kind| self.errors.get(kind));
        let remedy = "check that the brokers run and are reachable over the network";
        let known = known.cloned();
        let trouble =
            known.unwrap_or_else(|| Trouble::new("no broker connection is open", remedy, now_ms));
        Some(Trouble {
            since_ms,
            ..trouble
        })
    }

    fn group_problem(&self, now_ms: u64, clock: WallClock) -> Option<ServiceProblem> {
        let error = self.errors.get(&ClientErrorKind::Group);
        let group = &self.group_id;
        let (since_ms, what) = match self.group {
            Group::Idle => return None,
            Group::Member => (
                error?.since_ms,
                format!("group {group} rejects requests of this member"),
            ),
            Group::Joining { since_ms, lost } => {
                let delay_ms = match (error, lost) {
                    (Some(_), _) => 0,
                    (None, true) => REPORT_DELAY_MS,
                    (None, false) => JOIN_REPORT_DELAY_MS,
                };
                if now_ms.saturating_sub(since_ms) < delay_ms {
                    return None;
                }
                let what = match lost {
                    true => format!("group {group} has revoked every partition"),
                    false => format!("group {group} is not joined yet"),
                };
                (since_ms, what)
            }
        };
        let waiting = || {
            Trouble::new(
                "the member waits for its coordinator and for the rebalance to complete",
                "a rebalance waits for every member, at most max.poll.interval.ms, and for a member that is gone, such as this one \
                 before an outage, at most session.timeout.ms: check the brokers and the other members. A member whose topics do not exist joins no group until one of them does",
                since_ms,
            )
        };
        let trouble = error.cloned().unwrap_or_else(waiting);
        let trouble = Trouble {
            since_ms,
            ..trouble
        };
        Some(trouble.problem(ProblemKind::Group, what, clock))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ClientErrorKind as Kind;

    const CLOCK: WallClock = WallClock { epoch_ms: 0 };

    fn joined() -> ClientState {
        let mut state = ClientState::new("g".into());
        state.subscribed(true, 0);
        state.assigned(0);
        state
    }

    fn kinds(state: &ClientState, now_ms: u64) -> Vec<ProblemKind> {
        let problems = state.problems(now_ms, CLOCK);
        problems.iter().map(|problem| problem.kind).collect()
    }

    #[test]
    fn an_unreachable_cluster_is_one_problem_with_its_cause_until_a_broker_answers() {
        let answers: [fn(&mut ClientState); 4] = [
            |state| state.broker_answered(70_000),
            |state| state.committed(70_000),
            |state| state.assigned(70_000),
            |state| state.statistics(r#"{"brokers":{"b":{"state":"UP"}},"cgrp":{}}"#, 70_000),
        ];
        for answer in answers {
            let mut state = joined();
            state.error(Kind::Connection, "b: Connection refused", "check", 1_000);
            state.error(Kind::AllBrokersDown, "1/1 brokers are down", "check", 1_000);
            assert_eq!(kinds(&state, 1_000), [], "it may be short");
            state.error(Kind::Connection, "b: Connection refused", "check", 31_000);
            state.forget_old(60_000);
            let problems = state.problems(60_000, CLOCK);
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert_eq!(problems[0].kind, ProblemKind::KafkaUnreachable);
            assert_eq!((problems[0].since_ms, problems[0].count), (1_000, 2));
            assert_eq!(problems[0].cause, "b: Connection refused");
            assert_eq!(state.unreachable_ms(), Some(1_000));
            answer(&mut state);
            assert_eq!(
                (kinds(&state, 70_000), state.unreachable_ms()),
                (vec![], None)
            );
        }
    }

    #[test]
    fn a_rejected_login_is_not_the_cause_once_no_broker_is_reachable() {
        let mut state = joined();
        state.error(Kind::Login, "b: wrong password", "correct it", 1_000);
        state.error(Kind::AllBrokersDown, "1/1 brokers are down", "check", 1_000);
        let cause = |state: &ClientState, now_ms| state.problems(now_ms, CLOCK)[0].cause.clone();
        for now_ms in [31_000, 61_000, 91_000] {
            state.error(Kind::Connection, "b: refused", "check", now_ms);
            state.forget_old(now_ms);
        }
        assert_eq!(cause(&state, 91_000), "b: refused");
        state.error(Kind::Login, "b: wrong password", "correct it", 95_000);
        state.forget_old(95_000);
        assert_eq!(cause(&state, 95_000), "b: wrong password");
    }

    #[test]
    fn statistics_report_a_cluster_that_never_answered() {
        let mut state = ClientState::new("g".into());
        state.subscribed(true, 0);
        let json = r#"{"brokers":{"b":{"state":"CONNECT"}},"cgrp":{"state": "up"}}"#;
        state.statistics(json, 10_000);
        state.statistics(json, 20_000);
        assert_eq!(state.unreachable_ms(), Some(10_000));
        let both = [ProblemKind::KafkaUnreachable, ProblemKind::Group];
        assert_eq!(kinds(&state, 20_000), both);
    }

    #[test]
    fn an_error_of_one_broker_is_reported_while_it_repeats() {
        let mut state = joined();
        state.error(Kind::Connection, "b: Disconnected", "check", 0);
        assert_eq!(kinds(&state, 10_000), [], "an idle connection was closed");
        state.error(Kind::Connection, "b: Connection refused", "check", 30_000);
        assert_eq!(kinds(&state, 30_000), [ProblemKind::BrokerUnreachable]);
        state.forget_old(104_000);
        assert_eq!(kinds(&state, 104_000).len(), 1);
        state.forget_old(105_000);
        assert_eq!(kinds(&state, 105_000), []);
    }

    #[test]
    fn a_lost_group_is_reported_with_its_cause_until_an_assignment_arrives() {
        let mut state = joined();
        assert_eq!(kinds(&state, 1_000_000), []);
        state.lost(10_000);
        assert_eq!((kinds(&state, 12_000), state.is_member()), (vec![], false));
        assert_eq!(kinds(&state, 13_000), [ProblemKind::Group]);
        state.error(
            Kind::Group,
            "Group authorization failed",
            "grant READ",
            14_000,
        );
        state.forget_old(500_000);
        let problems = state.problems(500_000, CLOCK);
        assert_eq!(problems[0].what, "group g has revoked every partition");
        assert_eq!(problems[0].cause, "Group authorization failed");
        assert_eq!(problems[0].since_ms, 10_000);
        state.assigned(500_000);
        assert!(state.is_member() && kinds(&state, 500_000).is_empty());
    }

    #[test]
    fn a_slow_first_join_is_reported_late_and_a_rejected_one_immediately() {
        let mut state = ClientState::new("g".into());
        state.subscribed(true, 0);
        assert_eq!(kinds(&state, 9_999), []);
        assert_eq!(kinds(&state, 10_000), [ProblemKind::Group]);
        let mut state = ClientState::new("g".into());
        state.subscribed(true, 0);
        state.error(
            Kind::Group,
            "Inconsistent group protocol",
            "another group_id",
            1,
        );
        assert_eq!(kinds(&state, 1), [ProblemKind::Group]);
    }

    #[test]
    fn a_member_without_partitions_counts_as_joined_where_the_broker_assigns() {
        let epoch = |generation, assigned_by_broker| Membership {
            generation,
            is_static: false,
            assigned_by_broker,
        };
        let ask = |answers: &[Membership]| {
            let mut state = ClientState::new("g".into());
            state.subscribed(true, 0);
            for (turn, answer) in (1..).zip(answers) {
                assert!(state.membership_query_due(turn * 1_000));
                assert!(!state.membership_query_due(turn * 1_000 + 1));
                state.membership(*answer, turn * 1_000);
            }
            state.is_member()
        };
        assert!(ask(&[epoch(Some(3), true); 3]));
        assert!(
            !ask(&[epoch(Some(3), true); 2]),
            "partitions may still come"
        );
        assert!(!ask(&[epoch(Some(0), true); 5]));
        assert!(!ask(&[epoch(None, true); 5]));
        assert!(!ask(&[epoch(Some(3), false); 5]), "an event reports it");
    }

    #[test]
    fn rejections_are_logged_once_per_minute_whatever_their_number() {
        let mut state = joined();
        let mut lines = 0;
        for second in 0..=120_u64 {
            let before = state.log.clone();
            state.error(Kind::Group, "no", "yes", second * 1_000);
            state.assigned(second * 1_000);
            let limit = |log: &BTreeMap<Kind, LogLimit>| format!("{:?}", log.get(&Kind::Group));
            let counted = format!("{:?}", state.log.get(&Kind::Group));
            lines += u64::from(counted.contains("unlogged: 0") && limit(&before) != counted);
        }
        assert_eq!(lines, 3);
    }
}
