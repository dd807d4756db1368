//! How a thread is called out of its guest.
//!
//! The signal is blocked in the thread and let through only inside of `KVM_RUN`. One that comes between the thread's look
//! at what it is to do and its entry stays pending, and the entry returns at once: there is no moment in which it could
//! get lost, and no handler.

use std::io;
use std::os::fd::AsRawFd;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal;

/// The signal's number.
pub fn kick_signal() -> libc::c_int {
    signal::SIGRTMIN()
}

/// A thread could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum SignalMaskError {
    /// The signal could not be blocked.
    #[error("cannot block the signal that stops a processor: {0}")]
    Block(signal::Error),
    /// KVM refuses the mask.
    #[error("KVM refuses the signal mask of a processor")]
    Kvm(#[source] io::Error),
}

/// `struct kvm_signal_mask` with the kernel's `sigset_t`: blocked signals, by bit.
#[repr(C)]
struct SignalMask {
    length: u32,
    blocked: [u8; 8],
}

const _: () = assert!(size_of::<SignalMask>() == 12);
/// `_IOW(KVMIO, 0x8b, struct kvm_signal_mask)`; the signals at its end do not count.
const KVM_SET_SIGNAL_MASK: libc::c_ulong = 0x4004_ae8b;

/// Prepares the calling thread to run `vcpu`.
pub fn prepare_thread(vcpu: &VcpuFd) -> Result<(), SignalMaskError> {
    let number = kick_signal();
    signal::block_signal(number).map_err(SignalMaskError::Block)?;
    let mask = SignalMask {
        length: 8,
        blocked: (!(1_u64 << (number - 1))).to_ne_bytes(),
    };
    // SAFETY: KVM_SET_SIGNAL_MASK reads a `kvm_signal_mask` and the `length` bytes behind it, which `mask` is, and keeps no
    // reference to it. `vcpu` is an open processor.
    let result = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_SIGNAL_MASK, &raw const mask) };
    if result == 0 {
        Ok(())
    } else {
        Err(SignalMaskError::Kvm(io::Error::last_os_error()))
    }
}
