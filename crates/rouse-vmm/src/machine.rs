//! A virtual machine, from its making to its end.
//!
//! ```text
//!  caller ── Machine::boot ──> memory, interrupt controller, processors, kernel
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
use kvm_ioctls::{Cap, VcpuFd, VmFd};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::signal::Killable;

use crate::boot::{self, LoadError, RegistersError};
use crate::devices::serial::{self, Console};
use crate::devices::{Devices, Output, Request};
use crate::host::{self, Unusable};
use crate::kernel::Kernel;
use crate::layout::{self, MemorySize};
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
}

/// The console, and what a function's kernel needs not do: a panic ends the machine at once.
const COMMAND_LINE: &str = "console=ttyS0 panic=-1";

/// How a machine came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    #[error("there is no memory for the guest: {0}")]
    Memory(String),
    /// A processor.
    #[error(transparent)]
    Features(#[from] FeaturesError),
    /// The console.
    #[error("cannot make the console")]
    Console(#[source] io::Error),
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
    /// A thread cannot be prepared.
    #[error(transparent)]
    Mask(#[from] SignalMaskError),
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

/// A machine that is ready to run. Dropping it frees all that it has.
pub struct Machine {
    // The processors go before what they use.
    vcpus: Vec<VcpuFd>,
    devices: Devices,
    _vm: VmFd,
    _memory: GuestMemoryMmap,
}

impl Machine {
    /// Makes a machine with `kernel` in its memory. What the guest writes to its console goes to `console`.
    ///
    /// # Errors
    /// If the host cannot run machines, or has no room for this one, or the kernel cannot be loaded.
    pub fn boot(config: &Config, kernel: &Kernel, console: Output) -> Result<Self, BootError> {
        let kvm = host::usable()?;
        let vm = kvm.create_vm().map_err(failed("a virtual machine"))?;
        // Before the first processor: they get their local interrupt controllers with it.
        vm.set_tss_address(layout::KVM_TSS)
            .map_err(failed("its own pages"))?;
        vm.create_irq_chip()
            .map_err(failed("an interrupt controller"))?;
        let memory = memory(config.memory)?;
        give_memory(&vm, &memory)?;

        let console = Console::new(console).map_err(BootError::Console)?;
        vm.register_irqfd(console.interrupt(), serial::GSI)
            .map_err(failed("the console's interrupt"))?;
        let devices = Devices::new(console);

        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(failed("a list of its features"))?;
        let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        let mut vcpus = Vec::new();
        for id in config.vcpus.ids() {
            let vcpu = vm.create_vcpu(id.into()).map_err(failed("a processor"))?;
            vcpu::configure(&vcpu, id, config.vcpus, &supported, deadline)?;
            vcpus.push(vcpu);
        }

        let mut command_line = COMMAND_LINE.to_owned();
        if !config.command_line.is_empty() {
            command_line.push(' ');
            command_line += &config.command_line;
        }
        let entry = boot::load(&memory, config.memory, kernel, &command_line, config.vcpus)?;
        // The others wait until the kernel starts them.
        boot::start(&vcpus[0], &memory, entry)?;
        Ok(Self {
            vcpus,
            devices,
            _vm: vm,
            _memory: memory,
        })
    }

    /// Runs the machine to its end.
    ///
    /// # Errors
    /// If KVM cannot go on.
    pub fn run(self) -> Result<Ended, RunError> {
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, ends) = mpsc::channel();
        // A kick must not come before its thread has blocked the signal.
        let prepared = Arc::new(Barrier::new(self.vcpus.len() + 1));
        let mut threads = Vec::new();
        for (id, vcpu) in self.vcpus.into_iter().enumerate() {
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
        drop(sender);
        prepared.wait();
        // None but a panic ends a thread without a word.
        let end = ends.recv().unwrap_or(Err(RunError::Panicked));
        stop.store(true, Ordering::Release);
        let joined = join(threads);
        self.devices.flush();
        joined?;
        match end? {
            Stop::Guest(Request::Off) => Ok(Ended::Off),
            Stop::Guest(Request::Reset) => Ok(Ended::Reset),
            Stop::TripleFault => Ok(Ended::TripleFault),
            Stop::Asked => unreachable!("no thread is asked before another has ended"),
        }
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
    fn run(mut self) {
        let mask = vcpu::prepare_thread(&self.vcpu);
        self.prepared.wait();
        let end = mask
            .map_err(RunError::from)
            .and_then(|()| Ok(vcpu::run(&mut self.vcpu, &self.devices, &self.stop)?));
        // Only the first one counts.
        drop(self.ends.send(end));
    }
}

/// Kicks all threads and waits for them.
fn join(threads: Vec<JoinHandle<()>>) -> Result<(), RunError> {
    for thread in &threads {
        // No thread was joined yet, so each can be signalled, also those that have ended. One that could not would never end,
        // nor this wait for it.
        thread.kill(vcpu::kick_signal()).map_err(RunError::Kick)?;
    }
    let mut result = Ok(());
    for thread in threads {
        result = result.and(thread.join().map_err(|_| RunError::Panicked));
    }
    result
}

fn failed(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> BootError {
    move |source| BootError::Kvm { what, source }
}

fn memory(size: MemorySize) -> Result<GuestMemoryMmap, BootError> {
    let bytes = usize::try_from(size.bytes()).expect("3 GiB at most, and addresses of 64 bits");
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes)])
        .map_err(|error| BootError::Memory(error.to_string()))
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
