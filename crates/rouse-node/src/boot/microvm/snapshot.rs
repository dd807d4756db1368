//! A function's machine is written down, and read again.

use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use rouse_pool::Pool;
use rouse_pool::snapshot_store::WriteOptions;
use rouse_process::instance::LaunchSpec;
use rouse_process::launcher::{CheckpointReport, Residency};
use rouse_snapshot::model::{MachineSnapshot, PAGE_SIZE, ParentPool};
use rouse_snapshot::page_map::Domain;
use rouse_vmm::memory::likely_pages;
use rouse_vmm::snapshot::{load_owners, store_owners};
use rouse_vmm::zygote::{GivenPool, ZygoteError};

use super::image::{MachineImage, Parent, Parts, stored_bytes};
use super::known::GuestKnows;
use super::live::{Machine, SharedVmm};
use super::prepare::DiskImage;
use super::seals::Seal;
use super::{BootError, Inner, PACKAGE, TENANT};

impl Inner {
    /// Writes the machine of a template down, whose runtime is parked on the connection from port `parked`, and ends it.
    pub(super) fn checkpoint_template(
        &self,
        machine: Machine,
        parked: u16,
        spec: &LaunchSpec,
        dir: &Path,
    ) -> Result<CheckpointReport, BootError> {
        // What was started from a snapshot may know what that one knew; a package may hold anything.
        let empty = std::fs::read_dir(&spec.task_dir).is_ok_and(|mut dir| dir.next().is_none());
        if !machine.is_template || !empty {
            return Err(BootError::new("the machine was not started as a template"));
        }
        self.write_down(machine, parked, spec, dir, Domain::Templates)
    }

    /// The same of a function.
    pub(super) fn checkpoint(
        &self,
        machine: Machine,
        parked: u16,
        spec: &LaunchSpec,
        dir: &Path,
    ) -> Result<CheckpointReport, BootError> {
        self.write_down(machine, parked, spec, dir, Domain::Tenant)
    }

    fn write_down(
        &self,
        machine: Machine,
        parked: u16,
        spec: &LaunchSpec,
        dir: &Path,
        domain: Domain,
    ) -> Result<CheckpointReport, BootError> {
        let failed = |error: &dyn std::error::Error| BootError::from_error(error);
        let mut images = self.images(&self.disks(spec)?)?;
        if domain == Domain::Templates {
            images.retain(|image| image.seal.place() != PACKAGE);
        }
        // What it was made of. Whoever has started it has that.
        let template = machine.image().filter(|image| image.is_template);
        let begin = Instant::now();
        // The connection to the agent stays open until the machine was written down.
        let paused = machine.state().pause().map_err(|error| failed(&error))?;
        let written = write(&machine.running(), &images);
        let (snapshot, pool) = written.map_err(|error| failed(&error))?;
        let owners = paused.owners;
        let pause_us = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
        drop(machine);
        let store = self.launcher.store();
        let name = store.name_of(dir).map_err(|error| failed(&error))?;
        // Without it the snapshot is as good, and larger.
        let base = template.and_then(|template| {
            let base = template.base_for(&snapshot, store);
            base.inspect_err(|error| tracing::warn!(%error, "a template's pages cannot be used"))
                .ok()
                .flatten()
        });
        // Until calls were seen, the owners of pages tell which of them are likely needed.
        let options = WriteOptions {
            hot: &likely_pages(&owners, &snapshot.memory),
            domain,
            base,
            ..WriteOptions::new(TENANT)
        };
        let written = store.write(&name, &snapshot, &pool, &options);
        let written = written.map_err(|error| failed(&error))?;
        let stored = store.open_as::<MachineSnapshot>(&name);
        let identity = stored.map_err(|error| failed(&error))?.binding.pool;
        store_owners(dir, &identity, &owners).map_err(|error| failed(&error))?;
        // Last: without them there is no snapshot.
        let disks = images.into_iter().map(|image| image.seal).collect();
        let guest = GuestKnows { parked, disks };
        guest.write(dir).map_err(|error| failed(&error))?;
        Ok(CheckpointReport {
            pause_us,
            resident_bytes: pool.pages() * PAGE_SIZE,
            saved_pages: pool.pages(),
            stored_bytes: written.pack_bytes,
        })
    }

    /// Loads a snapshot: all of its pages, which are verified then, or those that are needed when they are.
    /// It may be a delta of one of `ancestors`.
    pub(super) fn load(
        &self,
        dir: &Path,
        ancestors: &[Arc<MachineImage>],
        residency: Residency,
    ) -> Result<Arc<MachineImage>, BootError> {
        let failed = |error: &dyn std::error::Error| BootError::from_error(error);
        let store = self.launcher.store();
        let name = store.name_of(dir).map_err(|error| failed(&error))?;
        let stored = store.open_as::<MachineSnapshot>(&name);
        let stored = stored.map_err(|error| failed(&error))?;
        let guest = GuestKnows::read(dir).map_err(|error| {
            BootError::new(format!("the list of its disks is damaged: {error}"))
        })?;
        let is_template = stored.binding.domain == Domain::Templates;
        let of_package = guest.disks.iter().any(|seal| seal.place() == PACKAGE);
        if is_template == of_package {
            return Err(BootError::new(
                "the list of its disks is that of another kind of snapshot",
            ));
        }
        let parents = stored.snapshot.parents.iter();
        let templates: Vec<_> = (ancestors.iter())
            .filter(|image| image.is_template)
            .cloned()
            .collect();
        let parents: Option<Vec<Parent>> = parents
            .map(|parent| find_parent(parent, &guest.disks, &templates))
            .collect();
        let parents = parents.ok_or_else(|| {
            BootError::new(
                "the snapshot refers to what is none of its disks, and is no delta of a template that is there",
            )
        })?;
        let identity = stored.binding.pool;
        // Without them the pages are as good.
        let owners = load_owners(dir, &identity)
            .inspect_err(|error| tracing::warn!(%error, "nobody knows whose a machine's pages are"))
            .unwrap_or_default();
        let soon = residency == Residency::ForCall;
        let memory = self.launcher.memory_of(&stored, soon);
        let memory = memory.map_err(|error| failed(&error))?;
        if residency == Residency::Now {
            memory.make_resident().map_err(|error| failed(&error))?;
        }
        let parts = Parts {
            stored_bytes: stored_bytes(&stored),
            snapshot: stored.snapshot,
            identity,
            guest,
            parents,
            is_template,
            directory: Some(dir.to_owned()),
            owners: owners.unwrap_or_default(),
        };
        let image = Arc::new(MachineImage::new(parts, memory));
        self.launcher.follow(image.clone());
        Ok(image)
    }
}

/// Has the VMM of a machine whose function stands still write it down. Pages that are blocks of its disks are mapped from there.
pub(super) fn write(
    running: &SharedVmm,
    images: &[DiskImage],
) -> Result<(MachineSnapshot, Pool), ZygoteError> {
    let whole = images.iter().filter(|image| image.pages > 0);
    let pools: Vec<GivenPool<'_>> = whole.map(DiskImage::pool).collect();
    match &mut *running.lock().unwrap_or_else(PoisonError::into_inner) {
        Some(running) => running.snapshot(&pools),
        None => Err(ZygoteError::Gone),
    }
}

/// What a snapshot refers to: one of its disks, or one of these ancestors.
pub(super) fn find_parent(
    parent: &ParentPool,
    seals: &[Seal],
    ancestors: &[Arc<MachineImage>],
) -> Option<Parent> {
    let is_it = |seal: &Seal| seal.identity() == Some(parent.pool);
    if let Some(disk) = seals.iter().position(is_it) {
        return Some(Parent::Disk(disk));
    }
    let is_it = |image: &&Arc<MachineImage>| {
        image.identity == parent.pool && image.snapshot.pool_pages == parent.pages
    };
    let image = ancestors.iter().find(is_it)?;
    Some(Parent::Snapshot(Arc::clone(image)))
}
