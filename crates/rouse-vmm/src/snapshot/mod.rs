//! A paused machine written down, restored, multiplied and put back.
//!
//! ```text
//!  Machine (paused) ── snapshot ──> Written: MachineSnapshot + Pool + layers ── SnapshotStore::write ──> disk
//!        ^    │                        │
//!        │    └── rewind               ├── as a template: Written::memory, N times      (fork)
//!        │                             │
//!        └───────── Machine::restore <─┴── Mapped::new(StoredSnapshot, pools).watch    (restore)
//! ```
//!
//! Order of a restore, each step for the sake of the next:
//!
//! 1. the snapshot is checked, and belongs to this host: nothing of it has reached KVM before;
//! 2. memory is mapped and watched, then given to KVM: some registers refer to it;
//! 3. processors (`vcpu/state/mod.rs` says in which order within), then clock and chips (`chips.rs`), then what of the
//!    processors depends on the clock;
//! 4. devices: putting them back may raise interrupts, which the chips must not lose;
//! 5. a new identity, whose interrupt is thus pending before the first instruction.

mod chips;
mod host;
mod owners;

use std::sync::Arc;

use rouse_pool::Pool;
use rouse_snapshot::Invalid;
use rouse_snapshot::manifest::Subject;
use rouse_snapshot::model::{Hardware, MachineSnapshot, VcpuState};

use crate::devices::virtio::{DeviceConfig, OpenDevices};
use crate::devices::{Output, SavedDevice, StateError};
use crate::identity::IdentityError;
use crate::machine::{Blank, BootError, Machine};
use crate::memory::{CollectError, Layer, MapError, Mapped, Memory, Source};
use crate::vcpu::state::{self, MsrList, VcpuStateError};

pub use chips::ChipError;
pub use host::{OtherHost, check as check_host, kind as kvm_kind, this_host};
pub use owners::{OWNERS_FILE, OwnersFileError, load_owners, store_owners};

/// A machine cannot be written down. It can go on.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// KVM does not tell what the host is.
    #[error("KVM does not tell what this host can do")]
    Host(#[source] kvm_ioctls::Error),
    /// A processor.
    #[error(transparent)]
    Vcpu(#[from] VcpuStateError),
    /// What the processors share.
    #[error(transparent)]
    Chips(#[from] ChipError),
    /// Memory.
    #[error("cannot write the guest's memory down")]
    Memory(#[from] CollectError),
    /// What was read makes no sense.
    #[error("the machine is in a state that cannot be restored")]
    Invalid(#[from] Invalid),
}

/// A machine cannot be restored or put back. It must not be used then.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// KVM does not tell what the host is.
    #[error("KVM does not tell what this host can do")]
    Host(#[source] kvm_ioctls::Error),
    /// The snapshot contradicts itself.
    #[error("the snapshot makes no sense")]
    Invalid(#[from] Invalid),
    /// Of another host.
    #[error(transparent)]
    OtherHost(#[from] OtherHost),
    /// Memory that is not the snapshot's.
    #[error("the snapshot is of {expected} pages of memory, given were {found}")]
    MemorySize {
        /// Pages.
        expected: u64,
        /// Pages.
        found: u64,
    },
    /// A machine of another shape.
    #[error("the snapshot is of {expected} processors, the machine has {found}")]
    Vcpus {
        /// Processors.
        expected: usize,
        /// Processors.
        found: usize,
    },
    /// No machine can be made.
    #[error("cannot make a machine")]
    Boot(#[from] BootError),
    /// A processor.
    #[error(transparent)]
    Vcpu(#[from] VcpuStateError),
    /// What the processors share.
    #[error(transparent)]
    Chips(#[from] ChipError),
    /// A device.
    #[error(transparent)]
    Device(#[from] StateError),
    /// No new identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Pages that it wrote cannot be dropped.
    #[error("cannot put the guest's memory back")]
    Rewind(#[source] std::io::Error),
}

/// A machine, written down.
#[derive(Debug)]
pub struct Written {
    /// All but the bytes of its pages.
    pub snapshot: MachineSnapshot,
    /// Pages that are new.
    pub pool: Arc<Pool>,
    /// Pools of the snapshot's parents, in their order.
    layers: Vec<Layer>,
}

impl Written {
    /// The memory of one more machine, straight from what was written down: nothing of it need be on disk. All machines share
    /// what they only read.
    ///
    /// # Errors
    /// If the host gives no memory.
    pub fn memory(&self) -> Result<Mapped, MapError> {
        let own = Layer {
            source: Source::Whole(Arc::clone(&self.pool)),
            name: None,
        };
        let layers = std::iter::once(own).chain(self.layers.clone()).collect();
        let pages = self.snapshot.hardware.memory_pages;
        Mapped::new(pages, &self.snapshot.memory, layers)
    }
}

/// How a machine was put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rewound {
    /// Pages whose private copies were dropped.
    pub pages: u64,
}

impl Machine {
    /// Writes a paused machine down. It can go on afterwards. `name` shows up in `/proc/PID/maps`. Pages that are blocks of
    /// `images`, those of its disks, are not in the pool: the images are parents then.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn snapshot(&self, name: &str, images: &[Layer]) -> Result<Written, SnapshotError> {
        let host = host::this_host(&self.kvm).map_err(SnapshotError::Host)?;
        let list = MsrList::of(&self.kvm).map_err(SnapshotError::Host)?;
        // The chips first: their clock is what the time-stamp counters are compared with.
        let chips = chips::save(&self.vm)?;
        let vcpus = (self.vcpus.iter().enumerate())
            .map(|(id, vcpu)| state::save(vcpu, id, &list))
            .collect::<Result<Vec<_>, _>>()?;
        let devices = self.devices.save().into_iter().map(Into::into).collect();
        let collected = self.memory.collect(name, images)?;
        let snapshot = MachineSnapshot {
            host,
            hardware: Hardware {
                memory_pages: self.memory.pages(),
                kernel: self.kernel,
            },
            memory: collected.runs,
            vcpus,
            chips,
            devices,
            pool_pages: collected.pool.pages(),
            parents: collected.parents,
        };
        snapshot.check()?;
        Ok(Written {
            snapshot,
            pool: Arc::new(collected.pool),
            layers: collected.layers,
        })
    }

    /// A paused machine in the state of a snapshot, with an identity of its own. It has the same `devices`: disks with the
    /// same contents, and sockets that the guest's open connections go on with. What the guest writes to its console goes to
    /// `console`.
    ///
    /// # Errors
    /// See [`RestoreError`].
    pub fn restore(
        snapshot: &MachineSnapshot,
        memory: Memory,
        devices: &DeviceConfig,
        console: Output,
    ) -> Result<Self, RestoreError> {
        let devices = devices.open().map_err(BootError::from)?;
        Self::restore_in(Blank::make()?, snapshot, memory, devices, console)
    }

    /// The same in a machine that was made ahead.
    pub(crate) fn restore_in(
        blank: Blank,
        snapshot: &MachineSnapshot,
        memory: Memory,
        devices: OpenDevices,
        console: Output,
    ) -> Result<Self, RestoreError> {
        snapshot.check()?;
        host::check(
            &snapshot.host,
            &host::this_host(&blank.kvm).map_err(RestoreError::Host)?,
        )?;
        let (expected, found) = (snapshot.hardware.memory_pages, memory.pages());
        if expected != found {
            return Err(RestoreError::MemorySize { expected, found });
        }
        let mut machine =
            Self::assemble(blank, memory, devices, console, snapshot.hardware.kernel)?;
        for id in 0..snapshot.vcpus.len() as u64 {
            let vcpu = machine.vcpu(id)?;
            machine.vcpus.push(vcpu);
        }
        machine.put(snapshot)?;
        Ok(machine)
    }

    /// Puts a paused machine that was restored from `snapshot` back to it: pages that it wrote are dropped, processors, chips
    /// and devices set again. It gets another identity.
    ///
    /// # Errors
    /// See [`RestoreError`].
    pub fn rewind(&mut self, snapshot: &MachineSnapshot) -> Result<Rewound, RestoreError> {
        let (expected, found) = (snapshot.vcpus.len(), self.vcpus.len());
        if expected != found {
            return Err(RestoreError::Vcpus { expected, found });
        }
        let pages = self.memory.rewind().map_err(RestoreError::Rewind)?;
        self.put(snapshot)?;
        Ok(Rewound { pages })
    }

    /// The memory of the machine.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Steps 3 to 5.
    fn put(&self, snapshot: &MachineSnapshot) -> Result<(), RestoreError> {
        let list = MsrList::of(&self.kvm).map_err(RestoreError::Host)?;
        let vcpus = || (0..).zip(self.vcpus.iter().zip(&snapshot.vcpus));
        for (id, (vcpu, state)) in vcpus() {
            state::restore(vcpu, id, state, &list)?;
        }
        chips::restore(&self.vm, &snapshot.chips)?;
        let now = chips::clock(&self.vm)?;
        for (id, (vcpu, state)) in vcpus() {
            let state: &VcpuState = state;
            state::settle(vcpu, id, state, &snapshot.chips.clock, &now)?;
        }
        let devices: Vec<SavedDevice> = snapshot.devices.iter().cloned().map(Into::into).collect();
        self.devices.restore(&devices)?;
        self.identity.renew(self.memory.guest())?;
        Ok(())
    }
}
