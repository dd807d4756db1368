//! `rouse describe`.

mod heat_map;
mod memory;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use console::style;

use super::NodeArgs;
use super::configure;
use super::list::coloured_state;
use crate::client::api::{Configuration, Description, SnapshotView, decode};
use crate::client::shapes::{MemoryView, ServingView};
use crate::output::error::Outcome;
use crate::output::{print_json, print_line, quantity};

/// Shows a function's configuration, snapshot and boots
#[derive(Debug, clap::Args)]
pub struct DescribeArgs {
    /// Function to describe
    name: String,
    /// Show what the pages of its snapshot are, by class and tier
    #[arg(long)]
    memory: bool,
    /// Draw all pages, mapping by mapping
    #[arg(long, value_name = "FILE", requires = "memory")]
    svg: Option<PathBuf>,
    #[command(flatten)]
    node: NodeArgs,
}

/// Runs the command.
pub fn run(args: &DescribeArgs) -> Outcome {
    if args.memory {
        return run_memory(args);
    }
    let value = args.node.client().describe(&args.name)?;
    if args.node.json {
        print_json(&value)?;
        return Ok(ExitCode::SUCCESS);
    }
    let description: Description = decode("describe", value)?;
    let configuration: Configuration = decode("describe", description.configuration)?;
    let mut lines = function_lines(&configuration);
    lines.push(("snapshot", coloured_state(&description.snapshot.state)));
    lines.extend(snapshot_lines(&description.snapshot));
    if let Some(set) = &description.snapshot.working_set {
        lines.extend(memory::working_set_lines(set));
    }
    lines.extend(served(&description.serving));
    let boots: Vec<String> = description
        .boots
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(path, count)| format!("{count} {path}"))
        .collect();
    lines.push((
        "boots",
        if boots.is_empty() {
            "none yet".to_owned()
        } else {
            boots.join(", ")
        },
    ));
    lines.push(("instances", instances(&description.instances)));
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, text) in lines {
        print_line(format_args!(
            "{}  {text}",
            style(format!("{name:<width$}")).bold()
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn run_memory(args: &DescribeArgs) -> Outcome {
    let value = args.node.client().memory(&args.name)?;
    let view: MemoryView = decode("describe", value.clone())?;
    if let Some(path) = &args.svg {
        memory::draw(&args.name, &view, path)?;
    }
    if args.node.json {
        print_json(&value)?;
    } else {
        memory::print(&view)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn function_lines(configuration: &Configuration) -> Vec<(&'static str, String)> {
    let mut state = coloured_state(&configuration.state);
    if let Some(reason) = &configuration.state_reason {
        state = format!("{state}: {reason}");
    }
    let mut lines = vec![
        ("function", configuration.function_name.clone()),
        ("state", state),
        ("runtime", configuration.runtime.clone()),
        ("handler", configuration.handler.clone()),
        (
            "limits",
            format!(
                "{} MiB, {} s",
                configuration.memory_size, configuration.timeout
            ),
        ),
        ("code", quantity::bytes(configuration.code_size)),
        ("modified", configuration.last_modified.clone()),
    ];
    let variables = configuration
        .environment
        .iter()
        .flat_map(|environment| environment.variables.keys());
    let variables: Vec<&str> = variables.map(String::as_str).collect();
    if !variables.is_empty() {
        // Names only: values may be secrets, and this is what people paste into reports.
        lines.push(("environment", variables.join(", ")));
    }
    lines
}

/// What is known of a snapshot, besides its state.
pub fn snapshot_lines(snapshot: &SnapshotView) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    let mut push = |name, text: Option<String>| lines.extend(text.map(|text| (name, text)));
    push("  reason", snapshot.reason.clone());
    push("  no fork", snapshot.fork_problem.clone());
    push("  not far", snapshot.far_problem.clone());
    push("  point", snapshot.point.clone());
    push("  taken", snapshot.taken_at.clone());
    push(
        "  pages",
        snapshot
            .pages
            .zip(snapshot.saved_pages)
            .map(|(pages, saved)| format!("{pages} mapped, {saved} saved")),
    );
    let parent = snapshot.parent.as_ref();
    push(
        "  parent",
        parent.map(|parent| {
            let shared = quantity::bytes(parent.pages * 4096);
            format!("{}, {shared} shared with it", parent.template)
        }),
    );
    push("  resident", snapshot.resident_bytes.map(quantity::bytes));
    push("  on disk", snapshot.bytes.map(quantity::bytes));
    #[expect(
        clippy::cast_precision_loss,
        reason = "a pause in microseconds fits 52 bits"
    )]
    push(
        "  pause",
        snapshot
            .pause_us
            .map(|us| quantity::microseconds(us as f64)),
    );
    lines
}

/// What was decided about the function's serving; the rest is the node's.
fn served(view: &ServingView) -> Option<(&'static str, String)> {
    let decided: Vec<String> = configure::lines(view)
        .into_iter()
        .filter(|(name, _)| view.policy.contains_key(*name))
        .map(|(name, text)| format!("{name} {text}"))
        .collect();
    (!decided.is_empty()).then(|| ("serving", decided.join(", ")))
}

fn instances(counts: &BTreeMap<String, u64>) -> String {
    let counts: Vec<String> = counts
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    if counts.is_empty() {
        "none".to_owned()
    } else {
        counts.join(", ")
    }
}
