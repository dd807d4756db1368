//! The registers with which the first processor enters the kernel, and the tables that they point to.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::Entry;
use crate::layout;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Of page-table entries: present and writable.
const TABLE: u64 = 0b11;
/// The same for an entry that maps 2 MiB.
const LARGE_PAGE: u64 = TABLE | 1 << 7;
const RFLAGS: u64 = 2;
const PAGE: u64 = 4096;

/// The first processor could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum RegistersError {
    /// KVM refuses them.
    #[error("KVM refuses the first processor's registers")]
    Kvm(#[from] kvm_ioctls::Error),
    /// Their tables do not lie in the guest's memory.
    #[error("the first processor's tables cannot be written")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// A segment of the boot protocol: flat, and by its number in the descriptor table.
struct Segment {
    index: u16,
    type_: u8,
    /// Bits of 64-bit code.
    long: u8,
    /// Default operand size of 32 bits.
    big: u8,
}

// Linux's `__BOOT_CS` and `__BOOT_DS`.
const CODE: Segment = Segment {
    index: 2,
    type_: 0b1011,
    long: 1,
    big: 0,
};
const DATA: Segment = Segment {
    index: 3,
    type_: 0b0011,
    long: 0,
    big: 1,
};

/// Sets the registers of `vcpu` such that it enters the kernel when it first runs.
pub fn start(vcpu: &VcpuFd, memory: &GuestMemoryMmap, entry: Entry) -> Result<(), RegistersError> {
    write_page_tables(memory)?;
    write_descriptors(memory)?;
    let mut special = vcpu.get_sregs()?;
    set_long_mode(&mut special);
    vcpu.set_sregs(&special)?;
    vcpu.set_regs(&kvm_regs {
        rip: entry.0,
        // The protocol's one argument.
        rsi: layout::ZERO_PAGE,
        rsp: layout::BOOT_STACK,
        rbp: layout::BOOT_STACK,
        rflags: RFLAGS,
        ..Default::default()
    })?;
    Ok(())
}

fn set_long_mode(registers: &mut kvm_sregs) {
    registers.cs = CODE.register();
    for data in [
        &mut registers.ds,
        &mut registers.es,
        &mut registers.fs,
        &mut registers.gs,
        &mut registers.ss,
    ] {
        *data = DATA.register();
    }
    registers.gdt.base = layout::GDT;
    registers.gdt.limit = 4 * 8 - 1;
    registers.idt.base = layout::IDT;
    registers.idt.limit = 7;
    registers.cr0 = CR0_PE | CR0_ET | CR0_PG;
    registers.cr3 = layout::PAGE_TABLES;
    registers.cr4 = CR4_PAE;
    registers.efer = EFER_LME | EFER_LMA;
}

fn write_page_tables(memory: &GuestMemoryMmap) -> Result<(), vm_memory::GuestMemoryError> {
    let level = |number: u64| layout::PAGE_TABLES + number * PAGE;
    memory.write_obj(level(1) | TABLE, GuestAddress(level(0)))?;
    memory.write_obj(level(2) | TABLE, GuestAddress(level(1)))?;
    for index in 0..512 {
        let entry = (index << 21) | LARGE_PAGE;
        memory.write_obj(entry, GuestAddress(level(2) + 8 * index))?;
    }
    Ok(())
}

fn write_descriptors(memory: &GuestMemoryMmap) -> Result<(), vm_memory::GuestMemoryError> {
    let table = [0, 0, CODE.descriptor(), DATA.descriptor()];
    for (index, descriptor) in (0_u64..).zip(table) {
        memory.write_obj(descriptor, GuestAddress(layout::GDT + 8 * index))?;
    }
    memory.write_obj(0_u64, GuestAddress(layout::IDT))
}

impl Segment {
    fn register(&self) -> kvm_segment {
        kvm_segment {
            base: 0,
            limit: u32::MAX,
            selector: self.index * 8,
            type_: self.type_,
            present: 1,
            dpl: 0,
            db: self.big,
            s: 1,
            l: self.long,
            g: 1,
            avl: 0,
            unusable: 0,
            padding: 0,
        }
    }

    /// The same as an entry of the descriptor table: limit 0xfffff pages, base 0, present, code or data.
    fn descriptor(&self) -> u64 {
        let access = 0x90 | u64::from(self.type_);
        let flags = 0x8 | u64::from(self.big) << 2 | u64::from(self.long) << 1;
        0xffff | access << 40 | 0xf << 48 | flags << 52
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_of_linux() {
        // GDT_ENTRY(0xa09b, 0, 0xfffff) and GDT_ENTRY(0xc093, 0, 0xfffff).
        assert_eq!(CODE.descriptor(), 0x00af_9b00_0000_ffff);
        assert_eq!(DATA.descriptor(), 0x00cf_9300_0000_ffff);
    }
}
