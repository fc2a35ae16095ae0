//! Partitions that librdkafka must not fetch: those paused by the pump, and those halted at damaged data.

use rdkafka::consumer::Consumer;
use sluicegate_engine::source::AssignmentId;

use super::{KafkaSource, list_of};

impl KafkaSource {
    /// Pauses or resumes the fetching of a partition, if that has changed.
    pub(super) fn update_client_pause(&mut self, slot: AssignmentId) {
        if let Some(suspended) = self
            .gap_detector
            .get(slot)
            .map(|admitted| admitted.is_fetch_suspended())
        {
            self.set_client_paused(slot, suspended);
        }
    }

    pub(super) fn set_client_paused(&mut self, slot: AssignmentId, paused: bool) {
        let admitted = self.gap_detector.get(slot);
        let Some(at) = admitted
            .filter(|admitted| admitted.client_paused != paused)
            .map(|admitted| admitted.at.clone())
        else {
            return;
        };
        let Ok(connection) = self.connection() else {
            return;
        };
        // Rule 5: the list is dropped here, long before the client.
        let list = list_of(std::slice::from_ref(&at));
        let done = match paused {
            true => connection.consumer().pause(&list),
            false => connection.consumer().resume(&list),
        };
        if let Err(error) = done {
            tracing::warn!(%at, %error, paused, "cannot pause or resume a partition");
        }
        if let Some(admitted) = self.gap_detector.get_mut(slot) {
            admitted.client_paused = paused;
        }
    }
}
