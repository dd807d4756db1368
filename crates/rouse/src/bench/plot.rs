//! Bar charts, as SVG.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use super::BenchError;

/// One chart: groups of bars, and a line for what was asked.
#[derive(Debug, Clone)]
pub struct Plot {
    /// Name of the file, without ending.
    pub file: &'static str,
    /// What is shown.
    pub title: String,
    /// Unit of the values.
    pub unit: &'static str,
    /// Names of the groups, and the bars of each.
    pub groups: Vec<(String, Vec<(String, f64)>)>,
}

const COLOURS: [&str; 6] = [
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377",
];
const LEFT: f64 = 190.0;
const WIDTH: f64 = 520.0;
const BAR: f64 = 18.0;
const GAP: f64 = 14.0;

impl Plot {
    /// The chart as a document.
    pub fn svg(&self) -> String {
        let values = self.groups.iter().flat_map(|(_, bars)| bars);
        let largest = values
            .map(|(_, value)| *value)
            .fold(f64::MIN_POSITIVE, f64::max);
        let mut body = String::new();
        let mut y = 46.0;
        for (group, bars) in &self.groups {
            // Writing to a String cannot fail.
            let _ = writeln!(
                body,
                r#"<text x="8" y="{:.0}" font-weight="bold">{}</text>"#,
                y + 13.0,
                escaped(group)
            );
            y += BAR;
            for (index, (name, value)) in bars.iter().enumerate() {
                let width = (value.max(0.0) / largest * WIDTH).max(1.0);
                let colour = COLOURS[index % COLOURS.len()];
                let _ = writeln!(
                    body,
                    r#"<text x="{:.0}" y="{:.0}" text-anchor="end">{}</text><rect x="{LEFT}" y="{y:.0}" width="{width:.1}" height="{:.0}" fill="{colour}"/><text x="{:.0}" y="{:.0}">{}</text>"#,
                    LEFT - 6.0,
                    y + 13.0,
                    escaped(name),
                    BAR - 3.0,
                    LEFT + width + 6.0,
                    y + 13.0,
                    short(*value)
                );
                y += BAR;
            }
            y += GAP;
        }
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"800\" height=\"{y:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
             <text x=\"8\" y=\"22\" font-size=\"15\">{} ({})</text>\n{body}</svg>\n",
            escaped(&self.title),
            escaped(self.unit)
        )
    }
}

/// Writes charts beside the report `out`: `memory.json` and `live` make `memory-live.svg`.
pub fn write_beside(out: &Path, plots: &[Plot]) -> Result<(), BenchError> {
    let stem = out.file_stem().unwrap_or_default().to_string_lossy();
    for plot in plots {
        let path = out.with_file_name(format!("{stem}-{}.svg", plot.file));
        fs::write(&path, plot.svg()).map_err(|source| BenchError::Write { path, source })?;
    }
    Ok(())
}

fn short(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_has_all_its_bars() {
        let plot = Plot {
            file: "p",
            title: "a < b & c".into(),
            unit: "ms",
            groups: vec![
                ("one".into(), vec![("x".into(), 1.5), ("y".into(), 300.0)]),
                ("two".into(), vec![("x".into(), 0.0)]),
            ],
        };
        let svg = plot.svg();
        assert_eq!(svg.matches("<rect").count(), 1 + 3);
        assert!(svg.contains("a &lt; b &amp; c") && svg.contains(">300<") && svg.contains("1.50"));
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    }
}
