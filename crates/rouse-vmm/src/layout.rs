//! Where things lie in a guest's physical memory.
//!
//! ```text
//! 0                                                                      size       3 GiB          4 GiB
//! |  low 640 KiB   | reserved  |  from 1 MiB                 initramfs |            |  no memory:   |
//! |  tables below  | ACPI      |  kernel ------>          <-----------  |   nothing  |  virtio,      |
//! |                |           |                                        |            |  IOAPIC, LAPIC|
//! 0x500  GDT                    0x100000 bzImage            page-aligned
//! 0x7000 zero page              0x1000000 vmlinux
//! 0x8000 boot stack (grows down)
//! 0x9000 page tables, 3 pages
//! 0x20000 command line
//! 0xd0000 VMClock's page, 0xd1000 VMGenID
//! 0xe0000 ACPI tables
//! ```
//!
//! All memory lies below the hole for devices, as one range from 0.

/// The global descriptor table that is used until the kernel has its own.
pub const GDT: u64 = 0x500;
/// The interrupt descriptor table of the same time: empty.
pub const IDT: u64 = 0x520;
/// Linux's `boot_params`.
pub const ZERO_PAGE: u64 = 0x7000;
/// The top of the stack at the kernel's entry.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Three pages: the tables of levels 4, 3 and 2, which map the first GiB to itself.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel's command line, with its zero byte.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Bytes that Linux takes as a command line on x86, with the zero byte.
pub const COMMAND_LINE_SIZE: usize = 2048;
/// The end of the memory that a PC always has.
pub const LOW_END: u64 = 0x9_fc00;
/// The page of VMClock. Not told to be memory, like all from `LOW_END` to `HIGH_MEMORY`: the kernel leaves it alone.
pub const CLOCK_PAGE: u64 = 0xd_0000;
/// The 16 bytes of VMGenID.
pub const GENERATION_ID: u64 = 0xd_1000;
/// The root pointer of the ACPI tables and then these: where also a search would find it.
pub const ACPI: u64 = 0xe_0000;
/// The end of the place for them.
pub const ACPI_END: u64 = 0x10_0000;
/// From here on memory is all the kernel's.
pub const HIGH_MEMORY: u64 = 0x10_0000;
/// Where no memory may be: devices are here.
pub const HOLE: u64 = 0xc000_0000;
/// The registers of the first virtio device.
pub const VIRTIO: u64 = 0xd000_0000;
/// Those of the next one follow after so many bytes.
pub const VIRTIO_SIZE: u64 = 4096;
/// As many as there are interrupts for: lines 5 to 15. The higher lines are for other devices.
pub const VIRTIO_SLOTS: usize = 11;
const VIRTIO_GSI: u32 = 5;
/// As on every PC.
pub const IO_APIC: u32 = 0xfec0_0000;
/// As on every PC.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages that KVM needs for itself on Intel processors.
pub const KVM_TSS: usize = 0xfffb_d000;

/// Where the registers of virtio device `number` are.
#[must_use]
pub fn virtio(number: usize) -> u64 {
    VIRTIO + number as u64 * VIRTIO_SIZE
}

/// The interrupt line of virtio device `number`.
///
/// # Panics
/// If there is no such device.
#[must_use]
pub fn virtio_gsi(number: usize) -> u32 {
    assert!(number < VIRTIO_SLOTS, "there is no virtio device {number}");
    VIRTIO_GSI + u32::try_from(number).expect("a small number")
}

const _: () = assert!(VIRTIO >= HOLE && VIRTIO + VIRTIO_SLOTS as u64 * VIRTIO_SIZE <= 0xfec0_0000);
const _: () = assert!(GDT + 4 * 8 <= IDT && IDT + 16 <= ZERO_PAGE);
const _: () = assert!(ZERO_PAGE + 4096 <= BOOT_STACK && BOOT_STACK < PAGE_TABLES);
const _: () = assert!(PAGE_TABLES + 3 * 4096 <= COMMAND_LINE);
const _: () = assert!(COMMAND_LINE + COMMAND_LINE_SIZE as u64 <= LOW_END);
const _: () = assert!(LOW_END < CLOCK_PAGE && CLOCK_PAGE + 4096 <= GENERATION_ID);
const _: () = assert!(GENERATION_ID + 16 <= ACPI && ACPI_END <= HIGH_MEMORY);

/// The size of a guest's memory, which fits below the hole and is enough for a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemorySize {
    mib: u32,
}

/// No guest has such a memory.
#[derive(Debug, thiserror::Error)]
#[error(
    "a guest's memory is {least} to {most} MiB, not {asked}",
    least = MemorySize::LEAST_MIB,
    most = MemorySize::MOST_MIB
)]
pub struct MemorySizeError {
    /// In MiB.
    asked: u32,
}

impl MemorySize {
    const LEAST_MIB: u32 = 128;
    #[expect(clippy::cast_possible_truncation, reason = "3072")]
    const MOST_MIB: u32 = (HOLE >> 20) as u32;

    /// Of so many MiB.
    ///
    /// # Errors
    /// If that is less than a kernel needs or more than fits.
    pub fn mib(mib: u32) -> Result<Self, MemorySizeError> {
        if (Self::LEAST_MIB..=Self::MOST_MIB).contains(&mib) {
            Ok(Self { mib })
        } else {
            Err(MemorySizeError { asked: mib })
        }
    }

    /// In MiB.
    #[must_use]
    pub fn in_mib(self) -> u32 {
        self.mib
    }

    /// In bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        u64::from(self.mib) << 20
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_ends_below_the_hole() {
        assert_eq!(MemorySize::mib(3072).expect("it fits").bytes(), HOLE);
        assert!(MemorySize::mib(3073).is_err());
        let error = MemorySize::mib(64).expect_err("too small");
        assert_eq!(
            error.to_string(),
            "a guest's memory is 128 to 3072 MiB, not 64"
        );
    }
}
