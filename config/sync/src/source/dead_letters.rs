//! Detects specs whose dead letters cycle between handlers, and selects the specs to reject.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use sluicegate_config::problem::Problem;
use sluicegate_config::spec::{Circle, HandlerSpec, circles};

use super::pools::{DeclaredPool, problem};

/// The problem of a spec in a cycle.
pub(super) fn circle_problem(circle: &Circle, file: &Path, declared: DeclaredPool<'_>) -> Problem {
    let message = format!(
        "dead letters would cycle endlessly: {circle}; give one of these handlers another `dead_letter.topic`, or remove \
        the topic from a route"
    );
    problem(
        file,
        &declared.located.dead_letter_place,
        "dead_letter.topic",
        message,
    )
}

/// The handlers to reject, each with its cycle: those in a cycle whose spec is new or changed, or all handlers of a cycle that
/// already exists. `wanted` are the candidate specs, `before` the active ones.
pub(super) fn closing(
    mut wanted: BTreeMap<String, Arc<HandlerSpec>>,
    before: &BTreeMap<String, Arc<HandlerSpec>>,
) -> BTreeMap<String, Circle> {
    let mut refused: BTreeMap<String, Circle> = BTreeMap::new();
    // A rejected handler keeps its earlier spec, which can close another cycle with a new one: repeat until there is none.
    loop {
        let mut changed = false;
        for circle in circles(wanted.values().map(Arc::as_ref)) {
            let members: BTreeSet<&str> = circle.handlers().collect();
            let is_new = |name: &str| {
                !refused.contains_key(name)
                    && before
                        .get(name)
                        .is_none_or(|old| !is_same_way(old, &wanted[name]))
            };
            let new: Vec<&str> = members
                .iter()
                .copied()
                .filter(|name| is_new(name))
                .collect();
            let all: Vec<&str> = members.iter().copied().collect();
            for name in if new.is_empty() { all } else { new } {
                changed |= refused.insert(name.to_owned(), circle.clone()).is_none();
            }
        }
        if !changed {
            return refused;
        }
        for name in refused.keys() {
            match before.get(name) {
                Some(old) => wanted.insert(name.clone(), Arc::clone(old)),
                None => wanted.remove(name),
            };
        }
    }
}

/// Whether both specs route dead letters the same way.
fn is_same_way(one: &HandlerSpec, two: &HandlerSpec) -> bool {
    one.route.topics == two.route.topics && one.dead_letter.topic == two.dead_letter.topic
}

#[cfg(test)]
mod tests {
    use sluicegate_config::Environment;
    use sluicegate_config::spec::read_spec;

    use super::*;

    fn handlers(all: &[(&str, &str, &str)]) -> BTreeMap<String, Arc<HandlerSpec>> {
        let read = |(name, topics, dead): &(&str, &str, &str)| {
            let text = format!(
                "name: {name}\nplugin: p\nroute: {{ topics: [{topics}] }}\ndead_letter: {{ topic: {dead} }}\n"
            );
            let spec = read_spec(&text, None, &Environment::default()).expect("a valid spec");
            ((*name).to_owned(), Arc::new(spec))
        };
        all.iter().map(read).collect()
    }

    #[test]
    fn the_new_spec_of_a_cycle_is_rejected_and_all_if_all_are_new() {
        let x = ("x", "a, y.dead", "x.dead");
        let y = ("y", "x.dead", "y.dead");
        let refused = |before: &[(&str, &str, &str)]| {
            let refused = closing(handlers(&[x, y]), &handlers(before));
            refused.into_keys().collect::<Vec<_>>()
        };
        assert_eq!(refused(&[x]), ["y"]);
        assert_eq!(refused(&[y]), ["x"]);
        assert_eq!(refused(&[x, ("y", "b", "y.dead")]), ["y"]);
        assert_eq!(refused(&[]), ["x", "y"]);
    }

    #[test]
    fn a_spec_that_keeps_its_earlier_version_closes_no_cycle_with_a_new_one() {
        // `x` is rejected for a cycle with `y`; its earlier version would form one with the new `z`.
        let before = handlers(&[("x", "a, z.dead", "x.old"), ("y", "x.new", "y.dead")]);
        let wanted = handlers(&[
            ("x", "a, y.dead", "x.new"),
            ("y", "x.new", "y.dead"),
            ("z", "x.old", "z.dead"),
        ]);
        let refused: Vec<String> = closing(wanted, &before).into_keys().collect();
        assert_eq!(refused, ["x", "z"]);
    }
}
