//! Segments, tables and control registers. `SREGS2` (Linux 5.14) instead of `SREGS`: that one loses the page-directory
//! pointers of a processor in 32-bit mode, and holds an interrupt that is on its way a second time, beside the events.

use std::os::fd::AsRawFd;

use kvm_bindings::{KVM_SREGS2_FLAGS_PDPTRS_VALID, kvm_dtable, kvm_segment, kvm_sregs2};
use kvm_ioctls::VcpuFd;
use rouse_snapshot::model::{Segment, SpecialRegisters};

/// `_IOR(KVMIO, 0xcc, struct kvm_sregs2)`.
const KVM_GET_SREGS2: libc::c_ulong = 0x8140_aecc;
/// `_IOW(KVMIO, 0xcd, struct kvm_sregs2)`.
const KVM_SET_SREGS2: libc::c_ulong = 0x4140_aecd;
const _: () = assert!(size_of::<kvm_sregs2>() == 0x140);

pub(super) fn get(vcpu: &VcpuFd) -> Result<kvm_sregs2, kvm_ioctls::Error> {
    let mut registers = kvm_sregs2::default();
    // SAFETY: the call fills a `kvm_sregs2`, which `registers` is. `vcpu` is an open processor.
    match unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_GET_SREGS2, &raw mut registers) } {
        0 => Ok(registers),
        _ => Err(kvm_ioctls::Error::last()),
    }
}

pub(super) fn set(vcpu: &VcpuFd, state: &SpecialRegisters) -> Result<(), kvm_ioctls::Error> {
    let registers = write(state);
    // SAFETY: the call reads a `kvm_sregs2`, which `registers` is. `vcpu` is an open processor.
    match unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_SREGS2, &raw const registers) } {
        0 => Ok(()),
        _ => Err(kvm_ioctls::Error::last()),
    }
}

pub(super) fn read(registers: &kvm_sregs2) -> SpecialRegisters {
    let r = registers;
    let has_pdptrs = r.flags & u64::from(KVM_SREGS2_FLAGS_PDPTRS_VALID) != 0;
    SpecialRegisters {
        segments: [r.cs, r.ds, r.es, r.fs, r.gs, r.ss, r.tr, r.ldt].map(read_segment),
        gdt: (r.gdt.base, r.gdt.limit),
        idt: (r.idt.base, r.idt.limit),
        cr0: r.cr0,
        cr2: r.cr2,
        cr3: r.cr3,
        cr4: r.cr4,
        cr8: r.cr8,
        efer: r.efer,
        apic_base: r.apic_base,
        pdptrs: has_pdptrs.then_some(r.pdptrs),
    }
}

fn write(state: &SpecialRegisters) -> kvm_sregs2 {
    let [cs, ds, es, fs, gs, ss, tr, ldt] = state.segments.map(write_segment);
    let table = |(base, limit): (u64, u16)| kvm_dtable {
        base,
        limit,
        ..Default::default()
    };
    let pdptrs_flag = u64::from(KVM_SREGS2_FLAGS_PDPTRS_VALID);
    kvm_sregs2 {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr,
        ldt,
        gdt: table(state.gdt),
        idt: table(state.idt),
        cr0: state.cr0,
        cr2: state.cr2,
        cr3: state.cr3,
        cr4: state.cr4,
        cr8: state.cr8,
        efer: state.efer,
        apic_base: state.apic_base,
        flags: state.pdptrs.map_or(0, |_| pdptrs_flag),
        pdptrs: state.pdptrs.unwrap_or_default(),
    }
}

fn read_segment(segment: kvm_segment) -> Segment {
    Segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: segment.type_,
        present: segment.present,
        dpl: segment.dpl,
        db: segment.db,
        s: segment.s,
        l: segment.l,
        g: segment.g,
        avl: segment.avl,
        unusable: segment.unusable,
    }
}

fn write_segment(segment: Segment) -> kvm_segment {
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: segment.type_,
        present: segment.present,
        dpl: segment.dpl,
        db: segment.db,
        s: segment.s,
        l: segment.l,
        g: segment.g,
        avl: segment.avl,
        unusable: segment.unusable,
        padding: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_what_is_set() {
        let mut state = SpecialRegisters {
            gdt: (1 << 40, 127),
            idt: (3 << 40, 4095),
            cr0: 0x8005_0033,
            cr3: 0x1234_5000,
            cr4: 0x3506f0,
            cr8: 1,
            efer: 0xd01,
            apic_base: 0xfee0_0900,
            pdptrs: Some([1, 2, 3, 4]),
            ..Default::default()
        };
        for (number, segment) in (1..).zip(&mut state.segments) {
            segment.selector = number * 8;
            segment.type_ = 11;
            segment.present = 1;
        }
        assert_eq!(read(&write(&state)), state);
        state.pdptrs = None;
        assert_eq!(read(&write(&state)), state);
    }
}
