//! Live fork: a machine is written down in memory and goes on, and copies are made of that.
//!
//! What it has not changed since its own snapshot stays in that one's pool, and in those of its ancestors and disks.

use std::sync::Arc;
use std::time::Instant;

use rouse_pool::memory::ImageMemory;
use rouse_process::instance::LaunchSpec;
use rouse_process::launcher::CheckpointReport;
use rouse_snapshot::model::PAGE_SIZE;
use rouse_vmm::agent;

use super::image::{MachineImage, Parent, Parts};
use super::known::GuestKnows;
use super::live::{Machine, SharedVmm};
use super::loaded::loaded;
use super::seals::Seal;
use super::snapshot::{find_parent, write};
use super::state::{PauseError, State};
use super::{BootError, Inner};
use crate::boot::{Branch, BranchError};
use crate::refusal::chain;

/// A machine that is looked at.
pub struct Original {
    state: Arc<State>,
    running: SharedVmm,
    image: Option<Arc<MachineImage>>,
}

impl Original {
    pub fn of(machine: &Machine) -> Self {
        Self {
            state: machine.state(),
            running: machine.running(),
            image: machine.image(),
        }
    }
}

impl Inner {
    /// Takes a snapshot in memory of a machine whose function waits for an event on the connection from port `parked`. Blocks.
    pub(super) fn branch(
        self: &Arc<Self>,
        original: &Original,
        parked: u16,
        spec: &LaunchSpec,
    ) -> Result<Branch, BranchError> {
        let refused = |error: BootError| BranchError::Refused(error.reason);
        let disks = self.disks(spec).map_err(refused)?;
        let images = self.images(&disks).map_err(refused)?;
        if let Some(image) = &original.image {
            let resident = image.make_resident();
            // Pages that were written and put back are found out only where they can be compared.
            resident.map_err(|error| BranchError::Refused(chain(&error)))?;
        }
        let begin = Instant::now();
        let paused = original.state.pause().map_err(|error| match error {
            PauseError::NotRunning => BranchError::Refused(error.to_string()),
            error => BranchError::Ended(chain(&error)),
        })?;
        let written = write(&original.running, &images);
        let owners = paused.owners.clone();
        (paused.go_on(&original.state)).map_err(|error| BranchError::Ended(chain(&error)))?;
        let pause_us = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
        let (snapshot, pool) = written.map_err(|error| BranchError::Refused(chain(&error)))?;

        let seals: Vec<Seal> = images.into_iter().map(|image| image.seal).collect();
        let lineage: Vec<Arc<MachineImage>> = (original.image.iter())
            .flat_map(|image| std::iter::once(image).chain(image.ancestors()))
            .cloned()
            .collect();
        let parents = snapshot.parents.iter();
        let parents: Option<Vec<Parent>> = parents
            .map(|parent| find_parent(parent, &seals, &lineage))
            .collect();
        // The VMM may be its guest's by now.
        let parents = parents.ok_or_else(|| {
            BranchError::Refused("its snapshot refers to what it was not made of".to_owned())
        })?;
        let identity = agent::fresh().map_err(|error| BranchError::Refused(chain(&error)))?;
        let pool_pages = snapshot.pool_pages;
        let parts = Parts {
            snapshot,
            // No other pool is called so.
            identity: identity.random,
            guest: GuestKnows {
                parked,
                disks: seals,
            },
            parents,
            is_template: false,
            directory: None,
            owners,
            stored_bytes: 0,
        };
        let image = Arc::new(MachineImage::new(parts, ImageMemory::Whole(pool)));
        Ok(Branch {
            report: CheckpointReport {
                pause_us,
                resident_bytes: pool_pages * PAGE_SIZE,
                saved_pages: pool_pages,
                stored_bytes: 0,
            },
            image: loaded(self, image),
        })
    }
}
