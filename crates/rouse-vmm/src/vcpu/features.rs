//! What a processor says it can do (CPUID), and the model-specific registers that a kernel expects set at its start.

use kvm_bindings::{CpuId, Msrs, kvm_cpuid_entry2, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::VcpuCount;

const IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs are on; what they do not name (all) is cached and written back.
const MTRR_ALL_WRITE_BACK: u64 = 1 << 11 | 6;

const BASIC: u32 = 1;
const TOPOLOGY: [u32; 2] = [0xb, 0x1f];
const AMD_FEATURES: u32 = 0x8000_0001;
const AMD_SIZES: u32 = 0x8000_0008;
const AMD_TOPOLOGY: u32 = 0x8000_001e;

/// A processor could not be configured.
#[derive(Debug, thiserror::Error)]
pub enum FeaturesError {
    /// KVM refuses the features.
    #[error("KVM refuses the features of processor {id}")]
    Cpuid {
        /// The processor.
        id: u8,
        /// Why.
        source: kvm_ioctls::Error,
    },
    /// KVM refuses registers.
    #[error("KVM refuses the model-specific registers of processor {id}")]
    Msrs {
        /// The processor.
        id: u8,
        /// Why.
        source: kvm_ioctls::Error,
    },
    /// KVM stopped at one of them.
    #[error("KVM refuses the model-specific register {msr:#x} of processor {id}")]
    Msr {
        /// The processor.
        id: u8,
        /// The register.
        msr: u32,
    },
}

/// Configures processor `id` of `count`. `supported` is what KVM can offer; `deadline`: it offers the timer that is set
/// to a value of the time-stamp counter, which that list leaves out.
pub fn configure(
    vcpu: &VcpuFd,
    id: u8,
    count: VcpuCount,
    supported: &CpuId,
    deadline: bool,
) -> Result<(), FeaturesError> {
    let mut cpuid = supported.clone();
    for entry in cpuid.as_mut_slice() {
        adapt(entry, id, count, deadline);
    }
    vcpu.set_cpuid2(&cpuid)
        .map_err(|source| FeaturesError::Cpuid { id, source })?;
    let wanted = [
        (IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        (IA32_MTRR_DEF_TYPE, MTRR_ALL_WRITE_BACK),
    ]
    .map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    });
    let msrs = Msrs::from_entries(&wanted).expect("two registers fit into a list");
    let set = vcpu
        .set_msrs(&msrs)
        .map_err(|source| FeaturesError::Msrs { id, source })?;
    match wanted.get(set) {
        Some(refused) => Err(FeaturesError::Msr {
            id,
            msr: refused.index,
        }),
        None => Ok(()),
    }
}

/// One entry, which KVM made of the host's processor it happened to run on, for this one of the guest.
fn adapt(entry: &mut kvm_cpuid_entry2, id: u8, count: VcpuCount, deadline: bool) {
    const VMX: u32 = 1 << 5;
    const SVM: u32 = 1 << 2;
    const TSC_DEADLINE: u32 = 1 << 24;
    const HYPERVISOR: u32 = 1 << 31;
    const SEVERAL: u32 = 1 << 28;
    let several = count.get() > 1;
    match entry.function {
        BASIC => {
            entry.ebx = entry.ebx & 0xffff | u32::from(id) << 24 | u32::from(count.get()) << 16;
            // A guest has no use for guests of its own, and their code is a large target.
            entry.ecx = entry.ecx & !VMX | HYPERVISOR;
            set(&mut entry.ecx, TSC_DEADLINE, deadline);
            set(&mut entry.edx, SEVERAL, several);
        }
        AMD_FEATURES => entry.ecx &= !SVM,
        function if TOPOLOGY.contains(&function) => {
            // One thread a core, all cores in one package.
            let (kind, shift, number) = match entry.index {
                0 => (1, 0, 1),
                1 => (2, id_bits(count), u32::from(count.get())),
                _ => (0, 0, 0),
            };
            entry.eax = shift;
            entry.ebx = number;
            entry.ecx = entry.index | kind << 8;
            entry.edx = u32::from(id);
        }
        AMD_SIZES => {
            entry.ecx = entry.ecx & !0xf0ff | id_bits(count) << 12 | (u32::from(count.get()) - 1);
        }
        AMD_TOPOLOGY => {
            entry.eax = u32::from(id);
            // One thread a core; one node.
            entry.ebx = u32::from(id);
            entry.ecx = 0;
        }
        _ => {}
    }
}

/// Bits in which the numbers of all processors differ.
fn id_bits(count: VcpuCount) -> u32 {
    u32::from(count.get()).next_power_of_two().trailing_zeros()
}

fn set(register: &mut u32, bits: u32, on: bool) {
    if on {
        *register |= bits;
    } else {
        *register &= !bits;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapted(function: u32, index: u32, id: u8, count: u8) -> kvm_cpuid_entry2 {
        let mut entry = kvm_cpuid_entry2 {
            function,
            index,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..Default::default()
        };
        let count = VcpuCount::new(count).expect("a possible number");
        adapt(&mut entry, id, count, true);
        entry
    }

    #[test]
    fn processors_have_their_own_numbers_and_cannot_nest() {
        let basic = adapted(BASIC, 0, 2, 3);
        assert_eq!(basic.ebx, 0x0203_ffff);
        assert_eq!((basic.ecx >> 5 & 1, basic.ecx >> 31), (0, 1));
        assert_eq!(adapted(AMD_FEATURES, 0, 0, 1).ecx >> 2 & 1, 0);
        assert_eq!(adapted(BASIC, 0, 0, 1).edx >> 28 & 1, 0);
    }

    #[test]
    fn all_processors_are_cores_of_one_package() {
        let (threads, cores, end) = (
            adapted(0xb, 0, 2, 3),
            adapted(0xb, 1, 2, 3),
            adapted(0xb, 2, 2, 3),
        );
        assert_eq!((threads.eax, threads.ebx, threads.ecx), (0, 1, 0x100));
        assert_eq!((cores.eax, cores.ebx, cores.ecx), (2, 3, 0x201));
        assert_eq!((end.eax, end.ebx, end.ecx, end.edx), (0, 0, 2, 2));
        assert_eq!(adapted(AMD_SIZES, 0, 0, 3).ecx & 0xf0ff, 0x2002);
    }
}
