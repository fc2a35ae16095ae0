//! Escapes untrusted text (panics, errors of handlers, brokers and stores, names, values) for text logs, error lines and
//! tables: characters that end a line or control a terminal are written as `\u{…}`.
//!
//! JSON output does not need it: JSON's own escapes keep a string inside its quotes.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

/// Whether a character is more than a visible glyph: C0 and C1 controls, line separators, bidirectional marks, and zero-width
/// characters that make different strings appear equal.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// Escapes `text` to a single line that is safe on a terminal. Borrows when nothing needs escaping.
pub fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let mut line = String::with_capacity(text.len() + 16);
    // Writing to a string cannot fail.
    let _ = Escaping(&mut line).write_str(text);
    Cow::Owned(line)
}

/// As [`escape`], but keeps line feeds, for multi-line texts.
pub fn escape_lines(text: &str) -> Cow<'_, str> {
    if !text.contains(|c| c != '\n' && acts(c)) {
        return Cow::Borrowed(text);
    }
    let lines: Vec<Cow<'_, str>> = text.split('\n').map(escape).collect();
    Cow::Owned(lines.join("\n"))
}

/// Writer adapter that applies [`escape`].
#[derive(Debug)]
pub struct Escaping<W>(pub W);

impl<W: fmt::Write> fmt::Write for Escaping<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(acts) {
            let (plain, from) = rest.split_at(at);
            self.0.write_str(plain)?;
            let mut characters = from.chars();
            if let Some(c) = characters.next() {
                match c {
                    '\n' => self.0.write_str("\\n")?,
                    '\r' => self.0.write_str("\\r")?,
                    '\t' => self.0.write_str("\\t")?,
                    c => write!(self.0, "\\u{{{:x}}}", u32::from(c))?,
                }
            }
            rest = characters.as_str();
        }
        self.0.write_str(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn line_ends_and_terminal_controls_are_escaped() {
        for (text, line) in [
            ("a\nb\rc\td", "a\\nb\\rc\\td"),
            ("\u{1b}[2J\u{7}\0\u{7f}", "\\u{1b}[2J\\u{7}\\u{0}\\u{7f}"),
            ("\u{85}\u{9b}2J", "\\u{85}\\u{9b}2J"),
            ("\u{2028}\u{2029}", "\\u{2028}\\u{2029}"),
            ("a\u{202e}b\u{2066}", "a\\u{202e}b\\u{2066}"),
            ("\u{feff}x\u{200b}", "\\u{feff}x\\u{200b}"),
        ] {
            assert_eq!(escape(text), line);
        }
        assert_eq!(escape_lines("a\n\u{1b}b\n"), "a\n\\u{1b}b\n");
    }

    #[test]
    fn ordinary_text_is_borrowed_unchanged() {
        for text in [
            "",
            "plain",
            "Größe 東京 \u{1f469}\u{200d}\u{1f4bb}",
            "a\\nb \"q\"",
        ] {
            assert!(matches!(escape(text), Cow::Borrowed(same) if same == text));
        }
        assert!(matches!(escape_lines("a\nb"), Cow::Borrowed(_)));
    }

    proptest! {
        #[test]
        fn no_control_character_remains(text in any::<String>()) {
            let line = escape(&text);
            prop_assert!(!line.contains(acts));
            prop_assert_eq!(escape(&line), line.as_ref());
            prop_assert_eq!(escape_lines(&text).lines().count(), text.split('\n').count() - usize::from(text.is_empty() || text.ends_with('\n')));
        }
    }
}
