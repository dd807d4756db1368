//! `rouse delete`.

use std::process::ExitCode;

use super::NodeArgs;
use crate::output::error::Outcome;
use crate::output::{print_json, print_line};

/// Deletes a function, its snapshot and its logs
#[derive(Debug, clap::Args)]
pub struct DeleteArgs {
    /// Function to delete
    name: String,
    #[command(flatten)]
    node: NodeArgs,
}

/// Runs the command.
pub fn run(args: &DeleteArgs) -> Outcome {
    args.node.client().delete(&args.name)?;
    if args.node.json {
        print_json(&serde_json::json!({ "deleted": args.name }))?;
    } else {
        print_line(format_args!("deleted {}", args.name))?;
    }
    Ok(ExitCode::SUCCESS)
}
