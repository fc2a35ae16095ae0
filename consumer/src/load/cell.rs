//! Converts a CSV cell to JSON: numbers to numbers, null markers to null, everything else to text.

/// Appends the cell as a JSON value; `None` is null.
pub fn write_json(cell: Option<&str>, out: &mut Vec<u8>) {
    let Some(cell) = cell else {
        out.extend_from_slice(b"null");
        return;
    };
    if is_number(cell.as_bytes()) && is_in_range(cell) {
        out.extend_from_slice(cell.as_bytes());
    } else {
        write_string(cell, out);
    }
}

/// Appends a text as a JSON string.
pub fn write_string(text: &str, out: &mut Vec<u8>) {
    serde_json::to_writer(out, text).expect("writing text to memory does not fail");
}

/// Whether the text is a number by JSON's grammar, which allows no leading zero, plus sign or bare point: `007` is a
/// code, not a number.
fn is_number(text: &[u8]) -> bool {
    let rest = text.strip_prefix(b"-").unwrap_or(text);
    let rest = match rest {
        [b'0', rest @ ..] => rest,
        [b'1'..=b'9', ..] => after_digits(rest),
        _ => return false,
    };
    let rest = match rest {
        [b'.', fraction @ ..] if starts_with_digit(fraction) => after_digits(fraction),
        _ => rest,
    };
    let rest = match rest {
        [b'e' | b'E', b'+' | b'-', exponent @ ..] | [b'e' | b'E', exponent @ ..]
            if starts_with_digit(exponent) =>
        {
            after_digits(exponent)
        }
        _ => rest,
    };
    rest.is_empty()
}

/// Whether a number fits into the double that JSON readers use: `1e310` does not, and would make the whole record
/// unreadable.
fn is_in_range(number: &str) -> bool {
    /// Any number with fewer characters fits: the largest double has more digits.
    const SHORT: usize = 300;
    let may_be_large = number.len() > SHORT || number.contains(['e', 'E']);
    !may_be_large || number.parse::<f64>().is_ok_and(f64::is_finite)
}

fn starts_with_digit(text: &[u8]) -> bool {
    text.first().is_some_and(u8::is_ascii_digit)
}

fn after_digits(text: &[u8]) -> &[u8] {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    &text[digits..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn json(cell: &str) -> String {
        let mut out = Vec::new();
        write_json(Some(cell), &mut out);
        String::from_utf8(out).expect("JSON is UTF-8")
    }

    #[test]
    fn cells_become_numbers_or_texts() {
        for (cell, expected) in [
            ("", r#""""#),
            ("NA", r#""NA""#),
            ("1.50", "1.50"),
            ("12345678901234567890", "12345678901234567890"),
            ("0", "0"),
            ("-0.5", "-0.5"),
            ("517", "517"),
            ("1e3", "1e3"),
            ("1E-3", "1E-3"),
            ("1e310", r#""1e310""#),
            ("-9e999", r#""-9e999""#),
            ("1e-999", "1e-999"),
            ("007", r#""007""#),
            ("+1", r#""+1""#),
            (".5", r#"".5""#),
            ("5.", r#""5.""#),
            ("1e", r#""1e""#),
            ("9E", r#""9E""#),
            ("NaN", r#""NaN""#),
            ("-", r#""-""#),
            ("1 ", r#""1 ""#),
            ("say \"hi\"\n", r#""say \"hi\"\n""#),
        ] {
            assert_eq!(json(cell), expected, "{cell:?}");
        }
    }

    proptest! {
        #[test]
        fn every_cell_becomes_json_and_numbers_are_those_of_a_json_reader(cell in "[-+0-9.eE]{0,8}|\\PC{0,12}") {
            let value: serde_json::Value = serde_json::from_str(&json(&cell)).expect("JSON");
            let number = serde_json::from_str::<serde_json::Value>(&cell).is_ok_and(|v| v.is_number())
                && cell.trim() == cell;
            prop_assert_eq!(value.is_number(), number);
            if let Some(text) = value.as_str() {
                prop_assert_eq!(text, cell);
            }
        }
    }
}
