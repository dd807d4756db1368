//! What a processor remembers, out of KVM and into it again.
//!
//! The order of the calls matters. Out of KVM ([`save`]), each for the sake of what it changes or needs:
//!
//! - the state of multiprocessing first: KVM first deals with starts and resets that are pending in the local interrupt
//!   controller, which may change all other registers;
//! - the features (CPUID) at any time: they do not change;
//! - the local interrupt controller before the model-specific registers: the timer that it holds is one of them;
//! - events last: only what is then still on its way belongs to them.
//!
//! Into KVM ([`restore`]), in three parts:
//!
//! | | before | because |
//! |---|---|---|
//! | speed of the time-stamp counter | all | it is scaled from the first register on |
//! | features | special registers, XSAVE, model-specific registers | each is checked against what the processor says it can do |
//! | multiprocessing | registers | a processor that waits to be started would be reset with them |
//! | general registers, then special ones | | `SREGS2` decides in which mode the others are to be read |
//! | XSAVE, then extended control registers | | an area with features that `XCR0` has not is taken, the other way round it is not |
//! | special registers (`APIC_BASE`) | local interrupt controller | it decides how its registers are laid out |
//! | local interrupt controller | model-specific registers | `TSC_DEADLINE` only counts if the timer is in that mode |
//! | memory | model-specific registers | some hold guest addresses that KVM writes to at once (kvmclock, steal time, asynchronous faults) |
//! | model-specific registers | events | they include the state of system management mode |
//! | the machine's clock and chips | offsets of the time-stamp counters ([`settle`]) | an offset is computed from the clock |
//! | offset | `TSC_DEADLINE` | it is an absolute time of that counter |
//! | `TSC_DEADLINE` | the end | the timer may fire at once |

mod features;
mod registers;
mod special;
mod tsc;
mod xsave;

pub mod msrs;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_mp_state};
use kvm_ioctls::VcpuFd;
use rouse_snapshot::model::{ClockState, VcpuState};

pub use features::entries;
pub use msrs::{MsrError, MsrList};

/// The state of a processor cannot be read or set.
#[derive(Debug, thiserror::Error)]
pub enum VcpuStateError {
    /// KVM refuses one part of it.
    #[error("KVM refuses to {verb} {what} of processor {id}")]
    Kvm {
        /// The processor.
        id: usize,
        /// Give or take.
        verb: &'static str,
        /// Which part.
        what: &'static str,
        /// Why.
        source: kvm_ioctls::Error,
    },
    /// Model-specific registers.
    #[error("processor {id}: {source}")]
    Msr {
        /// The processor.
        id: usize,
        /// Why.
        source: MsrError,
    },
    /// The host has another area for extended registers.
    #[error("the extended registers of processor {id} take {found} bytes, on this host {expected}")]
    XsaveLength {
        /// The processor.
        id: usize,
        /// In the snapshot.
        found: usize,
        /// Of this host.
        expected: usize,
    },
}

/// One call about one part of processor `id`.
#[derive(Clone, Copy)]
struct Part {
    id: usize,
    verb: &'static str,
}

impl Part {
    fn of(self, what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VcpuStateError {
        move |source| VcpuStateError::Kvm {
            id: self.id,
            verb: self.verb,
            what,
            source,
        }
    }
}

/// What the processor `id` remembers. It must not run.
///
/// # Errors
/// The part that KVM does not give.
pub fn save(vcpu: &VcpuFd, id: usize, list: &MsrList) -> Result<VcpuState, VcpuStateError> {
    let part = Part { id, verb: "give" };
    let mp_state = vcpu.get_mp_state().map_err(part.of("multiprocessing"))?;
    let general = vcpu.get_regs().map_err(part.of("registers"))?;
    let special = special::get(vcpu).map_err(part.of("special registers"))?;
    let xsave = xsave::get(vcpu).map_err(part.of("extended registers"))?;
    let xcrs = vcpu
        .get_xcrs()
        .map_err(part.of("extended control registers"))?;
    let debug = vcpu.get_debug_regs().map_err(part.of("debug registers"))?;
    let lapic = vcpu
        .get_lapic()
        .map_err(part.of("the local interrupt controller"))?;
    let tsc_khz = vcpu
        .get_tsc_khz()
        .map_err(part.of("the speed of the time-stamp counter"))?;
    let cpuid = vcpu
        .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
        .map_err(part.of("features"))?;
    let msrs = list
        .save(vcpu)
        .map_err(|source| VcpuStateError::Msr { id, source })?;
    let tsc_offset = tsc::offset(vcpu);
    let events = vcpu.get_vcpu_events().map_err(part.of("events"))?;
    Ok(VcpuState {
        cpuid: entries(&cpuid),
        mp_state: mp_state.mp_state,
        general: registers::general(&general),
        special: special::read(&special),
        xsave,
        xcrs: registers::xcrs(&xcrs),
        debug: registers::debug(&debug),
        lapic: registers::lapic(&lapic),
        msrs,
        events: registers::events(&events),
        tsc_khz,
        tsc_offset,
    })
}

/// Puts processor `id` into a state: the first part. Guest memory is in its place, and `list` is what this host knows.
///
/// # Errors
/// The part that KVM does not take, or that this host does not know. The processor must not be used then.
pub fn restore(
    vcpu: &VcpuFd,
    id: usize,
    state: &VcpuState,
    list: &MsrList,
) -> Result<(), VcpuStateError> {
    let part = Part { id, verb: "take" };
    let speed = part.of("the speed of the time-stamp counter");
    tsc::set_speed(vcpu, state.tsc_khz).map_err(speed)?;
    vcpu.set_cpuid2(&features::cpuid(&state.cpuid))
        .map_err(part.of("features"))?;
    let mp_state = kvm_mp_state {
        mp_state: state.mp_state,
    };
    vcpu.set_mp_state(mp_state)
        .map_err(part.of("multiprocessing"))?;
    vcpu.set_regs(&registers::set_general(&state.general))
        .map_err(part.of("registers"))?;
    special::set(vcpu, &state.special).map_err(part.of("special registers"))?;
    xsave::set(vcpu, id, &state.xsave)?;
    vcpu.set_xcrs(&registers::set_xcrs(&state.xcrs))
        .map_err(part.of("extended control registers"))?;
    vcpu.set_debug_regs(&registers::set_debug(&state.debug))
        .map_err(part.of("debug registers"))?;
    vcpu.set_lapic(&registers::set_lapic(&state.lapic))
        .map_err(part.of("the local interrupt controller"))?;
    list.restore(vcpu, &state.msrs)
        .map_err(|source| VcpuStateError::Msr { id, source })?;
    vcpu.set_vcpu_events(&registers::set_events(&state.events))
        .map_err(part.of("events"))
}

/// The last part: after the machine's clock and chips were set. `now` is what the clock shows since.
///
/// # Errors
/// The part that KVM does not take.
pub fn settle(
    vcpu: &VcpuFd,
    id: usize,
    state: &VcpuState,
    saved: &ClockState,
    now: &ClockState,
) -> Result<(), VcpuStateError> {
    let part = Part { id, verb: "take" };
    tsc::set_offset(vcpu, state, saved, now)
        .map_err(part.of("the offset of the time-stamp counter"))?;
    msrs::set_deadline(vcpu, &state.msrs).map_err(|source| VcpuStateError::Msr { id, source })?;
    // Tells the guest that it was stopped, so that its watchdogs do not count the time. Only guests that use the clock of KVM
    // listen; others refuse.
    match vcpu.kvmclock_ctrl() {
        Err(error) if error.errno() != libc::EINVAL => {
            Err(part.of("the note that it was stopped")(error))
        }
        _ => Ok(()),
    }
}
