//! A virtual machine that was paused.
//!
//! Everything is in the terms of KVM's interface, as plain numbers: which calls give and take them, and in which order, is
//! `rouse-vmm`'s to know. Nothing here is believed before [`Subject::check`](crate::manifest::Subject::check) has seen it.

use super::{PageRun, ParentPool};

/// Everything about one virtual machine that a restore needs, but for the bytes of its pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineSnapshot {
    /// The host on which the snapshot was taken; a restore elsewhere is refused.
    pub host: MachineHost,
    /// What machine it is.
    pub hardware: Hardware,
    /// Runs of guest pages whose contents are in a pool, by their guest-physical address; sorted and disjoint. All other
    /// memory is zeros.
    pub memory: Vec<PageRun>,
    /// Its processors, in the order of their numbers.
    pub vcpus: Vec<VcpuState>,
    /// What the processors share inside of KVM.
    pub chips: ChipState,
    /// Devices that the VMM itself emulates, by name.
    pub devices: Vec<DeviceState>,
    /// Length of its own pool in pages.
    pub pool_pages: u64,
    /// Pools of other snapshots that runs may lie in.
    pub parents: Vec<ParentPool>,
}

/// Identifies the host a machine's snapshot belongs to. All fields must be equal at restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineHost {
    /// `uname -r` and `uname -v`, joined by a space: KVM is a part of the kernel.
    pub kernel: String,
    /// Which KVM it is: the name of its module, such as `kvm_amd`.
    pub kvm: String,
    /// BLAKE3 of all that KVM can offer a guest (CPUID), as it lists it.
    pub cpu: [u8; 32],
}

/// What a guest sees of its machine, beyond its processors' features.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hardware {
    /// Memory in pages, from address 0 on.
    pub memory_pages: u64,
    /// BLAKE3 of the kernel image that it booted.
    pub kernel: [u8; 32],
}

/// One processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VcpuState {
    /// What it says it can do.
    pub cpuid: Vec<CpuidEntry>,
    /// `KVM_MP_STATE_...`: running, halted, waiting to be started.
    pub mp_state: u32,
    /// `rax rbx rcx rdx rsi rdi rsp rbp r8 ... r15 rip rflags`.
    pub general: [u64; 18],
    /// Segments, tables and control registers.
    pub special: SpecialRegisters,
    /// The XSAVE area as KVM gives it, bytes.
    pub xsave: Vec<u8>,
    /// Extended control registers: number and value.
    pub xcrs: Vec<(u32, u64)>,
    /// Debug registers.
    pub debug: DebugRegisters,
    /// The registers of its local interrupt controller.
    pub lapic: Vec<u8>,
    /// Model-specific registers: number and value, sorted.
    pub msrs: Vec<(u32, u64)>,
    /// Exceptions and interrupts that are on their way.
    pub events: VcpuEvents,
    /// How fast its time-stamp counter runs, kHz.
    pub tsc_khz: u32,
    /// What is added to the host's time-stamp counter, if KVM tells.
    pub tsc_offset: Option<u64>,
}

/// One answer to the instruction CPUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
#[allow(missing_docs, reason = "named after registers")]
pub struct CpuidEntry {
    pub function: u32,
    pub index: u32,
    pub flags: u32,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// `struct kvm_sregs2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "named after registers")]
pub struct SpecialRegisters {
    /// `cs ds es fs gs ss tr ldt`.
    pub segments: [Segment; 8],
    /// Base and limit.
    pub gdt: (u64, u16),
    /// Base and limit.
    pub idt: (u64, u16),
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    pub apic_base: u64,
    /// The four page-directory pointers, where they matter.
    pub pdptrs: Option<[u64; 4]>,
}

/// A segment register with its hidden part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "named as by KVM")]
pub struct Segment {
    pub base: u64,
    pub limit: u32,
    pub selector: u16,
    pub type_: u8,
    pub present: u8,
    pub dpl: u8,
    pub db: u8,
    pub s: u8,
    pub l: u8,
    pub g: u8,
    pub avl: u8,
    pub unusable: u8,
}

/// `struct kvm_debugregs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "named after registers")]
pub struct DebugRegisters {
    pub db: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
}

/// `struct kvm_vcpu_events`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "named as by KVM")]
pub struct VcpuEvents {
    pub exception: ExceptionEvent,
    pub interrupt: InterruptEvent,
    pub nmi: NmiEvent,
    pub sipi_vector: u32,
    /// `KVM_VCPUEVENT_VALID_...`.
    pub flags: u32,
    pub smi: SmiEvent,
    pub triple_fault: bool,
}

/// A fault that was not delivered yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "named as by KVM")]
pub struct ExceptionEvent {
    pub injected: bool,
    pub number: u8,
    pub has_error_code: bool,
    pub pending: bool,
    pub error_code: u32,
    pub payload: Option<u64>,
}

/// An interrupt that was not delivered yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "named as by KVM")]
pub struct InterruptEvent {
    pub injected: bool,
    pub number: u8,
    pub soft: bool,
    pub shadow: u8,
}

/// An interrupt that cannot be masked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "named as by KVM")]
pub struct NmiEvent {
    pub injected: bool,
    pub pending: u8,
    pub masked: bool,
}

/// System management mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "named as by KVM")]
pub struct SmiEvent {
    pub smm: bool,
    pub pending: bool,
    pub inside_nmi: bool,
    pub latched_init: u8,
}

/// What the processors of a machine share inside of KVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChipState {
    /// Its clock.
    pub clock: ClockState,
    /// The two old interrupt controllers, `struct kvm_pic_state` each.
    pub pics: [[u8; 16]; 2],
    /// The I/O interrupt controller.
    pub io_apic: IoApicState,
}

/// The paravirtual clock, and when it showed that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClockState {
    /// What it showed, ns.
    pub clock_ns: u64,
    /// Wall time at that moment, ns since the epoch, if KVM tells.
    pub realtime_ns: Option<u64>,
    /// The host's time-stamp counter at that moment, if KVM tells.
    pub host_tsc: Option<u64>,
}

/// `struct kvm_ioapic_state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "named as by KVM")]
pub struct IoApicState {
    pub base_address: u64,
    pub selected: u32,
    pub id: u32,
    pub irr: u32,
    pub redirections: [u64; 24],
}

/// A device of the VMM. Its bytes are the device's own to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceState {
    /// Which device of the machine.
    pub name: String,
    /// Version of its bytes.
    pub version: u16,
    /// What it remembers.
    pub bytes: Vec<u8>,
}
