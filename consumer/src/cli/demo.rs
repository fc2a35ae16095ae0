//! `sluicegate demo [--rate N] [--for 30s]`.

use std::path::PathBuf;
use std::time::Duration;

use super::failure::Failure;
use super::produce::positive;
use super::signals::{self, Signal};
use crate::demo::{self, Options};

/// Arguments of `demo`.
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// Flights per second
    #[arg(long, value_name = "N", value_parser = positive, default_value = "2000")]
    rate: f64,
    /// Stop after this time, such as 30s or 5m
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    run_for: Option<Duration>,
    /// CSV of flights, also in zip or gzip; defaults to the source tree's file
    #[arg(long, value_name = "FILE", env = "SLUICEGATE_DEMO_DATA")]
    data: Option<PathBuf>,
    /// Folder of built plugins; defaults to the program's folder
    #[arg(long, value_name = "FOLDER", env = "SLUICEGATE_DEMO_PLUGINS")]
    plugins: Option<PathBuf>,
}

/// Parses a duration with a unit. The error is the text that clap prints.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("`{text}` is not a duration; expected a value such as 500ms, 30s, 5m or 1h");
    let digits = text
        .find(|c: char| c.is_ascii_alphabetic())
        .ok_or_else(wrong)?;
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    let number = positive(number).map_err(|_| wrong())?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())
}

/// Runs the demo until its time is over or a signal arrives.
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let signals = signals::listen()?;
    let options = Options {
        rate: arguments.rate,
        run_for: arguments.run_for,
        data: arguments.data.clone(),
        plugins: arguments.plugins.clone(),
    };
    let mut stop_requested = |wait| matches!(signals.recv_timeout(wait), Ok(Signal::Stop));
    demo::run(&options, &mut stop_requested).map_err(Failure::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_a_unit() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        for bad in ["30", "s", "0s", "-1s", "3 days", "", "1e300h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
