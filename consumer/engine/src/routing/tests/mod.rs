//! The index against its oracle, and corner cases that random records seldom reach.

mod properties;
mod scenes;

use sluicegate_abi::header_block;
use sluicegate_config::spec::{Predicate, Route, Test, TopicPattern};

use super::oracle::{self, RecordView};
use super::{Router, RoutingIndex, TopicPlanId};
use crate::dispatch::HandlerIx;

/// A record that owns its bytes.
#[derive(Clone, Debug, Default)]
struct OwnedRecord {
    topic: String,
    partition: i32,
    key: Option<Vec<u8>>,
    block: Vec<u8>,
}

impl OwnedRecord {
    fn new(topic: &str, headers: &[(&str, Option<&[u8]>)]) -> Self {
        Self {
            topic: topic.into(),
            block: block(headers.iter().map(|(n, v)| (n.as_bytes(), *v))),
            ..Self::default()
        }
    }

    fn view(&self) -> RecordView<'_> {
        RecordView {
            topic: &self.topic,
            partition: self.partition,
            key: self.key.as_deref(),
            headers: &self.block,
        }
    }
}

fn block<'a>(headers: impl ExactSizeIterator<Item = (&'a [u8], Option<&'a [u8]>)>) -> Vec<u8> {
    let mut out = Vec::new();
    header_block::write(&mut out, headers);
    out
}

fn route(topic: &str, when: Predicate) -> Route {
    Route {
        topics: vec![TopicPattern::Exact(topic.into())],
        when,
    }
}

fn header(name: &str, test: Test) -> Predicate {
    Predicate::Header {
        name: name.into(),
        test,
    }
}

fn numbered(routes: &[Route]) -> Vec<(HandlerIx, Route)> {
    (0..).map(HandlerIx).zip(routes.iter().cloned()).collect()
}

fn router(routes: &[Route]) -> Router {
    Router::new(RoutingIndex::compile(1, numbered(routes)).expect("the routes compile"))
}

fn ask(router: &mut Router, plan: TopicPlanId, record: &OwnedRecord) -> Vec<u32> {
    router
        .route(plan, record.partition, record.key.as_deref(), || {
            &record.block
        })
        .iter()
        .map(|handler| handler.0)
        .collect()
}

fn truth(routes: &[Route], record: &OwnedRecord) -> Vec<u32> {
    (0..)
        .zip(routes)
        .filter(|(_, route)| oracle::matches(route, &record.view()))
        .map(|(ix, _)| ix)
        .collect()
}
