//! What the store takes for a machine, and the pools that machines are restored from.

use std::ops::Range;
use std::path::Path;

use rouse_pool::keeper::PagerHandle;
use rouse_pool::key::NodeKey;
use rouse_pool::snapshot_store::{StoredSnapshot, WriteOptions};
use rouse_pool::uffd::Device;
use rouse_pool::{PagedPool, PoolId, SnapshotStore, SparsePool};
use rouse_snapshot::model::{MachineSnapshot, PAGE_SIZE, ParentPool};
use rouse_vmm::Machine;
use rouse_vmm::agent;
use rouse_vmm::devices::virtio::Disk;
use rouse_vmm::memory::{Layer, MapError, Mapped, Source, hot_pages};
use rouse_vmm::snapshot::{load_owners, store_owners};
use serde::Serialize;

use super::aware::Awareness;
use super::cold::Answered;
use super::console::Console;
use super::guest::{Guest, Host};
use super::subject;
use crate::output::error::Failed;

const NAME: &str = "measured";
const CHILD: &str = "child";
const TENANT: &str = "measured";

/// What one snapshot takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Size {
    /// Pages of its pool.
    pub pool_pages: u64,
    /// Bytes on disk.
    pub stored_bytes: u64,
}

/// What machines are restored from.
pub struct Stored<'a> {
    pager: &'a PagerHandle,
    store: SnapshotStore,
    /// Those of the disks, in which a part of the memory lies.
    images: Vec<Layer>,
    /// The snapshot, with its working set when that is known.
    pub snapshot: StoredSnapshot<MachineSnapshot>,
    /// What it takes.
    pub size: Size,
    next_pool: u64,
}

/// What a machine that answered one more event showed.
pub struct Learnt {
    /// What a child that is written down then takes.
    pub child: Size,
    /// Pages of the parent's pool that are fetched first from now on.
    pub hot_pages: u64,
    /// How well the owners of pages predict them.
    pub aware: Awareness,
}

impl<'a> Stored<'a> {
    /// Writes down a machine that waits for an event, and ends it.
    pub fn write(
        pager: &'a PagerHandle,
        directory: &Path,
        disks: &[Disk],
        answered: Answered,
    ) -> Result<Self, Failed> {
        let Answered {
            guest,
            host,
            mut agent,
            api,
            ..
        } = answered;
        let owners = agent.pause()?;
        let machine = guest.pause()?;
        let images = disks.iter().map(image).collect::<Result<Vec<_>, _>>()?;
        let written = machine.snapshot(NAME, &images)?;
        drop((machine, agent, api, host));
        let store = SnapshotStore::open(directory, NodeKey::new(agent::fresh()?.random))?;
        let report = store.write(
            NAME,
            &written.snapshot,
            &written.pool,
            &WriteOptions::new(TENANT),
        )?;
        let snapshot: StoredSnapshot<MachineSnapshot> = store.open_as(NAME)?;
        store_owners(&store.path_of(NAME)?, &snapshot.binding.pool, &owners)?;
        Ok(Self {
            pager,
            images,
            snapshot,
            store,
            size: Size {
                pool_pages: report.pages,
                stored_bytes: report.stored_bytes(),
            },
            next_pool: 1,
        })
    }

    /// A pool with none of its pages.
    pub fn pool(&mut self) -> Result<PagedPool, Failed> {
        let sparse = SparsePool::new(NAME, self.snapshot.snapshot.pool_pages)?;
        let source = self.store.source(&self.snapshot)?;
        let id = PoolId(self.next_pool);
        self.next_pool += 1;
        Ok(self.pager.add_pool(id, sparse, &source)?)
    }

    /// What the snapshot refers to beside its own pool, in its order.
    pub fn parents(&self) -> Result<Vec<Layer>, Failed> {
        let image = |parent: &ParentPool| {
            let image = (self.images.iter()).find(|image| image.name.as_ref() == Some(parent));
            image
                .cloned()
                .ok_or_else(|| "the snapshot refers to what is no disk".into())
        };
        self.snapshot.snapshot.parents.iter().map(image).collect()
    }

    /// Restores a machine in this process, lets it answer the `n`th event, and stores the working set that this shows. Then
    /// the machine is written down as a child.
    pub fn learn(&mut self, disks: &[Disk], scratch: &Path, n: u64) -> Result<Learnt, Failed> {
        let pool = self.pool()?;
        let host = Host::listen(disks, scratch)?;
        let layer = Layer {
            source: Source::Registered(pool.registered()),
            name: Some(ParentPool {
                pool: self.snapshot.binding.pool,
                pages: pool.pages(),
            }),
        };
        let snapshot = &self.snapshot.snapshot;
        let mapped = Mapped::new(
            snapshot.hardware.memory_pages,
            &snapshot.memory,
            std::iter::once(layer).chain(self.parents()?).collect(),
        )?;
        let mut registration = None;
        let memory = mapped.watch(Some(&Device::open()?), |uffd, mappings| {
            // Pages that it only reads are to be known one by one.
            registration = Some(self.pager.register_exactly(uffd, mappings, false)?);
            Ok::<(), WatchError>(())
        })?;
        let console = Console::default();
        let machine = Machine::restore(snapshot, memory, &host.devices, console.output())?;
        let guest = Guest::run(machine);
        let (mut agent, mut api) = (host.agent()?, host.api()?);
        agent.resume(agent::fresh()?)?;
        subject::call(&mut api, n)?;
        api.next()?;
        // Before the guest is told to prepare for a snapshot, which touches pages that no answer needs.
        let machine = guest.pause()?;
        let set = machine.memory().touched()?;
        let hot = hot_pages(&set, &snapshot.memory);
        let of = &self.snapshot.binding.pool;
        let owners = load_owners(&self.store.path_of(NAME)?, of)?.unwrap_or_default();
        let aware = Awareness::of(&owners, &snapshot.memory, &hot);

        let guest = Guest::run(machine);
        agent.pause()?;
        let machine = guest.pause()?;
        let child = machine.snapshot(CHILD, &self.images)?;
        let options = WriteOptions::new(TENANT);
        let report = (self.store).write(CHILD, &child.snapshot, &child.pool, &options)?;
        // The memory before the registration, and both before the pool.
        drop((machine, child, agent, api, host));
        drop(registration);
        drop(pool);

        let options = WriteOptions {
            hot: &hot,
            ..WriteOptions::new(TENANT)
        };
        self.store.rewrite(NAME, &options)?;
        self.snapshot = self.store.open_as(NAME)?;
        Ok(Learnt {
            child: Size {
                pool_pages: report.pages,
                stored_bytes: report.stored_bytes(),
            },
            hot_pages: pages(&hot),
            aware,
        })
    }
}

/// The image of a disk, known by its digest.
fn image(disk: &Disk) -> Result<Layer, Failed> {
    let image = std::fs::File::open(&disk.image)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(&image)?;
    Ok(Layer::of_image(image, *hasher.finalize().as_bytes())?)
}

impl Size {
    /// As a part of the machine's memory.
    pub fn part_of_memory(self) -> f64 {
        let memory = u64::from(subject::MEMORY_MIB) << 20;
        #[expect(clippy::cast_precision_loss, reason = "sizes of files fit 52 bits")]
        let part = self.stored_bytes as f64 / memory as f64;
        part
    }
}

/// Memory cannot be watched.
#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error(transparent)]
    Map(#[from] MapError),
    #[error(transparent)]
    Pager(#[from] rouse_pool::keeper::PagerError),
}

fn pages(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// Pages in ranges of addresses.
pub fn pages_of_addresses(ranges: &[Range<u64>]) -> u64 {
    pages(ranges) / PAGE_SIZE
}
