//! Tables with aligned columns.

use std::fmt;

/// Where a column's cells stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// Rows of cells under a header. Cells may hold colours: widths are those on the screen.
#[derive(Debug)]
pub struct Table {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub fn new<const N: usize>(columns: [(&str, Align); N]) -> Self {
        Self::with_columns(columns.into())
    }

    /// The same, with as many columns as are known only now.
    pub fn with_columns(columns: Vec<(&str, Align)>) -> Self {
        Self {
            columns: columns
                .into_iter()
                .map(|(name, align)| (name.to_owned(), align))
                .collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; one that is shorter than the header is filled with empty cells.
    pub fn row<I: IntoIterator<Item = S>, S: Into<String>>(&mut self, cells: I) {
        let mut cells: Vec<String> = cells.into_iter().map(Into::into).collect();
        cells.resize(self.columns.len(), String::new());
        self.rows.push(cells);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| {
            let cells = self
                .rows
                .iter()
                .map(|row| console::measure_text_width(&row[column]));
            cells
                .chain([console::measure_text_width(&self.columns[column].0)])
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let line = |cells: &mut dyn Iterator<Item = String>| {
            let mut line = String::new();
            for (column, cell) in cells.enumerate() {
                let gap =
                    " ".repeat(widths[column].saturating_sub(console::measure_text_width(&cell)));
                match self.columns[column].1 {
                    Align::Left => line.extend([cell.as_str(), &gap]),
                    Align::Right => line.extend([gap.as_str(), &cell]),
                }
                line.push_str("  ");
            }
            line.trim_end().to_owned()
        };
        let mut header = self
            .columns
            .iter()
            .map(|(name, _)| console::style(name.to_uppercase()).bold().to_string());
        write!(f, "{}", line(&mut header))?;
        for row in &self.rows {
            write!(f, "\n{}", line(&mut row.iter().cloned()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new([
            ("name", Align::Left),
            ("p50", Align::Right),
            ("", Align::Left),
        ]);
        table.row(["a-long-name", "1 us"]);
        table.row(["b", "1000 us", "x"]);
        let plain = console::strip_ansi_codes(&table.to_string()).into_owned();
        assert_eq!(
            plain,
            "NAME             P50\na-long-name     1 us\nb            1000 us  x"
        );
    }
}
