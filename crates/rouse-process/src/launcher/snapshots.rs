//! Takes snapshots, loads them, and learns about them.

use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use rouse_pool::NumaNode;
use rouse_pool::cost::{CostChoice, CostInputs};
use rouse_pool::snapshot_store::{GcOptions, GcReport, WriteOptions};

use rouse_snapshot::page_map::Domain;

use super::{Launcher, SnapshotError};
use crate::checkpoint::{self, CheckpointTarget};
use crate::image::memory::ImageMemory;
use crate::image::resemblance::base_of;
use crate::image::stowage::Stowage;
use crate::image::{Image, ImageError};
use crate::instance::{Instance, LaunchSpec, Origin};
use crate::working_set::Observation;

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
            let target = CheckpointTarget {
                pid: instance.pid().ok_or(SnapshotError::Ended)?,
                init_pid: instance.init_pid,
                api_client_port: parked_port,
                log_inode: instance.log_inode,
                host_path: &host_path,
                baseline_rlimits: &launcher.inner.environment.rlimits,
                lineage: &lineage,
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
            let memory = match launcher.paged_memory(&name, &stored)? {
                Some(memory) => memory,
                // A pool of no pages has nothing to bring in, and without a pager nobody could.
                None => ImageMemory::Whole(stored.load()?),
            };
            let stowage = Stowage::of(&stored.map);
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
            let image = Image::new(
                snapshot,
                memory,
                stowage,
                identity,
                &ancestors,
                environment,
                &dir,
            )?;
            let image = Arc::new(image);
            let known = launcher.inner.pools.add(&image, image.memory().view());
            known.map_err(|source| ImageError::Store(source.into()))?;
            if let Some(paging) = &launcher.inner.paging {
                paging.follow(&image);
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

    /// As [`make_resident`](Self::make_resident), with the image's own pages on far memory, but for those that its
    /// calls touch; or, without a node, on near memory.
    pub async fn place(
        &self,
        image: &Arc<Image>,
        far: Option<NumaNode>,
    ) -> Result<(), SnapshotError> {
        let image = image.clone();
        let task = tokio::task::spawn_blocking(move || {
            for parent in image.lineage().iter().skip(1) {
                parent.memory().make_resident()?;
            }
            image.memory().place(far, &image.hot_pages()).map(drop)
        });
        Ok(task.await.map_err(|_| SnapshotError::Cancelled)??)
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
        let image = image.clone();
        let task = tokio::task::spawn_blocking(move || {
            // What is being stored anew has to stay until that is done.
            if let Some(_claim) = image.stowage().claim() {
                image.drop_parked();
                image.drop_clones();
                image.memory().release()?;
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

    /// See [`Instance::learn`]. The template that may have to be made again is made in the background.
    pub(crate) fn learn(&self, origin: &Origin, pid: i32) {
        let image = &origin.image;
        let prepared = origin.prepared.clone();
        let seen = match Observation::of(pid, image.snapshot(), prepared, origin.exact) {
            Ok(seen) => seen,
            Err(error) => {
                return tracing::debug!(%error, "the working set could not be observed");
            }
        };
        match image.learn(&seen, &self.inner.environment) {
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
