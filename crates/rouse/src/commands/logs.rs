//! `rouse logs`.

use std::io::{self, Write};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use console::style;
use serde_json::Value;

use super::NodeArgs;
use crate::client::api::{LogLine, decode};
use crate::output::error::Outcome;
use crate::output::print_line;

/// How often `--follow` asks for new lines.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(500);
/// Lines that `--follow` asks for each time: more than a function writes between two questions, at the rates
/// that people read.
const FOLLOW_WINDOW: usize = 2000;

/// Prints a function's log
#[derive(Debug, clap::Args)]
pub struct LogsArgs {
    /// Function whose log is read
    name: String,
    /// How many lines to begin with
    #[arg(long, short = 'n', default_value_t = 100, value_name = "N")]
    tail: usize,
    /// Go on printing lines as they come, until Ctrl-C
    #[arg(long, short)]
    follow: bool,
    #[command(flatten)]
    node: NodeArgs,
}

/// Runs the command.
pub fn run(args: &LogsArgs) -> Outcome {
    let client = args.node.client();
    let mut seen = client.logs(
        &args.name,
        if args.follow {
            args.tail.max(FOLLOW_WINDOW)
        } else {
            args.tail
        },
    )?;
    print(args, &seen[seen.len().saturating_sub(args.tail)..])?;
    if !args.follow {
        return Ok(ExitCode::SUCCESS);
    }
    loop {
        thread::sleep(FOLLOW_INTERVAL);
        let now = client.logs(&args.name, FOLLOW_WINDOW)?;
        let new = new_lines(&seen, &now);
        print(args, &now[new..])?;
        seen = now;
    }
}

/// Index in `now` of the first line that comes after the window `before`.
///
/// Both are windows of one sequence that only grows, so `now` begins somewhere in `before`: the longest suffix of
/// `before` that `now` starts with is what was printed already. The longest is right even where lines repeat,
/// because lines carry their time.
fn new_lines(before: &[Value], now: &[Value]) -> usize {
    (1..=before.len().min(now.len()))
        .rev()
        .find(|length| before[before.len() - length..] == now[..*length])
        .unwrap_or(0)
}

fn print(args: &LogsArgs, lines: &[Value]) -> Result<(), crate::output::error::Failed> {
    for line in lines {
        if args.node.json {
            print_line(line)?;
        } else {
            let line: LogLine = decode("logs", line.clone())?;
            let time = rouse_node::time::rfc3339_ms(line.timestamp);
            print_line(format_args!("{} {}", style(time).dim(), line.message))?;
        }
    }
    io::stdout().flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(range: std::ops::Range<i32>) -> Vec<Value> {
        range.map(Value::from).collect()
    }

    #[test]
    fn each_line_is_printed_once() {
        assert_eq!(new_lines(&window(0..5), &window(0..5)), 5);
        assert_eq!(new_lines(&window(0..5), &window(0..8)), 5);
        assert_eq!(new_lines(&window(0..5), &window(3..8)), 2);
        assert_eq!(new_lines(&window(0..5), &window(7..9)), 0);
        assert_eq!(new_lines(&[], &window(0..2)), 0);
        assert_eq!(new_lines(&window(0..2), &[]), 0);
    }
}
