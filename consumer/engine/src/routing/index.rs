//! The routing index: all routes of one snapshot, compiled; immutable, shared by the pumps, replaced as a whole.
//!
//! Each distinct test of a distinct field is numbered once (an atom), so that a thousand routes on one header cost one
//! lookup of its value. A predicate becomes a tree over atoms. For each route the compiler also picks the cheapest set
//! of atoms of which one is true whenever the predicate holds (`access`); the route is posted under these, and only the
//! routes posted under a true atom are evaluated. A route that can hold with all atoms false, such as a negation, has
//! no such set and is evaluated for every record whose result is not cached.
//!
//! An index is never modified: a pump that applied routes one by one would route records of one poll by a mixture of
//! two snapshots (G9). Routes that do not compile reject the whole index, and the previous one stays active.

use std::sync::Arc;

use sluicegate_config::spec::Route;

use super::atoms::{AtomIx, AtomTable, AtomTest, Node};
use super::error::RouteError;
use super::fields::Field;
use super::topics::TopicTable;
use crate::dispatch::HandlerIx;

/// Compiled routes, which say which handlers receive a record; see [`super::Router`].
pub struct RoutingIndex {
    revision: u64,
    pub(super) routes: Vec<CompiledRoute>,
    pub(super) fields: Vec<Field>,
    /// Field of each atom.
    pub(super) field_of: Vec<u32>,
    pub(super) tests: Vec<AtomTest>,
    pub(super) topics: TopicTable,
}

/// One handler's route.
pub(super) struct CompiledRoute {
    pub(super) handler: HandlerIx,
    pub(super) when: Node,
    /// Atoms of which one is true whenever `when` holds; `None` if it can hold with all atoms false.
    pub(super) access: Option<Vec<AtomIx>>,
}

impl RoutingIndex {
    /// Compiles the routes of snapshot `revision`.
    ///
    /// # Errors
    /// [`RouteError`] with the pattern; routes of validated specs compile.
    pub fn compile(
        revision: u64,
        routes: Vec<(HandlerIx, Route)>,
    ) -> Result<Arc<Self>, RouteError> {
        Self::compile_apart_from(revision, routes, [])
    }

    /// As [`RoutingIndex::compile`], but globs and regexes match no dead-letter topic: `dead_letters` are their names,
    /// in which `{topic}` stands for any topic. A dead-lettered record must not be routed back to the handler that
    /// dead-lettered it; a handler that is to receive dead letters names their topic exactly.
    ///
    /// # Errors
    /// As there.
    pub fn compile_apart_from<'t>(
        revision: u64,
        routes: Vec<(HandlerIx, Route)>,
        dead_letters: impl IntoIterator<Item = &'t str>,
    ) -> Result<Arc<Self>, RouteError> {
        let mut table = AtomTable::default();
        let mut topics = TopicTable::apart_from(dead_letters);
        let mut trees = Vec::with_capacity(routes.len());
        for (ix, (handler, route)) in routes.iter().enumerate() {
            for pattern in &route.topics {
                topics
                    .add(pattern, ix as u32)
                    .map_err(|error| RouteError::Topic {
                        pattern: pattern.to_string(),
                        source: error.into(),
                    })?;
            }
            trees.push((*handler, table.tree(&route.when)));
        }
        let routes = trees
            .into_iter()
            .map(|(handler, when)| CompiledRoute {
                handler,
                access: table.access(&when),
                when,
            })
            .collect();
        let fields = compile_fields(&table)?;
        let (field_of, tests) = table.atoms.into_iter().unzip();
        Ok(Arc::new(Self {
            revision,
            routes,
            fields,
            field_of,
            tests,
            topics,
        }))
    }

    /// The revision of the snapshot that it was compiled from.
    pub fn revision(&self) -> u64 {
        self.revision
    }
}

fn compile_fields(table: &AtomTable) -> Result<Vec<Field>, RouteError> {
    let mut atoms_of = vec![Vec::new(); table.fields.len()];
    for (atom, (field, test)) in table.atoms.iter().enumerate() {
        atoms_of[*field as usize].push((atom as AtomIx, test));
    }
    table
        .fields
        .iter()
        .zip(&atoms_of)
        .map(|(subject, atoms)| Field::new(subject.clone(), atoms))
        .collect()
}
