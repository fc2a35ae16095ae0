//! Detects specs that share a pool but declare different limits.

use std::collections::BTreeMap;
use std::path::Path;

use sluicegate_config::document::Place;
use sluicegate_config::problem::Problem;
use sluicegate_config::spec::{HandlerSpec, LocatedSpec};

/// A valid spec with the file or key that declares it.
#[derive(Clone, Copy)]
pub(super) struct DeclaredPool<'f> {
    pub(super) file: &'f Path,
    pub(super) located: &'f LocatedSpec,
}

impl DeclaredPool<'_> {
    fn bounds(&self) -> (usize, u64, u64) {
        let spec = &self.located.spec;
        (
            spec.workers,
            spec.max_in_flight.records,
            spec.max_in_flight.bytes,
        )
    }

    pub(super) fn at(&self) -> String {
        let place = &self.located.name_place;
        format!("{}:{}:{}", self.file.display(), place.line, place.column)
    }
}

/// The specs whose limits differ from those of the majority in their pool, each with its problem.
pub(super) fn pool_conflicts<'f>(
    declared: impl Iterator<Item = DeclaredPool<'f>>,
) -> Vec<(DeclaredPool<'f>, Problem)> {
    let mut pools: BTreeMap<(&str, &str, &str), Vec<DeclaredPool<'f>>> = BTreeMap::new();
    for one in declared {
        let spec = &one.located.spec;
        if let Some(pool) = &spec.pool {
            let key = (spec.plugin_name(), spec.version.as_str(), pool.as_str());
            pools.entry(key).or_default().push(one);
        }
    }
    let mut found = Vec::new();
    for ((_, _, pool), declared) in &pools {
        minority(pool, declared, &mut found);
    }
    found
}

/// Reports the specs of one pool whose limits differ from the majority's.
fn minority<'f>(
    pool: &str,
    declared: &[DeclaredPool<'f>],
    found: &mut Vec<(DeclaredPool<'f>, Problem)>,
) {
    let mut counts: BTreeMap<(usize, u64, u64), usize> = BTreeMap::new();
    for one in declared {
        *counts.entry(one.bounds()).or_default() += 1;
    }
    let most = counts.values().max();
    let Some(usual) = declared
        .iter()
        .find(|one| counts.get(&one.bounds()) == most)
    else {
        return;
    };
    for one in declared.iter().filter(|one| one.bounds() != usual.bounds()) {
        let message = format!(
            "`{pool}` is shared with `{}` ({}), which has different {}; all handlers of a pool must have the same",
            usual.located.spec.name,
            usual.file.display(),
            differing_bounds(&usual.located.spec, &one.located.spec).join(" and ")
        );
        let place = &one.located.pool_place;
        found.push((*one, problem(one.file, place, "pool", message)));
    }
}

fn differing_bounds(a: &HandlerSpec, b: &HandlerSpec) -> Vec<&'static str> {
    let compared = [
        ("`workers`", a.workers != b.workers),
        ("`max_in_flight`", a.max_in_flight != b.max_in_flight),
    ];
    compared
        .into_iter()
        .filter_map(|(field, differs)| differs.then_some(field))
        .collect()
}

pub(super) fn problem(file: &Path, place: &Place, path: &str, message: String) -> Problem {
    Problem {
        file: Some(file.to_path_buf()),
        line: place.line,
        column: place.column,
        path: path.to_owned(),
        message,
    }
}
