//! `rouse bench memory`: what it costs to keep the memory of snapshots elsewhere than in DRAM, and what it saves.
//!
//! Functions are deployed on a node of this process and called until their working sets are known. Then
//! [`situation`] moves the memory of their snapshots about, [`restores`] times a restore in each situation in turn (for
//! some of them behind [`paced`]), and [`live`] counts what many instances cost. [`fleet`] starts nodes in processes of
//! their own ([`child`]). [`figures`] has one bound for each figure that is asked, [`report`] and [`plots`] show them.

mod child;
mod figures;
mod fleet;
mod live;
mod paced;
mod plots;
pub(super) mod processes;
mod report;
mod restores;
mod situation;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use rouse_pool::codec::{Choice, CodecId, DefaultChoice, Single};

use super::caller::Caller;
use super::functions::{FUNCTIONS, Function, TOUCHING, function_named};
use super::host::HostArgs;
use super::machine::Machine;
use super::plot::write_beside;
use super::show;
use super::stage::Stage;
use crate::client::api::Client;
use crate::commands::serve::start_log;
use crate::local::{Session, with_node};
use crate::output::error::{FAILURE, Failed, Outcome, chain};
use crate::output::progress::Progress;
use crate::settings::{LogFormat, Settings};
use child::ChildNode;
use figures::{Found, Part};
use paced::Paced;
use report::{FunctionReport, PacedReport, Report};
use restores::Copy;
use situation::{Situation, arrange, image_of};

/// Measures restores from each tier of memory, and what live and idle functions hold
///
/// Starts nodes of its own in a temporary directory. Use a release build on an idle machine.
#[derive(Debug, clap::Args)]
pub struct MemoryArgs {
    /// Timed requests in each situation
    #[arg(long, short, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000), value_name = "N")]
    n: u32,
    /// Only these parts
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Measured::ALL, value_name = "PART,...")]
    part: Vec<Measured>,
    /// Only these functions are restored: python, python-numpy-pillow, node, python-touch-64-mib, python-halves-64-mib
    #[arg(long = "function", value_delimiter = ',', value_name = "NAME,...", value_parser = parse_function)]
    functions: Vec<Function>,
    /// Live instances
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(2..=1000), value_name = "N")]
    instances: u16,
    /// Idle functions
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000), value_name = "N")]
    idle: u32,
    /// Print JSON on standard output
    #[arg(long)]
    json: bool,
    /// Also write the JSON to this file, and charts beside it
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    host: HostArgs,
}

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Measured {
    /// Restores from DRAM and disk
    Tiers,
    /// Restores from a disk of 500 MB/s
    Paced,
    /// Live instances
    Live,
    /// Functions that share a template
    Templates,
    /// Idle functions
    Idle,
}

impl Measured {
    const ALL: [Self; 5] = [
        Self::Tiers,
        Self::Paced,
        Self::Live,
        Self::Templates,
        Self::Idle,
    ];
}

/// Requests after which the working set of a function is known.
const LEARNING: u64 = 24;
/// The speed of the slow disk, bytes a second.
const LIMIT: u64 = 500_000_000;
/// Function of which many instances live.
const CROWDED: &str = "python-numpy-pillow";
/// How long idle functions are left alone before they are looked at.
const IDLE: Duration = Duration::from_secs(10);

/// Runs the command. The process must have a single thread.
pub fn run(args: MemoryArgs) -> Outcome {
    start_log(LogFormat::Text, &args.host.log_level)?;
    let settings = Settings {
        python: Some(args.host.python.clone()),
        node: Some(args.host.node.clone()),
        max_concurrency: Some(usize::from(args.instances) + 8),
        // Each snapshot by itself, so that all that a restore needs comes from where it is said to be.
        language_templates: Some(false),
        // Nobody else moves them.
        memory_managed: Some(false),
        ..Settings::default()
    };
    let report = with_node(settings, |session| measure(&args, session))?;
    if let Some(out) = &args.out {
        write_beside(out, &report.plots())?;
    }
    show(&report, || report.tables(), args.json, args.out.as_deref())?;
    // A target that is missed is a finding; an answer that is wrong makes every figure doubtful.
    Ok(if report.wrong() == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FAILURE)
    })
}

fn parse_function(name: &str) -> Result<Function, String> {
    function_named(name, FUNCTIONS.iter().chain(&TOUCHING))
}

fn measure(args: &MemoryArgs, session: &Session) -> Result<Report, Failed> {
    let mut machine = Machine::look();
    let progress = Progress::new(args.json);
    let client = Client::new(session.endpoint.clone());
    let scratch = tempfile::Builder::new().prefix("rouse-bench-").tempdir()?;
    let cache = args
        .host
        .cache
        .clone()
        .unwrap_or_else(|| scratch.path().join("packages"));
    let stage = Stage {
        session,
        progress: &progress,
        client: &client,
        scratch: scratch.path(),
        cache: &cache,
        python: &args.host.python,
    };
    let asked = |part| args.part.contains(&part);
    let (mut functions, mut paced) = (Vec::new(), None);
    let mut live = not_asked();
    for function in FUNCTIONS.iter().chain(&TOUCHING) {
        let is_crowded = function.name == CROWDED && asked(Measured::Live);
        let is_selected = args.functions.is_empty()
            || (args.functions.iter()).any(|selected| selected.name == function.name);
        let tiers = is_selected && (asked(Measured::Tiers) || asked(Measured::Paced));
        if !tiers && !is_crowded {
            continue;
        }
        let directory = stage.prepare(function)?;
        let compressed = deploy(&stage, function, function.name, &directory)?;
        if is_crowded {
            let step = progress.spinner(format!("{} live instances", args.instances));
            arrange(session, &compressed.image, Situation::Dram)?;
            let many = usize::from(args.instances);
            live = part(live::measure(session, function, function.name, many));
            step.done("measured");
        }
        if tiers {
            functions.push(restores(
                args,
                &stage,
                function,
                &directory,
                &compressed,
                &mut paced,
            )?);
        }
        drop(compressed);
        client.delete(function.name)?;
    }
    let shared = if !asked(Measured::Templates) {
        not_asked()
    } else if ChildNode::knows(fleet::TEMPLATES) {
        part(fleet::shared(scratch.path(), &args.host.python, &progress))
    } else {
        Err("this build has no language templates".to_owned())
    };
    let idle = if asked(Measured::Idle) {
        let count = args.idle as usize;
        part(fleet::idle(
            scratch.path(),
            &args.host.python,
            count,
            IDLE,
            &progress,
        ))
    } else {
        not_asked()
    };
    machine.finish();
    let targets = figures::all(&Found {
        functions: &functions,
        live: &live,
        shared: &shared,
        idle: &idle,
    });
    Ok(Report {
        machine,
        paced,
        functions,
        live: live.ok(),
        shared: shared.ok(),
        idle: idle.ok(),
        targets,
    })
}

fn not_asked<T>() -> Part<T> {
    Err("it was not asked for".to_owned())
}

/// A part that fails is a figure that is missing, with the reason; the others are measured all the same.
fn part<T>(result: Result<T, Failed>) -> Part<T> {
    result.map_err(|failed| chain(failed.error.as_ref()).join(": "))
}

/// Deploys a copy of a function, and calls it until its working set is known.
fn deploy<'a>(
    stage: &Stage<'_>,
    function: &'a Function,
    name: &str,
    directory: &Path,
) -> Result<Copy<'a>, Failed> {
    stage.deploy(function, name, directory)?;
    let mut caller = Caller::open(&stage.session.endpoint, name)?;
    for n in 0..LEARNING {
        // A wrong answer will be seen, and counted, when it is timed.
        let _ = caller.call("restore", &function.event(n));
    }
    // Loaded with the first call.
    let image = image_of(stage.session, name)?;
    Ok(Copy {
        name: name.to_owned(),
        function,
        image,
    })
}

fn restores(
    args: &MemoryArgs,
    stage: &Stage<'_>,
    function: &Function,
    directory: &Path,
    compressed: &Copy<'_>,
    paced: &mut Option<PacedReport>,
) -> Result<FunctionReport, Failed> {
    let (session, requests) = (stage.session, args.n as usize);
    let name = format!("{}-uncompressed", function.name);
    let plain = deploy(stage, function, &name, directory)?;
    let stored_bytes = [
        restow(session, compressed, Arc::new(DefaultChoice))?,
        restow(session, &plain, Arc::new(Single(CodecId::None)))?,
    ];
    let (mut situations, mut compressed_bytes) = (std::collections::BTreeMap::new(), 0);
    if args.part.contains(&Measured::Tiers) {
        let copies = Situation::TIERS.map(|situation| (situation, compressed));
        let step = stage.progress.bar(
            format!("{} from each tier", function.name),
            (requests * copies.len()) as u64,
        );
        situations.append(&mut restores::measure(session, &copies, requests, &step)?);
        // What it takes is known while it is held.
        arrange(session, &compressed.image, Situation::Compressed)?;
        compressed_bytes = compressed.image.compressed_bytes();
        step.done("measured");
    }
    if args.part.contains(&Measured::Paced) {
        let packs = session.state_dir.join("packs");
        let largest = paced::largest(&packs)?;
        let cover = Paced::mount(&packs, LIMIT)?;
        if let (None, Some(file)) = (&paced, largest) {
            // Once to have it in memory, so that nothing but the limit is seen.
            paced::speed(&file)?;
            *paced = Some(PacedReport {
                by: "a FUSE file system over the packs: each read ends when a disk of that speed would be done with it \
                     (blkio.throttle lets 50 MB pass after each pause)",
                limit: LIMIT,
                measured: paced::speed(&file)?.round(),
            });
        }
        let copies = [
            (Situation::PacedCompressed, compressed),
            (Situation::PacedPlain, &plain),
        ];
        let step = stage.progress.bar(
            format!("{} from 500 MB/s", function.name),
            (requests * copies.len()) as u64,
        );
        situations.append(&mut restores::measure(session, &copies, requests, &step)?);
        step.done("measured");
        // The pager may have files open until these pools are gone.
        for copy in [compressed, &plain] {
            arrange(session, &copy.image, Situation::Dram)?;
        }
        drop(cover);
    }
    let hot_pages = compressed.image.hot_pages_count();
    let pool_pages = compressed.image.snapshot().pool_pages;
    drop(plain);
    stage.client.delete(&name)?;
    Ok(FunctionReport {
        name: function.name.to_owned(),
        pool_pages,
        hot_pages,
        stored_bytes,
        compressed_bytes,
        situations,
    })
}

/// Stores a snapshot anew, its working set in front. Returns the bytes that its pages take.
fn restow(session: &Session, copy: &Copy<'_>, choice: Arc<dyn Choice>) -> Result<u64, Failed> {
    let begin = std::time::Instant::now();
    loop {
        let stored = session.launcher.restow(&copy.image, Arc::clone(&choice));
        if let Some(report) = session.runtime.block_on(stored)? {
            return Ok(report.pack_bytes);
        }
        // The node itself is at it.
        if begin.elapsed() > Duration::from_secs(10) {
            let name = copy.name.clone();
            return Err(situation::SituationError::InUse(name).into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
