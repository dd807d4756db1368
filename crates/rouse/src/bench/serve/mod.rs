//! `rouse bench serve`: what serving costs beside the boot itself. Each part measures one mechanism and adds its targets.
//!
//! | part | what |
//! |---|---|
//! | [`parked`] | requests on `parked` against `warm`, and the memory of an instance that waits |
//! | [`pool`] | how fast a ready sandbox is had, and what it costs to make a used one ready again |
//! | [`rewind`] | requests on `rewind` against `warm` and `restore`, only if asked for |
//! | [`burst`] | many cold requests at once |
//! | [`throughput`] | restored instances a second, against a bare fork |
//! | [`crowd`] | latency beside many live idle instances |
//! | [`neighbours`] | a steady function beside others that do harm |
//! | [`overhead`] | warm requests, against a [`bare`] HTTP server |
//!
//! The last four send their requests by [`lanes`]; `parked` and `rewind` compare boot paths by [`compared`].

mod bare;
mod burst;
mod compared;
mod crowd;
mod lanes;
mod neighbours;
mod overhead;
mod parked;
mod pool;
mod rewind;
mod throughput;

use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use super::host::HostArgs;
use super::machine::Machine;
use super::plot::{Plot, write_beside};
use super::stage::Stage;
use super::targets::Target;
use super::{Client, Progress, show};
use crate::commands::serve::start_log;
use crate::local::{Session, with_node};
use crate::output::error::{FAILURE, Failed, Outcome};
use crate::settings::{LogFormat, Settings};

/// Measures how requests are served: parked and rewound instances, the sandbox pool, bursts, throughput, crowds, overhead
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
    /// Also write the JSON to this file, and charts beside it
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
    /// Restored instances a second
    Throughput,
    /// Latency beside many idle instances
    Crowd,
    /// A steady function beside others that do harm
    Neighbours,
    /// Overhead over a bare HTTP server
    Overhead,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    throughput: Option<throughput::Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    crowd: Option<crowd::Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    neighbours: Option<neighbours::Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    overhead: Option<overhead::Figures>,
    targets: Vec<Target>,
}

impl Report {
    fn wrong(&self) -> u64 {
        let parts = [
            self.parked.as_ref().map(parked::Figures::wrong),
            self.pool.as_ref().map(|figures| figures.wrong),
            self.burst.as_ref().map(|figures| figures.wrong),
            self.rewind.as_ref().map(rewind::Figures::wrong),
            self.throughput.as_ref().map(|figures| figures.wrong),
            self.crowd.as_ref().map(|figures| figures.wrong),
            self.neighbours.as_ref().map(|figures| figures.wrong),
            self.overhead.as_ref().map(|figures| figures.wrong),
        ];
        parts.into_iter().flatten().sum()
    }

    fn plots(&self) -> Vec<Plot> {
        let parts = [
            self.parked.as_ref().map(parked::Figures::plot),
            self.pool.as_ref().map(pool::Figures::plot),
            self.burst.as_ref().map(burst::Figures::plot),
            self.rewind.as_ref().map(rewind::Figures::plot),
            self.throughput.as_ref().map(throughput::Figures::plot),
            self.crowd.as_ref().map(crowd::Figures::plot),
            self.neighbours.as_ref().map(neighbours::Figures::plot),
            self.overhead.as_ref().map(overhead::Figures::plot),
        ];
        parts.into_iter().flatten().collect()
    }

    fn tables(&self) -> String {
        let parts = [
            Some(self.machine.to_string()),
            self.parked.as_ref().map(parked::Figures::table),
            self.pool.as_ref().map(pool::Figures::text),
            self.burst.as_ref().map(burst::Figures::text),
            self.rewind.as_ref().map(rewind::Figures::table),
            self.throughput.as_ref().map(throughput::Figures::text),
            self.crowd.as_ref().map(crowd::Figures::text),
            self.neighbours.as_ref().map(neighbours::Figures::text),
            self.overhead.as_ref().map(overhead::Figures::text),
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
        // The crowd is parked.
        memory_parked_bytes: Some(16 << 30),
        // As many as are called at a time.
        max_idle: overhead::CONCURRENCIES.into_iter().max(),
        ..Settings::default()
    };
    let report = with_node(settings, |session| measure(&args, session))?;
    if let Some(out) = &args.out {
        write_beside(out, &report.plots())?;
    }
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
    let throughput = if wanted(Part::Throughput) {
        let figures = throughput::measure(&stage)?;
        targets.extend(figures.targets());
        Some(figures)
    } else {
        None
    };
    let overhead = if wanted(Part::Overhead) {
        let figures = overhead::measure(&stage)?;
        targets.extend(figures.targets());
        Some(figures)
    } else {
        None
    };
    let neighbours = if wanted(Part::Neighbours) {
        let figures = neighbours::measure(&stage)?;
        targets.extend(figures.targets());
        Some(figures)
    } else {
        None
    };
    let crowd = if wanted(Part::Crowd) {
        let figures = crowd::measure(&stage)?;
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
        throughput,
        crowd,
        neighbours,
        overhead,
        targets,
    })
}
