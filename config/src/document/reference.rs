//! Resolves `${env:NAME}` and `${file:PATH}` references, which keep secrets out of configs.
//!
//! Local files may reference any variable and file. Values of a store may be written by others, so they may reference only what
//! the service config lists ([`References`]), and errors do not reveal whether anything else exists.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use serde_json::Value as Json;

use super::{Checker, MAX_BYTES, Node, Style, Trail, Value, shortened};
use crate::bounded_file::{self, ReadError};
use crate::environment::Environment;

/// Maximum bytes that the references of one document may resolve to.
const MAX_RESOLVED: usize = 4 * MAX_BYTES;

/// Allow-list of what a store's values may reference. Empty by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    /// Names of environment variables.
    pub env: BTreeSet<String>,
    /// The base folder of `${file:…}`; `None` allows no file.
    pub folder: Option<PathBuf>,
}

/// Why a reference cannot be replaced. Terminal until the document, the environment or the file is corrected.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// The text ends within a reference.
    #[error("has a `${{` without a closing `}}`; write $${{ for a literal ${{")]
    Unclosed,
    /// Neither `env:` nor `file:`.
    #[error(
        "`${{{0}}}` is not a valid reference; write ${{env:NAME}} or ${{file:PATH}}, or $${{ for a literal ${{"
    )]
    Invalid(String),
    /// The references of one document resolve to too much text.
    #[error(
        "exceeds {max} bytes together with the references before it; reference less data",
        max = MAX_RESOLVED
    )]
    TooLarge,
    /// The environment has no such variable.
    #[error("the environment variable {0} is not set; `${{env:{0}}}` requires it")]
    Unset(String),
    /// A store's value references what the service config does not list.
    #[error(
        "`${{{inside}}}` is not allowed in a store's keys: they may only reference what the service config lists in `{key}`"
    )]
    NotListed {
        /// The reference, without `${` and `}`.
        inside: String,
        /// The setting that would have to list it.
        key: &'static str,
    },
    /// A store's value names a file by an absolute path or with `..`.
    #[error(
        "has a `${{file:…}}` that is absolute or contains `..`; in a store's keys it names a file below the folder `handlers.references.folder`"
    )]
    LeadsOut,
    /// A store's value names a file that does not exist, or is outside the folder: the error does not tell them apart, so it has no
    /// source.
    #[error("the file of `${{file:{0}}}` does not exist")]
    Missing(String),
    /// The file cannot be read.
    #[error("the file {} of `${{file:{path}}}` {source}", file.display())]
    Unreadable {
        /// The file that was read.
        file: PathBuf,
        /// Its path as written.
        path: String,
        /// The cause.
        source: ReadError,
    },
}

/// Policy for resolving references.
#[derive(Clone, Copy)]
pub enum Lookup<'a> {
    /// Only check the syntax, with the rules of a store's value; leave references in place.
    Form,
    /// Any variable and any file; relative paths are resolved against `base`.
    Anything {
        /// Environment in which `${env:NAME}` is resolved.
        environment: &'a Environment,
        /// Folder against which a relative path in `${file:PATH}` is resolved.
        base: &'a Path,
    },
    /// Only listed variables and files.
    Listed {
        /// Environment in which listed variables are resolved.
        environment: &'a Environment,
        /// Allow-list of variables and base folder of files.
        references: &'a References,
    },
}

/// Replaces every reference in the values of `node`; failures are reported to `checker`.
///
/// A value with a reference takes the type of its field. `$${` is an escaped `${`.
pub fn resolve(node: &mut Node, path: &Trail<'_>, lookup: Lookup<'_>, checker: &mut Checker<'_>) {
    let mut resolver = Resolver::new(lookup);
    resolver.node(node, path, checker);
}

/// Replaces every reference in the strings of `value` and returns the resolved values; failures go to `report`.
pub fn resolve_json(
    value: &mut Json,
    path: &Trail<'_>,
    lookup: Lookup<'_>,
    report: &mut dyn FnMut(&Trail<'_>, ReferenceError),
) -> Vec<String> {
    let mut resolver = Resolver::new(lookup);
    resolver.json(value, path, report);
    resolver.secrets
}

struct Resolver<'a> {
    lookup: Lookup<'a>,
    /// Bytes that references resolved to.
    brought: usize,
    /// The resolved values, and the strings that contain them.
    secrets: Vec<String>,
    /// Whether the current string had a reference replaced, not only escapes.
    referred: bool,
}

impl<'a> Resolver<'a> {
    fn new(lookup: Lookup<'a>) -> Self {
        Self {
            lookup,
            brought: 0,
            secrets: Vec::new(),
            referred: false,
        }
    }

    fn node(&mut self, node: &mut Node, path: &Trail<'_>, checker: &mut Checker<'_>) {
        match &mut node.value {
            Value::Scalar(scalar) if scalar.text.contains("${") => {
                match self.substitute(&scalar.text) {
                    Ok(text) => {
                        let written = std::mem::replace(&mut scalar.text, text);
                        if self.referred {
                            scalar.reference = Some(written);
                            scalar.style = Style::Untyped;
                        }
                    }
                    Err(error) => {
                        checker.report_unresolved(&node.place, &path.to_string(), &error);
                    }
                }
            }
            Value::Scalar(_) => {}
            Value::List(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    self.node(item, &Trail::Index(path, index), checker);
                }
            }
            Value::Map(entries) => {
                for entry in entries {
                    let path = Trail::Key(path, &entry.key);
                    self.node(&mut entry.value, &path, checker);
                }
            }
        }
    }

    fn json(
        &mut self,
        value: &mut Json,
        path: &Trail<'_>,
        report: &mut dyn FnMut(&Trail<'_>, ReferenceError),
    ) {
        match value {
            Json::String(text) if text.contains("${") => match self.substitute(text) {
                Ok(resolved) => {
                    if self.referred {
                        self.secrets.push(resolved.clone());
                    }
                    *text = resolved;
                }
                Err(error) => report(path, error),
            },
            Json::Array(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    self.json(item, &Trail::Index(path, index), report);
                }
            }
            Json::Object(members) => {
                for (key, member) in members {
                    self.json(member, &Trail::Key(path, key), report);
                }
            }
            Json::String(_) | Json::Null | Json::Bool(_) | Json::Number(_) => {}
        }
    }

    fn substitute(&mut self, text: &str) -> Result<String, ReferenceError> {
        self.referred = false;
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
            let end = from.find('}').ok_or(ReferenceError::Unclosed)?;
            self.resolve_reference(&from[2..end], &mut result)?;
            rest = &from[end + 1..];
        }
        result.push_str(rest);
        Ok(result)
    }

    fn resolve_reference(&mut self, inside: &str, into: &mut String) -> Result<(), ReferenceError> {
        if self.brought > MAX_RESOLVED {
            return Err(ReferenceError::TooLarge);
        }
        let found = match (inside.split_once(':'), self.lookup) {
            (Some(("env", _)), Lookup::Form) => None,
            (Some(("env", name)), Lookup::Anything { environment, .. }) => {
                Some(variable(name, environment)?)
            }
            (
                Some(("env", name)),
                Lookup::Listed {
                    environment,
                    references,
                },
            ) => match references.env.contains(name) {
                true => Some(variable(name, environment)?),
                false => {
                    return Err(not_listed(
                        &format!("env:{name}"),
                        "handlers.references.env",
                    ));
                }
            },
            (Some(("file", path)), Lookup::Form) => {
                check_below(path)?;
                None
            }
            (Some(("file", path)), Lookup::Anything { base, .. }) => {
                Some(file(path, &base.join(path))?)
            }
            (Some(("file", path)), Lookup::Listed { references, .. }) => {
                Some(listed_file(path, references)?)
            }
            _ => return Err(ReferenceError::Invalid(shortened(inside))),
        };
        let Some(found) = found else {
            into.push_str(&format!("${{{inside}}}"));
            return Ok(());
        };
        self.brought += found.len();
        if self.brought > MAX_RESOLVED {
            return Err(ReferenceError::TooLarge);
        }
        self.referred = true;
        into.push_str(&found);
        self.secrets.push(found);
        Ok(())
    }
}

fn variable(name: &str, environment: &Environment) -> Result<String, ReferenceError> {
    let value = environment.get(name).map(str::to_owned);
    value.ok_or_else(|| ReferenceError::Unset(shortened(name)))
}

fn not_listed(inside: &str, key: &'static str) -> ReferenceError {
    let inside = shortened(inside);
    ReferenceError::NotListed { inside, key }
}

/// Reads a file below the references folder; both the given path and the canonical path must be inside it.
fn listed_file(path: &str, references: &References) -> Result<String, ReferenceError> {
    let refused = || not_listed(&format!("file:{path}"), "handlers.references.folder");
    let folder = references.folder.as_deref().ok_or_else(refused)?;
    check_below(path)?;
    let named = folder.join(path);
    // Symlinks may point elsewhere inside the folder, as those of mounted secrets do, but not outside. The error for a file
    // outside is that for a missing one, which reveals nothing about it.
    let missing = || ReferenceError::Missing(shortened(path));
    let folder = folder.canonicalize().map_err(|_| missing())?;
    let real = named.canonicalize().map_err(|_| missing())?;
    if !real.starts_with(&folder) {
        return Err(missing());
    }
    file(path, &real)
}

/// Checks that a path has no `..` and is not absolute; symlinks are checked separately.
fn check_below(path: &str) -> Result<(), ReferenceError> {
    let below = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    match Path::new(path).components().all(below) {
        true => Ok(()),
        false => Err(ReferenceError::LeadsOut),
    }
}

/// The file's text without its final line break.
fn file(path: &str, file: &Path) -> Result<String, ReferenceError> {
    let text = bounded_file::read_text(file, MAX_BYTES).map_err(|source| {
        let (file, path) = (file.to_path_buf(), shortened(path));
        ReferenceError::Unreadable { file, path, source }
    })?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
}
