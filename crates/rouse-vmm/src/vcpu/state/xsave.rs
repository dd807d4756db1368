//! The XSAVE area: floating point, vectors, protection keys.
//!
//! Its length is a matter of the host's processor: 4096 bytes, and more with AMX. `KVM_GET_XSAVE2` writes as many bytes as
//! `KVM_CAP_XSAVE2` says of the *machine*, so the buffer is always of the longest length that any processor has.

use std::os::fd::AsRawFd;

use kvm_ioctls::VcpuFd;

use super::VcpuStateError;

/// `_IOR(KVMIO, 0xcf, struct kvm_xsave)`; writes as many bytes as the machine's area has.
const KVM_GET_XSAVE2: libc::c_ulong = 0x9000_aecf;
/// `_IOW(KVMIO, 0xa5, struct kvm_xsave)`; reads as many.
const KVM_SET_XSAVE: libc::c_ulong = 0x5000_aea5;
/// What Linux lets a guest have: AMX needs 11008 bytes.
const LONGEST: usize = 16384;
const SHORTEST: usize = 4096;

/// An area of any processor, aligned as KVM's structure.
#[repr(C, align(64))]
struct Area([u8; LONGEST]);

pub(super) fn get(vcpu: &VcpuFd) -> Result<Vec<u8>, kvm_ioctls::Error> {
    let mut area = Box::new(Area([0; LONGEST]));
    // SAFETY: the call writes the machine's area, of which no processor has one longer than `LONGEST`: Linux offers no
    // feature behind AMX to guests, and AMX only to those whose VMM asked for it, which this one does not.
    match unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_GET_XSAVE2, &raw mut *area) } {
        0 => Ok(trimmed(&area.0)),
        _ => Err(kvm_ioctls::Error::last()),
    }
}

/// The usual length, if all behind it is zero.
fn trimmed(area: &[u8; LONGEST]) -> Vec<u8> {
    let used = area
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |at| at + 1);
    area[..used.max(SHORTEST).next_multiple_of(4096)].to_vec()
}

pub(super) fn set(vcpu: &VcpuFd, id: usize, bytes: &[u8]) -> Result<(), VcpuStateError> {
    let mut area = Box::new(Area([0; LONGEST]));
    let expected = LONGEST;
    let place = area.0.get_mut(..bytes.len());
    let place = place.ok_or(VcpuStateError::XsaveLength {
        id,
        found: bytes.len(),
        expected,
    })?;
    place.copy_from_slice(bytes);
    // SAFETY: the call reads the machine's area, which is not longer than `LONGEST` (see `get`), and checks what it reads.
    match unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_XSAVE, &raw const *area) } {
        0 => Ok(()),
        _ => Err(VcpuStateError::Kvm {
            id,
            verb: "take",
            what: "extended registers",
            source: kvm_ioctls::Error::last(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_area_is_as_long_as_what_is_in_it() {
        let mut area = [0; LONGEST];
        assert_eq!(trimmed(&area).len(), 4096);
        area[4095] = 1;
        assert_eq!(trimmed(&area).len(), 4096);
        area[4096] = 1;
        assert_eq!(trimmed(&area).len(), 8192);
        area[LONGEST - 1] = 1;
        assert_eq!(trimmed(&area).len(), LONGEST);
    }
}
