//! Partitions that librdkafka is not to fetch: those that the pump has paused, and those that stand before damaged data.

use rdkafka::consumer::Consumer;

use super::super::AssignmentId;
use super::{KafkaSource, list_of};

impl KafkaSource {
    /// Tells librdkafka whether to fetch a partition, when that has changed.
    pub(super) fn rest_or_fetch(&mut self, slot: AssignmentId) {
        if let Some(rests) = self.admission.get(slot).map(|admitted| admitted.rests()) {
            self.tell_paused(slot, rests);
        }
    }

    pub(super) fn tell_paused(&mut self, slot: AssignmentId, paused: bool) {
        let admitted = self.admission.get(slot);
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
            tracing::warn!(%at, %error, paused, "could not pause or resume");
        }
        if let Some(admitted) = self.admission.get_mut(slot) {
            admitted.client_paused = paused;
        }
    }
}
