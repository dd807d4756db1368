//! A function's machine is booted from nothing.

use std::os::fd::AsFd;
use std::time::Instant;

use rouse_process::instance::{BootPath, LaunchSpec};
use rouse_sandbox::{GID, UID};
use rouse_vmm::VcpuCount;
use rouse_vmm::agent::{self, Start};
use rouse_vmm::zygote;
use tokio::runtime::Handle;

use super::life::Life;
use super::live::Machine;
use super::{ApiListener, BootError, Booted, Inner, machine_memory, processors};

impl Inner {
    /// Boots a machine for a function, or for a template. Blocks until its kernel is about to run.
    pub(super) fn boot(
        &self,
        spec: &LaunchSpec,
        is_template: bool,
        tasks: &Handle,
    ) -> Result<Booted, BootError> {
        let failed = |error: &dyn std::error::Error| BootError::from_error(error);
        let begin = Instant::now();
        let machine = zygote::Boot {
            memory: machine_memory(&spec.limits)?,
            vcpus: VcpuCount::new(processors(&spec.limits)).map_err(|error| failed(&error))?,
            command_line: "quiet",
            kernel: &self.kernel,
        };
        let start = Start {
            arguments: spec.argv.clone(),
            environment: spec.env.clone(),
            directory: spec.cwd.clone(),
            owner: (UID, GID),
            fresh: agent::fresh().map_err(|error| failed(&error))?,
        };
        let life = match is_template {
            true => Life::template(start),
            false => Life::started(start),
        };
        let (life, channels) = life.map_err(|error| failed(&error))?;
        let prepared = self.prepare(spec)?;
        let (running, kept) = prepared
            .hand_over(|vmm, devices, console| vmm.boot(&machine, devices, console.as_fd()))?;
        let group = kept.group.clone();
        let mut live = Machine::new(running, group, life, begin).map_err(|error| failed(&error))?;
        live.is_template = is_template;
        let exit = kept.supervise(&mut live, None, tasks)?;
        Ok(Booted {
            live: Box::new(live),
            path: BootPath::Cold,
            listener: Some(ApiListener::Carried(channels.api)),
            parked: None,
            log: Some(channels.log),
            exit,
        })
    }
}
