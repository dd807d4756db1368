//! Takes snapshots, loads them, and learns about them.

use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use rouse_pool::cost::{CostChoice, CostInputs, MapOrCopy};
use rouse_pool::snapshot_store::{GcOptions, GcReport, WriteOptions};
use rouse_pool::{FarDirectory, FarMemory, NumaNode};

use rouse_snapshot::page_map::Domain;

use super::paging::wire;
use super::{Launcher, SnapshotError};
use crate::checkpoint::{self, Afterwards, CheckpointTarget};
use crate::image::resemblance::base_of;
use crate::image::stowage::Stowage;
use crate::image::{Image, ImageError, Loaded};
use crate::instance::{Instance, LaunchSpec, Origin};
use crate::working_set::Observation;
use rouse_pool::memory::{ImageMemory, MemoryOwner as _};

/// What a checkpoint did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointReport {
    /// How long the function stood still, microseconds.
    pub pause_us: u64,
    /// Resident memory when it was stopped, bytes.
    pub resident_bytes: u64,
    /// Pages saved in the pool image.
    pub saved_pages: u64,
    /// Bytes added to the store for pages that it did not hold yet.
    pub stored_bytes: u64,
}

/// When the pages of a snapshot come into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residency {
    /// All of them when it is loaded. Every byte is verified then.
    Now,
    /// When they are needed: what its working set says ahead, the rest when it is touched.
    OnDemand,
    /// The same, and somebody waits for a restore: what that needs ahead is begun while the rest of the snapshot is loaded.
    ForCall,
}

/// Whose all snapshots are. Nodes have one tenant so far.
pub(super) const TENANT: &str = "default";

impl Launcher {
    /// Stops `instance`, writes its snapshot to the directory `dir` of the store (which must not exist),
    /// and ends it.
    ///
    /// `parked_port` is the client's port of the runtime-API connection on which its request waits.
    pub async fn checkpoint(
        &self,
        instance: Instance,
        parked_port: u16,
        spec: &LaunchSpec,
        dir: &Path,
    ) -> Result<CheckpointReport, SnapshotError> {
        self.take(instance, parked_port, spec, dir, Domain::Tenant)
            .await
    }

    /// As [`checkpoint`](Self::checkpoint), of an instance that has run no function: the snapshot may be shared by
    /// all tenants. `spec` must name a package that is empty.
    pub async fn checkpoint_template(
        &self,
        instance: Instance,
        parked_port: u16,
        spec: &LaunchSpec,
        dir: &Path,
    ) -> Result<CheckpointReport, SnapshotError> {
        // What was started from a snapshot may know what that one knew; a package may hold anything.
        let empty = std::fs::read_dir(&spec.task_dir).is_ok_and(|mut dir| dir.next().is_none());
        if instance.origin.is_some() || !empty {
            return Err(SnapshotError::NoTemplate);
        }
        self.take(instance, parked_port, spec, dir, Domain::Templates)
            .await
    }

    /// As [`checkpoint_template`](Self::checkpoint_template), of an instance that was started of a template and has run a function that
    /// is the caller's own, and no tenant's: what it has written, functions of the template write too.
    pub async fn checkpoint_specimen(
        &self,
        instance: Instance,
        parked_port: u16,
        spec: &LaunchSpec,
        dir: &Path,
    ) -> Result<CheckpointReport, SnapshotError> {
        let origin = instance.origin.as_ref();
        if !origin.is_some_and(|origin| origin.image.is_template()) {
            return Err(SnapshotError::NoTemplate);
        }
        self.take(instance, parked_port, spec, dir, Domain::Templates)
            .await
    }

    /// From now on, descendants of a template do not save pages that `specimen` has, as long as that is loaded. They need it among their
    /// ancestors.
    pub fn share_specimen(&self, template: &Arc<Image>, specimen: &Arc<Image>) {
        template.set_specimen(specimen);
    }

    async fn take(
        &self,
        instance: Instance,
        parked_port: u16,
        spec: &LaunchSpec,
        dir: &Path,
        domain: Domain,
    ) -> Result<CheckpointReport, SnapshotError> {
        let launcher = self.clone();
        let (task_dir, dir) = (spec.task_dir.clone(), dir.to_path_buf());
        let task = tokio::task::spawn_blocking(move || {
            let config = &launcher.inner.config.sandbox;
            let host_path = |path: &[u8]| rouse_sandbox::paths::host_path(config, &task_dir, path);
            let lineage = instance
                .origin
                .as_ref()
                .map(|origin| origin.image.lineage())
                .unwrap_or_default();
            // That of a function is known by its own snapshot already.
            let specimen = match &lineage[..] {
                [template] => template.specimen(),
                _ => None,
            };
            let target = CheckpointTarget {
                pid: instance.pid().ok_or(SnapshotError::Ended)?,
                init_pid: instance.init_pid,
                api_client_port: parked_port,
                log_inode: instance.log_inode,
                host_path: &host_path,
                baseline_rlimits: &launcher.inner.environment.rlimits,
                lineage: &lineage,
                specimen: specimen.as_ref(),
                costs: MapOrCopy::new(&launcher.costs()),
                afterwards: Afterwards::Ends,
            };
            let taken = checkpoint::checkpoint(&target)?;
            drop(instance);
            let process = &taken.snapshot.process;
            launcher
                .inner
                .clock
                .saw(process.monotonic_ns, process.boottime_ns)
                .map_err(SnapshotError::Clock)?;
            let store = &launcher.inner.store;
            // Without it the snapshot is as good, and larger.
            let base = lineage.first().and_then(|template| {
                base_of(store, &taken.snapshot, template)
                    .inspect_err(
                        |error| tracing::warn!(%error, "a template's pages cannot be used"),
                    )
                    .ok()
                    .flatten()
            });
            let written = store.write(
                &store.name_of(&dir)?,
                &taken.snapshot,
                &taken.pool,
                &WriteOptions {
                    domain,
                    choice: &CostChoice::new(launcher.costs()),
                    base,
                    dictionary: launcher.inner.dictionaries.of(&taken.snapshot),
                    ..WriteOptions::new(TENANT)
                },
            )?;
            if domain == Domain::Tenant && lineage.is_empty() {
                launcher.train_if_due(&taken.snapshot, &taken.pool);
            }
            Ok(CheckpointReport {
                pause_us: taken.pause_us,
                resident_bytes: taken.resident_bytes,
                saved_pages: taken.snapshot.pool_pages,
                stored_bytes: written.pack_bytes,
            })
        });
        task.await.map_err(|_| SnapshotError::Cancelled)?
    }

    /// Loads and verifies a snapshot: checksums, fingerprint of the host, identity of every file.
    /// A delta needs the images that it descends from among `ancestors`.
    pub async fn load(
        &self,
        dir: &Path,
        ancestors: &[Arc<Image>],
        residency: Residency,
    ) -> Result<Arc<Image>, SnapshotError> {
        let launcher = self.clone();
        let (dir, ancestors) = (dir.to_path_buf(), ancestors.to_vec());
        let task = tokio::task::spawn_blocking(move || {
            let store = &launcher.inner.store;
            let name = store.name_of(&dir)?;
            let stored = store.open_snapshot(&name)?;
            launcher.remember_dictionary(&stored);
            let soon = residency == Residency::ForCall;
            let memory = match launcher.paged_memory(&stored, soon)? {
                Some(memory) => {
                    wire(&memory, &stored.snapshot)?;
                    memory
                }
                // A pool of no pages has nothing to bring in, and without a pager nobody could.
                None => ImageMemory::Whole(stored.load()?),
            };
            let stowage = Stowage::of(&stored.map);
            let mut chunks = stored.map.chunks();
            let is_shared = chunks.all(|chunk| chunk.domain == Domain::Templates);
            let (snapshot, identity) = (stored.snapshot, stored.binding.pool);
            let here = checkpoint::fingerprint()?;
            let there = &snapshot.host;
            for (same, what) in [
                (there.kernel == here.kernel, "the kernel"),
                (there.vdso == here.vdso, "the vDSO"),
                (there.cpu == here.cpu, "the CPU"),
                (
                    there.xsave_len == here.xsave_len,
                    "the extended register state",
                ),
            ] {
                if !same {
                    return Err(ImageError::OtherHost(what).into());
                }
            }
            let environment = &launcher.inner.environment;
            let loaded = Loaded {
                snapshot,
                memory,
                stowage,
                is_shared,
                identity,
            };
            let image = Image::new(loaded, &ancestors, &launcher.costs(), &dir)?;
            // What cannot be compiled is no image.
            match residency {
                Residency::Now => image.programs().restore(&image, environment).map(drop)?,
                Residency::OnDemand | Residency::ForCall => {
                    image.programs().watched(&image, environment).map(drop)?;
                }
            }
            let image = Arc::new(image);
            let known = launcher.inner.pools.add(&image, image.memory().view());
            known.map_err(|source| ImageError::Store(source.into()))?;
            if let Some(paging) = &launcher.inner.paging {
                paging.follow(image.clone());
            }
            if residency == Residency::Now {
                image.memory().make_resident()?;
            }
            Ok(image)
        });
        task.await.map_err(|_| SnapshotError::Cancelled)?
    }

    /// Brings all pages of an image and of those that it descends from into memory, to stay.
    pub async fn make_resident(&self, image: &Arc<Image>) -> Result<(), SnapshotError> {
        let image = image.clone();
        let task = tokio::task::spawn_blocking(move || {
            image
                .lineage()
                .iter()
                .try_for_each(|image| image.memory().make_resident())
        });
        Ok(task.await.map_err(|_| SnapshotError::Cancelled)??)
    }

    /// As [`make_resident`](Self::make_resident), with the image's own pages on far memory; or, without it, on near memory.
    /// On a NUMA node, those pages that its calls touch stay near.
    pub async fn place(
        &self,
        image: &Arc<Image>,
        far: Option<FarMemory>,
    ) -> Result<(), SnapshotError> {
        let (launcher, image) = (self.clone(), image.clone());
        let task = tokio::task::spawn_blocking(move || {
            for parent in image.lineage().iter().skip(1) {
                parent.memory().make_resident()?;
            }
            match far {
                Some(FarMemory::Directory(directory)) => launcher.place_in(&image, &directory),
                Some(FarMemory::Node(node)) => launcher.place_on(&image, Some(node)),
                None => launcher.place_on(&image, None),
            }
        });
        task.await.map_err(|_| SnapshotError::Cancelled)?
    }

    fn place_on(&self, image: &Arc<Image>, node: Option<NumaNode>) -> Result<(), SnapshotError> {
        image.place_on(node)?;
        if self.inner.config.huge_pages
            && node.is_none()
            && let Err(error) = image.memory().enlarge()
        {
            tracing::warn!(%error, "there are no pages of 2 MiB");
        }
        Ok(())
    }

    fn place_in(
        &self,
        image: &Arc<Image>,
        directory: &Arc<FarDirectory>,
    ) -> Result<(), SnapshotError> {
        // What is being stored anew has another pool soon.
        let Some(_claim) = image.stowage().claim() else {
            return Ok(());
        };
        image.move_to_far(directory, |far| {
            let known = self.inner.pools.add(image, far.view());
            known.map_err(|source| SnapshotError::from(ImageError::Store(source.into())))
        })?;
        self.drop_ahead_of_children(image);
        // Instances that still map the pool keep its pages until they end, and this is called again.
        image.memory().release()?;
        Ok(())
    }

    /// What makes instances of deltas ahead maps their parent's pool where it was.
    fn drop_ahead_of_children(&self, parent: &Arc<Image>) {
        for image in self.inner.pools.images() {
            if image.descends_from(parent) {
                image.drop_ahead();
            }
        }
    }

    /// Keeps what is on disk of an image's pages in memory, or no more.
    pub async fn hold_compressed(
        &self,
        image: &Arc<Image>,
        wanted: bool,
    ) -> Result<(), SnapshotError> {
        let image = image.clone();
        let task = tokio::task::spawn_blocking(move || {
            let Some(_claim) = image.stowage().claim() else {
                return Ok(());
            };
            image.memory().hold_compressed(wanted)
        });
        Ok(task.await.map_err(|_| SnapshotError::Cancelled)??)
    }

    /// Lets the pages of an image go, and its template. Those that live instances rely on go when these have ended and
    /// this is called again. Returns the pages that are left in memory.
    pub async fn release(&self, image: &Arc<Image>) -> Result<u64, SnapshotError> {
        let (launcher, image) = (self.clone(), image.clone());
        let task = tokio::task::spawn_blocking(move || {
            // What is being stored anew has to stay until that is done.
            if let Some(_claim) = image.stowage().claim() {
                launcher.drop_ahead_of_children(&image);
                image.release()?;
            }
            Ok::<_, SnapshotError>(image.memory().resident_pages().unwrap_or(0))
        });
        task.await.map_err(|_| SnapshotError::Cancelled)?
    }

    /// From now on decides by these costs how pieces are stored.
    pub fn set_costs(&self, costs: CostInputs) {
        *self
            .inner
            .costs
            .write()
            .unwrap_or_else(PoisonError::into_inner) = costs;
    }

    pub(super) fn costs(&self) -> CostInputs {
        let costs = self.inner.costs.read();
        costs.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Pages in DRAM of all images that can be emptied, in use or not.
    pub fn resident_pages(&self) -> u64 {
        (self.inner.paging.as_ref()).map_or(0, |paging| paging.resident_pages())
    }

    /// Gives back what removed snapshots have left in the store. Waits for what is being written.
    pub async fn collect(&self) -> Result<GcReport, SnapshotError> {
        let launcher = self.clone();
        let task =
            tokio::task::spawn_blocking(move || launcher.inner.store.gc(GcOptions::default()));
        Ok(task.await.map_err(|_| SnapshotError::Cancelled)??)
    }

    /// See [`Instance::learn_rehearsed`].
    pub(crate) fn learn_rehearsed(&self, origin: &Origin, pid: i32) {
        let image = &origin.image;
        let Some(seen) = observe(origin, pid) else {
            return;
        };
        let costs = MapOrCopy::new(&self.costs());
        match image.learn_rehearsed(&seen, &self.inner.environment, costs) {
            Ok(true) => self.restow_now(image),
            // Something is known already.
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "the rehearsal could not be used"),
        }
    }

    /// See [`Instance::learn`]. The template that may have to be made again is made in the background.
    pub(crate) fn learn(&self, origin: &Origin, pid: i32) {
        let image = &origin.image;
        let Some(seen) = observe(origin, pid) else {
            return;
        };
        let costs = MapOrCopy::new(&self.costs());
        match image.learn(&seen, &self.inner.environment, costs) {
            Ok(changed) => {
                self.restow_if_worth_it(origin);
                if !changed {
                    return;
                }
            }
            // The snapshot may have been removed meanwhile: nothing is lost but what was learnt.
            Err(error) => return tracing::debug!(%error, "the working set could not be used"),
        }
        if let Some(parked) = image.parked() {
            parked.fill(Duration::ZERO);
        }
        if image.clones().is_none() {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let (launcher, image, spec) = (self.clone(), image.clone(), origin.spec.clone());
        runtime.spawn(async move {
            if let Err(error) = launcher.start_clones(&image, &spec).await {
                tracing::warn!(%error, "the template could not be made anew");
            }
        });
    }
}

/// What an instance has touched; `None` if that cannot be seen.
fn observe(origin: &Origin, pid: i32) -> Option<Observation> {
    // The kernel does not say of pages of such a medium whether they were written.
    let is_blurred = |memory: &Arc<ImageMemory>| memory.far_file().is_some_and(|f| f.is_dax());
    if origin.memories.iter().any(is_blurred) {
        return None;
    }
    let (snapshot, prepared) = (origin.image.snapshot(), origin.prepared.clone());
    let mut seen = Observation::of(pid, snapshot, prepared, origin.exact)
        .inspect_err(|error| tracing::debug!(%error, "the working set could not be observed"))
        .ok()?;
    if let Some(touches) = &origin.touches {
        match touches.order() {
            Ok(order) => seen.order = order,
            Err(error) => tracing::debug!(%error, "the order of touches cannot be read"),
        }
    }
    Some(seen)
}
