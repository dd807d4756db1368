//! What a quickstart found, as tables.

use std::fmt;

use console::style;

use crate::bench::Samples;
use crate::client::api::SnapshotView;
use crate::output::quantity::{bytes, microseconds};
use crate::output::table::{Align, Table};

/// What was seen of one function on one path.
#[derive(Debug)]
pub struct Line {
    /// The function.
    pub function: &'static str,
    /// The path.
    pub path: &'static str,
    /// Its requests.
    pub samples: Samples,
}

/// Everything that a quickstart found.
#[derive(Debug, Default)]
pub struct Summary {
    lines: Vec<Line>,
    snapshots: Vec<(&'static str, SnapshotView)>,
}

impl Summary {
    /// Adds a path.
    pub fn add(&mut self, line: Line) {
        self.lines.push(line);
    }

    /// Adds a function's snapshot.
    pub fn add_snapshot(&mut self, function: &'static str, snapshot: SnapshotView) {
        self.snapshots.push((function, snapshot));
    }

    /// Whether there were answers, and none was wrong.
    pub fn all_right(&self) -> bool {
        !self.lines.is_empty()
            && self
                .lines
                .iter()
                .all(|line| line.samples.wrong == 0 && line.samples.len() > 0)
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new([
            ("function", Align::Left),
            ("path", Align::Left),
            ("n", Align::Right),
            ("right", Align::Right),
            ("p50", Align::Right),
            ("p99", Align::Right),
            ("pages shared", Align::Right),
            ("copied", Align::Right),
            ("stages of the boot (median, us)", Align::Left),
        ]);
        let time = |us: Option<f64>| us.map_or_else(|| "-".to_owned(), microseconds);
        let count =
            |count: Option<u64>| count.map_or_else(|| "-".to_owned(), |count| count.to_string());
        let mut before = "";
        for Line {
            function,
            path,
            samples,
        } in &self.lines
        {
            let right = if samples.wrong == 0 {
                style("all".to_owned()).green()
            } else {
                style(format!("{} wrong", samples.wrong)).red()
            };
            let stages: Vec<String> = samples
                .stages()
                .iter()
                .map(|(name, us)| format!("{name} {us:.0}"))
                .collect();
            table.row([
                if *function == before {
                    String::new()
                } else {
                    (*function).to_owned()
                },
                style(path).bold().to_string(),
                samples.len().to_string(),
                right.to_string(),
                time(samples.percentile(50)),
                time(samples.percentile(99)),
                count(samples.memory(|memory| memory.shared_pages)),
                count(samples.memory(|memory| memory.private_pages)),
                stages.join(", "),
            ]);
            before = function;
        }
        writeln!(f, "\n{table}\n")?;
        for (function, snapshot) in &self.snapshots {
            let size = snapshot.bytes.map_or_else(|| "no size".to_owned(), bytes);
            #[expect(
                clippy::cast_precision_loss,
                reason = "a pause in microseconds fits 52 bits"
            )]
            let pause = snapshot
                .pause_us
                .map_or_else(|| "unknown".to_owned(), |us| microseconds(us as f64));
            let pages = snapshot
                .saved_pages
                .map_or_else(|| "?".to_owned(), |pages| pages.to_string());
            writeln!(
                f,
                "{function}: snapshot {}, {size} on disk, {pages} pages saved, taken in {pause}",
                snapshot.state
            )?;
        }
        for Line {
            function,
            path,
            samples,
        } in &self.lines
        {
            if let Some(reason) = &samples.first_wrong {
                writeln!(f, "{} {function}, {path}: {reason}", style("✘").red())?;
            }
        }
        if self.all_right() {
            let answers: usize = self.lines.iter().map(|line| line.samples.len()).sum();
            write!(
                f,
                "{} {answers} answers, each in a process of its own, and all right",
                style("✔").green()
            )
        } else {
            write!(f, "{} not every answer was right", style("✘").red())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Sample;

    #[test]
    fn one_wrong_answer_is_too_many() {
        let mut summary = Summary::default();
        assert!(!summary.all_right());
        let mut samples = Samples::default();
        samples.add(Sample {
            us: 1500.0,
            stages: vec![("map".to_owned(), 12.0)],
        });
        summary.add(Line {
            function: "f",
            path: "fork",
            samples: samples.clone(),
        });
        assert!(summary.all_right());
        let text = console::strip_ansi_codes(&summary.to_string()).into_owned();
        assert!(
            text.contains("1.50 ms") && text.contains("map 12") && text.contains("1 answers"),
            "{text}"
        );
        samples.add_wrong(|| "late".to_owned());
        summary.add(Line {
            function: "f",
            path: "restore",
            samples,
        });
        assert!(!summary.all_right() && summary.to_string().contains("late"));
    }
}
