//! Leaving the group, in whatever state the client is.
//!
//! librdkafka 2.12.1 sends a LeaveGroup only when it has partitions to unassign: not while a join is under way that has
//! brought none yet, and not from a member whose share is empty (`rd_kafka_cgrp_terminate0`). The group then waits for the
//! member until its session ends, and every rebalance meanwhile waits as long. An unsubscribe leaves in those cases: it is
//! put off until the join is over and is done then (`rd_kafka_cgrp_apply_next_subscribe`). The close must not overtake one that
//! is put off: it would take up the answer that stands ready for the close, and end by asking for a second one.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::Consumer;

use super::super::callbacks::{CallbackEvent, Callbacks};
use super::find::Finder;
use super::{Connection, KafkaSource};

/// How long a client that may have asked for its first membership is given to hear of it. It takes one round trip; brokers
/// before 2.2 answer only when the join is over.
const FIRST_ANSWER: Duration = Duration::from_secs(5);
/// Kafka's own `session.timeout.ms`.
const SESSION: Duration = Duration::from_secs(45);
/// Time between two looks at the client while it leaves.
const PAUSE: Duration = Duration::from_millis(20);

/// What leaving the group depends on.
pub(super) struct Leaving {
    /// The client has asked to be a member.
    pub(super) subscribed: bool,
    /// It was a member when it unsubscribed, then: it leaves by that, and hears of no first membership.
    pub(super) unsubscribed: Option<Instant>,
    /// How long a member that is not heard of counts as one.
    session: Duration,
    /// The broker assigns (KIP-848): the client makes its own id, and is a member from its first epoch on.
    pub(super) assigned_by_broker: bool,
    /// A static member keeps its partitions while it restarts: it does not leave (KIP-345).
    is_static: bool,
}

impl Leaving {
    pub(super) fn of(config: &ClientConfig) -> Self {
        Self {
            subscribed: false,
            unsubscribed: None,
            session: config
                .get("session.timeout.ms")
                .and_then(|text| text.parse().ok())
                .map_or(SESSION, Duration::from_millis),
            assigned_by_broker: config.get("group.protocol") == Some("consumer"),
            is_static: config
                .get("group.instance.id")
                .is_some_and(|id| !id.is_empty()),
        }
    }
}

impl KafkaSource {
    /// Leaves the group and ends the client. `false`: the group goes on counting on this member until its session ends, as
    /// far as the client knows.
    pub(super) fn leave(&mut self, deadline: Instant) -> bool {
        let was_member = self.finish_join(deadline) || self.is_member();
        let Some(mut connection) = self.connection.take() else {
            return true;
        };
        let consumer = connection.consumer();
        consumer.context().set_closing();
        let closing = consumer.close_queue();
        // A rebalance that nobody has answered would hold the close.
        let seen = consumer.context().take();
        let unseen = |seen: &CallbackEvent| {
            matches!(
                seen,
                CallbackEvent::Assign(_) | CallbackEvent::Revoke { .. }
            )
        };
        if self.rebalance.is_owed() || seen.iter().any(unseen) {
            consumer.context().give_up(consumer);
            self.rebalance.answered();
        }
        match closing {
            // After a fatal error there is no group to leave.
            Err(error) => tracing::warn!(%error, "the Kafka client ends without leaving its group"),
            Ok(()) => wait_until_closed(&connection, deadline),
        }
        let is_fatal = consumer.client().fatal_error().is_some();
        let has_ended = consumer.closed() || is_fatal;
        // A client ends whether or not the coordinator has heard that it leaves. A static member tells it nothing (KIP-345).
        let has_left = has_ended
            && (is_fatal
                || self.leaving.is_static
                || !was_member
                || !consumer.context().is_leave_refused());
        if has_ended {
            connection.set_left_group();
        }
        self.main_queue_records.clear();
        self.pending.clear();
        self.finder = Finder::default();
        self.late.clear();
        self.answer_due = None;
        has_left
    }

    /// Lets a join come to its end and leaves, if the close would not: afterwards the client is no member, or it has
    /// partitions already, with which the close leaves. Gives whether it was a member at any time: the client forgets that
    /// once it has asked to leave, whatever the coordinator answers.
    fn finish_join(&mut self, deadline: Instant) -> bool {
        // One that has unsubscribed was one, and knows it no more; the group has forgotten it when its session is over.
        let unsubscribed = self.leaving.unsubscribed;
        let counts = unsubscribed.is_some_and(|since| since.elapsed() < self.leaving.session);
        let mut was_member = self.is_member() || counts;
        self.serve_events(Duration::ZERO);
        was_member |= self.is_member();
        if !self.leaving.subscribed || self.leaving.is_static || self.leaves_by_closing() {
            return was_member;
        }
        let first_answer = deadline.min(Instant::now() + FIRST_ANSWER);
        while !(self.is_member() || unsubscribed.is_some())
            && self.has_met_a_broker()
            && Instant::now() < first_answer
        {
            self.serve_events(PAUSE);
        }
        was_member |= self.is_member();
        if self.leaves_by_closing() {
            return was_member;
        }
        if let Some(connection) = &self.connection {
            connection.consumer().unsubscribe();
        }
        // What the join has brought is taken unread: only then does the client do the unsubscribe.
        while self.is_member() && !self.has_failed() {
            was_member = true;
            self.take_unread();
            if Instant::now() >= deadline {
                tracing::warn!(
                    "a join was not over in time: the group waits for this member until its session ends"
                );
                return true;
            }
            self.serve_events(PAUSE);
        }
        was_member
    }

    /// Accepts an assignment without reading any of its partitions. They are given back when the unsubscribe takes hold.
    fn take_unread(&mut self) {
        if self.rebalance.owes_assign() {
            self.rebalance.defer(|_| true);
            self.answer_empty();
        }
    }

    fn has_failed(&self) -> bool {
        let fatal = |connection: &Connection<Callbacks>| {
            connection.consumer().client().fatal_error().is_some()
        };
        self.connection.as_ref().is_none_or(fatal)
    }

    /// Whether the close sends a LeaveGroup: there are partitions to unassign, or a rebalance waits for its answer.
    fn leaves_by_closing(&self) -> bool {
        self.rebalance.owns_any() || self.rebalance.is_owed() || self.has_failed()
    }

    /// A client that has never reached the cluster has not asked it for anything.
    fn has_met_a_broker(&self) -> bool {
        let cluster = self.connection.as_ref().and_then(Connection::cluster_id);
        cluster.is_some()
    }

    pub(super) fn is_member(&self) -> bool {
        let Some(connection) = &self.connection else {
            return false;
        };
        let (id, generation) = connection.membership();
        match self.leaving.assigned_by_broker {
            true => generation > 0,
            false => !id.is_empty(),
        }
    }
}

fn wait_until_closed(connection: &Connection<Callbacks>, deadline: Instant) {
    let consumer = connection.consumer();
    while !consumer.closed() && Instant::now() < deadline {
        drop(consumer.poll(PAUSE));
    }
    // The client ends on a thread of its own. What it said last, such as how the coordinator answered, may still be queued.
    while consumer.closed() && connection.events_waiting() > 0 && Instant::now() < deadline {
        drop(consumer.poll(Duration::ZERO));
    }
}
