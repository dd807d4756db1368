//! Many functions on one node: what those that share a template cost, and those that nobody calls.

use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use serde::Serialize;

use super::child::{ChildNode, stored_bytes};
use super::processes::{family, memory_files_kib, node_kib};
use crate::bench::caller::Caller;
use crate::bench::samples::Samples;
use crate::client::api::{Client, FunctionSettings};
use crate::commands::deploy::{Deployment, deploy};
use crate::output::error::{Failed, chain};
use crate::output::progress::{Progress, Step};
use crate::package::Package;
use crate::package::detect::PYTHON;

/// What functions of the first figure import, one each: as different as functions of one language are.
const IMPORTS: [&str; 20] = [
    "csv",
    "decimal",
    "fractions",
    "statistics",
    "difflib",
    "textwrap",
    "html.parser",
    "xml.etree.ElementTree",
    "zipfile",
    "tarfile",
    "sqlite3",
    "email.message",
    "configparser",
    "http.client",
    "urllib.request",
    "ipaddress",
    "calendar",
    "ast",
    "argparse",
    "logging.handlers",
];

/// Why functions could not be looked at.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct FleetError(String);

/// Setting that makes a node share templates.
pub const TEMPLATES: &str = "language-templates";

/// Functions that share a template, against one that stands alone.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Shared {
    /// Functions.
    pub functions: usize,
    /// What all of them and their template take on disk, KiB.
    pub stored_kib: u64,
    /// What their pools hold, KiB.
    pub dram_kib: u64,
    /// What as many take that share nothing: each as much as one alone, on disk, KiB.
    pub full_stored_kib: u64,
    /// In DRAM, KiB.
    pub full_dram_kib: u64,
    /// Answers that were wrong or did not come.
    pub wrong: usize,
}

/// Functions that nobody calls.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Idle {
    /// Functions.
    pub functions: usize,
    /// DRAM that the node held before and after they were deployed, KiB.
    pub before_kib: u64,
    /// After.
    pub after_kib: u64,
    /// For each, KiB.
    pub each_kib: f64,
    /// Median of the first call to some of them, microseconds.
    pub first_p50_us: Option<f64>,
    /// Median of the same call once the snapshot is in DRAM, microseconds.
    pub dram_p50_us: Option<f64>,
    /// Answers that were wrong or did not come.
    pub wrong: usize,
}

/// Deploys functions that differ in what they import, first without sharing, then with.
pub fn shared(scratch: &Path, python: &Path, progress: &Progress) -> Result<Shared, Failed> {
    let count = IMPORTS.len();
    let step = progress.bar("functions that share a template", 2 * count as u64);
    let (mut full_stored_kib, mut full_dram_kib, mut base_kib, mut wrong) = (0, 0, 0, 0);
    // What "full" means depends on nothing that came before: each on an empty node.
    for index in [0, count / 2, count - 1] {
        let node = start(&scratch.join(format!("alone-{index}")), python, false)?;
        // Memory files that a node has before it has a function.
        base_kib = memory_files_kib(&family(node.pid()));
        wrong += deploy_all(
            &node,
            &scratch.join("sources"),
            &IMPORTS[index..=index],
            &step,
        )?;
        full_stored_kib += snapshots_kib(&node)?;
        full_dram_kib += memory_files_kib(&family(node.pid())).saturating_sub(base_kib);
    }
    let node = start(&scratch.join("shared"), python, true)?;
    wrong += deploy_all(&node, &scratch.join("sources"), &IMPORTS, &step)?;
    let shared = Shared {
        functions: count,
        stored_kib: snapshots_kib(&node)?,
        dram_kib: memory_files_kib(&family(node.pid())).saturating_sub(base_kib),
        full_stored_kib: full_stored_kib * count as u64 / 3,
        full_dram_kib: full_dram_kib * count as u64 / 3,
        wrong,
    };
    step.done("measured");
    Ok(shared)
}

fn start(state_dir: &Path, python: &Path, templates: bool) -> Result<ChildNode, Failed> {
    let settings = [
        ("python", python.display().to_string()),
        ("log-level", "warn".to_owned()),
        (TEMPLATES, templates.to_string()),
    ];
    Ok(ChildNode::start(state_dir, &settings)?)
}

fn snapshots_kib(node: &ChildNode) -> io::Result<u64> {
    let mut bytes = 0;
    for part in ["snapshots", "packs", "dictionaries"] {
        match stored_bytes(&node.state_dir.join(part)) {
            Ok(found) => bytes += found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes / 1024)
}

/// Boot paths of the calls of each function. For the last, all its pages have to be in memory.
const CALLS: [&str; 3] = ["restore", "restore", "fork"];
/// From the last call until the node has brought all pages in.
const SETTLE: Duration = Duration::from_secs(3);

/// Deploys one function for each import, and has all its pages in DRAM. Returns how many answered wrong.
fn deploy_all(
    node: &ChildNode,
    sources: &Path,
    imports: &[&str],
    step: &Step,
) -> Result<usize, Failed> {
    let client = Client::new(node.endpoint.clone());
    let mut wrong = 0;
    for module in imports {
        let name = module.replace('.', "-").to_lowercase();
        let directory = sources.join(&name);
        let source = format!(
            "import {module}\n\nTABLE = {{i: '{module} %d' % i for i in range(1000)}}\n\n\n\
             def handler(event, context):\n    return {{'n': event['n'], 'is': TABLE[event['n']]}}\n"
        );
        write_source(&directory, &source)?;
        deploy_quietly(&client, &name, &Package::open(&directory)?.zip)?;
        let expected = serde_json::json!({ "n": 7, "is": format!("{module} 7") });
        let mut caller = Caller::open(&node.endpoint, &name)?;
        for path in CALLS {
            let is_right = matches!(caller.call(path, b"{\"n\": 7}"), Ok((_, body))
                if serde_json::from_slice::<serde_json::Value>(&body).is_ok_and(|body| body == expected));
            wrong += usize::from(!is_right);
        }
        step.advance();
    }
    thread::sleep(SETTLE);
    Ok(wrong)
}

fn write_source(directory: &Path, source: &str) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    fs::write(directory.join("app.py"), source)
}

fn deploy_quietly(client: &Client, name: &str, zip: &[u8]) -> Result<(), Failed> {
    let settings = FunctionSettings {
        runtime: Some(PYTHON.to_owned()),
        handler: Some("app.handler".to_owned()),
        memory_size: Some(256),
        timeout: Some(30),
        environment: None,
        snapshot_point: None,
        serving: None,
    };
    let deployment = Deployment {
        name,
        zip,
        settings: &settings,
    };
    deploy(client, &deployment, &Progress::new(true))?;
    Ok(())
}

/// Functions that are called in the end.
const CALLED: usize = 50;
/// How many are deployed at the same time.
const AT_A_TIME: usize = 4;

/// Deploys `count` small functions, lets them idle for `idle`, and then calls some.
pub fn idle(
    scratch: &Path,
    python: &Path,
    count: usize,
    idle: Duration,
    progress: &Progress,
) -> Result<Idle, Failed> {
    let mut settings = vec![
        ("python", python.display().to_string()),
        ("log-level", "warn".to_owned()),
    ];
    if ChildNode::knows(IDLE_AFTER) {
        settings.push((IDLE_AFTER, "1".to_owned()));
    }
    let node = ChildNode::start(&scratch.join("idle"), &settings)?;
    let client = Client::new(node.endpoint.clone());
    let directory = scratch.join("idle-source");
    write_source(
        &directory,
        "def handler(event, context):\n    return {'n': event['n']}\n",
    )?;
    let zip = Package::open(&directory)?.zip;
    let step = progress.bar("idle functions", count as u64);
    let name = |index: usize| format!("idle-{index:05}");
    // The node's own start, its first sandboxes and its buffers are not what one more function costs.
    deploy_quietly(&client, "first", &zip)?;
    thread::sleep(idle);
    let before_kib = node_kib(node.pid());
    thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_A_TIME)
            .map(|worker| {
                let (client, zip, step) = (&client, &zip, &step);
                scope.spawn(move || -> Result<(), String> {
                    for index in (worker..count).step_by(AT_A_TIME) {
                        deploy_quietly(client, &name(index), zip).map_err(|failed| {
                            let why = chain(failed.error.as_ref()).join(": ");
                            format!("function {index} of {count} could not be deployed: {why}")
                        })?;
                        step.advance();
                    }
                    Ok(())
                })
            })
            .collect();
        // All have ended before the first failure is told.
        let ends: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        ends.into_iter()
            .try_for_each(|end| end.expect("a deploying thread does not panic"))
    })
    .map_err(FleetError)?;
    thread::sleep(idle);
    let after_kib = node_kib(node.pid());
    let (mut first, mut again) = (Samples::default(), Samples::default());
    for index in 0..CALLED.min(count) {
        let mut caller = Caller::open(&node.endpoint, &name(index * count / CALLED.min(count)))?;
        for samples in [&mut first, &mut again] {
            match caller.call("restore", b"{\"n\": 7}") {
                Ok((sample, body)) if body == b"{\"n\": 7}" => samples.add(sample),
                Ok((_, body)) => {
                    samples.add_wrong(|| String::from_utf8_lossy(&body).into_owned());
                }
                Err(error) => samples.add_wrong(|| chain(&error).join(": ")),
            }
        }
    }
    step.done("measured");
    #[expect(
        clippy::cast_precision_loss,
        reason = "memory of a machine in KiB is far below 2^52"
    )]
    let each_kib = (after_kib as f64 - before_kib as f64) / count.max(1) as f64;
    Ok(Idle {
        functions: count,
        before_kib,
        after_kib,
        each_kib: (each_kib * 10.0).round() / 10.0,
        first_p50_us: first.percentile(50),
        dram_p50_us: again.percentile(50),
        wrong: (first.wrong + again.wrong) as usize,
    })
}

/// Setting that says after how many seconds without a call a function's memory is given back.
const IDLE_AFTER: &str = "memory-idle-s";
