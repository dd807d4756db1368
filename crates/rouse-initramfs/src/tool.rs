//! Programs of the host that do one thing and say on standard error why they cannot.

use std::process::{Command, Stdio};

/// Runs a program to its end, without input, and returns what it has printed.
///
/// # Errors
/// Why it did not start, or how it ended and what it said about it.
pub fn output(command: &mut Command) -> Result<Vec<u8>, String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| error.to_string())?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{}: {}", output.status, said.trim_end()));
    }
    Ok(output.stdout)
}
