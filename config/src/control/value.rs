//! The format of each control key's value: one reader, shared by the source, the bridge and the commands.

use std::path::Path;

use crate::control::{ControlKey, Rollout};
use crate::document::{ChoiceValue, Lookup, did_you_mean, read_json_object, shortened};
use crate::problem::Problems;
use crate::snapshot::MetricsLevel;
use crate::spec::{Origin, read_config, read_from};

/// Maximum length of a value, in bytes.
pub const MAX_VALUE: usize = 1024 * 1024;

/// Checks the form of `value` as the value of `key`; `place` names the key in messages. References are not resolved, so
/// a value can be checked on a machine without the files and variables that it names.
///
/// # Errors
/// All problems found in it.
pub fn check_value(key: &ControlKey, place: &str, value: &[u8]) -> Result<(), Problems> {
    let origin = Origin {
        place: Some(Path::new(place)),
        lookup: Lookup::Form,
    };
    match key {
        ControlKey::Enabled(_) | ControlKey::Logging => read_switch(value, place).map(|_| ()),
        ControlKey::MetricsLevel => read_level(value, place).map(|_| ()),
        ControlKey::Spec(name) => read_spec_of(name, value, origin).map(|_| ()),
        ControlKey::Config(_) => {
            read_text(value, place).and_then(|text| read_config(text, origin).map(|_| ()))
        }
        ControlKey::Rollout(name) => {
            let rollout = read_rollout(value, place)?;
            if let Some(spec) = &rollout.spec {
                read_spec_of(name, spec.as_bytes(), origin)?;
            }
            if let Some(config) = &rollout.config {
                read_config(&config.to_string(), origin)?;
            }
            Ok(())
        }
        ControlKey::Canary(_) => read_object(value, place),
        // Only bridges read it, and it is never copied to another store.
        ControlKey::Bridge => Ok(()),
    }
}

/// The text of a value, with its length checked.
pub fn read_text<'v>(value: &'v [u8], place: &str) -> Result<&'v str, Problems> {
    let refused = |message: String| Problems::of_file(Some(Path::new(place)), message);
    if value.len() > MAX_VALUE {
        return Err(refused(format!(
            "is too long: the maximum is {MAX_VALUE} bytes"
        )));
    }
    std::str::from_utf8(value).map_err(|error| {
        refused(format!(
            "is not UTF-8 text: invalid at byte {}; write it as UTF-8",
            error.valid_up_to()
        ))
    })
}

/// `true` or `false`.
pub fn read_switch(value: &[u8], place: &str) -> Result<bool, Problems> {
    match read_text(value, place)?.trim() {
        "true" => Ok(true),
        "false" => Ok(false),
        other => Err(refused(place, other, "write true or false, in lowercase")),
    }
}

/// The metrics granularity.
pub fn read_level(value: &[u8], place: &str) -> Result<MetricsLevel, Problems> {
    let text = read_text(value, place)?.trim();
    MetricsLevel::of(text).ok_or_else(|| {
        let words = MetricsLevel::WORDS.iter().map(|(word, _)| *word);
        let hint = did_you_mean(text, words);
        let advice = format!("write off, basic, handler or partition{hint}");
        refused(place, text, &advice)
    })
}

/// The spec of the handler `name`.
pub fn read_spec_of(
    name: &str,
    value: &[u8],
    origin: Origin<'_>,
) -> Result<crate::spec::LocatedSpec, Problems> {
    let place = origin.place.map(|place| place.to_string_lossy());
    let text = read_text(value, place.as_deref().unwrap_or_default())?;
    if text.trim().is_empty() {
        let message = "is empty; write the spec, or delete the key to remove the handler";
        return Err(Problems::of_file(origin.place, message));
    }
    let located = read_from(text, origin)?;
    if located.spec.name == name {
        return Ok(located);
    }
    let mut problems = Problems::new();
    problems.push(crate::Problem {
        file: origin.place.map(Path::to_path_buf),
        line: located.name_place.line,
        column: located.name_place.column,
        path: "name".to_owned(),
        message: format!(
            "is `{}`, but the key belongs to `{name}`; use the key's name",
            located.spec.name
        ),
    });
    Err(problems)
}

/// A rollout in progress.
pub fn read_rollout(value: &[u8], place: &str) -> Result<Rollout, Problems> {
    let text = read_text(value, place)?;
    Rollout::from_json(text.as_bytes())
        .map_err(|error| Problems::of_file(Some(Path::new(place)), error))
}

fn read_object(value: &[u8], place: &str) -> Result<(), Problems> {
    let read = read_json_object(read_text(value, place)?);
    read.map(|_| ())
        .map_err(|error| Problems::of_file(Some(Path::new(place)), error))
}

/// A problem that quotes the start of the text.
fn refused(place: &str, text: &str, advice: &str) -> Problems {
    let message = match text {
        "" => format!("is empty; {advice}"),
        _ => format!("is `{}`; {advice}", shortened(text).escape_debug()),
    };
    Problems::of_file(Some(Path::new(place)), message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(key: &ControlKey, value: &[u8]) -> String {
        check_value(key, "place", value)
            .map_or_else(|problems| problems.to_string(), |()| String::new())
    }

    #[test]
    fn each_kind_of_key_accepts_only_its_values() {
        let gate = ControlKey::Enabled("a".into());
        for good in ["true", "false", " true\n"] {
            assert_eq!(says(&gate, good.as_bytes()), "");
        }
        assert_eq!(
            says(&gate, b"True"),
            "place: is `True`; write true or false, in lowercase"
        );
        assert!(says(&gate, &[0xff]).contains("UTF-8"));
        assert!(says(&gate, &vec![b' '; MAX_VALUE + 1]).contains("the maximum is 1048576"));
        assert_eq!(says(&ControlKey::MetricsLevel, b"basic"), "");
        assert!(says(&ControlKey::MetricsLevel, b"basik").contains("did you mean"));
        let spec = ControlKey::Spec("a".into());
        let text = "name: a\nplugin: p\nroute: { topics: [t] }\n";
        assert_eq!(says(&spec, text.as_bytes()), "");
        assert_eq!(
            says(&spec, text.replace("name: a", "name: b").as_bytes()),
            "place:1:7: name: is `b`, but the key belongs to `a`; use the key's name"
        );
        assert!(says(&spec, b"  ").contains("is empty"));
        let config = ControlKey::Config("a".into());
        assert_eq!(says(&config, br#"{"x": [1, "${env:NOT_SET}"]}"#), "");
        for bad in [
            "",
            "3",
            "x: 1",
            "{\"x\": \"${file:/etc/passwd}\"}",
            "{\"x\": \"${file:../a}\"}",
        ] {
            assert_ne!(says(&config, bad.as_bytes()), "", "{bad}");
        }
    }

    #[test]
    fn nested_aliases_are_bounded() {
        let mut bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let (this, below) = ((b'a' + level) as char, (b'a' + level - 1) as char);
            let items = vec![format!("*{below}"); 10].join(", ");
            bomb.push_str(&format!("{this}: &{this} [{items}]\n"));
        }
        assert!(
            says(&ControlKey::Spec("a".into()), bomb.as_bytes())
                .contains("expand beyond 50000 values")
        );
    }
}
