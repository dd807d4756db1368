//! The types of a machine's model as they lie in sections, field by field. What `records.rs` says holds here too.

use super::error::WireError;
use super::forms::record;
use super::wire::{Input, Wire};
use crate::model::*;

record!(MachineHost {
    kernel: String,
    kvm: String,
    cpu: [u8; 32],
});
record!(Hardware {
    memory_pages: u64,
    kernel: [u8; 32],
});

record!(VcpuState {
    cpuid: Vec<CpuidEntry>,
    mp_state: u32,
    general: [u64; 18],
    special: SpecialRegisters,
    xsave: Vec<u8>,
    xcrs: Vec<(u32, u64)>,
    debug: DebugRegisters,
    lapic: Vec<u8>,
    msrs: Vec<(u32, u64)>,
    events: VcpuEvents,
    tsc_khz: u32,
    tsc_offset: Option<u64>,
});
record!(CpuidEntry {
    function: u32,
    index: u32,
    flags: u32,
    eax: u32,
    ebx: u32,
    ecx: u32,
    edx: u32,
});
record!(SpecialRegisters {
    segments: [Segment; 8],
    gdt: (u64, u16),
    idt: (u64, u16),
    cr0: u64,
    cr2: u64,
    cr3: u64,
    cr4: u64,
    cr8: u64,
    efer: u64,
    apic_base: u64,
    pdptrs: Option<[u64; 4]>,
});
record!(Segment {
    base: u64,
    limit: u32,
    selector: u16,
    type_: u8,
    present: u8,
    dpl: u8,
    db: u8,
    s: u8,
    l: u8,
    g: u8,
    avl: u8,
    unusable: u8,
});
record!(DebugRegisters {
    db: [u64; 4],
    dr6: u64,
    dr7: u64,
});
record!(VcpuEvents {
    exception: ExceptionEvent,
    interrupt: InterruptEvent,
    nmi: NmiEvent,
    sipi_vector: u32,
    flags: u32,
    smi: SmiEvent,
    triple_fault: bool,
});
record!(ExceptionEvent {
    injected: bool,
    number: u8,
    has_error_code: bool,
    pending: bool,
    error_code: u32,
    payload: Option<u64>,
});
record!(InterruptEvent {
    injected: bool,
    number: u8,
    soft: bool,
    shadow: u8,
});
record!(NmiEvent {
    injected: bool,
    pending: u8,
    masked: bool,
});
record!(SmiEvent {
    smm: bool,
    pending: bool,
    inside_nmi: bool,
    latched_init: u8,
});

record!(ChipState {
    clock: ClockState,
    pics: [[u8; 16]; 2],
    io_apic: IoApicState,
});
record!(ClockState {
    clock_ns: u64,
    realtime_ns: Option<u64>,
    host_tsc: Option<u64>,
});
record!(IoApicState {
    base_address: u64,
    selected: u32,
    id: u32,
    irr: u32,
    redirections: [u64; 24],
});

record!(DeviceState {
    name: String,
    version: u16,
    bytes: Vec<u8>,
});
