//! Which protection keys a process has been given (`pkey_alloc`): the kernel shows those of mappings, but nowhere those
//! that are given out. Whether a key may be used is asked by using it where nothing is mapped.

use super::error::CheckpointError;
use super::inject::RemoteThread;
use super::mappings::Vma;

const PAGE: u64 = 4096;
/// The architecture has 16; number 0 is everybody's.
const KEYS: u16 = 16;

/// One bit for each key that was given out.
pub(super) fn allocated(leader: &RemoteThread<'_>, vmas: &[Vma]) -> Result<u16, CheckpointError> {
    // Below the first mapping, where the kernel lets nobody map.
    let nothing_there = vmas.first().map_or(0, |vma| vma.range.start);
    if !machine_has_keys() || nothing_there < PAGE {
        return Ok(0);
    }
    let mut keys = 0;
    for key in 1..KEYS {
        let protection = libc::PROT_NONE as u64;
        let arguments = [nothing_there - PAGE, PAGE, protection, u64::from(key)];
        let call = leader.call("pkey_mprotect", libc::SYS_pkey_mprotect, &arguments);
        match call {
            Err(CheckpointError::Remote { source, .. }) => match source.raw_os_error() {
                Some(libc::ENOMEM) => keys |= 1 << key,
                Some(libc::EINVAL) => {}
                // The program has a filter of its own against it, and thus no keys.
                _ => return Ok(0),
            },
            Err(error) => return Err(error),
            Ok(_) => {}
        }
    }
    Ok(keys)
}

/// `OSPKE`: the processor has protection keys, and the kernel uses them.
pub(super) fn machine_has_keys() -> bool {
    const OSPKE: u32 = 1 << 4;
    std::arch::x86_64::__cpuid_count(7, 0).ecx & OSPKE != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_says_what_the_kernel_says() {
        // SAFETY: no pointers; a key is given back at once.
        let key = unsafe { libc::syscall(libc::SYS_pkey_alloc, 0, 0) };
        if key >= 0 {
            // SAFETY: the key from above.
            unsafe { libc::syscall(libc::SYS_pkey_free, key) };
        }
        assert_eq!(machine_has_keys(), key >= 0);
    }
}
