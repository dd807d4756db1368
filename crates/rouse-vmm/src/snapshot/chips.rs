//! What the processors of a machine share inside of KVM: its clock and its interrupt controllers. There is no interval timer
//! (PIT): the machine is of ACPI's reduced kind.
//!
//! Order out of KVM: the clock first, so that as little time as possible lies between it and the time-stamp counters; the
//! chips in any order. Into KVM, after all processors:
//!
//! - the clock with the wall time at which it was read: KVM adds what has passed since, so that monotonic time goes on and
//!   does not stand still while the machine slept. Should the host's wall time have gone back, KVM adds nothing;
//! - the old interrupt controllers before the I/O one: they send to it;
//! - the I/O interrupt controller after the local ones: an interrupt whose line is still up is delivered at once.

use kvm_bindings::{
    KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_ioapic_state, kvm_irqchip, kvm_pic_state,
};
use kvm_ioctls::{Cap, VmFd};
use rouse_snapshot::model::{ChipState, ClockState, IoApicState};

/// A part of it cannot be read or set.
#[derive(Debug, thiserror::Error)]
#[error("KVM refuses to {verb} {what}")]
pub struct ChipError {
    verb: &'static str,
    what: &'static str,
    source: kvm_ioctls::Error,
}

fn failed(verb: &'static str, what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> ChipError {
    move |source| ChipError { verb, what, source }
}

const PICS: [u32; 2] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE];

/// What they remember. No processor may run.
pub fn save(vm: &VmFd) -> Result<ChipState, ChipError> {
    let clock = clock(vm)?;
    let mut pics = [[0; 16]; 2];
    for (pic, id) in pics.iter_mut().zip(PICS) {
        let chip = get(vm, id)?;
        // SAFETY: KVM has filled the member that belongs to the number.
        *pic = pic_bytes(unsafe { &chip.chip.pic });
    }
    let chip = get(vm, KVM_IRQCHIP_IOAPIC)?;
    // SAFETY: as above.
    let io_apic = unsafe { &chip.chip.ioapic };
    Ok(ChipState {
        clock,
        pics,
        io_apic: IoApicState {
            base_address: io_apic.base_address,
            selected: io_apic.ioregsel,
            id: io_apic.id,
            irr: io_apic.irr,
            // SAFETY: both members of the union are the same eight bytes, and any are a number.
            redirections: io_apic.redirtbl.map(|entry| unsafe { entry.bits }),
        },
    })
}

/// Puts them into a state, after the processors.
pub fn restore(vm: &VmFd, state: &ChipState) -> Result<(), ChipError> {
    set_clock(vm, &state.clock)?;
    for (pic, id) in state.pics.iter().zip(PICS) {
        let mut chip = kvm_irqchip {
            chip_id: id,
            ..Default::default()
        };
        chip.chip.pic = pic_of(pic);
        vm.set_irqchip(&chip)
            .map_err(failed("take", "an old interrupt controller"))?;
    }
    let mut chip = kvm_irqchip {
        chip_id: KVM_IRQCHIP_IOAPIC,
        ..Default::default()
    };
    let mut io_apic = kvm_ioapic_state {
        base_address: state.io_apic.base_address,
        ioregsel: state.io_apic.selected,
        id: state.io_apic.id,
        irr: state.io_apic.irr,
        ..Default::default()
    };
    for (entry, bits) in io_apic.redirtbl.iter_mut().zip(state.io_apic.redirections) {
        entry.bits = bits;
    }
    chip.chip.ioapic = io_apic;
    vm.set_irqchip(&chip)
        .map_err(failed("take", "the I/O interrupt controller"))
}

/// What the clock shows now.
pub fn clock(vm: &VmFd) -> Result<ClockState, ChipError> {
    let clock = vm.get_clock().map_err(failed("give", "the clock"))?;
    let has = |flag: u32| clock.flags & flag != 0;
    Ok(ClockState {
        clock_ns: clock.clock,
        realtime_ns: has(KVM_CLOCK_REALTIME).then_some(clock.realtime),
        host_tsc: has(KVM_CLOCK_HOST_TSC).then_some(clock.host_tsc),
    })
}

fn set_clock(vm: &VmFd, state: &ClockState) -> Result<(), ChipError> {
    // A host that cannot add the time that has passed refuses the flag.
    let supported = u32::try_from(vm.check_extension_int(Cap::AdjustClock)).unwrap_or(0);
    let realtime = state
        .realtime_ns
        .filter(|_| supported & KVM_CLOCK_REALTIME != 0);
    vm.set_clock(&kvm_clock_data {
        clock: state.clock_ns,
        flags: realtime.map_or(0, |_| KVM_CLOCK_REALTIME),
        realtime: realtime.unwrap_or(0),
        ..Default::default()
    })
    .map_err(failed("take", "the clock"))
}

fn get(vm: &VmFd, id: u32) -> Result<kvm_irqchip, ChipError> {
    let mut chip = kvm_irqchip {
        chip_id: id,
        ..Default::default()
    };
    vm.get_irqchip(&mut chip)
        .map_err(failed("give", "an interrupt controller"))?;
    Ok(chip)
}

fn pic_bytes(pic: &kvm_pic_state) -> [u8; 16] {
    [
        pic.last_irr,
        pic.irr,
        pic.imr,
        pic.isr,
        pic.priority_add,
        pic.irq_base,
        pic.read_reg_select,
        pic.poll,
        pic.special_mask,
        pic.init_state,
        pic.auto_eoi,
        pic.rotate_on_auto_eoi,
        pic.special_fully_nested_mode,
        pic.init4,
        pic.elcr,
        pic.elcr_mask,
    ]
}

fn pic_of(bytes: &[u8; 16]) -> kvm_pic_state {
    kvm_pic_state {
        last_irr: bytes[0],
        irr: bytes[1],
        imr: bytes[2],
        isr: bytes[3],
        priority_add: bytes[4],
        irq_base: bytes[5],
        read_reg_select: bytes[6],
        poll: bytes[7],
        special_mask: bytes[8],
        init_state: bytes[9],
        auto_eoi: bytes[10],
        rotate_on_auto_eoi: bytes[11],
        special_fully_nested_mode: bytes[12],
        init4: bytes[13],
        elcr: bytes[14],
        elcr_mask: bytes[15],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controllers_bytes_are_its_fields() {
        let bytes = std::array::from_fn(|index| index as u8);
        assert_eq!(pic_bytes(&pic_of(&bytes)), bytes);
    }
}
