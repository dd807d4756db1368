//! General, debug and extended control registers, the local interrupt controller and events, between KVM's form and a
//! snapshot's. Nothing here can fail.

use kvm_bindings::{
    KVM_VCPUEVENT_VALID_PAYLOAD, kvm_debugregs, kvm_lapic_state, kvm_regs, kvm_vcpu_events,
    kvm_xcr, kvm_xcrs,
};
use rouse_snapshot::model::{
    DebugRegisters, ExceptionEvent, InterruptEvent, NmiEvent, SmiEvent, VcpuEvents,
};

pub(super) fn general(r: &kvm_regs) -> [u64; 18] {
    [
        r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rsp, r.rbp, r.r8, r.r9, r.r10, r.r11, r.r12,
        r.r13, r.r14, r.r15, r.rip, r.rflags,
    ]
}

pub(super) fn set_general(registers: &[u64; 18]) -> kvm_regs {
    let [
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
    ] = *registers;
    kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
    }
}

pub(super) fn xcrs(xcrs: &kvm_xcrs) -> Vec<(u32, u64)> {
    let count = (xcrs.nr_xcrs as usize).min(xcrs.xcrs.len());
    xcrs.xcrs[..count]
        .iter()
        .map(|xcr| (xcr.xcr, xcr.value))
        .collect()
}

pub(super) fn set_xcrs(registers: &[(u32, u64)]) -> kvm_xcrs {
    let mut xcrs = kvm_xcrs::default();
    for (place, (xcr, value)) in xcrs.xcrs.iter_mut().zip(registers) {
        *place = kvm_xcr {
            xcr: *xcr,
            value: *value,
            ..Default::default()
        };
        xcrs.nr_xcrs += 1;
    }
    xcrs
}

pub(super) fn debug(debug: &kvm_debugregs) -> DebugRegisters {
    DebugRegisters {
        db: debug.db,
        dr6: debug.dr6,
        dr7: debug.dr7,
    }
}

pub(super) fn set_debug(debug: &DebugRegisters) -> kvm_debugregs {
    kvm_debugregs {
        db: debug.db,
        dr6: debug.dr6,
        dr7: debug.dr7,
        ..Default::default()
    }
}

pub(super) fn lapic(lapic: &kvm_lapic_state) -> Vec<u8> {
    lapic.regs.map(i8::cast_unsigned).to_vec()
}

pub(super) fn set_lapic(registers: &[u8]) -> kvm_lapic_state {
    let mut lapic = kvm_lapic_state::default();
    for (place, byte) in lapic.regs.iter_mut().zip(registers) {
        *place = byte.cast_signed();
    }
    lapic
}

pub(super) fn events(events: &kvm_vcpu_events) -> VcpuEvents {
    VcpuEvents {
        exception: ExceptionEvent {
            injected: events.exception.injected != 0,
            number: events.exception.nr,
            has_error_code: events.exception.has_error_code != 0,
            // KVM shows one that is pending as injected too, unless payloads were asked for.
            pending: events.exception.pending != 0 && events.exception.injected == 0,
            error_code: events.exception.error_code,
            payload: (events.exception_has_payload != 0).then_some(events.exception_payload),
        },
        interrupt: InterruptEvent {
            injected: events.interrupt.injected != 0,
            number: events.interrupt.nr,
            soft: events.interrupt.soft != 0,
            shadow: events.interrupt.shadow,
        },
        nmi: NmiEvent {
            injected: events.nmi.injected != 0,
            pending: events.nmi.pending,
            masked: events.nmi.masked != 0,
        },
        sipi_vector: events.sipi_vector,
        flags: events.flags,
        smi: SmiEvent {
            smm: events.smi.smm != 0,
            pending: events.smi.pending != 0,
            inside_nmi: events.smi.smm_inside_nmi != 0,
            latched_init: events.smi.latched_init,
        },
        triple_fault: events.triple_fault.pending != 0,
    }
}

pub(super) fn set_events(state: &VcpuEvents) -> kvm_vcpu_events {
    let mut events = kvm_vcpu_events {
        sipi_vector: state.sipi_vector,
        // Without the capability for payloads, which this machine does not ask for, KVM refuses the flag.
        flags: state.flags & !KVM_VCPUEVENT_VALID_PAYLOAD,
        ..Default::default()
    };
    events.exception.injected = state.exception.injected.into();
    events.exception.nr = state.exception.number;
    events.exception.has_error_code = state.exception.has_error_code.into();
    events.exception.pending = state.exception.pending.into();
    events.exception.error_code = state.exception.error_code;
    events.interrupt.injected = state.interrupt.injected.into();
    events.interrupt.nr = state.interrupt.number;
    events.interrupt.soft = state.interrupt.soft.into();
    events.interrupt.shadow = state.interrupt.shadow;
    events.nmi.injected = state.nmi.injected.into();
    events.nmi.pending = state.nmi.pending;
    events.nmi.masked = state.nmi.masked.into();
    events.smi.smm = state.smi.smm.into();
    events.smi.pending = state.smi.pending.into();
    events.smi.smm_inside_nmi = state.smi.inside_nmi.into();
    events.smi.latched_init = state.smi.latched_init;
    events.triple_fault.pending = state.triple_fault.into();
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_what_is_set() {
        let numbers: [u64; 18] = std::array::from_fn(|index| index as u64 + 1);
        assert_eq!(general(&set_general(&numbers)), numbers);
        let registers = vec![(0, 7), (1, 3)];
        assert_eq!(xcrs(&set_xcrs(&registers)), registers);
        let bytes: Vec<u8> = (0..1024).map(|index| (index % 251) as u8).collect();
        assert_eq!(lapic(&set_lapic(&bytes)), bytes);
        let state = VcpuEvents {
            interrupt: InterruptEvent {
                injected: true,
                number: 0xec,
                soft: false,
                shadow: 1,
            },
            nmi: NmiEvent {
                masked: true,
                ..Default::default()
            },
            sipi_vector: 9,
            flags: 0xd,
            ..Default::default()
        };
        assert_eq!(events(&set_events(&state)), state);
    }
}
