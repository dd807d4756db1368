//! `rouse doctor`.

use std::process::ExitCode;

use console::style;

use crate::host;
use crate::output::error::{FAILURE, Outcome};
use crate::output::{print_json, print_line};

/// Checks whether this host can run a node
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    /// Print JSON on standard output
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &DoctorArgs) -> Outcome {
    let checks = host::checks();
    let healthy = checks.iter().all(|check| check.result.is_ok());
    if args.json {
        let entries: Vec<serde_json::Value> = checks
            .iter()
            .map(|check| match &check.result {
                Ok(found) => serde_json::json!({ "name": check.name, "met": true, "found": found }),
                Err(problem) => serde_json::json!({ "name": check.name, "met": false, "problem": problem.to_string() }),
            })
            .collect();
        print_json(&entries.into())?;
    } else {
        for check in &checks {
            match &check.result {
                Ok(found) => print_line(format_args!(
                    "{} {}: {found}",
                    style("✔").green(),
                    check.name
                ))?,
                Err(problem) => print_line(format_args!(
                    "{} {}: {problem}",
                    style("✘").red(),
                    check.name
                ))?,
            }
        }
    }
    Ok(if healthy {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FAILURE)
    })
}
