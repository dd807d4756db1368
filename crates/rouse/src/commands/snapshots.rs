//! `rouse snapshots` and `rouse rollback`.

use std::path::PathBuf;
use std::process::ExitCode;

use console::style;
use serde::Deserialize;
use serde_json::Value;

use super::NodeArgs;
use super::deploy::SnapshotPointArgs;
use crate::client::api::decode;
use crate::output::error::Outcome;
use crate::output::table::{Align, Table};
use crate::output::{print_json, print_line, quantity};

/// Lists the versions of a function's snapshot, and what trials of later ones came to
///
/// With `--snapshot-point` another snapshot is taken first, and used from then on. Requests are served meanwhile.
#[derive(Debug, clap::Args)]
pub struct SnapshotsArgs {
    /// Function
    name: String,
    #[command(flatten)]
    point: SnapshotPointArgs,
    #[command(flatten)]
    node: NodeArgs,
}

/// Goes back to another version of a function's snapshot, while requests run
///
/// Code and settings stay as they are. Requests that run end on the version that they began with.
#[derive(Debug, clap::Args)]
pub struct RollbackArgs {
    /// Function
    name: String,
    /// Version to use; the newest before the one in use if missing
    // `version` is the id of the flag that every command has.
    #[arg(value_name = "VERSION")]
    to: Option<u64>,
    #[command(flatten)]
    node: NodeArgs,
}

/// What the node says.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SnapshotsView {
    policy: String,
    after: Option<u64>,
    is_pinned: bool,
    problem: Option<String>,
    versions: Vec<VersionView>,
    decisions: Vec<DecisionView>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct VersionView {
    version: u64,
    is_current: bool,
    taken_at: String,
    because: String,
    warm_up: WarmUpView,
    init_us: u64,
    bytes: u64,
    saved_pages: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WarmUpView {
    rounds: u32,
    events: u64,
    us: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DecisionView {
    at: String,
    version: u64,
    against: u64,
    rounds: u32,
    outcome: String,
    reason: String,
}

/// Runs `rouse snapshots`.
pub fn run(args: &SnapshotsArgs) -> Outcome {
    let client = args.node.client();
    if let Some(point) = args.point.settings()? {
        client.set_snapshot_point(&args.name, &point)?;
    }
    let value = client.snapshots(&args.name)?;
    if args.node.json {
        print_json(&value)?;
        return Ok(ExitCode::SUCCESS);
    }
    let view: SnapshotsView = decode("snapshots", value)?;
    print_line(format_args!("policy: {}", policy(&view)))?;
    if let Some(problem) = &view.problem {
        print_line(format_args!("{}: {problem}", style("problem").red()))?;
    }
    print_line(versions(&view))?;
    for one in &view.decisions {
        print_line(format_args!(
            "{}  version {} ({}) against {}: {}, {}",
            one.at,
            one.version,
            rounds(one.rounds),
            one.against,
            one.outcome,
            one.reason
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn policy(view: &SnapshotsView) -> String {
    let after = view
        .after
        .map(|after| format!(", a trial after {after} invocations"));
    let pinned = view
        .is_pinned
        .then_some(", rolled back: nothing else is tried");
    format!(
        "{}{}",
        view.policy,
        pinned.map_or(after.unwrap_or_default(), str::to_owned)
    )
}

fn versions(view: &SnapshotsView) -> Table {
    let mut table = Table::new([
        ("version", Align::Right),
        ("", Align::Left),
        ("taken", Align::Left),
        ("because", Align::Left),
        ("after", Align::Left),
        ("init", Align::Right),
        ("warm-up", Align::Right),
        ("pages", Align::Right),
        ("stored", Align::Right),
    ]);
    for one in &view.versions {
        let ms = |us: u64| format!("{:.1} ms", us as f64 / 1000.0);
        table.row([
            one.version.to_string(),
            if one.is_current { "in use" } else { "" }.to_owned(),
            one.taken_at.clone(),
            one.because.clone(),
            match one.warm_up.rounds {
                0 => "init".to_owned(),
                _ => format!("{} events", one.warm_up.events),
            },
            ms(one.init_us),
            ms(one.warm_up.us),
            one.saved_pages.to_string(),
            quantity::bytes(one.bytes),
        ]);
    }
    table
}

fn rounds(rounds: u32) -> String {
    match rounds {
        1 => "1 round".to_owned(),
        rounds => format!("{rounds} rounds"),
    }
}

/// Runs `rouse rollback`.
pub fn rollback(args: &RollbackArgs) -> Outcome {
    let value = args.node.client().rollback(&args.name, args.to)?;
    if args.node.json {
        print_json(&value)?;
    } else {
        let version = value.get("version").and_then(Value::as_u64).unwrap_or(0);
        print_line(format_args!("{} uses version {version}", args.name))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Why warm-up events cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// Not readable.
    #[error("the warm-up events in {} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not a JSON array.
    #[error("the warm-up events in {} are no JSON array", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}
