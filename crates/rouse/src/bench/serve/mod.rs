//! `rouse bench serve`: what serving costs beside the boot itself. Each part measures one mechanism and adds its targets.
//!
//! | part | what |
//! |---|---|
//! | [`parked`] | requests on `parked` against `warm`, and the memory of an instance that waits |
//! | [`pool`] | how fast a ready sandbox is had, and what it costs to make a used one ready again |
//! | [`rewind`] | requests on `rewind` against `warm` and `restore`, only if asked for |
//! | [`burst`] | many cold requests at once |

mod burst;
mod parked;
mod pool;
mod rewind;

use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use super::host::HostArgs;
use super::machine::Machine;
use super::stage::Stage;
use super::targets::Target;
use super::{Client, Progress, show};
use crate::commands::serve::start_log;
use crate::local::{Session, with_node};
use crate::output::error::{FAILURE, Failed, Outcome};
use crate::settings::{LogFormat, Settings};

/// Measures how requests are served: parked and rewound instances, the sandbox pool, bursts
///
/// Starts a node of its own in a temporary directory. Use a release build on an idle machine.
#[derive(Debug, clap::Args)]
pub struct ServeBenchArgs {
    /// Timed requests on each path
    #[arg(long, short, default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..=1_000_000), value_name = "N")]
    n: u32,
    /// Pause before each request, microseconds: a parked instance that was used is made anew meanwhile
    #[arg(long, default_value_t = 20_000, value_name = "US")]
    gap: u64,
    /// Only these parts
    #[arg(
        long = "part",
        value_delimiter = ',',
        value_name = "PART,...",
        value_enum
    )]
    parts: Vec<Part>,
    /// Print JSON on standard output
    #[arg(long)]
    json: bool,
    /// Also write the JSON to this file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    host: HostArgs,
}

/// One part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Parked instances
    Parked,
    /// The sandbox pool
    Pool,
    /// A burst of cold requests
    Burst,
    /// Instances that are put back to their snapshots; only if asked for, and then nothing is parked
    Rewind,
}

/// What one run found.
#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    gap_us: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    parked: Option<parked::Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pool: Option<pool::Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    burst: Option<burst::Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rewind: Option<rewind::Figures>,
    targets: Vec<Target>,
}

impl Report {
    fn wrong(&self) -> u64 {
        let parked = self.parked.as_ref().map_or(0, |figures| figures.wrong());
        let pool = self.pool.as_ref().map_or(0, |figures| figures.wrong);
        let rewind = self.rewind.as_ref().map_or(0, |figures| figures.wrong());
        rewind + parked + pool + self.burst.as_ref().map_or(0, |figures| figures.wrong)
    }

    fn tables(&self) -> String {
        let parts = [
            Some(self.machine.to_string()),
            self.parked.as_ref().map(parked::Figures::table),
            self.pool.as_ref().map(pool::Figures::text),
            self.burst.as_ref().map(burst::Figures::text),
            self.rewind.as_ref().map(rewind::Figures::table),
            Some(super::report::targets_table(&self.targets).to_string()),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        parts.join("\n\n")
    }
}

/// Runs the command. The process must have a single thread.
pub fn run(args: ServeBenchArgs) -> Outcome {
    start_log(LogFormat::Text, &args.host.log_level)?;
    // What is done after each answer would be seen by the other parts: this one is asked for by name.
    let rewinds = args.parts.contains(&Part::Rewind);
    let waiting = if rewinds { 0 } else { parked::WAITING };
    let settings = Settings {
        python: Some(args.host.python.clone()),
        node: Some(args.host.node.clone()),
        keep_alive_s: Some(3600),
        parked_min: Some(waiting),
        parked_max: Some(waiting),
        rewind: Some(rewinds),
        ..Settings::default()
    };
    let report = with_node(settings, |session| measure(&args, session))?;
    show(&report, || report.tables(), args.json, args.out.as_deref())?;
    Ok(if report.wrong() == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FAILURE)
    })
}

fn measure(args: &ServeBenchArgs, session: &Session) -> Result<Report, Failed> {
    let mut machine = Machine::look();
    let progress = Progress::new(args.json);
    let client = Client::new(session.endpoint.clone());
    let scratch = tempfile::Builder::new().prefix("rouse-bench-").tempdir()?;
    let cache = (args.host.cache.clone()).unwrap_or_else(|| scratch.path().join("packages"));
    let stage = Stage {
        session,
        progress: &progress,
        client: &client,
        scratch: scratch.path(),
        cache: &cache,
        python: &args.host.python,
    };
    let wanted = |part| args.parts.is_empty() || args.parts.contains(&part);
    let gap = std::time::Duration::from_micros(args.gap);
    let n = args.n as usize;
    let mut targets = Vec::new();
    // First, while nothing has warmed anything up.
    let burst = if wanted(Part::Burst) {
        let figures = burst::measure(&stage)?;
        targets.extend(figures.targets());
        Some(figures)
    } else {
        None
    };
    let pool = if wanted(Part::Pool) {
        let figures = pool::measure(&stage, n, gap)?;
        targets.extend(figures.targets());
        Some(figures)
    } else {
        None
    };
    let parked = if wanted(Part::Parked) {
        let figures = parked::measure(&stage, n, gap)?;
        targets.extend(figures.targets());
        Some(figures)
    } else {
        None
    };
    let rewind = if args.parts.contains(&Part::Rewind) {
        let figures = rewind::measure(&stage, n, gap)?;
        targets.extend(figures.targets());
        Some(figures)
    } else {
        None
    };
    machine.finish();
    Ok(Report {
        machine,
        gap_us: args.gap,
        parked,
        pool,
        burst,
        rewind,
        targets,
    })
}
