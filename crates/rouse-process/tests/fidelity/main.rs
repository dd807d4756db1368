//! Real Python programs that hold one kind of thing each, and that check themselves once they have
//! been restored and forked: is it still there, does it work, and is it their own?
//!
//! No test harness: the spawner must be forked while the process has one thread. Arguments are
//! names of programs to run; all of them without any.

#![allow(clippy::unwrap_used, reason = "a failed step of a test may panic")]

mod changed_world;
mod equality;
mod stage;
mod vector_code;

use std::process::ExitCode;

use stage::Stage;

/// Name and source of each program.
const PROGRAMS: &[(&str, &str)] = &[
    ("threads", include_str!("programs/threads.py")),
    ("timers", include_str!("programs/timers.py")),
    ("signals", include_str!("programs/signals.py")),
    ("pipes", include_str!("programs/pipes.py")),
    ("sockets", include_str!("programs/sockets.py")),
    ("files", include_str!("programs/files.py")),
    ("tmp", include_str!("programs/tmp.py")),
    ("memory", include_str!("programs/memory.py")),
    ("process", include_str!("programs/process.py")),
    ("many", include_str!("programs/many.py")),
    ("event_loop", include_str!("programs/event_loop.py")),
    ("discard", include_str!("programs/discard.py")),
    ("attributes", include_str!("programs/attributes.py")),
    ("protection", include_str!("programs/protection.py")),
    ("registers", include_str!("programs/registers.py")),
];

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with('-'))
        .collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|w| w == name);
    let stage = Stage::set_up();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let mut results = Vec::new();
    for (name, source) in PROGRAMS.iter().filter(|(name, _)| is_wanted(name)) {
        let source = source.replace("VECTOR_CODE", &vector_code::as_python());
        results.extend(runtime.block_on(stage.play(name, &source)));
    }
    if is_wanted("changed_world") {
        results.extend(runtime.block_on(changed_world::all(&stage)));
    }
    drop(runtime);
    drop(stage);
    let failed: Vec<_> = results.iter().filter(|r| r.failure.is_some()).collect();
    for result in &failed {
        let why = result.failure.as_deref().unwrap_or_default();
        println!("{}: {}", result.name, why.replace(" / ", "\n    "));
    }
    println!(
        "{} passed, {} failed",
        results.len() - failed.len(),
        failed.len()
    );
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
