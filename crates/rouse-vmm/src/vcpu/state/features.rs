//! CPUID, between KVM's form and a snapshot's.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use rouse_snapshot::model::CpuidEntry;

fn entry(entry: &kvm_cpuid_entry2) -> CpuidEntry {
    CpuidEntry {
        function: entry.function,
        index: entry.index,
        flags: entry.flags,
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
    }
}

/// All entries.
pub fn entries(cpuid: &CpuId) -> Vec<CpuidEntry> {
    cpuid.as_slice().iter().map(entry).collect()
}

pub(super) fn cpuid(entries: &[CpuidEntry]) -> CpuId {
    let entries: Vec<_> = entries
        .iter()
        .map(|entry| kvm_cpuid_entry2 {
            function: entry.function,
            index: entry.index,
            flags: entry.flags,
            eax: entry.eax,
            ebx: entry.ebx,
            ecx: entry.ecx,
            edx: entry.edx,
            ..Default::default()
        })
        .collect();
    CpuId::from_entries(&entries).expect("a validated snapshot has no more than KVM takes")
}
