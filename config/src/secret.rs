//! Secret values and their redaction: exposed only at the point of use, printed as `***` everywhere else.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Serialize, Serializer};
use serde_json::Value;

/// A string that is never shown in `Debug`, `Display` or serialised output.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a string.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The value itself, for its point of use.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

/// Replacement of a secret.
const MASK: &str = "***";
/// Shorter values are masked only as whole words: as parts of words they would match everywhere.
const SHORTEST_PART: usize = 4;
/// In names, shorter values are masked only between `_`: `prod` must not hide `produced_total`.
const SHORTEST_PART_OF_NAME: usize = 8;
/// Lines of a multi-line secret count as secrets from this length on, in bytes.
const SHORTEST_LINE: usize = 8;
/// Maximum prefix of a secret, in bytes, that is searched for at the end of a truncated text.
const LONGEST_CUT: usize = 1_024;

/// Masks secrets in texts that may quote them: errors, reasons and log lines of plugins.
///
/// Finds a value verbatim, escaped as in Rust or JSON, percent-encoded as in URLs, and by each of its lines.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Redactor {
    /// Longest first, so that masking one form never leaves part of a longer one.
    forms: Vec<String>,
}

impl Redactor {
    /// A redactor for `secrets`.
    pub fn new<S: AsRef<str>>(secrets: &[S]) -> Self {
        let forms: BTreeSet<String> = secrets
            .iter()
            .flat_map(|secret| forms(secret.as_ref()))
            .collect();
        let mut forms: Vec<String> = forms.into_iter().collect();
        forms.sort_by_key(|form| std::cmp::Reverse(form.len()));
        Self { forms }
    }

    /// Whether no secrets have to be masked.
    pub fn is_empty(&self) -> bool {
        self.forms.is_empty()
    }

    /// Adds the secrets of `other`.
    pub fn merge(&mut self, other: &Self) {
        let known: BTreeSet<&String> = self.forms.iter().collect();
        let new = other.forms.iter().filter(|form| !known.contains(form));
        let new: Vec<String> = new.cloned().collect();
        self.forms.extend(new);
        self.forms.sort_by_key(|form| std::cmp::Reverse(form.len()));
    }

    /// Replaces every secret in `text` by `***`.
    pub fn redact<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let mut redacted = Cow::Borrowed(text);
        // Longest first: forms longer than the text are skipped without a search.
        let fit = self.forms.partition_point(|form| form.len() > text.len());
        for form in &self.forms[fit..] {
            if let Some(masked) = masked(&redacted, form) {
                redacted = Cow::Owned(masked);
            }
        }
        if let Some(kept) = self.before_cut(&redacted) {
            redacted = Cow::Owned(format!("{}{MASK}", &redacted[..kept]));
        }
        redacted
    }

    /// Whether a name, such as a metric's, contains a secret. Values below 4 bytes are ignored, those below 8 match only between
    /// `_`: names are chosen by authors, not by configs, and short values occur in many words.
    pub fn shows_in_name(&self, name: &str) -> bool {
        let is_word = |c: &char| c.is_alphanumeric();
        self.forms.iter().any(|form| {
            form.len() >= SHORTEST_PART
                && name.match_indices(form.as_str()).any(|(at, found)| {
                    let (before, after) = (&name[..at], &name[at + found.len()..]);
                    let inside = before.chars().next_back().is_some_and(|c| is_word(&c))
                        || after.chars().next().is_some_and(|c| is_word(&c));
                    found.len() >= SHORTEST_PART_OF_NAME || !inside
                })
        })
    }

    /// Start of a secret at the end of `text` whose remainder was truncated.
    fn before_cut(&self, text: &str) -> Option<usize> {
        let begins = |form: &String| {
            let longest = form
                .len()
                .saturating_sub(1)
                .min(text.len())
                .min(LONGEST_CUT);
            (SHORTEST_LINE..=longest)
                .rev()
                .filter(|length| form.is_char_boundary(*length))
                .find(|length| text.ends_with(&form[..*length]))
                .map(|length| text.len() - length)
        };
        self.forms.iter().filter_map(begins).min()
    }
}

/// Shows the number of forms, never the forms.
impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redactor({})", self.forms.len())
    }
}

/// A shared redactor to which secrets are added while it is in use; holders of an older snapshot are not blocked.
#[derive(Debug, Default)]
pub struct Redaction {
    redactor: Mutex<Arc<Redactor>>,
}

impl Redaction {
    /// Starts with the secrets of `redactor`.
    pub fn new(redactor: Redactor) -> Self {
        Self {
            redactor: Mutex::new(Arc::new(redactor)),
        }
    }

    /// Adds the secrets of `redactor`.
    pub fn add(&self, redactor: &Redactor) {
        if redactor.is_empty() {
            return;
        }
        Arc::make_mut(&mut self.lock()).merge(redactor);
    }

    /// The current redactor; `None` without secrets.
    pub fn current(&self) -> Option<Arc<Redactor>> {
        let redactor = self.lock();
        (!redactor.is_empty()).then(|| Arc::clone(&redactor))
    }

    /// Replaces every secret in `text` by `***`.
    pub fn redact<'t>(&self, text: &'t str) -> Cow<'t, str> {
        match self.current() {
            None => Cow::Borrowed(text),
            Some(redactor) => match redactor.redact(text) {
                Cow::Borrowed(_) => Cow::Borrowed(text),
                Cow::Owned(redacted) => Cow::Owned(redacted),
            },
        }
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Redactor>> {
        self.redactor.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The encodings in which a text may contain a value.
fn forms(secret: &str) -> Vec<String> {
    let mut values = vec![secret, secret.trim()];
    if secret.contains('\n') {
        let lines = secret.lines().map(str::trim);
        values.extend(lines.filter(|line| line.len() >= SHORTEST_LINE));
    }
    let shown = |value: &str| {
        let rust = format!("{value:?}");
        let json = Value::from(value).to_string();
        let inside = |quoted: &str| quoted[1..quoted.len() - 1].to_owned();
        [
            value.to_owned(),
            inside(&rust),
            inside(&json),
            in_url(value),
        ]
    };
    let values = values.into_iter().filter(|value| !value.is_empty());
    values.flat_map(shown).collect()
}

/// Percent-encoded as in URLs.
fn in_url(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                text.push(char::from(byte));
            }
            other => text.push_str(&format!("%{other:02X}")),
        }
    }
    text
}

/// `text` with every `form` masked; `None` when it contains none.
fn masked(text: &str, form: &str) -> Option<String> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let stands_alone = |at: usize| {
        let before = text[..at].chars().next_back();
        let after = text[at + form.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    };
    let mut found = text
        .match_indices(form)
        .map(|(at, _)| at)
        .filter(|at| form.len() >= SHORTEST_PART || stands_alone(*at))
        .peekable();
    found.peek()?;
    let mut result = String::with_capacity(text.len());
    let mut rest = 0;
    for at in found {
        result.push_str(&text[rest..at]);
        result.push_str(MASK);
        rest = at + form.len();
    }
    result.push_str(&text[rest..]);
    Some(result)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_secret_is_found_in_every_encoding() {
        let redactor = Redactor::new(&["p\"w\\d\u{1} ä", "plain-secret"]);
        for (text, expected) in [
            ("no secret here", "no secret here"),
            ("bad plain-secret, plain-secret!", "bad ***, ***!"),
            (
                r#"invalid value: string "p\"w\\d\u{1} ä", expected f64"#,
                r#"invalid value: string "***", expected f64"#,
            ),
            (r#"{"a":"p\"w\\d\u0001 ä"}"#, r#"{"a":"***"}"#),
            ("url p%22w%5Cd%01%20%C3%A4@host", "url ***@host"),
            ("cut off: plain-sec", "cut off: ***"),
        ] {
            assert_eq!(redactor.redact(text), expected);
        }
    }

    #[test]
    fn lines_are_secret_and_short_values_are_masked_as_words_only() {
        let redactor = Redactor::new(&["-----BEGIN-----\nabcdefgh\nxy\n", "a"]);
        assert_eq!(redactor.redact("line abcdefgh, xy"), "line ***, xy");
        assert_eq!(
            redactor.redact("value `a` is a flag"),
            "value `***` is *** flag"
        );
        assert_eq!(
            format!("{redactor:?}"),
            format!("Redactor({})", redactor.forms.len())
        );
    }

    #[test]
    fn short_values_do_not_match_within_names() {
        let redactor = Redactor::new(&["en", "true", "prod", "hunter2_pass"]);
        for (name, shows) in [
            ("en", false),
            ("seen_en_total", false),
            ("produced_total", false),
            ("prod", true),
            ("seen_prod_total", true),
            ("prod2_total", false),
            ("xhunter2_passx_total", true),
            ("hunter2_pas", false),
        ] {
            assert_eq!(redactor.shows_in_name(name), shows, "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_secret_of_a_useful_length_is_left(
            secrets in prop::collection::vec("\\PC{4,12}", 1..4),
            pieces in prop::collection::vec("\\PC{0,6}", 1..6),
        ) {
            let redactor = Redactor::new(&secrets);
            let mut text = String::new();
            for (index, piece) in pieces.iter().enumerate() {
                text.push_str(piece);
                text.push_str(&secrets[index % secrets.len()]);
            }
            let redacted = redactor.redact(&text);
            for secret in secrets.iter().filter(|secret| !MASK.contains(secret.as_str())) {
                // A remaining match can only arise from a mask adjacent to other text.
                prop_assert!(!redacted.split(MASK).any(|part| part.contains(secret.as_str())));
            }
        }
    }
}
