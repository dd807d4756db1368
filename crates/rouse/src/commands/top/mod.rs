//! `rouse top`.

mod rates;
mod screen;
mod text;
mod view;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use super::NodeArgs;
use crate::client::api::{ApiError, Client, decode};
use crate::output::error::Outcome;
use crate::output::{print_json_line, print_line};
use rates::Rates;
use view::NodeView;

/// Shows what a node does, each second: functions, requests, memory
///
/// Keys: up and down scroll, q ends. Figures are of the last interval. Without a terminal, and with --once, one interval is shown
/// as text; --json prints an object a line for each interval.
#[derive(Debug, clap::Args)]
pub struct TopArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Ends after one interval
    #[arg(long)]
    once: bool,
    /// Seconds of an interval
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
}

/// Runs the command.
pub fn run(args: &TopArgs) -> Outcome {
    let client = args.node.client();
    let interval = Duration::from_secs(args.interval);
    if !args.once && !args.node.json && std::io::stdout().is_terminal() {
        screen::run(&client, interval)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut before = look(&client)?;
    loop {
        thread::sleep(interval);
        let now = look(&client)?;
        let rates = Rates::between(&before, &now);
        match args.node.json {
            true => print_json_line(&rates)?,
            false => print_line(text::page(&rates))?,
        }
        if args.once || !args.node.json {
            return Ok(ExitCode::SUCCESS);
        }
        before = now;
    }
}

fn look(client: &Client) -> Result<NodeView, ApiError> {
    decode("node", client.node()?)
}
