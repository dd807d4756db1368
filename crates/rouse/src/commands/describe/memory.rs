//! `rouse describe --memory`: what the pages of a function's snapshot are, and how well its working set is predicted.

use std::fs;
use std::path::{Path, PathBuf};

use console::style;

use super::heat_map;
use crate::client::shapes::{MemoryView, OutcomeView, WorkingSetView};
use crate::output::error::Failed;
use crate::output::table::{Align, Table};
use crate::output::{print_line, quantity};

/// Why no picture was made.
#[derive(Debug, thiserror::Error)]
#[error("the picture cannot be written to {path}")]
pub struct PictureError {
    path: PathBuf,
    source: std::io::Error,
}

/// What happens with pages of each class, for people.
const MEANING: [(&str, &str); 6] = [
    ("written", "written by calls, and made ready ahead of them"),
    ("read", "read by calls, and made ready ahead of them"),
    ("cold", "in the pool, used when touched"),
    ("parent", "in the pool of the snapshot it came from"),
    ("file", "what a file on the host holds"),
    ("zero", "nothing there"),
];

/// Prints the tables.
pub fn print(memory: &MemoryView) -> Result<(), Failed> {
    let tiers: Vec<&str> = memory.tiers.keys().map(String::as_str).collect();
    let mut columns = vec![
        ("class", Align::Left),
        ("pages", Align::Right),
        ("bytes", Align::Right),
    ];
    columns.extend(tiers.iter().map(|tier| (*tier, Align::Right)));
    columns.push(("", Align::Left));
    let mut table = Table::with_columns(columns);
    for class in &memory.classes {
        let mut row = vec![
            class.class.clone(),
            class.pages.to_string(),
            quantity::bytes(class.bytes),
        ];
        row.extend(tiers.iter().map(|tier| match class.tiers.get(*tier) {
            Some(pages) => quantity::bytes(pages * memory.page_size),
            None => "-".to_owned(),
        }));
        let meaning = MEANING.iter().find(|(name, _)| *name == class.class);
        row.push(
            style(meaning.map_or("", |(_, text)| text))
                .dim()
                .to_string(),
        );
        table.row(row);
    }
    let pages: u64 = memory.classes.iter().map(|class| class.pages).sum();
    let mut row = vec![
        "all".to_owned(),
        pages.to_string(),
        quantity::bytes(pages * memory.page_size),
    ];
    row.extend(
        memory
            .tiers
            .values()
            .map(|pages| quantity::bytes(pages * memory.page_size)),
    );
    row.push(style("tiers: the whole pool").dim().to_string());
    table.row(row);
    print_line(table)?;
    print_line("")?;
    for (name, text) in working_set_lines(&memory.working_set) {
        print_line(format_args!(
            "{}  {text}",
            style(format!("{name:<11}")).bold()
        ))?;
    }
    Ok(())
}

/// Writes the picture.
pub fn draw(name: &str, memory: &MemoryView, path: &Path) -> Result<(), Failed> {
    fs::write(path, heat_map::svg(name, memory)).map_err(|source| {
        let path = path.to_path_buf();
        Failed::from(PictureError { path, source })
    })
}

/// What is known of a working set.
pub fn working_set_lines(set: &WorkingSetView) -> Vec<(&'static str, String)> {
    let state = match (set.version, set.on) {
        (0, _) => "nothing learnt yet".to_owned(),
        (version, true) => format!("version {version}"),
        (version, false) => format!("version {version}, switched off: it does not pay"),
    };
    let recording = if set.recording {
        ", being recorded anew"
    } else {
        ""
    };
    let mut lines = vec![("working set", state + recording)];
    if set.version > 0 {
        lines.push((
            "  predicted",
            format!(
                "{} pages written, {} read",
                set.predicted_written, set.predicted_read
            ),
        ));
    }
    if let Some(OutcomeView {
        predicted,
        used,
        wasted,
        missed,
    }) = set.last_blind
    {
        lines.push((
            "  used",
            format!("{used} of {predicted} pages in the last blind boot, {wasted} wasted, {missed} missed"),
        ));
        let gain = match set.gain_us >= 0.0 {
            true => format!("saves {}", quantity::microseconds(set.gain_us)),
            false => format!("costs {}", quantity::microseconds(-set.gain_us)),
        };
        lines.push(("  pays", format!("{gain} an invocation")));
    }
    if let Some(missed) = set.missed {
        lines.push((
            "  missed",
            format!("{missed} pages last, {} on average", set.residual),
        ));
    }
    lines.push((
        "  observed",
        format!(
            "{} of {} invocations, recorded anew {} times",
            set.observations, set.invocations, set.recordings
        ),
    ));
    if let Some(problem) = &set.problem {
        lines.push(("  problem", problem.clone()));
    }
    lines
}
