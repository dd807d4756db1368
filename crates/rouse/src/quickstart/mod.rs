//! `rouse quickstart`: shows on this machine, in a minute, what rouse does.
//!
//! A node is started in a temporary directory, the two bundled [`examples`] are deployed, each is invoked over HTTP many
//! times on each boot path, and every answer is checked.

mod examples;
mod summary;

use std::path::PathBuf;
use std::process::ExitCode;

use crate::bench::{CallError, Caller, Samples};
use crate::client::api::{Client, FunctionSettings};
use crate::commands::deploy::{Deployment, deploy};
use crate::commands::serve::start_log;
use crate::local::{Session, with_node};
use crate::output::error::{FAILURE, Failed, Outcome, chain};
use crate::output::print_line;
use crate::output::progress::Progress;
use crate::package::archive::pack_sources;
use crate::package::detect::PYTHON;
use crate::settings::{LogFormat, Settings};
use examples::{EXAMPLES, Example};
use summary::{Line, Summary};

/// Deploys two example functions on a node of its own, and invokes them on each boot path
///
/// Needs root, and Python 3. Leaves nothing behind.
#[derive(Debug, clap::Args)]
pub struct QuickstartArgs {
    /// Requests on the paths `restore` and `fork`; a tenth of it on `cold`
    #[arg(long, short, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1_000_000), value_name = "N")]
    n: u32,
    /// Python 3 interpreter
    #[arg(
        long,
        env = "ROUSE_PYTHON",
        default_value = "/usr/bin/python3",
        value_name = "FILE"
    )]
    python: PathBuf,
    /// What the node logs on standard error
    #[arg(
        long,
        env = "ROUSE_LOG_LEVEL",
        default_value = "error",
        value_name = "LEVEL"
    )]
    log_level: String,
}

/// The examples need Python.
#[derive(Debug, thiserror::Error)]
#[error("there is no Python at {}: install python3, or say --python", path.display())]
struct NoPython {
    path: PathBuf,
    source: std::io::Error,
}

/// Requests whose instances' memory is measured, on each path.
const MEASURED: u64 = 5;

/// Runs the command. The process must have a single thread.
pub fn run(args: QuickstartArgs) -> Outcome {
    start_log(LogFormat::Text, &args.log_level)?;
    std::fs::metadata(&args.python).map_err(|source| NoPython {
        path: args.python.clone(),
        source,
    })?;
    let settings = Settings {
        python: Some(args.python.clone()),
        ..Settings::default()
    };
    let summary = with_node(settings, |session| invoke_all(&args, session))?;
    print_line(&summary)?;
    Ok(if summary.all_right() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FAILURE)
    })
}

fn invoke_all(args: &QuickstartArgs, session: &Session) -> Result<Summary, Failed> {
    let progress = Progress::new(false);
    let client = Client::new(session.endpoint.clone());
    let mut summary = Summary::default();
    for example in &EXAMPLES {
        let zip = pack_sources(&[("app.py", example.source)])?;
        let settings = FunctionSettings {
            runtime: Some(PYTHON.to_owned()),
            handler: Some("app.handler".to_owned()),
            memory_size: Some(256),
            timeout: Some(30),
            environment: None,
            snapshot_point: None,
            serving: None,
        };
        let deployed = deploy(
            &client,
            &Deployment {
                name: example.name,
                zip: &zip,
                settings: &settings,
            },
            &progress,
        )?;
        let mut caller = Caller::open(&session.endpoint, example.name)?;
        for (path, requests) in [
            ("cold", args.n.div_ceil(10)),
            ("restore", args.n),
            ("fork", args.n),
        ] {
            let step = progress.bar(format!("{}: {path}", example.name), requests.into());
            let mut samples = Samples::default();
            for n in 0..u64::from(requests) + MEASURED {
                session.go_on()?;
                if let Err(reason) = invoke(
                    &mut caller,
                    example,
                    path,
                    n,
                    n >= requests.into(),
                    &mut samples,
                ) {
                    samples.add_wrong(|| reason);
                }
                step.advance();
            }
            match samples.wrong {
                0 => step.done(format_args!("{} answers, all right", samples.len())),
                wrong => step.warn(format_args!("{wrong} answers were wrong")),
            }
            summary.add(Line {
                function: example.name,
                path,
                samples,
            });
        }
        summary.add_snapshot(example.name, deployed.snapshot);
    }
    Ok(summary)
}

/// One request: counted if its answer is right, else an error that says how it differs.
fn invoke(
    caller: &mut Caller,
    example: &Example,
    path: &'static str,
    n: u64,
    measure: bool,
    samples: &mut Samples,
) -> Result<(), String> {
    let event = (example.event)(n).to_string();
    let check = |answer: &[u8]| {
        let answer = serde_json::from_slice(answer).map_err(|error| error.to_string())?;
        (example.check)(n, &answer)
    };
    let text = |error: CallError| chain(&error).join(": ");
    if measure {
        let (memory, answer) = caller.measure(path, event.as_bytes()).map_err(text)?;
        check(&answer)?;
        samples.add_memory(memory);
    } else {
        let (sample, answer) = caller.call(path, event.as_bytes()).map_err(text)?;
        check(&answer)?;
        samples.add(sample);
    }
    Ok(())
}
