//! `rouse list`.

use std::process::ExitCode;

use console::style;

use super::NodeArgs;
use crate::client::api::{Configuration, decode};
use crate::output::error::Outcome;
use crate::output::table::{Align, Table};
use crate::output::{print_json, print_line, quantity};

/// Lists the functions of a node
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    node: NodeArgs,
}

/// Runs the command.
pub fn run(args: &ListArgs) -> Outcome {
    let functions = args.node.client().list()?;
    if args.node.json {
        print_json(&functions.into())?;
        return Ok(ExitCode::SUCCESS);
    }
    if functions.is_empty() {
        print_line("no functions: deploy one with `rouse deploy DIR`")?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new([
        ("name", Align::Left),
        ("runtime", Align::Left),
        ("handler", Align::Left),
        ("memory", Align::Right),
        ("timeout", Align::Right),
        ("code", Align::Right),
        ("state", Align::Left),
        ("modified", Align::Left),
    ]);
    for function in functions {
        let function: Configuration = decode("ListFunctions", function)?;
        table.row([
            function.function_name,
            function.runtime,
            function.handler,
            format!("{} MiB", function.memory_size),
            format!("{} s", function.timeout),
            quantity::bytes(function.code_size),
            coloured_state(&function.state),
            function.last_modified,
        ]);
    }
    print_line(table)?;
    Ok(ExitCode::SUCCESS)
}

/// A function's or snapshot's state in the colour of what it means.
pub fn coloured_state(state: &str) -> String {
    match state {
        "Active" | "Successful" | "ready" => style(state).green().to_string(),
        "Failed" | "failed" => style(state).red().to_string(),
        _ => style(state).yellow().to_string(),
    }
}
