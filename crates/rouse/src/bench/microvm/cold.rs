//! A machine from nothing to its function's first answer, part by part.
//!
//! ```text
//!  load ─> kernel ──────────────> init ─────────> runtime ──────> answer
//!          its first instruction  /init starts    the agent says  the function asks
//!                                                 it is ready     for an event
//! ```

use std::path::Path;

use rouse_vmm::devices::virtio::Disk;
use rouse_vmm::kernel::Kernel;
use rouse_vmm::{Config, Machine, MemorySize, VcpuCount};
use serde::Serialize;

use super::console::Console;
use super::guest::{Guest, Host};
use super::meter::{Meter, Spent, Split};
use super::subject;
use crate::output::error::Failed;

/// What a machine is booted from.
pub struct Ingredients<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// The disks.
    pub disks: &'a [Disk],
    /// Where sockets may be.
    pub scratch: &'a Path,
}

/// A part of a boot.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// What it took.
    #[serde(flatten)]
    pub spent: Spent,
    /// Where its processor time went.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split: Option<Split>,
}

/// A boot.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Boot {
    /// All of it: from nothing to an answer.
    #[serde(flatten)]
    pub spent: Spent,
    /// Its parts in their order.
    pub parts: Vec<Part>,
}

/// A machine that has answered once and waits for the next event.
pub struct Answered {
    /// It runs.
    pub guest: Guest,
    /// Its connections.
    pub host: Host,
    /// Its agent.
    pub agent: rouse_vmm::agent::Agent,
    /// Its function.
    pub api: super::api::Api,
    /// What it took.
    pub boot: Boot,
}

/// Notes how far a boot is.
struct Marks {
    meter: Meter,
    last: (Spent, Split),
    parts: Vec<Part>,
}

impl Marks {
    fn begin() -> Result<Self, Failed> {
        Ok(Self {
            meter: Meter::begin(&[])?,
            last: (Spent::default(), Split::now()?),
            parts: Vec::new(),
        })
    }

    /// The part that has just ended, or ended at a time that was noted.
    fn end(&mut self, name: &str, at: Option<(Spent, Split)>) -> Result<(), Failed> {
        let at = match at {
            Some(at) => at,
            None => (self.meter.read()?, Split::now()?),
        };
        let (spent, split) = (at.0, at.1);
        self.parts.push(Part {
            name: name.to_owned(),
            spent: Spent {
                wall_ms: spent.wall_ms - self.last.0.wall_ms,
                cpu_ms: spent.cpu_ms - self.last.0.cpu_ms,
            },
            split: Some(split.since(self.last.1)),
        });
        self.last = at;
        Ok(())
    }
}

/// Boots a machine with `command_line`, which says on `console` what it does, until its function has answered the `n`th event.
pub fn boot(
    from: &Ingredients<'_>,
    command_line: &str,
    console: &Console,
    n: u64,
) -> Result<Answered, Failed> {
    let host = Host::listen(from.disks, from.scratch)?;
    let mut marks = Marks::begin()?;
    console.begin(marks.meter.clone());
    let config = Config {
        memory: MemorySize::mib(subject::MEMORY_MIB)?,
        vcpus: VcpuCount::new(1)?,
        command_line: command_line.to_owned(),
        devices: host.devices.clone(),
    };
    let machine = Machine::boot(&config, from.kernel, console.output())?;
    marks.end("load", None)?;
    let guest = Guest::run(machine);
    let mut agent = host.agent()?;
    agent.ready()?;
    match console.init_began() {
        Some(began) => {
            marks.end("kernel", Some(began))?;
            marks.end("init", None)?;
        }
        // A quiet kernel does not say when.
        None => marks.end("kernel and init", None)?,
    }
    subject::start(&mut agent)?;
    let mut api = host.api()?;
    api.next()?;
    marks.end("runtime", None)?;
    subject::call(&mut api, n)?;
    marks.end("answer", None)?;
    let boot = Boot {
        spent: marks.last.0,
        parts: marks.parts,
    };
    // As it is written down: waiting for the next event.
    api.next()?;
    Ok(Answered {
        guest,
        host,
        agent,
        api,
        boot,
    })
}
