//! What all machines of the benchmark run: plain Python, in 256 MiB.

use std::fs;
use std::path::Path;

use rouse_vmm::agent::{self, API_PORT, Agent, Start};
use rouse_vmm::devices::virtio::Disk;
use rouse_vmm::image;

use super::api::Api;
use crate::bench::functions::{FUNCTIONS, Function};
use crate::output::error::Failed;

/// Memory of each machine, MiB.
pub const MEMORY_MIB: u32 = 256;
/// The function: plain Python.
const FUNCTION: Function = FUNCTIONS[0];

/// The disks of a machine: the root, the runtime's clients, the function. Images are made below `scratch`.
pub fn disks(root: &Path, scratch: &Path) -> Result<Vec<Disk>, Failed> {
    let runtime = scratch.join("runtime");
    rouse_runtimes::install(&runtime)?;
    let task = scratch.join("task");
    FUNCTION.prepare(Path::new("/usr/bin/python3"), scratch, &task)?;
    let mut disks = vec![Disk {
        name: "/".to_owned(),
        image: fs::canonicalize(root)?,
    }];
    for (place, directory) in [("/var/runtime", &runtime), ("/var/task", &task)] {
        let target = directory.with_extension("erofs");
        image::build(directory, &target)?;
        disks.push(Disk {
            name: place.to_owned(),
            image: target,
        });
    }
    Ok(disks)
}

/// Starts the function in a guest that has booted.
pub fn start(agent: &mut Agent) -> Result<(), Failed> {
    let runtime = rouse_runtimes::command(
        rouse_runtimes::Runtime::Python3,
        &rouse_runtimes::Interpreters::default(),
        Path::new("/nonexistent"),
        FUNCTION.handler,
    );
    let mut environment = runtime.env;
    let api = format!("127.0.0.1:{API_PORT}");
    for (name, value) in [
        ("AWS_LAMBDA_RUNTIME_API", api.as_str()),
        ("AWS_LAMBDA_FUNCTION_NAME", FUNCTION.name),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256"),
        ("LAMBDA_TASK_ROOT", "/var/task"),
        ("PATH", "/usr/bin:/bin"),
    ] {
        environment.push((name.to_owned(), value.to_owned()));
    }
    agent.start(Start {
        arguments: runtime.argv,
        environment,
        directory: "/var/task".to_owned(),
        owner: (993, 990),
        fresh: agent::fresh()?,
    })?;
    Ok(())
}

/// Calls the function, which waits for an event.
pub fn call(api: &mut Api, n: u64) -> Result<(), Failed> {
    let answer = api.call(n, &FUNCTION.event(n))?;
    if FUNCTION.is_right(n, &answer) {
        return Ok(());
    }
    let answer = String::from_utf8_lossy(&answer);
    Err(format!("a wrong answer to event {n}: {answer}").into())
}
