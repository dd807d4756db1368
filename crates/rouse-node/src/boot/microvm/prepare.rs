//! What each machine is given before it boots or is restored.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rouse_pool::keeper::Registration;
use rouse_process::instance::LaunchSpec;
use rouse_sandbox::{LentGroup, Limits, Network};
use rouse_snapshot::model::PAGE_SIZE;
use rouse_vmm::devices::virtio::Disk;
use rouse_vmm::zygote::{Connections, GivenConnections, GivenDevices, GivenPool, Ready};
use tokio::runtime::Handle;

use super::image::Held;
use super::live::Machine;
use super::ready::ReadyVmm;
use super::seals::Seal;
use super::supervisor::{Exit, PORTS, Supervisor};
use super::users::User;
use super::{Inner, PACKAGE, machine_memory, processors};
use crate::boot::BootError;
use crate::refusal::chain;

/// Memory of a VMM beside its guest's, bytes: its own, its stacks, and page tables of what it maps.
const VMM_MEMORY: u64 = 32 << 20;
/// Of the guest's memory, what the tables of both sides take: one byte in so many.
const TABLES: u64 = 64;
/// Threads of a VMM beside its processors.
const VMM_THREADS: u32 = 32;

/// The image of a disk.
pub struct DiskImage {
    pub file: File,
    pub pages: u64,
    pub identity: [u8; 32],
    pub seal: Seal,
}

impl DiskImage {
    /// As a VMM is given it.
    pub fn pool(&self) -> GivenPool<'_> {
        GivenPool::Image(self.file.as_fd(), self.pages, self.identity)
    }
}

/// A VMM that is about to get a machine, and the node's ends of what that has.
pub struct Prepared {
    vmm: Ready,
    user: User,
    group: Arc<LentGroup>,
    pub disks: [Disk; 3],
    connections: Connections,
    console: PipeReader,
    socket: OwnedFd,
    their_console: PipeWriter,
}

impl Inner {
    /// What the function's machines have as disks.
    pub(super) fn disks(&self, spec: &LaunchSpec) -> Result<[Disk; 3], BootError> {
        let package = self.packages.image(&spec.task_dir);
        let package = package.map_err(|error| BootError::from_error(&error))?;
        let disk = |name: &str, image: &Path| Disk {
            name: name.to_owned(),
            image: image.to_owned(),
        };
        Ok([
            disk("/", &self.root),
            disk("/var/runtime", &self.runtime),
            disk(PACKAGE, &package),
        ])
    }

    /// The images of these disks, with what a snapshot knows them by. Of a tiny one there is no whole block.
    pub(super) fn images(&self, disks: &[Disk]) -> Result<Vec<DiskImage>, BootError> {
        let failed = |error: &dyn std::error::Error| BootError::from_error(error);
        let seals = self.seals.of(disks).map_err(|error| failed(&error))?;
        let image = |(disk, seal): (&Disk, Seal)| {
            let file = File::open(&disk.image).map_err(|error| failed(&error))?;
            let length = file.metadata().map_err(|error| failed(&error))?.len();
            Ok(DiskImage {
                identity: seal.identity().unwrap_or_default(),
                pages: length / PAGE_SIZE,
                file,
                seal,
            })
        };
        disks.iter().zip(seals).map(image).collect()
    }

    /// A VMM within the function's limits. Blocks.
    pub(super) fn prepare(&self, spec: &LaunchSpec) -> Result<Prepared, BootError> {
        let failed = |error: &dyn std::error::Error| BootError::from_error(error);
        let disks = self.disks(spec)?;
        // Given back after the VMM has ended, here as later.
        let group = self.launcher.lend_group(limits(spec)?);
        let group = group.map_err(|error| BootError::from_outside(chain(&error)))?;
        let ReadyVmm { vmm, user } = self.ready.take()?;
        // Before it knows anything of a guest.
        let entered = (vmm.vmm_pid()).and_then(|pid| group.enter(pid).and(group.enter(vmm.pid())));
        entered.map_err(|error| {
            BootError::from_outside(format!("a VMM cannot be limited, or has ended: {error}"))
        })?;
        let (console, their_console) = io::pipe().map_err(|error| failed(&error))?;
        let (connections, socket) = Connections::pair().map_err(|error| failed(&error))?;
        Ok(Prepared {
            vmm,
            user,
            group: Arc::new(group),
            disks,
            connections,
            console,
            socket,
            their_console,
        })
    }
}

/// Those of a machine's VMM.
fn limits(spec: &LaunchSpec) -> Result<Limits, BootError> {
    let guest = machine_memory(&spec.limits)?.bytes();
    Ok(Limits {
        memory: guest + guest / TABLES + VMM_MEMORY,
        pids: VMM_THREADS + u32::from(processors(&spec.limits)),
        cpu_millis: spec.limits.cpu_millis,
        tmp: 0,
        network: Network::None,
    })
}

impl Prepared {
    /// Gives the VMM to whoever makes a machine in it, with its devices and its console; the rest stays with the node, but for the
    /// ends that are the VMM's alone.
    pub fn hand_over<T, E: std::error::Error>(
        self,
        make: impl FnOnce(Ready, &GivenDevices<'_>, &PipeWriter) -> Result<T, E>,
    ) -> Result<(T, Kept), BootError> {
        let Self {
            vmm,
            user,
            group,
            disks,
            connections,
            console,
            socket,
            their_console,
        } = self;
        let devices = GivenDevices {
            disks: &disks,
            connections: Some(GivenConnections {
                socket: socket.as_fd(),
                ports: &PORTS,
            }),
        };
        let made = make(vmm, &devices, &their_console);
        let made = made.map_err(|error| BootError::from_error(&error))?;
        let kept = Kept {
            user,
            group,
            connections,
            console,
        };
        Ok((made, kept))
    }
}

/// What the node keeps of it.
pub struct Kept {
    pub user: User,
    pub group: Arc<LentGroup>,
    pub connections: Connections,
    pub console: PipeReader,
}

impl Kept {
    /// Starts the threads that follow the machine. What it relies on is `held` until its VMM has ended.
    pub fn supervise(
        self,
        live: &mut Machine,
        held: Option<(Held, Option<Registration>)>,
        tasks: &Handle,
    ) -> Result<Exit, BootError> {
        let supervisor = Supervisor {
            running: live.running(),
            connections: self.connections,
            console: self.console,
            user: self.user,
            group: self.group,
            held,
            state: live.state(),
            tasks: tasks.clone(),
        };
        let exit = supervisor.start();
        let exit = exit.map_err(|error| BootError::from_error(&error))?;
        live.supervised(exit.clone());
        Ok(exit)
    }
}
