//! Tables of aligned columns: text to the left, numbers to the right. A row is always one line: cells are escaped.

use sluicegate_config::escape::escape;

/// A table under construction.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub(crate) fn new(headings: &[&str]) -> Self {
        Self {
            rows: vec![
                headings
                    .iter()
                    .map(|heading| (*heading).to_owned())
                    .collect(),
            ],
        }
    }

    /// Adds a row, with one cell per heading.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        let cells = cells.iter().map(|cell| escape(cell).into_owned());
        self.rows.push(cells.collect());
    }

    /// Renders the table, one line per row.
    pub(crate) fn render(&self) -> String {
        let columns = self.rows[0].len();
        let width = |column: usize| {
            self.rows
                .iter()
                .map(|row| row[column].chars().count())
                .max()
        };
        let widths: Vec<usize> = (0..columns)
            .map(|column| width(column).unwrap_or(0))
            .collect();
        let numeric: Vec<bool> = (0..columns).map(|column| self.is_numeric(column)).collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells = row.iter().enumerate().map(|(column, cell)| {
                let width = widths[column];
                if numeric[column] {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                }
            });
            let line = cells.collect::<Vec<_>>().join("  ");
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    fn is_numeric(&self, column: usize) -> bool {
        let number = |cell: &String| cell == "-" || cell.parse::<f64>().is_ok();
        self.rows.len() > 1 && self.rows[1..].iter().all(|row| number(&row[column]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_with_control_characters_stays_on_its_line() {
        let mut table = Table::new(&["NAME", "WHY"]);
        table.row(["a\nevil".to_owned(), "\u{1b}]0;title\u{7}".to_owned()]);
        let lines = ["NAME     WHY", "a\\nevil  \\u{1b}]0;title\\u{7}", ""];
        assert_eq!(table.render(), lines.join("\n"));
    }

    #[test]
    fn text_is_left_aligned_and_numbers_right_aligned() {
        let mut table = Table::new(&["NAME", "ACKED", "STATE"]);
        table.row(["relay".to_owned(), "12".to_owned(), "ACTIVE".to_owned()]);
        table.row(["flight-delays".to_owned(), "-".to_owned(), String::new()]);
        let lines = [
            "NAME           ACKED  STATE",
            "relay             12  ACTIVE",
            "flight-delays      -",
            "",
        ];
        assert_eq!(table.render(), lines.join("\n"));
    }
}
