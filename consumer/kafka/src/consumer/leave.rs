//! Leaving the group, in whatever state the client is.
//!
//! librdkafka 2.12.1 sends a LeaveGroup only if it has partitions to unassign: not during a join that has assigned none
//! yet, and not from a member whose assignment is empty (`rd_kafka_cgrp_terminate0`). The group then waits for the
//! member until its session times out, and so does every rebalance until then. In those cases an unsubscribe leaves the
//! group: it is deferred until the join has ended and is applied then (`rd_kafka_cgrp_apply_next_subscribe`). The close
//! must not overtake a deferred unsubscribe: the unsubscribe would consume the answer that is meant for the close, and
//! another one would be needed.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::Consumer;

use super::find::Finder;
use super::{Connection, KafkaSource};
use crate::consumer::callbacks::{CallbackEvent, Callbacks};

/// How long to wait for the first membership of a client that may have requested it. It takes one round trip; brokers
/// before 2.2 respond only at the end of the join.
const FIRST_MEMBERSHIP_TIMEOUT: Duration = Duration::from_secs(5);
/// Default of Kafka's `session.timeout.ms`.
const DEFAULT_SESSION_TIMEOUT: Duration = Duration::from_secs(45);
/// Poll interval while the client leaves.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// State that leaving the group depends on.
pub(super) struct Leaving {
    /// The client has subscribed, and so asked to be a member.
    pub(super) subscribed: bool,
    /// When it unsubscribed, if it was a member then: that makes it leave, and no first membership follows.
    pub(super) unsubscribed: Option<Instant>,
    /// How long a member that sends no heartbeats counts as one.
    session: Duration,
    /// The broker assigns (KIP-848): the client creates its own id, and is a member from its first epoch on.
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
                .map_or(DEFAULT_SESSION_TIMEOUT, Duration::from_millis),
            assigned_by_broker: config.get("group.protocol") == Some("consumer"),
            is_static: config
                .get("group.instance.id")
                .is_some_and(|id| !id.is_empty()),
        }
    }
}

impl KafkaSource {
    /// Leaves the group and ends the client. `false`: as far as the client knows, the group counts on this member until
    /// its session times out.
    pub(super) fn leave(&mut self, deadline: Instant) -> bool {
        let was_member = self.finish_join(deadline) || self.is_member();
        let Some(mut connection) = self.connection.take() else {
            return true;
        };
        let consumer = connection.consumer();
        consumer.context().set_closing();
        let closing = consumer.close_queue();
        // An unanswered rebalance would block the close.
        let seen = consumer.context().take();
        let unseen = |seen: &CallbackEvent| {
            matches!(
                seen,
                CallbackEvent::Assign(_) | CallbackEvent::Revoke { .. }
            )
        };
        if self.rebalance.is_pending() || seen.iter().any(unseen) {
            consumer.context().release_all(consumer);
            self.rebalance.answered();
        }
        match closing {
            // After a fatal error the client has left the group already.
            Err(error) => {
                tracing::warn!(%error, "the Kafka client closes without leaving its group")
            }
            Ok(()) => wait_until_closed(&connection, deadline),
        }
        let is_fatal = consumer.client().fatal_error().is_some();
        let has_ended = consumer.closed() || is_fatal;
        // The client ends whether or not the coordinator has confirmed the leave. A static member sends none (KIP-345).
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

    /// Waits for a join to end and unsubscribes, if the close would not leave: afterwards the client is not a member,
    /// or it owns partitions, with which the close leaves. Returns whether it was a member at any time: the client
    /// forgets that once it has requested to leave, whatever the coordinator answers.
    fn finish_join(&mut self, deadline: Instant) -> bool {
        // A client that has unsubscribed was a member, but no longer knows it; the group drops it when its session
        // times out.
        let unsubscribed = self.leaving.unsubscribed;
        let counts = unsubscribed.is_some_and(|since| since.elapsed() < self.leaving.session);
        let mut was_member = self.is_member() || counts;
        self.serve_events(Duration::ZERO);
        was_member |= self.is_member();
        if !self.leaving.subscribed || self.leaving.is_static || self.leaves_by_closing() {
            return was_member;
        }
        let first_answer = deadline.min(Instant::now() + FIRST_MEMBERSHIP_TIMEOUT);
        while !(self.is_member() || unsubscribed.is_some())
            && self.has_met_a_broker()
            && Instant::now() < first_answer
        {
            self.serve_events(POLL_INTERVAL);
        }
        was_member |= self.is_member();
        if self.leaves_by_closing() {
            return was_member;
        }
        if let Some(connection) = &self.connection {
            connection.consumer().unsubscribe();
        }
        // The assignment of the join is accepted without reading it: only then does the client apply the unsubscribe.
        while self.is_member() && !self.has_failed() {
            was_member = true;
            self.take_unread();
            if Instant::now() >= deadline {
                tracing::warn!(
                    "a join did not end in time: the group waits for this member until its session times out"
                );
                return true;
            }
            self.serve_events(POLL_INTERVAL);
        }
        was_member
    }

    /// Accepts an assignment without reading any of its partitions. They are revoked when the unsubscribe takes effect.
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
        self.rebalance.owns_any() || self.rebalance.is_pending() || self.has_failed()
    }

    /// A client that has never reached the cluster has not requested anything from it.
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
        drop(consumer.poll(POLL_INTERVAL));
    }
    // The client ends on a thread of its own. Its last events, such as the coordinator's response, may still be queued.
    while consumer.closed() && connection.events_waiting() > 0 && Instant::now() < deadline {
        drop(consumer.poll(Duration::ZERO));
    }
}
