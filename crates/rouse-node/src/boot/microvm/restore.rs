//! Copies of a machine's snapshot are started.
//!
//! | path | the pages | the function |
//! |---|---|---|
//! | `restore` | come when they are touched, those of the working set before | goes on at once |
//! | `fork` | are all in memory: copies share what none of them has written | goes on at once |
//! | `parked` | the same | waits for a request |
//! | `rewind` | the same, of a machine that has answered and was put back | waits for a request |

use std::os::fd::AsFd;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use rouse_pool::keeper::PagerError;
use rouse_process::instance::{BootPath, LaunchSpec};
use rouse_process::launcher::PoolOwner;
use rouse_snapshot::model::PageRun;
use rouse_vmm::zygote::GivenPool;
use tokio::runtime::Handle;

use super::image::MachineImage;
use super::life::{Copied, Life};
use super::live::{Machine, Observer};
use super::seals::Seal;
use super::supervisor::Exit;
use super::{ApiListener, BootError, Booted, Inner, PACKAGE};
use crate::boot::ParkedStream;

impl Inner {
    /// Starts a copy on `path`. Blocks until its connection to the API is there.
    pub(super) fn restore(
        &self,
        image: &Arc<MachineImage>,
        spec: &LaunchSpec,
        path: BootPath,
        tasks: &Handle,
    ) -> Result<Booted, BootError> {
        let failed = |error: &dyn std::error::Error| BootError::from_error(error);
        let begin = Instant::now();
        let prepared = self.prepare(spec)?;
        let disks = self.images(&prepared.disks)?;
        // A template knows no package: it may be any.
        let known = |seal: &&Seal| !(image.is_template && seal.place() == PACKAGE);
        let seals = disks.iter().map(|disk| &disk.seal).filter(known);
        if !seals.eq(&image.guest.disks) {
            let problem = "the machine's disks are not those that it was written down with";
            image.set_problem(problem.to_owned());
            return Err(BootError::new(problem));
        }
        if path != BootPath::Restore {
            image.make_resident().map_err(|error| failed(&error))?;
        }
        let waits = matches!(path, BootPath::Parked | BootPath::Rewind);
        let life = match image.is_template {
            true => Life::of_template(image.guest.parked),
            false => Life::copied(image.guest.parked, waits),
        };
        let (life, mut copied) = life.map_err(|error| failed(&error))?;
        let exactly = path == BootPath::Restore && image.is_to_be_observed();
        let held = image.hold();
        let pools = held.pools(&disks, exactly);
        let pools = pools.ok_or_else(|| BootError::from_error(&PagerError::Gone))?;
        let is_watched =
            |run: &&PageRun| matches!(pools.get(run.pool()), Some(GivenPool::Registered(..)));
        let (mut registration, mut base) = (None, None);
        let (running, kept) = prepared.hand_over(|vmm, devices, console| {
            let snapshot = &image.snapshot;
            vmm.restore(
                snapshot,
                &pools,
                devices,
                console.as_fd(),
                |uffd, mappings| {
                    let first = snapshot.memory.iter().find(is_watched);
                    let first = mappings.first().zip(first);
                    base = first.map(|(mapping, run)| mapping.address - run.address);
                    let watched = self.launcher.watch_memory(uffd, mappings, exactly)?;
                    registration = Some(watched);
                    Ok(())
                },
            )
        })?;
        let group = kept.group.clone();
        let mut live = Machine::new(running, group, life, begin).map_err(|error| failed(&error))?;
        live.copied(image, copied.go.take());
        live.maps(held.memory());
        if let (true, Some(base)) = (exactly, base) {
            live.observe(Observer {
                image: Arc::clone(image),
                launcher: self.launcher.clone(),
                base,
            });
        }
        let exit = kept.supervise(&mut live, Some((held, registration)), tasks)?;
        booted(live, path, copied, exit)
    }

    /// Puts a copy that has answered back to its snapshot, and has it wait for another request. Blocks.
    pub(super) fn rewind(
        &self,
        mut machine: Machine,
    ) -> Result<(Arc<MachineImage>, Booted), BootError> {
        let failed = |error: &dyn std::error::Error| BootError::from_error(error);
        let image = machine
            .image()
            .ok_or_else(|| BootError::new("the snapshot of the machine is not loaded any more"))?;
        let exit = machine.exit();
        let exit = exit.ok_or_else(|| BootError::new("the machine was never up"))?;
        let (life, mut copied) =
            Life::copied(image.guest.parked, true).map_err(|error| failed(&error))?;
        let state = machine.state();
        state.begin_life(life);
        let running = machine.running();
        match &mut *running.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(running) => running.rewind().map_err(|error| failed(&error))?,
            None => return Err(BootError::from_outside("the machine has ended")),
        };
        state.stage("rewind");
        machine.copied(&image, copied.go.take());
        let booted = booted(machine, BootPath::Rewind, copied, exit)?;
        Ok((image, booted))
    }
}

fn booted(live: Machine, path: BootPath, copied: Copied, exit: Exit) -> Result<Booted, BootError> {
    let parked = copied.parked()?;
    Ok(Booted {
        live: Box::new(live),
        path,
        listener: Some(ApiListener::Carried(copied.channels.api)),
        parked: Some(ParkedStream::Carried(parked)),
        log: Some(copied.channels.log),
        exit,
    })
}
