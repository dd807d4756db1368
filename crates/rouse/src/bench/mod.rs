//! `rouse bench boot` measures each boot path against the floor, `rouse bench memory` ([`memory`]) where the memory of
//! snapshots may be and what it costs, `rouse bench serve` ([`serve`]) what is ready before requests come, `rouse bench microvm`
//! ([`microvm`]) machines of KVM.
//!
//! [`functions`] are deployed on a node of this process ([`crate::local`]); [`run`] sends their requests on all
//! [`paths`] in turn, through [`caller`] and [`floor`], into [`samples`]; [`report`] shows them beside the [`targets`].

mod caller;
mod floor;
mod functions;
mod host;
mod machine;
mod memory;
mod microvm;
mod paths;
mod plot;
mod report;
mod run;
mod samples;
mod serve;
mod stage;
mod targets;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::client::api::Client;
use crate::commands::serve::start_log;
use crate::local::{Session, with_node};
use crate::output::error::{FAILURE, Failed, Outcome};
use crate::output::progress::Progress;
use crate::output::{print_json, print_line};
use crate::package::detect::NODE;
use crate::settings::{LogFormat, Settings};
#[cfg(test)]
pub use caller::Sample;
pub use caller::{CallError, Caller};
use floor::{FloorCommand, FloorError};
use functions::{FUNCTIONS, Function, RESIDENT, function_named};
use host::HostArgs;
use machine::Machine;
use paths::BenchPath;
use report::{FunctionReport, Report, Row};
use run::{Plan, Subject};
pub use samples::Samples;
use stage::Stage;
use targets::Pause;

/// Measures a node
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Boot(BootArgs),
    Memory(memory::MemoryArgs),
    Serve(serve::ServeBenchArgs),
    Microvm(microvm::MicrovmArgs),
}

/// Measures each boot path of three functions, against a fork of a warmed interpreter
///
/// Starts a node of its own in a temporary directory. Use a release build on an idle machine.
#[derive(Debug, clap::Args)]
struct BootArgs {
    /// Timed requests on each path at each concurrency; a tenth of it on `cold`
    #[arg(long, short, default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..=1_000_000), value_name = "N")]
    n: u32,
    /// Requests in flight
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8], value_parser = clap::value_parser!(u16).range(1..=256), value_name = "N,...")]
    concurrency: Vec<u16>,
    /// Only these functions: python, python-numpy-pillow, node
    #[arg(long = "function", value_delimiter = ',', value_name = "NAME,...", value_parser = parse_function)]
    functions: Vec<Function>,
    /// Pause before each request, microseconds
    #[arg(long, default_value_t = 0, value_name = "US")]
    gap: u64,
    /// Make the functions of language templates
    #[arg(long)]
    templates: bool,
    /// Do not measure the pause of a checkpoint
    #[arg(long)]
    no_pause: bool,
    /// Print JSON on standard output
    #[arg(long)]
    json: bool,
    /// Also write the JSON to this file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    host: HostArgs,
}

/// Why a benchmark did not run.
#[derive(Debug, thiserror::Error)]
enum BenchError {
    /// The report cannot be written.
    #[error("cannot write the report to {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn parse_function(name: &str) -> Result<Function, String> {
    function_named(name, FUNCTIONS.iter())
}

/// Runs the command. The process must have a single thread.
pub fn run(args: BenchArgs) -> Outcome {
    match args.what {
        What::Boot(args) => run_boot(args),
        What::Memory(args) => memory::run(args),
        What::Serve(args) => serve::run(args),
        What::Microvm(args) => microvm::run(args),
    }
}

fn run_boot(args: BootArgs) -> Outcome {
    start_log(LogFormat::Text, &args.host.log_level)?;
    let batch = args.concurrency.iter().copied().max().unwrap_or(1).into();
    let settings = Settings {
        python: Some(args.host.python.clone()),
        node: Some(args.host.node.clone()),
        // Instances for `warm` must live through the run, and ready sandboxes and clones must suffice for one batch.
        keep_alive_s: Some(3600),
        // One batch finds what it takes.
        parked_min: Some(batch),
        parked_max: Some(batch),
        max_idle: Some(batch),
        language_templates: Some(args.templates),
        ..Settings::default()
    };
    let report = with_node(settings, |session| measure(&args, session))?;
    show(&report, || report.tables(), args.json, args.out.as_deref())?;
    // A target that is missed is a finding; an answer that is wrong makes every figure doubtful.
    Ok(if report.wrong() == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FAILURE)
    })
}

/// Writes the report to a file if that is wanted, and prints it as JSON or as tables.
fn show(
    report: &impl serde::Serialize,
    tables: impl FnOnce() -> String,
    json: bool,
    out: Option<&Path>,
) -> Result<(), Failed> {
    if let Some(path) = out {
        let write =
            || -> io::Result<()> { fs::write(path, serde_json::to_string_pretty(report)? + "\n") };
        write().map_err(|source| BenchError::Write {
            path: path.to_owned(),
            source,
        })?;
    }
    if json {
        print_json(&serde_json::to_value(report)?)?;
    } else {
        print_line(tables())?;
    }
    Ok(())
}

fn measure(args: &BootArgs, session: &Session) -> Result<Report, Failed> {
    let mut machine = Machine::look();
    let progress = Progress::new(args.json);
    let client = Client::new(session.endpoint.clone());
    let scratch = tempfile::Builder::new().prefix("rouse-bench-").tempdir()?;
    let cache = args
        .host
        .cache
        .clone()
        .unwrap_or_else(|| scratch.path().join("packages"));
    let bench = Bench {
        args,
        stage: Stage {
            session,
            progress: &progress,
            client: &client,
            scratch: scratch.path(),
            cache: &cache,
            python: &args.host.python,
        },
    };

    let selected: &[Function] = if args.functions.is_empty() {
        &FUNCTIONS
    } else {
        &args.functions
    };
    let mut functions = Vec::new();
    for function in selected {
        functions.push(bench.function(function)?);
    }
    let pause = if args.no_pause {
        None
    } else {
        Some(bench.pause()?)
    };
    machine.finish();
    let concurrencies: Vec<usize> = args.concurrency.iter().copied().map(usize::from).collect();
    let targets = targets::all(&functions, &concurrencies, pause);
    Ok(Report {
        machine,
        gap_us: args.gap,
        functions,
        targets,
    })
}

/// One run of the command.
struct Bench<'a> {
    args: &'a BootArgs,
    stage: Stage<'a>,
}

impl Bench<'_> {
    fn function(&self, function: &Function) -> Result<FunctionReport, Failed> {
        let directory = self.stage.prepare(function)?;
        let deployed = self.stage.deploy(function, function.name, &directory)?;
        let floor = self.floor(function, &directory);
        let mut paths = BenchPath::ALL.to_vec();
        if floor.is_err() {
            paths.retain(|path| *path != BenchPath::Floor);
        }
        if deployed.snapshot.state != "ready" {
            paths.retain(|path| {
                !matches!(
                    path,
                    BenchPath::Fork | BenchPath::Parked | BenchPath::Restore
                )
            });
        }
        let subject = Subject {
            endpoint: &self.stage.session.endpoint,
            function,
            floor: floor.as_ref().ok(),
            paths: &paths,
        };
        let requests = self.args.n as usize;
        let plan = Plan {
            requests,
            cold_requests: requests.div_ceil(10),
            measurements: 10,
            gap: Duration::from_micros(self.args.gap),
        };
        let mut rows: BTreeMap<BenchPath, Vec<Row>> = BTreeMap::new();
        for concurrency in self.args.concurrency.iter().copied().map(usize::from) {
            let label = format!("{}, concurrency {concurrency}", function.name);
            let step = self
                .stage
                .progress
                .bar(label, run::timed_requests(&paths, concurrency, plan));
            let samples = run::measure(
                &subject,
                concurrency,
                plan,
                &self.stage.session.interrupted,
                &step,
            )?;
            self.stage.session.go_on()?;
            let wrong: u64 = samples.values().map(|samples| samples.wrong).sum();
            for (path, samples) in samples {
                rows.entry(path)
                    .or_default()
                    .push(Row::new(concurrency, &samples));
            }
            if wrong == 0 {
                step.done("measured")
            } else {
                step.warn(format_args!("{wrong} wrong answers"))
            }
        }
        // Its idle instances must not weigh on the next function's figures.
        self.stage.client.delete(function.name)?;
        Ok(FunctionReport {
            name: function.name.to_owned(),
            paths: rows,
            no_floor: floor
                .err()
                .map(|error| crate::output::error::chain(&error).join(": ")),
        })
    }

    /// The pause of a checkpoint of a function with 64 MiB of memory.
    fn pause(&self) -> Result<Pause, Failed> {
        let directory = self.stage.prepare(&RESIDENT)?;
        let deployed = self.stage.deploy(&RESIDENT, RESIDENT.name, &directory)?;
        self.stage.client.delete(RESIDENT.name)?;
        let why = || {
            deployed
                .snapshot
                .reason
                .clone()
                .unwrap_or_else(|| "the node reports no pause".to_owned())
        };
        Ok(deployed.snapshot.pause_us.ok_or_else(why))
    }

    fn floor(&self, function: &Function, directory: &Path) -> Result<FloorCommand, FloorError> {
        let command = if function.runtime == NODE {
            floor::node::command(
                &self.args.host.node,
                directory,
                function.handler,
                self.stage.scratch,
            )?
        } else {
            FloorCommand::python(&self.args.host.python, directory, function.handler)
        };
        // One that does not start is found out here, so that the other paths are measured all the same.
        floor::Floor::start(&command)?;
        Ok(command)
    }
}
