//! Sizes of rollout waves.

use std::fmt;

/// Number of members with the new revision after a wave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wave {
    /// This many members; at least 1.
    Members(usize),
    /// This percentage of the live members, rounded up; 1 to 100.
    Percent(u8),
}

/// Why a text is not a list of waves.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a list of waves: {reason}; write increasing sizes up to 100%, such as 1,25%,100%"
)]
pub struct WaveError {
    /// The text.
    pub text: String,
    /// The problem.
    pub reason: &'static str,
}

impl Wave {
    /// The size for `alive` live members.
    #[must_use]
    pub fn size(self, alive: usize) -> usize {
        match self {
            Self::Members(members) => members.min(alive),
            Self::Percent(percent) => (alive * usize::from(percent)).div_ceil(100),
        }
    }

    /// Reads one size.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        match text.strip_suffix('%') {
            Some(percent) => {
                let percent = percent.parse().ok()?;
                (1..=100)
                    .contains(&percent)
                    .then_some(Self::Percent(percent))
            }
            None => {
                let members = text.parse().ok()?;
                (members >= 1).then_some(Self::Members(members))
            }
        }
    }
}

impl fmt::Display for Wave {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Members(members) => write!(f, "{members}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// Reads a comma-separated list of sizes, the last of which is all members.
///
/// # Errors
/// [`WaveError`] with the problem.
pub fn parse_waves(text: &str) -> Result<Vec<Wave>, WaveError> {
    let refused = |reason| WaveError {
        text: text.to_owned(),
        reason,
    };
    let waves: Option<Vec<Wave>> = text.split(',').map(Wave::parse).collect();
    let waves = waves
        .ok_or_else(|| refused("a size is a number of members, or a percentage from 1% to 100%"))?;
    if waves.last() != Some(&Wave::Percent(100)) {
        return Err(refused("the last wave is not 100%"));
    }
    let grows = waves.windows(2).all(|pair| match (pair[0], pair[1]) {
        (Wave::Members(a), Wave::Members(b)) => a < b,
        (Wave::Percent(a), Wave::Percent(b)) => a < b,
        _ => true,
    });
    match grows {
        true => Ok(waves),
        false => Err(refused("a wave is not larger than the one before")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wave_sizes_grow_to_all_members() {
        let waves = parse_waves("1, 25%,100%").unwrap();
        let sizes: Vec<usize> = waves.iter().map(|wave| wave.size(10)).collect();
        assert_eq!(sizes, [1, 3, 10]);
        let sizes: Vec<usize> = waves.iter().map(|wave| wave.size(1)).collect();
        assert_eq!(sizes, [1, 1, 1]);
        for bad in ["", "1", "1,50%", "0,100%", "101%", "50%,25%,100%", "x,100%"] {
            let error = parse_waves(bad).unwrap_err();
            assert!(error.to_string().contains("such as 1,25%,100%"), "{bad}");
        }
    }
}
