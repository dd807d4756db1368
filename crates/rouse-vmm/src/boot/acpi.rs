//! The tables by which the kernel learns what machine it runs on.
//!
//! The machine is of the reduced kind: no PM timer, no legacy interrupt controller or timer, no real-time clock. It is
//! switched off and reset by three bytes of I/O ports (`devices/power.rs`). All devices are described here; none is
//! found by probing.

use acpi_tables::Aml;
use acpi_tables::aml;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::devices::{power, serial};
use crate::identity;
use crate::layout;
use crate::vcpu::VcpuCount;

const OEM: [u8; 6] = *b"ROUSE ";
const TABLE: [u8; 8] = *b"ROUSEVM ";
const REVISION: u32 = 1;
/// In the table FADT: no VGA, no MSI, no real-time clock.
const NO_VGA_MSI_CLOCK: u16 = 1 << 2 | 1 << 3 | 1 << 5;

/// The tables cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// They have no room.
    #[error("the ACPI tables have {size} bytes, too many for their place")]
    NoRoom {
        /// In bytes.
        size: usize,
    },
    /// Their place is no memory.
    #[error("the ACPI tables cannot be written")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// Writes all tables; the root pointer comes first.
pub fn write(memory: &GuestMemoryMmap, vcpus: VcpuCount, virtio: usize) -> Result<(), AcpiError> {
    let bytes = tables(layout::ACPI, vcpus, virtio);
    if bytes.len() as u64 > layout::ACPI_END - layout::ACPI {
        return Err(AcpiError::NoRoom { size: bytes.len() });
    }
    memory.write_slice(&bytes, GuestAddress(layout::ACPI))?;
    Ok(())
}

/// The tables as they lie at guest address `base`.
fn tables(base: u64, vcpus: VcpuCount, virtio: usize) -> Vec<u8> {
    let mut placed = vec![0; Rsdp::len()];
    let mut place = |table: Vec<u8>| {
        let offset = placed.len().next_multiple_of(16);
        placed.resize(offset, 0);
        placed.extend(table);
        base + offset as u64
    };
    let dsdt = place(dsdt(virtio));
    let fadt = place(bytes(&fadt(dsdt)));
    let madt = place(bytes(&madt(vcpus)));
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place(bytes(&xsdt));
    let root = bytes(&Rsdp::new(OEM, xsdt));
    placed[..root.len()].copy_from_slice(&root);
    placed
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let port = |port: u16| {
        GAS::new(
            AddressSpace::SystemIo,
            8,
            0,
            AccessSize::ByteAccess,
            port.into(),
        )
    };
    let mut table = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        // Without these the kernel looks for buttons in registers that this machine has not.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup);
    table.iapc_boot_arch = NO_VGA_MSI_CLOCK.into();
    table.sleep_control_reg = port(power::SLEEP_CONTROL);
    table.sleep_status_reg = port(power::SLEEP_STATUS);
    table.reset_reg = port(power::RESET);
    table.reset_value = power::RESET_VALUE;
    table.finalize()
}

fn madt(vcpus: VcpuCount) -> MADT {
    let apic = LocalInterruptController::Address(layout::LOCAL_APIC);
    let mut table = MADT::new(OEM, TABLE, REVISION, apic);
    for id in vcpus.ids() {
        table.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    // KVM's interrupt controller has this number.
    table.add_structure(IoApic::new(0, layout::IO_APIC, 0));
    table
}

fn dsdt(virtio: usize) -> Vec<u8> {
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, REVISION);
    let off: u8 = power::SLEEP_TYPE_OFF;
    let sleep = aml::Name::new("_S5_".into(), &aml::Package::new(vec![&off]));
    table.append_slice(&bytes(&sleep));
    let id = aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501"));
    let number = aml::Name::new("_UID".into(), &0_u8);
    let interrupt = aml::Interrupt::new(true, true, false, false, serial::GSI);
    let ports = aml::IO::new(serial::PORT, serial::PORT, 1, serial::PORT_COUNT);
    let resources = aml::Name::new(
        "_CRS".into(),
        &aml::ResourceTemplate::new(vec![&interrupt, &ports]),
    );
    let console = aml::Device::new("_SB_.COM1".into(), vec![&id, &number, &resources]);
    table.append_slice(&bytes(&console));
    table.append_slice(&identity::describe());
    for number in 0..virtio {
        table.append_slice(&virtio_device(number));
    }
    table.as_slice().to_vec()
}

fn virtio_device(number: usize) -> Vec<u8> {
    let id = aml::Name::new("_HID".into(), &"LNRO0005");
    let unique = aml::Name::new("_UID".into(), &number);
    // Its accesses to memory are coherent with the processors'.
    let coherent = aml::Name::new("_CCA".into(), &aml::ONE);
    let address = u32::try_from(layout::virtio(number)).expect("below 4 GiB");
    let size = u32::try_from(layout::VIRTIO_SIZE).expect("a page");
    let registers = aml::Memory32Fixed::new(true, address, size);
    // By edge: an eventfd raises it, and nothing lowers it.
    let interrupt = aml::Interrupt::new(true, true, false, false, layout::virtio_gsi(number));
    let resources = aml::Name::new(
        "_CRS".into(),
        &aml::ResourceTemplate::new(vec![&registers, &interrupt]),
    );
    let name = format!("_SB_.VR{number:02}");
    bytes(&aml::Device::new(
        name.as_str().into(),
        vec![&id, &unique, &coherent, &resources],
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn long(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
    }

    #[test]
    fn each_table_is_reached_and_its_sum_is_zero() {
        let base = 0xe_0000;
        for count in [1, 2, 32] {
            let vcpus = VcpuCount::new(count).expect("a possible number");
            let all = tables(base, vcpus, layout::VIRTIO_SLOTS);
            assert!(all.len() as u64 <= layout::ACPI_END - layout::ACPI);
            let table = |address: u64| {
                let begin = usize::try_from(address - base).expect("inside");
                let length =
                    u32::from_le_bytes(all[begin + 4..begin + 8].try_into().expect("four bytes"));
                &all[begin..begin + length as usize]
            };
            assert_eq!(&all[..8], b"RSD PTR ");
            assert_eq!((sum(&all[..20]), sum(&all[..36])), (0, 0));
            let xsdt = table(long(&all, 24));
            assert_eq!((&xsdt[..4], xsdt.len(), sum(xsdt)), (&b"XSDT"[..], 52, 0));
            let fadt = table(long(xsdt, 36));
            assert_eq!((&fadt[..4], sum(fadt)), (&b"FACP"[..], 0));
            let madt = table(long(xsdt, 44));
            let entries = usize::from(count) * 8 + 12;
            assert_eq!(
                (&madt[..4], madt.len(), sum(madt)),
                (&b"APIC"[..], 44 + entries, 0)
            );
            let dsdt = table(long(fadt, 140));
            assert_eq!((&dsdt[..4], sum(dsdt)), (&b"DSDT"[..], 0));
        }
    }
}
