//! `rouse bench microvm`: machines of KVM, from nothing and from snapshots, with plain Python in 256 MiB.
//!
//! | part | what |
//! |---|---|
//! | [`cold`] | boots, part by part; one of them tells on its [`console`] where its time goes |
//! | [`aware`] | how well it predicts the working set to know whose each page is |
//! | [`stored`] | what the store takes for a machine and for a child of it; the working set |
//! | [`restored`] | restores by jailed VMMs: time, processor time, faults, connections, memory |
//! | [`figures`] | the targets |
//!
//! Drives `rouse-vmm` and `rouse-pool` without a node between them.

mod api;
mod aware;
mod cold;
mod console;
mod figures;
mod guest;
mod meter;
mod report;
mod restored;
mod stored;
mod subject;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use rouse_pool::keeper::{self, PagerHandle};
use rouse_vmm::host;
use rouse_vmm::kernel::Kernel;

use super::machine::Machine;
use super::{Progress, show};
use crate::commands::serve::start_log;
use crate::output::error::{Failed, Outcome};
use crate::settings::LogFormat;
use cold::{Answered, Boot, Ingredients};
use console::Console;
use report::{Profile, Report};
use restored::{Restorer, Way};
use stored::Stored;

/// For each answer of a guest: machines may be emulated.
const PATIENCE: Duration = Duration::from_secs(600);
/// What a kernel says nothing with.
const QUIET: &str = "quiet";

/// Measures microVMs: boots, restores, what they take on disk and in memory
///
/// Needs KVM on hardware, and root.
#[derive(Debug, clap::Args)]
pub struct MicrovmArgs {
    /// Boots, and restores of each kind
    #[arg(long, short, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000), value_name = "N")]
    n: u32,
    /// The directory that `rouse kernel import` made
    #[arg(long, value_name = "DIR")]
    kernel: PathBuf,
    /// The image that `rouse image build` made, with Python in it
    #[arg(long, value_name = "FILE")]
    root: PathBuf,
    /// The program of a VMM; if not given, `rouse-vmm` beside this one
    #[arg(long, value_name = "FILE")]
    vmm: Option<PathBuf>,
    /// Print JSON on standard output
    #[arg(long)]
    json: bool,
    /// Also write the JSON to this file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// What is logged on standard error
    #[arg(long, default_value = "error", value_name = "LEVEL")]
    log_level: String,
}

/// Runs the command. The process must have a single thread.
pub fn run(args: MicrovmArgs) -> Outcome {
    start_log(LogFormat::Text, &args.log_level)?;
    // One sentence, before anything is done.
    drop(host::usable()?);
    // Before the first thread.
    let keeper = keeper::start()?;
    let (pager, _events) = keeper.connect()?;
    // Keeper and pager end with this process, which they watch.
    let report = measure(&args, &pager)?;
    show(&report, || report.tables(), args.json, args.out.as_deref())?;
    Ok(ExitCode::SUCCESS)
}

fn measure(args: &MicrovmArgs, pager: &PagerHandle) -> Result<Report, Failed> {
    let mut machine = Machine::look();
    let progress = Progress::new(args.json);
    let scratch = tempfile::Builder::new().prefix("rouse-bench-").tempdir()?;
    let scratch = scratch.path();
    let vmm = match &args.vmm {
        Some(vmm) => vmm.clone(),
        None => std::env::current_exe()?.with_file_name("rouse-vmm"),
    };
    let kernel = Kernel::open(&args.kernel)?;
    let disks = subject::disks(&args.root, scratch)?;
    let from = Ingredients {
        kernel: &kernel,
        disks: &disks,
        scratch,
    };
    let n = u64::from(args.n);

    let step = progress.bar("boots", n + 1);
    let profile = profile(&from)?;
    step.advance();
    let mut boots = Vec::new();
    let mut last: Option<Answered> = None;
    for number in 0..n {
        // One machine at a time.
        drop(last.take());
        let answered = cold::boot(&from, QUIET, &Console::default(), number)?;
        boots.push(answered.boot.clone());
        last = Some(answered);
        step.advance();
    }
    step.done("measured");

    let step = progress.spinner("snapshot and working set");
    let last = last.ok_or("no machine was booted")?;
    let mut stored = Stored::write(pager, &scratch.join("store"), &disks, last)?;
    let learnt = stored.learn(&disks, scratch, n)?;
    step.done("stored");

    let step = progress.bar("restores", n * Way::ALL.len() as u64);
    let restorer = Restorer {
        pager,
        vmm: &vmm,
        disks: &disks,
    };
    let mut restores = Vec::new();
    for number in 0..n {
        for (way, restore) in restorer.in_all_ways(&mut stored, n + 1 + number)? {
            restores.push((way, restore));
            step.advance();
        }
    }
    step.done("measured");
    machine.finish();
    Ok(Report::new(
        machine,
        profile,
        boots,
        &stored.size,
        &learnt,
        &restores,
    ))
}

/// A boot whose kernel says what it does.
fn profile(from: &Ingredients<'_>) -> Result<Profile, Failed> {
    let console = Console::default();
    let answered = cold::boot(from, "", &console, 0)?;
    Ok(Profile {
        boot: answered.boot,
        pauses: console.pauses(10),
    })
}

/// The middle one of some figures.
fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let values: Vec<f64> = values.collect();
    super::samples::percentile(&values, 50)
}

/// The middle one of boots' figures.
fn of_boots(boots: &[Boot], figure: impl Fn(&Boot) -> f64) -> Option<f64> {
    median(boots.iter().map(figure))
}
