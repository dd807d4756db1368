//! Virtual machines. KVM checks much of this again; what it does not, a guest must not be able to make use of.

use super::{Check, Invalid, all_unique, check_pools, check_runs, ensure, pools};
use crate::model::{
    ChipState, DeviceState, Hardware, MachineHost, MachineSnapshot, MemoryImage, PAGE_SIZE,
    SpecialRegisters, VcpuEvents, VcpuState,
};

/// 3 GiB, the memory below the hole for devices.
const MOST_MEMORY_PAGES: u64 = (3 << 30) / PAGE_SIZE;
const MOST_VCPUS: usize = 32;
/// `KVM_MAX_CPUID_ENTRIES`.
const MOST_CPUID: usize = 256;
/// `KVM_MP_STATE_SIPI_RECEIVED`: what is behind it is of other architectures or confidential guests.
const LAST_MP_STATE: u32 = 4;
/// `struct kvm_xsave`, and the largest that there is with AMX.
const XSAVE_LEN: std::ops::RangeInclusive<usize> = 4096..=16384;
/// `KVM_MAX_XCRS`.
const MOST_XCRS: usize = 16;
/// `KVM_APIC_REG_SIZE`.
const LAPIC_LEN: usize = 0x400;
const MOST_MSRS: usize = 1024;
/// All `KVM_VCPUEVENT_VALID_...`.
const EVENT_FLAGS: u32 = 0x3f;
/// 10 GHz.
const MOST_TSC_KHZ: u32 = 10_000_000;
const MOST_DEVICES: usize = 64;
const MOST_DEVICE_NAME: usize = 64;
/// Queues and connections of a device, with what is in them.
const MOST_DEVICE_LEN: usize = 64 << 20;

const CR0_PE: u64 = 1;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Checks everything that can be known from a machine's snapshot alone.
///
/// # Errors
/// The first thing that makes no sense.
pub fn validate_machine(snapshot: &MachineSnapshot) -> Result<(), Invalid> {
    check_pools(snapshot.pool_pages, &snapshot.parents).map_err(|why| Invalid::Pools { why })?;
    let machine = |why| Invalid::Machine { why };
    check_host(&snapshot.host).map_err(|why| Invalid::Host { why })?;
    check_hardware(&snapshot.hardware).map_err(machine)?;
    check_runs(
        &snapshot.memory,
        0,
        snapshot.hardware.memory_pages * PAGE_SIZE,
        &pools(snapshot.pool_pages, &snapshot.parents),
    )
    .map_err(machine)?;
    ensure(
        (1..=MOST_VCPUS).contains(&snapshot.vcpus.len()),
        "it has no processors, or too many",
    )
    .map_err(machine)?;
    for (index, vcpu) in snapshot.vcpus.iter().enumerate() {
        check_vcpu(vcpu).map_err(|why| Invalid::Vcpu { index, why })?;
    }
    check_chips(&snapshot.chips).map_err(machine)?;
    validate_devices(&snapshot.devices)
}

/// Checks everything that can be known from a memory image alone.
///
/// # Errors
/// The first thing that makes no sense.
pub fn validate_image(image: &MemoryImage) -> Result<(), Invalid> {
    /// 1 TiB.
    const MOST_PAGES: u64 = (1 << 40) / PAGE_SIZE;
    check_pools(image.pool_pages, &[]).map_err(|why| Invalid::Pools { why })?;
    let check = || {
        ensure(
            (1..=MOST_PAGES).contains(&image.pages),
            "it has no memory, or too much",
        )?;
        let pools = pools(image.pool_pages, &[]);
        check_runs(&image.memory, 0, image.pages * PAGE_SIZE, &pools)
    };
    check().map_err(|why| Invalid::Machine { why })
}

fn check_host(host: &MachineHost) -> Check {
    ensure(!host.kernel.is_empty(), "the kernel version is empty")?;
    ensure(!host.kvm.is_empty(), "the kind of KVM is empty")
}

fn check_hardware(hardware: &Hardware) -> Check {
    ensure(
        (1..=MOST_MEMORY_PAGES).contains(&hardware.memory_pages),
        "it has no memory, or too much",
    )
}

fn check_vcpu(vcpu: &VcpuState) -> Check {
    ensure(
        (1..=MOST_CPUID).contains(&vcpu.cpuid.len()),
        "it has no features, or too many",
    )?;
    let leaves = vcpu.cpuid.iter().map(|entry| (entry.function, entry.index));
    ensure(all_unique(leaves), "a list of features is there twice")?;
    ensure(
        vcpu.mp_state <= LAST_MP_STATE,
        "its state is none that a processor can be in",
    )?;
    check_special(&vcpu.special)?;
    ensure(
        XSAVE_LEN.contains(&vcpu.xsave.len()) && vcpu.xsave.len().is_multiple_of(4),
        "its XSAVE area has a length that none has",
    )?;
    ensure(
        vcpu.xcrs.len() <= MOST_XCRS,
        "it has too many extended control registers",
    )?;
    let numbers = vcpu.xcrs.iter().map(|(number, _)| *number);
    ensure(
        all_unique(numbers),
        "an extended control register is there twice",
    )?;
    ensure(
        vcpu.lapic.len() == LAPIC_LEN,
        "its local interrupt controller has another length",
    )?;
    ensure(
        vcpu.msrs.len() <= MOST_MSRS,
        "it has too many model-specific registers",
    )?;
    ensure(
        vcpu.msrs.is_sorted_by(|(a, _), (b, _)| a < b),
        "its model-specific registers are not sorted, or one is there twice",
    )?;
    check_events(&vcpu.events)?;
    ensure(
        (1..=MOST_TSC_KHZ).contains(&vcpu.tsc_khz),
        "its time-stamp counter stands still or is too fast",
    )
}

/// Modes that no processor can be in: entering a guest with such registers fails, or worse.
fn check_special(special: &SpecialRegisters) -> Check {
    for segment in &special.segments {
        ensure(
            segment.type_ < 16
                && segment.dpl < 4
                && [
                    segment.present,
                    segment.db,
                    segment.s,
                    segment.l,
                    segment.g,
                    segment.avl,
                    segment.unusable,
                ]
                .iter()
                .all(|bit| *bit < 2),
            "a field of a segment is larger than its bits",
        )?;
    }
    let has = |value: u64, bits: u64| value & bits == bits;
    ensure(
        !has(special.cr0, CR0_PG) || has(special.cr0, CR0_PE),
        "it has paging without protected mode",
    )?;
    let long = has(special.efer, EFER_LMA);
    ensure(
        long == (has(special.efer, EFER_LME) && has(special.cr0, CR0_PG)),
        "it is in 64-bit mode in one register and not in another",
    )?;
    ensure(
        !long || has(special.cr4, CR4_PAE),
        "it is in 64-bit mode without large page tables",
    )?;
    ensure(special.cr8 < 16, "its task priority is too high")?;
    ensure(
        !long || special.pdptrs.is_none(),
        "it has page-directory pointers in 64-bit mode",
    )
}

fn check_events(events: &VcpuEvents) -> Check {
    ensure(
        events.flags & !EVENT_FLAGS == 0,
        "its events have unknown flags",
    )?;
    ensure(
        events.exception.number < 32,
        "an exception has a number that none has",
    )?;
    ensure(
        !(events.exception.injected && events.exception.pending),
        "an exception is on its way twice",
    )?;
    ensure(
        events.interrupt.shadow < 4 && events.smi.latched_init < 2 && events.nmi.pending < 3,
        "a field of its events is larger than its bits",
    )?;
    ensure(
        events.sipi_vector < 256,
        "it is started at an impossible address",
    )
}

fn check_chips(chips: &ChipState) -> Check {
    ensure(
        i64::try_from(chips.clock.clock_ns).is_ok(),
        "its clock shows an impossible time",
    )?;
    ensure(
        chips
            .clock
            .realtime_ns
            .is_none_or(|ns| i64::try_from(ns).is_ok()),
        "its wall time is impossible",
    )?;
    ensure(
        chips.io_apic.base_address.is_multiple_of(0x1000),
        "its interrupt controller is not page aligned",
    )
}

/// Can these be the devices of one machine?
///
/// # Errors
/// If there are too many, or one has a name or a size that it cannot have.
pub fn validate_devices(devices: &[DeviceState]) -> Result<(), Invalid> {
    let machine = |why| Invalid::Machine { why };
    ensure(devices.len() <= MOST_DEVICES, "it has too many devices").map_err(machine)?;
    let names = devices.iter().map(|device| device.name.as_str());
    ensure(all_unique(names), "a device is there twice").map_err(machine)?;
    for device in devices {
        let check = || {
            let name = &device.name;
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            ensure(
                (1..=MOST_DEVICE_NAME).contains(&name.len()) && name.bytes().all(is_plain),
                "it cannot have that name",
            )?;
            ensure(
                device.bytes.len() <= MOST_DEVICE_LEN,
                "it remembers too much",
            )
        };
        check().map_err(|why| Invalid::Device {
            name: device.name.clone(),
            why,
        })?;
    }
    Ok(())
}
