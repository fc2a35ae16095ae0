//! `${env:NAME}` and `${file:PATH}`: values that stand elsewhere, so that secrets need not be written down.

use std::path::{Path, PathBuf};

use super::{Checker, MAX_BYTES, Node, Style, Value};
use crate::environment::Environment;

/// Replaces every reference in the values of `node`; what is missing is reported.
///
/// A whole-value reference takes the type that its field wants. `$${` stands for `${`.
pub(crate) fn resolve(
    node: &mut Node,
    path: &str,
    environment: &Environment,
    base: &Path,
    checker: &mut Checker<'_>,
) {
    match &mut node.value {
        Value::Scalar(scalar) if scalar.text.contains("${") => {
            let mut parts = Parts {
                environment,
                base,
                referred: false,
            };
            match parts.substitute(&scalar.text) {
                Ok(text) => {
                    let written = std::mem::replace(&mut scalar.text, text);
                    if parts.referred {
                        scalar.reference = Some(written);
                        scalar.style = Style::Untyped;
                    }
                }
                Err(reason) => checker.report_unresolved(&node.place, path, reason),
            }
        }
        Value::Scalar(_) => {}
        Value::List(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                resolve(
                    item,
                    &format!("{path}[{index}]"),
                    environment,
                    base,
                    checker,
                );
            }
        }
        Value::Map(entries) => {
            for entry in entries {
                let path = super::join(path, &entry.key);
                resolve(&mut entry.value, &path, environment, base, checker);
            }
        }
    }
}

struct Parts<'a> {
    environment: &'a Environment,
    base: &'a Path,
    /// Whether anything but an escape was replaced.
    referred: bool,
}

impl Parts<'_> {
    fn substitute(&mut self, text: &str) -> Result<String, String> {
        let mut result = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find("${") {
            let (before, from) = rest.split_at(at);
            if let Some(before) = before.strip_suffix('$') {
                result.push_str(before);
                result.push_str("${");
                rest = &from[2..];
                continue;
            }
            result.push_str(before);
            let end = from.find('}').ok_or_else(|| {
                "has a `${` without its `}`; write $${ for the characters themselves".to_owned()
            })?;
            result.push_str(&self.look_up(&from[2..end])?);
            rest = &from[end + 1..];
        }
        result.push_str(rest);
        Ok(result)
    }

    fn look_up(&mut self, inside: &str) -> Result<String, String> {
        self.referred = true;
        match inside.split_once(':') {
            Some(("env", name)) => self
                .environment
                .get(name)
                .map(str::to_owned)
                .ok_or_else(|| {
                    format!(
                        "the environment variable {name} is not set; `${{env:{name}}}` needs it"
                    )
                }),
            Some(("file", path)) => self.read(path),
            _ => Err(format!(
                "`${{{inside}}}` is no reference; write ${{env:NAME}} or ${{file:PATH}}, or $${{ for the characters themselves"
            )),
        }
    }

    /// The file's text without the line break at its end.
    fn read(&self, path: &str) -> Result<String, String> {
        let file: PathBuf = self.base.join(path);
        let refused =
            |reason: String| format!("the file {} of `${{file:{path}}}` {reason}", file.display());
        let length = std::fs::metadata(&file)
            .map_err(|error| refused(format!("cannot be read: {error}")))?
            .len();
        if length > MAX_BYTES as u64 {
            return Err(refused(format!(
                "has {length} bytes; at most {MAX_BYTES} are read"
            )));
        }
        let text = std::fs::read_to_string(&file)
            .map_err(|error| refused(format!("cannot be read: {error}")))?;
        let text = text.strip_suffix('\n').unwrap_or(&text);
        Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
    }
}
