//! A function's machine is written down, and read again.

use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use rouse_pool::snapshot_store::WriteOptions;
use rouse_process::instance::LaunchSpec;
use rouse_process::launcher::{CheckpointReport, Residency};
use rouse_snapshot::model::{MachineSnapshot, PAGE_SIZE, ParentPool};
use rouse_vmm::memory::likely_pages;
use rouse_vmm::snapshot::{load_owners, store_owners};
use rouse_vmm::zygote::GivenPool;

use super::image::{MachineImage, Parts};
use super::live::Machine;
use super::prepare::DiskImage;
use super::seals::{self, Seal};
use super::supervisor::PATIENCE;
use super::{BootError, Inner, LoadedImage, TENANT};

impl Inner {
    /// Writes the machine down, and ends it.
    pub(super) fn checkpoint(
        &self,
        machine: Machine,
        spec: &LaunchSpec,
        dir: &Path,
    ) -> Result<CheckpointReport, BootError> {
        let failed = |error: &dyn std::error::Error| BootError::from_error(error);
        let images = self.images(&self.disks(spec)?)?;
        let state = machine.state();
        let (request, paused) = state
            .take_pause()
            .ok_or_else(|| BootError::new("the function does not run in its machine"))?;
        let begin = Instant::now();
        request.send().map_err(|error| failed(&error))?;
        // The connection to the agent stays open until the machine was written down.
        let (_agent, owners) = paused
            .recv_timeout(PATIENCE)
            .map_err(|_| BootError::new("the guest did not stop its function"))?;
        // Pages that are blocks of its disks are mapped from there.
        let whole = images.iter().filter(|image| image.pages > 0);
        let pools: Vec<GivenPool<'_>> = whole.map(DiskImage::pool).collect();
        let running = machine.running();
        let written = match &mut *running.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(running) => running.snapshot(&pools).map_err(|error| failed(&error)),
            None => Err(BootError::new("the machine has ended")),
        };
        let (snapshot, pool) = written?;
        let pause_us = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
        drop(machine);
        let store = self.launcher.store();
        let name = store.name_of(dir).map_err(|error| failed(&error))?;
        // Until calls were seen, the owners of pages tell which of them are likely needed.
        let options = WriteOptions {
            hot: &likely_pages(&owners, &snapshot.memory),
            ..WriteOptions::new(TENANT)
        };
        let written = store.write(&name, &snapshot, &pool, &options);
        let written = written.map_err(|error| failed(&error))?;
        let stored = store.open_as::<MachineSnapshot>(&name);
        let identity = stored.map_err(|error| failed(&error))?.binding.pool;
        store_owners(dir, &identity, &owners).map_err(|error| failed(&error))?;
        // Last: without them there is no snapshot.
        let seals: Vec<Seal> = images.into_iter().map(|image| image.seal).collect();
        seals::write(dir, &seals).map_err(|error| failed(&error))?;
        Ok(CheckpointReport {
            pause_us,
            resident_bytes: pool.pages() * PAGE_SIZE,
            saved_pages: pool.pages(),
            stored_bytes: written.pack_bytes,
        })
    }

    /// Loads a snapshot: all of its pages, which are verified then, or those that are needed when they are.
    pub(super) fn load(&self, dir: &Path, residency: Residency) -> Result<LoadedImage, BootError> {
        let failed = |error: &dyn std::error::Error| BootError::from_error(error);
        let store = self.launcher.store();
        let name = store.name_of(dir).map_err(|error| failed(&error))?;
        let stored = store.open_as::<MachineSnapshot>(&name);
        let stored = stored.map_err(|error| failed(&error))?;
        let seals = seals::read(dir).map_err(|error| {
            BootError::new(format!("the list of its disks is damaged: {error}"))
        })?;
        let disk = |parent: &ParentPool| {
            let identity = Some(parent.pool);
            seals.iter().position(|seal| seal.identity() == identity)
        };
        let parents: Option<Vec<usize>> = stored.snapshot.parents.iter().map(disk).collect();
        let parents = parents
            .ok_or_else(|| BootError::new("the snapshot refers to what is none of its disks"))?;
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
        let snapshot = stored.snapshot;
        let (pool_pages, mapped_pages) = (snapshot.pool_pages, snapshot.hardware.memory_pages);
        let parts = Parts {
            stored_bytes: stored
                .map
                .chunks()
                .map(|chunk| u64::from(chunk.stored_len))
                .sum(),
            snapshot,
            identity,
            seals,
            parents,
            directory: dir.to_owned(),
            owners: owners.unwrap_or_default(),
        };
        let image = Arc::new(MachineImage::new(parts, memory));
        self.launcher.follow(image.clone());
        Ok(LoadedImage {
            inner: image,
            pool_pages,
            mapped_pages,
            parent_pages: 0,
            stays: Arc::default(),
        })
    }
}
