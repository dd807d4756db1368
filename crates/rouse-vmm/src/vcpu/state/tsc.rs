//! The time-stamp counter: its speed, and what is added to the host's.
//!
//! All processors of a machine must agree on it, and it must fit to the machine's clock, or a guest that reads time from
//! both sees it jump. KVM guesses from values that are written to the register within a second that they are meant to be
//! the same; offsets leave nothing to guess (Linux: Documentation/virt/kvm/devices/vcpu.rst, `KVM_VCPU_TSC_CTRL`):
//!
//! ```text
//!                 saved                                now
//!  host's counter host_tsc                             now.host_tsc
//!  guest's        host_tsc + offset                    + (now.clock - saved.clock) * speed
//!  clock          saved.clock_ns                       now.clock_ns
//! ```

use std::os::fd::AsRawFd;

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_device_attr};
use kvm_ioctls::VcpuFd;
use rouse_snapshot::model::{ClockState, VcpuState};

/// `_IOW(KVMIO, 0xe1, struct kvm_device_attr)`.
const KVM_SET_DEVICE_ATTR: libc::c_ulong = 0x4018_aee1;
/// `_IOW(KVMIO, 0xe2, struct kvm_device_attr)`.
const KVM_GET_DEVICE_ATTR: libc::c_ulong = 0x4018_aee2;
const _: () = assert!(size_of::<kvm_device_attr>() == 0x18);

/// Sets the speed, unless it is the right one: without hardware that scales it, KVM refuses any other.
pub(super) fn set_speed(vcpu: &VcpuFd, khz: u32) -> Result<(), kvm_ioctls::Error> {
    if vcpu.get_tsc_khz()? == khz {
        return Ok(());
    }
    vcpu.set_tsc_khz(khz)
}

/// What is added to the host's counter; `None` if KVM does not tell (before Linux 5.16).
pub(super) fn offset(vcpu: &VcpuFd) -> Option<u64> {
    let mut offset = 0_u64;
    let attribute = attribute(&raw mut offset as u64);
    // SAFETY: the call writes eight bytes to the address in the attribute, which is that of `offset`.
    let result =
        unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_GET_DEVICE_ATTR, &raw const attribute) };
    (result == 0).then_some(offset)
}

/// Sets the offset such that the counter has gone on as the clock has. If one of the values for it is not known, the counter
/// goes on from the value of its register, which was set before.
pub(super) fn set_offset(
    vcpu: &VcpuFd,
    state: &VcpuState,
    saved: &ClockState,
    now: &ClockState,
) -> Result<(), kvm_ioctls::Error> {
    let Some(offset) = offset_now(state, saved, now) else {
        return Ok(());
    };
    let attribute = attribute(&raw const offset as u64);
    // SAFETY: the call reads eight bytes at the address in the attribute, which is that of `offset`.
    match unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_DEVICE_ATTR, &raw const attribute) } {
        0 => Ok(()),
        _ => Err(kvm_ioctls::Error::last()),
    }
}

fn attribute(addr: u64) -> kvm_device_attr {
    kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr,
        flags: 0,
    }
}

fn offset_now(state: &VcpuState, saved: &ClockState, now: &ClockState) -> Option<u64> {
    let guest_then = saved.host_tsc?.wrapping_add(state.tsc_offset?);
    let elapsed_ns = now.clock_ns.checked_sub(saved.clock_ns)?;
    let ticks = u128::from(elapsed_ns) * u128::from(state.tsc_khz) / 1_000_000;
    let guest_now = guest_then.wrapping_add(u64::try_from(ticks).ok()?);
    Some(guest_now.wrapping_sub(now.host_tsc?))
}

#[cfg(test)]
mod tests {
    use rouse_snapshot::model::{DebugRegisters, SpecialRegisters, VcpuEvents};

    use super::*;

    fn vcpu(tsc_khz: u32, tsc_offset: Option<u64>) -> VcpuState {
        VcpuState {
            cpuid: Vec::new(),
            mp_state: 0,
            general: [0; 18],
            special: SpecialRegisters::default(),
            xsave: Vec::new(),
            xcrs: Vec::new(),
            debug: DebugRegisters::default(),
            lapic: Vec::new(),
            msrs: Vec::new(),
            events: VcpuEvents::default(),
            tsc_khz,
            tsc_offset,
        }
    }

    fn clock(clock_ns: u64, host_tsc: Option<u64>) -> ClockState {
        ClockState {
            clock_ns,
            realtime_ns: None,
            host_tsc,
        }
    }

    #[test]
    fn the_counter_goes_on_as_the_clock_does() {
        let state = vcpu(2_000_000, Some(100_u64.wrapping_neg()));
        let saved = clock(1_000, Some(5_000));
        // A second later, on a host that has started anew: 2,000,000,000 ticks.
        let now = clock(1_000_001_000, Some(7));
        let offset = offset_now(&state, &saved, &now).expect("all is known");
        assert_eq!(offset.wrapping_add(7), 4_900 + 2_000_000_000);
    }

    #[test]
    fn what_is_not_known_is_not_computed() {
        let saved = clock(1_000, Some(5_000));
        for (state, now) in [
            (vcpu(1, None), clock(2_000, Some(1))),
            (vcpu(1, Some(1)), clock(2_000, None)),
            // The clock has gone back.
            (vcpu(1, Some(1)), clock(999, Some(1))),
        ] {
            assert_eq!(offset_now(&state, &saved, &now), None);
        }
    }
}
