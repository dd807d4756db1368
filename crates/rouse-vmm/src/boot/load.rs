//! Loads kernel, initramfs, command line, `boot_params` and ACPI tables into a guest's memory.

use std::io::{self, Seek, SeekFrom};

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::{BzImage, Elf, KernelLoader, KernelLoaderResult};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::Entry;
use super::acpi::{self, AcpiError};
use crate::MemorySize;
use crate::given::GivenFile;
use crate::kernel::{Kernel, KernelFormat};
use crate::layout;
use crate::vcpu::VcpuCount;

/// In `boot_params`: a kind of memory.
const E820_RAM: u32 = 1;
/// In `boot_params`: a boot loader that has no number.
const LOADER_UNDEFINED: u8 = 0xff;
/// The 64-bit entry of a bzImage, counted from where it was loaded.
const ENTRY_64: u64 = 0x200;
const PAGE: u64 = 4096;

/// A machine's memory could not be filled.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file cannot be read.
    #[error("cannot read {file}")]
    File {
        /// The file.
        file: GivenFile,
        /// Why.
        source: io::Error,
    },
    /// The kernel cannot be loaded.
    #[error("cannot load the kernel {file}")]
    Kernel {
        /// Its file.
        file: GivenFile,
        /// Why.
        source: linux_loader::loader::Error,
    },
    /// The memory is too small.
    #[error("kernel and initramfs do not fit into a memory of {} MiB", memory >> 20)]
    NoRoom {
        /// In bytes.
        memory: u64,
    },
    /// The command line is too long, or has a zero byte in it.
    #[error("the kernel's command line has {length} bytes, or a zero byte in it; Linux takes {}", layout::COMMAND_LINE_SIZE - 1)]
    CommandLine {
        /// In bytes.
        length: usize,
    },
    /// The tables that describe the machine.
    #[error("cannot describe the machine to its kernel")]
    Acpi(#[from] AcpiError),
    /// Something does not lie in the guest's memory.
    #[error("cannot write to the guest's memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// Fills the memory, and returns where the kernel is entered. It finds so many `virtio` devices.
///
/// # Errors
/// If something cannot be read or does not fit.
pub fn load(
    memory: &GuestMemoryMmap,
    size: MemorySize,
    kernel: &Kernel,
    command_line: &str,
    vcpus: VcpuCount,
    virtio: usize,
) -> Result<Entry, LoadError> {
    let loaded = load_kernel(memory, kernel)?;
    let initramfs = load_initramfs(memory, size, kernel, loaded.kernel_end)?;
    if command_line.len() >= layout::COMMAND_LINE_SIZE || command_line.contains('\0') {
        let length = command_line.len();
        return Err(LoadError::CommandLine { length });
    }
    let address = GuestAddress(layout::COMMAND_LINE);
    memory.write_slice(command_line.as_bytes(), address)?;
    let end = GuestAddress(layout::COMMAND_LINE + command_line.len() as u64);
    memory.write_obj(0_u8, end)?;
    acpi::write(memory, vcpus, virtio)?;
    let zero_page = zero_page(size, &loaded, initramfs);
    memory.write_obj(zero_page, GuestAddress(layout::ZERO_PAGE))?;
    let begin = loaded.kernel_load.0;
    Ok(Entry(match kernel.format {
        KernelFormat::Vmlinux => begin,
        KernelFormat::BzImage => begin + ENTRY_64,
    }))
}

fn load_kernel(memory: &GuestMemoryMmap, kernel: &Kernel) -> Result<KernelLoaderResult, LoadError> {
    let name = || kernel.image.clone();
    let mut file = kernel.image.open().map_err(|source| LoadError::File {
        file: name(),
        source,
    })?;
    let high = Some(GuestAddress(layout::HIGH_MEMORY));
    match kernel.format {
        KernelFormat::Vmlinux => Elf::load(memory, None, &mut file, high),
        KernelFormat::BzImage => BzImage::load(memory, None, &mut file, high),
    }
    .map_err(|source| LoadError::Kernel {
        file: name(),
        source,
    })
}

/// An archive in memory: its first byte, and how many there are.
#[derive(Debug, Clone, Copy)]
struct Initramfs {
    address: u32,
    size: u32,
}

/// As high as it goes, so that it is not where a kernel puts itself.
fn load_initramfs(
    memory: &GuestMemoryMmap,
    size: MemorySize,
    kernel: &Kernel,
    kernel_end: u64,
) -> Result<Initramfs, LoadError> {
    let failed = |source| LoadError::File {
        file: kernel.initramfs.clone(),
        source,
    };
    let mut file = kernel.initramfs.open().map_err(failed)?;
    let length = file.seek(SeekFrom::End(0)).map_err(failed)?;
    file.rewind().map_err(failed)?;
    let no_room = || LoadError::NoRoom {
        memory: size.bytes(),
    };
    let address = size
        .bytes()
        .checked_sub(length.next_multiple_of(PAGE))
        .filter(|address| *address >= kernel_end)
        .ok_or_else(no_room)?;
    let initramfs = Initramfs {
        address: u32::try_from(address).map_err(|_| no_room())?,
        size: u32::try_from(length).map_err(|_| no_room())?,
    };
    memory.read_exact_volatile_from(GuestAddress(address), &mut file, initramfs.size as usize)?;
    Ok(initramfs)
}

fn zero_page(size: MemorySize, loaded: &KernelLoaderResult, initramfs: Initramfs) -> boot_params {
    let mut page = boot_params {
        // A vmlinux has no such header; what is set below are the fields that the kernel reads of it.
        hdr: loaded.setup_header.unwrap_or_default(),
        acpi_rsdp_addr: layout::ACPI,
        ..Default::default()
    };
    page.hdr.boot_flag = 0xaa55;
    page.hdr.header = u32::from_le_bytes(*b"HdrS");
    page.hdr.type_of_loader = LOADER_UNDEFINED;
    page.hdr.cmd_line_ptr = u32::try_from(layout::COMMAND_LINE).expect("it lies low");
    page.hdr.cmdline_size = u32::try_from(layout::COMMAND_LINE_SIZE - 1).expect("it is small");
    page.hdr.ramdisk_image = initramfs.address;
    page.hdr.ramdisk_size = initramfs.size;
    let ranges = [(0, layout::LOW_END), (layout::HIGH_MEMORY, size.bytes())];
    for (slot, (begin, end)) in ranges.into_iter().enumerate() {
        page.e820_table[slot] = boot_e820_entry {
            addr: begin,
            size: end - begin,
            r#type: E820_RAM,
        };
    }
    page.e820_entries = 2;
    page
}
