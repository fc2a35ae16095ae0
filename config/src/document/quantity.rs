//! Human-readable durations and sizes: `100ms`, `1h30m`, `256MiB`.

use std::time::Duration;

/// Units of time with their nanoseconds, largest first.
const TIME_UNITS: [(&str, u64); 7] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Units of size with their bytes; binary ones first, largest first.
const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

/// Why a text is not a quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// A number or a known unit is missing.
    #[error("write a number with a unit: ns, us, ms, s, m, h or d, such as 500ms or 1h30m")]
    NotADuration,
    /// More nanoseconds than fit into 64 bits.
    #[error("is too long")]
    TooLong,
    /// Not a whole number of bytes that fits into 64 bits, or an unknown unit.
    #[error(
        "write a number of bytes or one with a unit: B, kB, MB, GB, TB, KiB, MiB, GiB or TiB, such as 256MiB"
    )]
    NotASize,
}

/// Parses a duration such as `1.5s` or `1h30m`.
pub fn parse_duration(text: &str) -> Result<Duration, QuantityError> {
    let refused = QuantityError::NotADuration;
    let mut rest = text.trim();
    let mut total: u64 = 0;
    if rest.is_empty() {
        return Err(refused);
    }
    while !rest.is_empty() {
        let unit_at = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or(refused)?;
        let (number, tail) = rest.split_at(unit_at);
        let unit_end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, after) = tail.split_at(unit_end);
        let unit = unit.trim();
        let (_, nanos) = TIME_UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .ok_or(refused)?;
        let part = scaled(number, *nanos).ok_or(refused)?;
        total = total.checked_add(part).ok_or(QuantityError::TooLong)?;
        rest = after;
    }
    Ok(Duration::from_nanos(total))
}

/// Parses a size such as `256MiB` or `1024`.
pub(super) fn parse_size(text: &str) -> Result<u64, QuantityError> {
    let refused = QuantityError::NotASize;
    let text = text.trim();
    let unit_at = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let unit = unit.trim();
    let bytes = if unit.is_empty() {
        1
    } else {
        SIZE_UNITS
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(unit))
            .ok_or(refused)?
            .1
    };
    scaled(number, bytes).ok_or(refused)
}

/// `number * scale`, exactly; `None` if it is not a decimal number, too large, or not whole.
fn scaled(number: &str, scale: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || (number.contains('.') && !digits(fraction)) || fraction.len() > 15 {
        return None;
    }
    let mut total = u128::from(whole.parse::<u64>().ok()?) * u128::from(scale);
    if !fraction.is_empty() {
        let parts = u128::from(fraction.parse::<u64>().ok()?) * u128::from(scale);
        let divisor = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
        if !parts.is_multiple_of(divisor) {
            return None;
        }
        total += parts / divisor;
    }
    u64::try_from(total).ok()
}

/// The shortest exact notation of a duration.
pub fn format_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let unit = TIME_UNITS
        .iter()
        .find(|(_, unit)| nanos > 0 && nanos.is_multiple_of(u128::from(*unit)));
    match unit {
        Some((name, unit)) => format!("{}{name}", nanos / u128::from(*unit)),
        None => "0s".to_owned(),
    }
}

/// The shortest exact notation of a size, in binary units.
pub fn format_size(bytes: u64) -> String {
    let unit = SIZE_UNITS[..4]
        .iter()
        .find(|(_, unit)| bytes > 0 && bytes.is_multiple_of(*unit));
    match unit {
        Some((name, unit)) => format!("{}{name}", bytes / unit),
        None => format!("{bytes}B"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_parsed_with_units() {
        let millis = |text| parse_duration(text).map(|duration| duration.as_millis());
        assert_eq!(millis("100ms"), Ok(100));
        assert_eq!(millis("1s"), Ok(1000));
        assert_eq!(millis("1.5s"), Ok(1500));
        assert_eq!(millis("1h30m"), Ok(5_400_000));
        assert_eq!(millis("5 m"), Ok(300_000));
        for bad in [
            "",
            "5",
            "s",
            "5x",
            "-1s",
            "1..5s",
            "1e3s",
            "999999999999d",
            "5s,",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad} was accepted");
        }
    }

    #[test]
    fn sizes_are_parsed_with_units() {
        assert_eq!(parse_size("256MiB"), Ok(256 << 20));
        assert_eq!(parse_size("1.5 KiB"), Ok(1536));
        assert_eq!(parse_size("10kB"), Ok(10_000));
        assert_eq!(parse_size("10KB"), Ok(10_000));
        assert_eq!(parse_size("4096"), Ok(4096));
        for bad in ["", "MiB", "-1", "1.0001B", "20000000TiB", "1 M", "1e3"] {
            assert!(parse_size(bad).is_err(), "{bad} was accepted");
        }
    }

    proptest! {
        #[test]
        fn formatted_quantities_parse_back(nanos in any::<u64>(), bytes in any::<u64>()) {
            let duration = Duration::from_nanos(nanos);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
            prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }
    }
}
