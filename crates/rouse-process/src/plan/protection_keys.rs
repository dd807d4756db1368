//! Memory protection keys: which are given out, and which memory is under one.
//!
//! Keys are made last of all memory: until then, everything may be written without a thought. What a thread may do with a
//! key is in its PKRU register, which comes with its other registers.
//!
//! The kernel hands out the lowest free number. So all numbers up to the highest one needed are taken, in order; memory
//! gets its keys; and the numbers that the function does not have are given back. Memory may be under such a key:
//! a program may give one back before it unmaps the memory.

use rouse_restorer::op::Op;
use rouse_snapshot::model::Mapping;

use super::Context;

impl Context<'_> {
    pub(super) fn protection_keys(&self, list: &mut Vec<Op>) {
        let mappings = &self.snapshot.mappings;
        let allocated = self.snapshot.process.protection_keys;
        let used = mappings.iter().fold(0, |keys, m| keys | 1_u16 << m.pkey);
        let Some(highest) = (allocated | used).checked_ilog2().filter(|key| *key > 0) else {
            return;
        };
        for key in 1..=highest {
            list.push(Op::syscall(libc::SYS_pkey_alloc, &[0, 0]).exact(key.into()));
        }
        let executable_only = mappings.iter().find(|m| self.is_executable_only(m));
        if let Some(Mapping { pkey, .. }) = executable_only {
            // The only free number, so that the kernel takes it.
            list.push(Op::syscall(libc::SYS_pkey_free, &[u64::from(*pkey)]));
        }
        for mapping in mappings.iter().filter(|m| m.pkey != 0) {
            let (start, len) = (mapping.range.start, mapping.range.end - mapping.range.start);
            let prot = u64::from(mapping.prot);
            list.push(match self.is_executable_only(mapping) {
                true => Op::syscall(libc::SYS_mprotect, &[start, len, prot]),
                false => {
                    let args = [start, len, prot, u64::from(mapping.pkey)];
                    Op::syscall(libc::SYS_pkey_mprotect, &args)
                }
            });
        }
        for key in (1..=highest).filter(|key| allocated & 1 << key == 0) {
            if executable_only.is_none_or(|mapping| mapping.pkey != key) {
                list.push(Op::syscall(libc::SYS_pkey_free, &[u64::from(key)]));
            }
        }
    }

    /// Memory that may be executed but not read: the kernel has a key of its own for that, which nobody is given.
    pub(super) fn is_executable_only(&self, mapping: &Mapping) -> bool {
        let allocated = self.snapshot.process.protection_keys;
        mapping.prot == libc::PROT_EXEC as u32
            && mapping.pkey != 0
            && allocated & 1 << mapping.pkey == 0
    }
}
