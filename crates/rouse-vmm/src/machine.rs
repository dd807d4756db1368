//! A virtual machine, from its making to its end.
//!
//! ```text
//!  caller ── Machine::boot ──> memory, interrupt controller, processors, kernel
//!    │       (or Machine::restore: snapshot/mod.rs)
//!    │
//!    └────── Machine::run ───> one thread for each processor ──> devices
//!                 ^                     │ the first that ends tells how,
//!                 └── Ended ────────────┘ and the others are stopped
//! ```

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::signal::Killable;

use crate::boot::{self, LoadError, RegistersError};
use crate::devices::serial::{self, Console};
use crate::devices::virtio::block::DiskError;
use crate::devices::virtio::{Bus, BusError, DeviceConfig, OpenDevices, WorkerError};
use crate::devices::{Devices, Output, Request};
use crate::given::GivenFile;
use crate::host::{self, Unusable};
use crate::identity::{self, Identity, IdentityError};
use crate::jail::{self, FilterError};
use crate::kernel::Kernel;
use crate::layout::{self, MemorySize};
use crate::memory::{MapError, Memory};
use crate::pauser::Pauser;
use crate::vcpu::{self, FeaturesError, SignalMaskError, Stop, VcpuCount, VcpuFailure};

/// Which machine is to be made.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its memory.
    pub memory: MemorySize,
    /// Its processors.
    pub vcpus: VcpuCount,
    /// What is added to the kernel's command line.
    pub command_line: String,
    /// What it has beside a console.
    pub devices: DeviceConfig,
}

/// The console, and that a panic ends the machine at once: by ACPI, because on a machine of the reduced kind Linux asks EFI for a
/// reset, and where there is none jumps to a BIOS, which is not there either.
const COMMAND_LINE: &str = "console=ttyS0 panic=-1 reboot=acpi";

/// How a machine came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Ended {
    /// The guest switched it off.
    Off,
    /// The guest reset it.
    Reset,
    /// Its processor gave up: the kernel could not even report what went wrong.
    TripleFault,
}

/// A machine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// On this host none can.
    #[error(transparent)]
    Host(#[from] Unusable),
    /// KVM refuses a part of it.
    #[error("KVM cannot make {what}")]
    Kvm {
        /// The part.
        what: &'static str,
        /// Why.
        source: kvm_ioctls::Error,
    },
    /// The host has no memory for it.
    #[error(transparent)]
    Memory(#[from] MapError),
    /// Its kernel cannot be read.
    #[error("cannot read the kernel {file}")]
    Kernel {
        /// Its file.
        file: GivenFile,
        /// Why.
        source: io::Error,
    },
    /// It cannot be told who it is.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A processor.
    #[error(transparent)]
    Features(#[from] FeaturesError),
    /// The console.
    #[error("cannot make the console")]
    Console(#[source] io::Error),
    /// A disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The other devices.
    #[error(transparent)]
    Devices(#[from] BusError),
    /// Kernel, initramfs and tables.
    #[error("cannot load the guest")]
    Load(#[from] LoadError),
    /// The first processor.
    #[error(transparent)]
    Registers(#[from] RegistersError),
}

/// A machine failed while it ran. The guest is gone.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A thread cannot be started.
    #[error("cannot start the thread of a processor")]
    Thread(#[source] io::Error),
    /// Nor that of the devices.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// A thread cannot be prepared.
    #[error(transparent)]
    Mask(#[from] SignalMaskError),
    /// A thread cannot be confined.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// A thread cannot be called out of its guest.
    #[error("cannot stop the thread of a processor")]
    Kick(#[source] vmm_sys_util::errno::Error),
    /// KVM cannot go on.
    #[error(transparent)]
    Vcpu(#[from] VcpuFailure),
    /// A thread panicked.
    #[error("the thread of a processor panicked")]
    Panicked,
}

/// A machine without memory, processors and devices: what can be made before anything is known of its guest.
pub(crate) struct Blank {
    pub(crate) kvm: Kvm,
    pub(crate) vm: VmFd,
}

impl Blank {
    pub(crate) fn make() -> Result<Self, BootError> {
        let kvm = host::usable()?;
        let vm = kvm.create_vm().map_err(failed("a virtual machine"))?;
        // Before the first processor: they get their local interrupt controllers with it.
        vm.set_tss_address(layout::KVM_TSS)
            .map_err(failed("its own pages"))?;
        vm.create_irq_chip()
            .map_err(failed("an interrupt controller"))?;
        Ok(Self { kvm, vm })
    }
}

/// Why [`Machine::run_until`] came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The machine is over.
    Ended(Ended),
    /// It stands still, and can be written down, put back or run again; or dropped, which stops it for good.
    Paused,
}

/// A machine that is ready to run. Dropping it frees all that it has.
pub struct Machine {
    // The processors go before what they use.
    pub(crate) vcpus: Vec<VcpuFd>,
    pub(crate) devices: Devices,
    pub(crate) identity: Identity,
    pub(crate) kvm: Kvm,
    pub(crate) vm: VmFd,
    pub(crate) memory: Memory,
    /// BLAKE3 of the kernel that it booted.
    pub(crate) kernel: [u8; 32],
}

impl Machine {
    /// Makes a machine with `kernel` in its memory. What the guest writes to its console goes to `console`.
    ///
    /// # Errors
    /// If the host cannot run machines, or has no room for this one, or the kernel cannot be loaded.
    pub fn boot(config: &Config, kernel: &Kernel, console: Output) -> Result<Self, BootError> {
        let devices = config.devices.open()?;
        Self::boot_in(Blank::make()?, config, devices, kernel, console)
    }

    /// The same in a machine that was made ahead, with `devices`, whatever `config` says of them.
    pub(crate) fn boot_in(
        blank: Blank,
        config: &Config,
        devices: OpenDevices,
        kernel: &Kernel,
        console: Output,
    ) -> Result<Self, BootError> {
        let digest = kernel.digest().map_err(|source| BootError::Kernel {
            file: kernel.image.clone(),
            source,
        })?;
        let memory = Memory::zeros(config.memory)?;
        let mut machine = Self::assemble(blank, memory, devices, console, digest)?;

        let supported = machine
            .kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(failed("a list of its features"))?;
        let deadline = machine.kvm.check_extension(Cap::TscDeadlineTimer);
        for id in config.vcpus.ids() {
            let vcpu = machine.vcpu(id.into())?;
            vcpu::configure(&vcpu, id, config.vcpus, &supported, deadline)?;
            machine.vcpus.push(vcpu);
        }

        let mut command_line = COMMAND_LINE.to_owned();
        if !config.command_line.is_empty() {
            command_line.push(' ');
            command_line += &config.command_line;
        }
        let guest = machine.memory.guest();
        machine.identity.begin(guest)?;
        let virtio = machine.devices.virtio();
        let entry = boot::load(
            guest,
            config.memory,
            kernel,
            &command_line,
            config.vcpus,
            virtio,
        )?;
        // The others wait until the kernel starts them.
        boot::start(&machine.vcpus[0], guest, entry)?;
        Ok(machine)
    }

    /// A machine around its memory, without processors.
    pub(crate) fn assemble(
        blank: Blank,
        memory: Memory,
        devices: OpenDevices,
        console: Output,
        kernel: [u8; 32],
    ) -> Result<Self, BootError> {
        let Blank { kvm, vm } = blank;
        give_memory(&vm, memory.guest())?;

        let console = Console::new(console).map_err(BootError::Console)?;
        vm.register_irqfd(console.interrupt(), serial::GSI)
            .map_err(failed("the console's interrupt"))?;
        let bus = Bus::of(devices, memory.guest())?;
        bus.attach(&vm)?;
        let identity = Identity::new().map_err(IdentityError::Interrupt)?;
        vm.register_irqfd(identity.interrupt(), identity::GSI)
            .map_err(failed("the interrupt of its identity"))?;
        Ok(Self {
            vcpus: Vec::new(),
            devices: Devices::new(console, bus),
            identity,
            kvm,
            vm,
            memory,
            kernel,
        })
    }

    /// Its devices, to look at while it runs.
    #[must_use]
    pub fn devices(&self) -> Devices {
        self.devices.clone()
    }

    /// A processor more.
    pub(crate) fn vcpu(&self, id: u64) -> Result<VcpuFd, BootError> {
        self.vm.create_vcpu(id).map_err(failed("a processor"))
    }

    /// Runs the machine to its end.
    ///
    /// # Errors
    /// If KVM cannot go on.
    pub fn run(mut self) -> Result<Ended, RunError> {
        match self.run_until(&Pauser::default())? {
            Outcome::Ended(ended) => Ok(ended),
            Outcome::Paused => unreachable!("nobody else has the pauser"),
        }
    }

    /// Runs the machine to its end, or until it is paused.
    ///
    /// # Errors
    /// If KVM cannot go on.
    pub fn run_until(&mut self, pauser: &Pauser) -> Result<Outcome, RunError> {
        let worker = self.devices.serve()?;
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, ends) = mpsc::channel();
        // A kick must not come before its thread has blocked the signal.
        let prepared = Arc::new(Barrier::new(self.vcpus.len() + 1));
        let mut threads = Vec::new();
        for (id, vcpu) in std::mem::take(&mut self.vcpus).into_iter().enumerate() {
            let thread = Thread {
                vcpu,
                devices: self.devices.clone(),
                stop: Arc::clone(&stop),
                prepared: Arc::clone(&prepared),
                ends: sender.clone(),
            };
            let started = thread::Builder::new()
                .name(format!("vcpu{id}"))
                .spawn(move || thread.run());
            threads.push(started.map_err(RunError::Thread)?);
        }
        prepared.wait();
        pauser.begin(sender);
        let first = ends.recv().unwrap_or(Err(RunError::Panicked));
        stop.store(true, Ordering::Release);
        let joined = join(threads);
        pauser.end();
        drop(worker);
        self.devices.flush();
        self.vcpus = joined?;
        // One may have ended the machine while the others were being stopped.
        let end = std::iter::once(first)
            .chain(ends.try_iter())
            .find(|end| !matches!(end, Ok(Stop::Asked)))
            .unwrap_or(Ok(Stop::Asked));
        Ok(match end? {
            Stop::Guest(Request::Off) => Outcome::Ended(Ended::Off),
            Stop::Guest(Request::Reset) => Outcome::Ended(Ended::Reset),
            Stop::TripleFault => Outcome::Ended(Ended::TripleFault),
            Stop::Asked => Outcome::Paused,
        })
    }
}

/// What a processor's thread has.
struct Thread {
    vcpu: VcpuFd,
    devices: Devices,
    stop: Arc<AtomicBool>,
    prepared: Arc<Barrier>,
    ends: Sender<Result<Stop, RunError>>,
}

impl Thread {
    /// Returns the processor, which another thread may go on with.
    fn run(mut self) -> VcpuFd {
        let farewell = Farewell(self.ends.clone());
        let mask = vcpu::prepare_thread(&self.vcpu);
        self.prepared.wait();
        let end = mask
            .map_err(RunError::from)
            .and_then(|()| Ok(jail::enter_vcpu()?))
            .and_then(|()| Ok(vcpu::run(&mut self.vcpu, &self.devices, &self.stop)?));
        // Only the first one counts.
        drop(self.ends.send(end));
        drop(farewell);
        self.vcpu
    }
}

/// A thread that panics says so: nobody else would.
struct Farewell(Sender<Result<Stop, RunError>>);

impl Drop for Farewell {
    fn drop(&mut self) {
        if thread::panicking() {
            drop(self.0.send(Err(RunError::Panicked)));
        }
    }
}

/// Kicks all threads and waits for them.
fn join(threads: Vec<JoinHandle<VcpuFd>>) -> Result<Vec<VcpuFd>, RunError> {
    for thread in &threads {
        // No thread was joined yet, so each can be signalled, also those that have ended. One that could not would never end,
        // nor this wait for it.
        thread.kill(vcpu::kick_signal()).map_err(RunError::Kick)?;
    }
    // Waits for all, also behind one that panicked.
    let all: Vec<_> = threads.into_iter().map(JoinHandle::join).collect();
    all.into_iter()
        .map(|vcpu| vcpu.map_err(|_| RunError::Panicked))
        .collect()
}

fn failed(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> BootError {
    move |source| BootError::Kvm { what, source }
}

fn give_memory(vm: &VmFd, memory: &GuestMemoryMmap) -> Result<(), BootError> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the region is mapped for as long as `memory` lives, which is dropped after the virtual machine and its
        // processors; nobody else uses this slot.
        unsafe { vm.set_user_memory_region(region) }.map_err(failed("the guest's memory"))?;
    }
    Ok(())
}
