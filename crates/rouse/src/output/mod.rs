//! What people see: tables, quantities, progress, errors. Standard output is for results, standard error for
//! everything else, so that `--json` and pipes stay clean.

pub mod error;
pub mod progress;
pub mod quantity;
pub mod table;

use std::io::{self, Write};

use serde_json::Value;

/// Prints `value` as indented JSON on standard output.
pub fn print_json(value: &Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)
}

/// Prints `value` as JSON in one line on standard output.
pub fn print_json_line(value: &impl serde::Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, value)?;
    writeln!(out)?;
    out.flush()
}

/// Prints `text` and a line end on standard output.
///
/// `println!` panics when the reader of a pipe has gone (`rouse list | head -1`); this returns the error.
pub fn print_line(text: impl std::fmt::Display) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}
