//! `rouse invoke`.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Instant;

use console::style;
use serde_json::{Value, json};

use super::NodeArgs;
use crate::client::api::{Invocation, InvokeOptions};
use crate::output::error::{FUNCTION_ERROR, Outcome};
use crate::output::{print_json, quantity};

/// Invokes a function and prints its answer
///
/// The answer goes to standard output, everything else to standard error. Exit code 3 says that the function
/// itself failed.
#[derive(Debug, clap::Args)]
pub struct InvokeArgs {
    /// Function to invoke
    name: String,
    /// The event: JSON, `@FILE`, or `-` for standard input
    #[arg(long, short, default_value = "{}", value_name = "JSON|@FILE|-")]
    payload: Payload,
    /// Insist on a boot path instead of the node's choice
    #[arg(long, value_name = "PATH", value_parser = ["cold", "restore", "fork", "parked", "rewind", "warm"])]
    boot: Option<String>,
    /// Let this instance answer and no other: one that `rouse ps` lists
    #[arg(long, value_name = "INSTANCE", conflicts_with_all = ["asynchronous", "boot"])]
    instance: Option<String>,
    /// Queue the event and return at once
    #[arg(long = "async")]
    asynchronous: bool,
    /// Also show the last 4 KiB of the function's log
    #[arg(long, conflicts_with = "asynchronous")]
    tail: bool,
    /// Say nothing but the answer
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    node: NodeArgs,
}

/// Where an event comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// Given as it is.
    Text(String),
    /// A file's content.
    File(PathBuf),
    /// Standard input.
    Stdin,
}

impl FromStr for Payload {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "-" => Self::Stdin,
            _ => match text.strip_prefix('@') {
                Some(path) => Self::File(path.into()),
                None => Self::Text(text.to_owned()),
            },
        })
    }
}

/// Why there is no event to send.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// The file cannot be read.
    #[error("cannot read the event from {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Standard input cannot be read.
    #[error("cannot read the event from standard input")]
    Stdin(#[source] io::Error),
    /// The event is not JSON. Told here rather than by the node, since quoting in a shell is what went wrong.
    #[error("the event is not JSON (a text needs its own quotes: --payload '\"text\"')")]
    Json(#[source] serde_json::Error),
}

impl Payload {
    fn read(&self) -> Result<Vec<u8>, PayloadError> {
        let bytes = match self {
            Self::Text(text) => text.clone().into_bytes(),
            Self::File(path) => std::fs::read(path).map_err(|source| PayloadError::File {
                path: path.clone(),
                source,
            })?,
            Self::Stdin => {
                let mut bytes = Vec::new();
                io::stdin()
                    .read_to_end(&mut bytes)
                    .map_err(PayloadError::Stdin)?;
                bytes
            }
        };
        serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).map_err(PayloadError::Json)?;
        Ok(bytes)
    }
}

/// Runs the command.
pub fn run(args: &InvokeArgs) -> Outcome {
    let payload = args.payload.read()?;
    let options = InvokeOptions {
        boot: args.boot.as_deref(),
        asynchronous: args.asynchronous,
        tail: args.tail,
        instance: args.instance.as_deref(),
    };
    let start = Instant::now();
    let invocation = args.node.client().invoke(&args.name, &payload, options)?;
    #[expect(
        clippy::cast_precision_loss,
        reason = "microseconds of one request fit 52 bits"
    )]
    let elapsed_us = start.elapsed().as_micros() as f64;
    if args.node.json {
        print_json(&as_json(&invocation, elapsed_us))?;
    } else {
        if !args.quiet {
            eprintln!("{}", summary(&invocation, elapsed_us));
        }
        if let Some(log) = &invocation.log_tail {
            for line in log.lines() {
                eprintln!("{} {line}", style("│").dim().for_stderr());
            }
        }
        let mut out = io::stdout().lock();
        out.write_all(&invocation.payload)?;
        if !invocation.payload.is_empty() && !invocation.payload.ends_with(b"\n") {
            out.write_all(b"\n")?;
        }
    }
    Ok(if invocation.function_error.is_some() {
        ExitCode::from(FUNCTION_ERROR)
    } else {
        ExitCode::SUCCESS
    })
}

fn summary(invocation: &Invocation, elapsed_us: f64) -> String {
    let time = quantity::microseconds(elapsed_us);
    if invocation.status == 202 {
        let id = invocation.request_id.as_deref().unwrap_or("unknown");
        return format!(
            "{} queued as request {id}, {time}",
            style("✔").green().for_stderr()
        );
    }
    let mark = match &invocation.function_error {
        None => style("✔ answered".to_owned()).green().for_stderr(),
        Some(kind) => style(format!("✘ function error ({kind})"))
            .red()
            .for_stderr(),
    };
    let boot = invocation.boot.as_deref().unwrap_or("unknown");
    let stages: Vec<String> = invocation
        .stages
        .iter()
        .map(|(name, ms)| format!("{name} {}", quantity::microseconds(ms * 1e3)))
        .collect();
    let stages = if stages.is_empty() {
        String::new()
    } else {
        format!(" ({})", stages.join(", "))
    };
    format!(
        "{mark} in {time}, boot path {}{}",
        style(boot).bold().for_stderr(),
        style(stages).dim().for_stderr()
    )
}

fn as_json(invocation: &Invocation, elapsed_us: f64) -> Value {
    // A function of a custom runtime may answer with something that is not JSON.
    let payload: Value = serde_json::from_slice(&invocation.payload).unwrap_or_else(|_| {
        String::from_utf8_lossy(&invocation.payload)
            .into_owned()
            .into()
    });
    let stages: serde_json::Map<String, Value> = invocation
        .stages
        .iter()
        .map(|(name, ms)| (name.clone(), json!(ms * 1e3)))
        .collect();
    json!({
        "status": invocation.status,
        "payload": payload,
        "function_error": invocation.function_error,
        "boot": invocation.boot,
        "stages_us": stages,
        "request_id": invocation.request_id,
        "log_tail": invocation.log_tail,
        "elapsed_us": elapsed_us,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_come_from_text_files_or_stdin() {
        let parse = |text: &str| text.parse::<Payload>().expect("infallible");
        assert_eq!(parse("-"), Payload::Stdin);
        assert_eq!(parse("@event.json"), Payload::File("event.json".into()));
        assert_eq!(parse("{\"a\": 1}").read().expect("json"), b"{\"a\": 1}");
        assert!(matches!(parse("{a: 1}").read(), Err(PayloadError::Json(_))));
        assert!(matches!(
            parse("@/nonexistent/event").read(),
            Err(PayloadError::File { .. })
        ));
    }
}
