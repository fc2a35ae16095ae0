//! How a client stands with the cluster and its group: its last error of each kind, since when and how often, until a
//! success clears it.
//!
//! ```text
//!  no broker connected  ◄─ AllBrokersDown, statistics without one │ cleared by a record, an assignment, a commit, statistics
//!  connection           ◄─ errors of one broker                   │ cleared when it is not repeated
//!  login, topic, other  ◄─ errors                                 │ cleared when not repeated; topic also by an assignment
//!  group                ◄─ errors, partitions lost                │ cleared by an assignment, a commit, a membership
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::admin::{ProblemKind, ServiceProblem};
use crate::flow::report::WallClock;
use crate::source::{ClientErrorKind, Membership};
use crate::trouble::{LogLimit, Trouble};

/// An error that is not repeated for so long is over: librdkafka repeats those of a broker every 30 s.
const QUIET_MS: u64 = 75_000;
/// The same for a topic: librdkafka tells of it once, and the watch of topics has had a look by then.
const TOPIC_QUIET_MS: u64 = 300_000;
/// What is over within this is not shown: brokers drop idle connections, and groups rebalance.
const SHOWN_AFTER_MS: u64 = 3_000;
/// A first join takes longer than that when something is in the way.
const JOIN_SHOWN_AFTER_MS: u64 = 10_000;
/// How long a member that the broker gives nothing to (KIP-848) is awaited to get something.
const WITHOUT_PARTITIONS_MS: u64 = 2_000;
/// Between two questions to the client about its membership, while that is not known.
const ASK_INTERVAL_MS: u64 = 500;

/// Where the client stands with its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    /// It subscribes to nothing.
    Idle,
    /// It is to become a member, for the first time or because it was `lost`.
    Joining { since_ms: u64, lost: bool },
    /// It is one, with or without partitions.
    Member,
}

/// State of one client, on the flow's clock.
pub(super) struct ClientState {
    group_id: Arc<str>,
    group: Group,
    errors: BTreeMap<ClientErrorKind, Trouble>,
    log: BTreeMap<ClientErrorKind, LogLimit>,
    /// Since when no broker is connected.
    unreachable_ms: Option<u64>,
    /// Its end is told in the log.
    told_unreachable: bool,
    asked_ms: u64,
    /// Since when the client is a member by its own account.
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
            told_unreachable: false,
            asked_ms: 0,
            member_ms: None,
        }
    }

    /// Whether it is a member of the group.
    pub(super) fn is_member(&self) -> bool {
        self.group == Group::Member
    }

    /// Since when no broker is connected.
    pub(super) fn unreachable_ms(&self) -> Option<u64> {
        self.unreachable_ms
    }

    /// Another client takes its place.
    pub(super) fn renew(&mut self, now_ms: u64) {
        self.errors.clear();
        self.unreachable_ms = None;
        self.group = Group::Joining {
            since_ms: now_ms,
            lost: false,
        };
        self.member_ms = None;
    }

    /// It subscribes to something, or to nothing any more.
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

    /// The client reports an error, which is logged at first and once a minute.
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
        // That no broker is left says nothing beside why the last one is gone, or does not let us in.
        let is_told = kind == ClientErrorKind::AllBrokersDown
            && [ClientErrorKind::Connection, ClientErrorKind::Login]
                .iter()
                .any(|kind| self.errors.contains_key(kind));
        if is_told {
            self.told_unreachable = true;
            return;
        }
        if let Some(times) = self.log.entry(kind).or_default().count(now_ms) {
            self.told_unreachable |= self.unreachable_ms.is_some();
            tracing::warn!(
                group = &*self.group_id,
                reason,
                times,
                remedy,
                "kafka client error; it goes on trying"
            );
        }
    }

    /// A broker has answered: a record, an assignment, a commit.
    pub(super) fn heard(&mut self, now_ms: u64) {
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
        if std::mem::take(&mut self.told_unreachable) {
            let seconds = now_ms.saturating_sub(since_ms) / 1_000;
            tracing::info!(seconds, "a Kafka broker answers again");
        }
    }

    /// The client's statistics, as JSON: among other things the state of each broker's connection.
    pub(super) fn statistics(&mut self, json: &str, now_ms: u64) {
        // As librdkafka writes it for a broker; the group's state stands in small letters.
        if json.contains(r#""state":"UP""#) {
            self.reached(now_ms);
        } else {
            self.unreachable_ms.get_or_insert(now_ms);
        }
    }

    /// The group has given the client an assignment, perhaps an empty one.
    pub(super) fn assigned(&mut self, now_ms: u64) {
        self.heard(now_ms);
        self.joined();
        self.errors.remove(&ClientErrorKind::Topic);
    }

    fn joined(&mut self) {
        self.group = Group::Member;
        self.errors.remove(&ClientErrorKind::Group);
    }

    /// The group has taken everything away without notice.
    pub(super) fn lost(&mut self, now_ms: u64) {
        if self.group == Group::Member {
            self.group = Group::Joining {
                since_ms: now_ms,
                lost: true,
            };
            self.member_ms = None;
        }
    }

    /// The group has taken a commit.
    pub(super) fn committed(&mut self, now_ms: u64) {
        self.heard(now_ms);
        self.errors.remove(&ClientErrorKind::Group);
    }

    /// Whether the client is to be asked for its membership: no event tells of an empty one under KIP-848.
    pub(super) fn asks_for_membership(&mut self, now_ms: u64) -> bool {
        let joining = matches!(self.group, Group::Joining { .. });
        if !joining || now_ms.saturating_sub(self.asked_ms) < ASK_INTERVAL_MS {
            return false;
        }
        self.asked_ms = now_ms;
        true
    }

    /// The answer: a member without partitions has joined as well.
    pub(super) fn membership(&mut self, membership: Membership, now_ms: u64) {
        let is_member = membership.generation.is_some_and(|epoch| epoch > 0);
        if !membership.assigned_by_broker || !is_member {
            self.member_ms = None;
            return;
        }
        let since_ms = *self.member_ms.get_or_insert(now_ms);
        if now_ms.saturating_sub(since_ms) >= WITHOUT_PARTITIONS_MS {
            self.heard(now_ms);
            self.joined();
        }
    }

    /// Forgets errors that are over.
    pub(super) fn forget_old(&mut self, now_ms: u64) {
        let unreachable = self.unreachable_ms.is_some();
        let joining = matches!(self.group, Group::Joining { .. });
        let connection = self.errors.get(&ClientErrorKind::Connection);
        let connection_ms = connection.map_or(0, |trouble| trouble.last_ms);
        self.errors.retain(|kind, trouble| {
            let quiet_ms = now_ms.saturating_sub(trouble.last_ms);
            match kind {
                // Whoever refused the login is not reached any more.
                ClientErrorKind::Login if trouble.last_ms + QUIET_MS < connection_ms => false,
                ClientErrorKind::AllBrokersDown
                | ClientErrorKind::Connection
                | ClientErrorKind::Login
                    if unreachable =>
                {
                    true
                }
                ClientErrorKind::Group if joining => true,
                ClientErrorKind::Topic => quiet_ms < TOPIC_QUIET_MS,
                _ => quiet_ms < QUIET_MS,
            }
        });
    }

    /// What stands between the client and its cluster.
    pub(super) fn problems(&self, now_ms: u64, clock: WallClock) -> Vec<ServiceProblem> {
        use ClientErrorKind as Kind;
        let mut problems = Vec::new();
        let unreachable = self.unreachable(now_ms);
        if let Some(trouble) = &unreachable {
            let what = "no Kafka broker answers".to_owned();
            problems.push(trouble.problem(ProblemKind::KafkaUnreachable, what, clock));
        }
        for (kind, trouble) in &self.errors {
            let stands = trouble.last_ms - trouble.since_ms >= SHOWN_AFTER_MS;
            let (kind, what) = match kind {
                Kind::AllBrokersDown => continue,
                Kind::Connection if unreachable.is_some() || !stands => continue,
                Kind::Connection => (ProblemKind::BrokerUnreachable, "a broker does not answer"),
                Kind::Login => (
                    ProblemKind::KafkaLogin,
                    "the brokers do not let the client in",
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

    /// That no broker is connected, in the words of the last error that says why.
    fn unreachable(&self, now_ms: u64) -> Option<Trouble> {
        let since_ms = self.unreachable_ms?;
        if now_ms.saturating_sub(since_ms) < SHOWN_AFTER_MS {
            return None;
        }
        let told = [
            ClientErrorKind::Login,
            ClientErrorKind::Connection,
            ClientErrorKind::AllBrokersDown,
        ];
        let known = told.iter().find_map(|kind| self.errors.get(kind));
        let remedy = "see that the brokers run and that the network reaches them";
        let known = known.cloned();
        let trouble = known.unwrap_or_else(|| Trouble::new("no connection is up", remedy, now_ms));
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
                format!("group {group} is about to refuse this member"),
            ),
            Group::Joining { since_ms, lost } => {
                let shown_after_ms = match (error, lost) {
                    (Some(_), _) => 0,
                    (None, true) => SHOWN_AFTER_MS,
                    (None, false) => JOIN_SHOWN_AFTER_MS,
                };
                if now_ms.saturating_sub(since_ms) < shown_after_ms {
                    return None;
                }
                let what = match lost {
                    true => format!("group {group} has taken every partition away"),
                    false => format!("group {group} is not joined yet"),
                };
                (since_ms, what)
            }
        };
        let waiting = || {
            Trouble::new(
                "the member waits for its coordinator and for the group to agree",
                "a rebalance waits for every member, for max.poll.interval.ms at most, and for one that is gone, such as this one \
                 before an outage, until its session.timeout.ms: look after the brokers and the other members. A member none of whose topics exists is in no group until one of them does",
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
    fn a_cluster_that_is_away_is_one_problem_with_the_cause_until_something_is_heard() {
        let heard: [fn(&mut ClientState); 4] = [
            |state| state.heard(70_000),
            |state| state.committed(70_000),
            |state| state.assigned(70_000),
            |state| state.statistics(r#"{"brokers":{"b":{"state":"UP"}},"cgrp":{}}"#, 70_000),
        ];
        for over in heard {
            let mut state = joined();
            state.error(Kind::Connection, "b: Connection refused", "look", 1_000);
            state.error(Kind::AllBrokersDown, "1/1 brokers are down", "look", 1_000);
            assert_eq!(kinds(&state, 1_000), [], "it may be a moment");
            state.error(Kind::Connection, "b: Connection refused", "look", 31_000);
            state.forget_old(60_000);
            let problems = state.problems(60_000, CLOCK);
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert_eq!(problems[0].kind, ProblemKind::KafkaUnreachable);
            assert_eq!((problems[0].since_ms, problems[0].count), (1_000, 2));
            assert_eq!(problems[0].cause, "b: Connection refused");
            assert_eq!(state.unreachable_ms(), Some(1_000));
            over(&mut state);
            assert_eq!(
                (kinds(&state, 70_000), state.unreachable_ms()),
                (vec![], None)
            );
        }
    }

    #[test]
    fn a_refused_login_is_no_reason_any_more_once_nothing_is_connected_to() {
        let mut state = joined();
        state.error(Kind::Login, "b: wrong password", "correct it", 1_000);
        state.error(Kind::AllBrokersDown, "1/1 brokers are down", "look", 1_000);
        let cause = |state: &ClientState, now_ms| state.problems(now_ms, CLOCK)[0].cause.clone();
        for now_ms in [31_000, 61_000, 91_000] {
            state.error(Kind::Connection, "b: refused", "look", now_ms);
            state.forget_old(now_ms);
        }
        assert_eq!(cause(&state, 91_000), "b: refused");
        state.error(Kind::Login, "b: wrong password", "correct it", 95_000);
        state.forget_old(95_000);
        assert_eq!(cause(&state, 95_000), "b: wrong password");
    }

    #[test]
    fn statistics_tell_of_a_cluster_that_never_answered() {
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
    fn one_broker_among_others_is_told_while_it_repeats() {
        let mut state = joined();
        state.error(Kind::Connection, "b: Disconnected", "look", 0);
        assert_eq!(kinds(&state, 10_000), [], "an idle connection was closed");
        state.error(Kind::Connection, "b: Connection refused", "look", 30_000);
        assert_eq!(kinds(&state, 30_000), [ProblemKind::BrokerUnreachable]);
        state.forget_old(104_000);
        assert_eq!(kinds(&state, 104_000).len(), 1);
        state.forget_old(105_000);
        assert_eq!(kinds(&state, 105_000), []);
    }

    #[test]
    fn a_lost_group_stands_with_its_cause_until_there_is_an_assignment() {
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
        assert_eq!(problems[0].what, "group g has taken every partition away");
        assert_eq!(problems[0].cause, "Group authorization failed");
        assert_eq!(problems[0].since_ms, 10_000);
        state.assigned(500_000);
        assert!(state.is_member() && kinds(&state, 500_000).is_empty());
    }

    #[test]
    fn a_first_join_that_takes_long_says_so_and_one_that_is_refused_at_once() {
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
    fn a_member_without_partitions_has_joined_where_the_broker_assigns() {
        let epoch = |generation, assigned_by_broker| Membership {
            generation,
            is_static: false,
            assigned_by_broker,
        };
        let ask = |answers: &[Membership]| {
            let mut state = ClientState::new("g".into());
            state.subscribed(true, 0);
            for (turn, answer) in (1..).zip(answers) {
                assert!(state.asks_for_membership(turn * 1_000));
                assert!(!state.asks_for_membership(turn * 1_000 + 1));
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
        assert!(!ask(&[epoch(Some(3), false); 5]), "an event will tell");
    }

    #[test]
    fn refusals_are_logged_once_a_minute_whatever_their_number() {
        let mut state = joined();
        let mut lines = 0;
        for second in 0..=120_u64 {
            let before = state.log.clone();
            state.error(Kind::Group, "no", "yes", second * 1_000);
            state.assigned(second * 1_000);
            let limit = |log: &BTreeMap<Kind, LogLimit>| format!("{:?}", log.get(&Kind::Group));
            let counted = format!("{:?}", state.log.get(&Kind::Group));
            lines += u64::from(counted.contains("untold: 0") && limit(&before) != counted);
        }
        assert_eq!(lines, 3);
    }
}
