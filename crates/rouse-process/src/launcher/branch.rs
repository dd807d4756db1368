//! Snapshots in memory of instances that go on: what copies of a live instance are made of.
//!
//! ```text
//!   pool of the function's snapshot   |AAAAAAAAAAAAAAAA|   mapped by all
//!   the original                      |AAAwwAAAAwAAAAAA|   ww: its own copies
//!   this image                             |ww|w|          one copy of these, mapped by all copies
//!   a copy                            |AAAwwAAAAwAAAAAA|   copies what it writes
//! ```
//! It is a delta like any other (`checkpoint::delta`), but never stored: it lives as long as an instance that was made of it,
//! or of a descendant.

use std::io::Read as _;
use std::sync::Arc;

use rouse_pool::cost::MapOrCopy;
use rouse_pool::memory::ImageMemory;
use rouse_snapshot::validate::{MAX_PARENTS, validate};

use super::{CheckpointReport, Launcher, SnapshotError};
use crate::checkpoint::{self, Afterwards, CheckpointError, CheckpointTarget};
use crate::image::stowage::Stowage;
use crate::image::{Image, ImageError, Loaded};
use crate::instance::{Instance, LaunchSpec};

impl Launcher {
    /// Takes a snapshot in memory of an instance that waits for work, which goes on: it stands still for as long as
    /// the report says. `parked_port` is the client's port of the runtime-API connection on which its request waits.
    ///
    /// The instance must not be used before this has come to its end.
    ///
    /// # Errors
    /// The instance goes on as if nothing had been, but after [`SnapshotError::is_fatal`].
    pub async fn branch(
        &self,
        instance: &Instance,
        parked_port: u16,
        spec: &LaunchSpec,
    ) -> Result<(Arc<Image>, CheckpointReport), SnapshotError> {
        let subject = Subject {
            pid: instance.pid().ok_or(SnapshotError::Ended)?,
            init_pid: instance.init_pid,
            log_inode: instance.log_inode,
            parked_port,
            lineage: match &instance.origin {
                Some(origin) => nearest(origin.image.lineage()),
                None => Vec::new(),
            },
        };
        let (launcher, spec) = (self.clone(), spec.clone());
        let task = tokio::task::spawn_blocking(move || launcher.branch_of(&subject, &spec));
        task.await.map_err(|_| SnapshotError::Cancelled)?
    }

    fn branch_of(
        &self,
        subject: &Subject,
        spec: &LaunchSpec,
    ) -> Result<(Arc<Image>, CheckpointReport), SnapshotError> {
        // So that what was not really written is found out, and copies do not wait for the pager.
        for image in &subject.lineage {
            image.memory().make_resident()?;
        }
        let config = &self.inner.config.sandbox;
        let host_path = |path: &[u8]| rouse_sandbox::paths::host_path(config, &spec.task_dir, path);
        let taken = checkpoint::checkpoint(&CheckpointTarget {
            pid: subject.pid,
            init_pid: subject.init_pid,
            api_client_port: subject.parked_port,
            log_inode: subject.log_inode,
            host_path: &host_path,
            baseline_rlimits: &self.inner.environment.rlimits,
            lineage: &subject.lineage,
            specimen: None,
            costs: MapOrCopy::new(&self.costs()),
            afterwards: Afterwards::GoesOn,
        })?;
        validate(&taken.snapshot)?;
        let report = CheckpointReport {
            pause_us: taken.pause_us,
            resident_bytes: taken.resident_bytes,
            saved_pages: taken.snapshot.pool_pages,
            stored_bytes: 0,
        };
        let identity = random_identity().map_err(|e| SnapshotError::Image(ImageError::Store(e)))?;
        let loaded = Loaded {
            snapshot: taken.snapshot,
            memory: ImageMemory::Whole(taken.pool),
            stowage: Stowage::default(),
            // It is of one tenant's instance.
            is_shared: false,
            identity,
        };
        // Nothing is stored of it, so nothing can have been learnt.
        let nowhere = self.inner.config.store.join("nowhere");
        let image = Image::new(loaded, &subject.lineage, &self.costs(), &nowhere)?;
        // What cannot be compiled is no image.
        let environment = &self.inner.environment;
        image.programs().restore(&image, environment).map(drop)?;
        let image = Arc::new(image);
        let known = self.inner.pools.add(&image, image.memory().view());
        known.map_err(|source| ImageError::Store(source.into()))?;
        Ok((image, report))
    }
}

impl SnapshotError {
    /// Can the instance that was looked at not go on? Then it has to be ended.
    pub fn is_fatal(&self) -> bool {
        matches!(
            self,
            Self::Ended
                | Self::Cancelled
                | Self::Checkpoint(CheckpointError::Stuck(_) | CheckpointError::Gone)
        )
    }
}

/// What is looked at.
struct Subject {
    pid: i32,
    init_pid: i32,
    log_inode: u64,
    parked_port: u16,
    lineage: Vec<Arc<Image>>,
}

/// As many of a lineage as a snapshot can have parents: those with the largest pools, in their order. What lies in the pool
/// of another is copied, so that branches of branches have no end.
fn nearest(lineage: Vec<Arc<Image>>) -> Vec<Arc<Image>> {
    let mut sizes: Vec<u64> = lineage.iter().map(|i| i.snapshot().pool_pages).collect();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    let Some(least) = sizes.get(MAX_PARENTS - 1).copied() else {
        return lineage;
    };
    let larger = sizes.iter().filter(|size| **size > least).count();
    // Of those that are equally large, the first.
    let mut equal = MAX_PARENTS - larger;
    let is_kept = |image: &Arc<Image>| match image.snapshot().pool_pages.cmp(&least) {
        std::cmp::Ordering::Greater => true,
        std::cmp::Ordering::Equal => {
            let is_in = equal > 0;
            equal -= usize::from(is_in);
            is_in
        }
        std::cmp::Ordering::Less => false,
    };
    lineage.into_iter().filter(is_kept).collect()
}

/// No other pool is called so.
fn random_identity() -> std::io::Result<[u8; 32]> {
    let mut identity = [0; 32];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut identity)?;
    Ok(identity)
}
