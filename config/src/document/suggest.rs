//! Suggests the nearest known name for an unknown one.

/// `; did you mean `x`?` for the nearest of `known`, or an empty string if none is close.
pub fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(name, known).map_or_else(String::new, |near| format!("; did you mean `{near}`?"))
}

/// The known name that `name` most likely misspells.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let folded = fold(name);
    let allowed = (folded.chars().count() / 3).clamp(1, 4);
    known
        .into_iter()
        .map(|candidate| {
            (
                strsim::damerau_levenshtein(&folded, &fold(candidate)),
                candidate,
            )
        })
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Normalises case and word separators, which do not count as differences.
fn fold(name: &str) -> String {
    name.chars()
        .take(80)
        .filter(|c| !"_-. ".contains(*c))
        .flat_map(char::to_lowercase)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_suggested_and_distant_ones_are_not() {
        let known = ["group_id", "clients", "client", "start"];
        assert_eq!(nearest("groupId", known), Some("group_id"));
        assert_eq!(nearest("group-id", known), Some("group_id"));
        assert_eq!(nearest("clinets", known), Some("clients"));
        assert_eq!(nearest("strat", known), Some("start"));
        assert_eq!(nearest("topic", known), None);
        assert_eq!(did_you_mean("grup_id", known), "; did you mean `group_id`?");
    }
}
