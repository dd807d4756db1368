//! Model-specific registers, as data.
//!
//! Which there are says KVM (`KVM_GET_MSR_INDEX_LIST`); those that set how memory is cached (MTRRs) it leaves out. A snapshot
//! comes from a file: only registers that this host knows are set, and `TSC_DEADLINE` last of all.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

/// `IA32_TSC`.
const TSC: u32 = 0x10;
/// `IA32_TSC_DEADLINE`.
const TSC_DEADLINE: u32 = 0x6e0;
/// `IA32_MTRR_DEF_TYPE`, variable ranges, fixed ranges.
const MTRRS: &[(u32, u32)] = &[(0x2ff, 1), (0x200, 16), (0x250, 1), (0x258, 2), (0x268, 8)];

/// Registers that a host may name and yet refuse to set, each with the reason why a guest does not miss them.
const MAY_BE_REFUSED: &[(u32, u32, &str)] = &[
    (
        0x3a,
        1,
        "IA32_FEATURE_CONTROL: says whether the firmware allows guests of its own, which this machine never does",
    ),
    (
        0xc001_0000,
        8,
        "AMD K7 performance counters: the host refuses them where it has switched its own off",
    ),
    (
        0xc001_0200,
        12,
        "AMD performance counters: as those of the K7",
    ),
    (
        0x186,
        8,
        "Intel performance event selection: refused without a virtual performance unit",
    ),
    (0xc1, 8, "Intel performance counters: as their selection"),
    (0x309, 4, "Intel fixed performance counters: likewise"),
    (0x38d, 3, "Intel control of performance counters: likewise"),
    (
        0xc000_0104,
        1,
        "TSC_RATIO of AMD: belongs to guests that nest, which this one is told it cannot",
    ),
    (
        0x40000000,
        0x200,
        "Hyper-V: no guest of this machine is told of it",
    ),
];

/// A register cannot be read or set.
#[derive(Debug, thiserror::Error)]
pub enum MsrError {
    /// KVM refuses the call.
    #[error("KVM refuses model-specific registers")]
    Call(#[source] kvm_ioctls::Error),
    /// KVM does not take the value of one.
    #[error("KVM refuses to set the model-specific register {0:#x}")]
    Refused(u32),
    /// The snapshot names one that this host does not know.
    #[error("the host does not know the model-specific register {0:#x}")]
    Unknown(u32),
}

/// The registers of this host, sorted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MsrList(Vec<u32>);

impl MsrList {
    /// What KVM names, and the MTRRs.
    ///
    /// # Errors
    /// If KVM does not tell.
    pub fn of(kvm: &Kvm) -> Result<Self, kvm_ioctls::Error> {
        let named = kvm.get_msr_index_list()?;
        Ok(Self::new(named.as_slice()))
    }

    fn new(named: &[u32]) -> Self {
        let mtrrs = MTRRS
            .iter()
            .flat_map(|(first, count)| *first..first + count);
        let mut all: Vec<u32> = named.iter().copied().chain(mtrrs).collect();
        all.sort_unstable();
        all.dedup();
        Self(all)
    }

    /// All registers that the processor gives, sorted.
    pub(super) fn save(&self, vcpu: &VcpuFd) -> Result<Vec<(u32, u64)>, MsrError> {
        let mut saved = Vec::with_capacity(self.0.len());
        let mut left = &self.0[..];
        while !left.is_empty() {
            let mut msrs = list(left.iter().map(|number| (*number, 0)));
            let given = vcpu.get_msrs(&mut msrs).map_err(MsrError::Call)?;
            let given = &msrs.as_slice()[..given.min(left.len())];
            saved.extend(given.iter().map(|entry| (entry.index, entry.data)));
            // The one behind them is not given for this processor: a feature that it has not.
            left = left.get(given.len() + 1..).unwrap_or_default();
        }
        keep_deadline(&mut saved);
        Ok(saved)
    }

    /// Sets all but `TSC_DEADLINE`.
    pub(super) fn restore(&self, vcpu: &VcpuFd, msrs: &[(u32, u64)]) -> Result<(), MsrError> {
        if let Some((unknown, _)) = msrs
            .iter()
            .find(|(number, _)| self.0.binary_search(number).is_err())
        {
            return Err(MsrError::Unknown(*unknown));
        }
        let wanted: Vec<(u32, u64)> = msrs
            .iter()
            .copied()
            .filter(|(number, _)| *number != TSC_DEADLINE)
            .collect();
        let mut left = &wanted[..];
        while !left.is_empty() {
            let set = vcpu
                .set_msrs(&list(left.iter().copied()))
                .map_err(MsrError::Call)?;
            let Some((refused, value)) = left.get(set) else {
                break;
            };
            // A register that is refused as zero keeps the value that it has from its beginning: zero.
            if *value != 0 && reason_to_miss(*refused).is_none() {
                return Err(MsrError::Refused(*refused));
            }
            left = &left[set + 1..];
        }
        Ok(())
    }
}

/// Sets `TSC_DEADLINE`.
pub(super) fn set_deadline(vcpu: &VcpuFd, msrs: &[(u32, u64)]) -> Result<(), MsrError> {
    let Some(deadline) = msrs.iter().find(|(number, _)| *number == TSC_DEADLINE) else {
        return Ok(());
    };
    match vcpu.set_msrs(&list([*deadline])).map_err(MsrError::Call)? {
        0 => Err(MsrError::Refused(TSC_DEADLINE)),
        _ => Ok(()),
    }
}

/// Why a guest does not miss a register that the host refuses to set.
fn reason_to_miss(msr: u32) -> Option<&'static str> {
    let (.., reason) = MAY_BE_REFUSED
        .iter()
        .find(|(first, count, _)| (*first..first + count).contains(&msr))?;
    Some(reason)
}

/// A timer that has fired while the processor was stopped shows as zero, which would mean that it is off. So it is set to
/// now, and fires again: that once too often does no harm, never would.
fn keep_deadline(msrs: &mut [(u32, u64)]) {
    let find = |wanted: u32| msrs.iter().position(|(number, _)| *number == wanted);
    if let (Some(tsc), Some(deadline)) = (find(TSC), find(TSC_DEADLINE))
        && msrs[deadline].1 == 0
    {
        msrs[deadline].1 = msrs[tsc].1;
    }
}

fn list(entries: impl IntoIterator<Item = (u32, u64)>) -> Msrs {
    let entries: Vec<_> = entries
        .into_iter()
        .map(|(index, data)| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        })
        .collect();
    Msrs::from_entries(&entries).expect("a host knows fewer registers than a list takes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sorted_and_has_the_mtrrs() {
        let list = MsrList::new(&[0x4b56_4d00, 0x10, 0x200]);
        assert!(list.0.is_sorted_by(|a, b| a < b));
        for number in [0x4b56_4d00, 0x10, 0x200, 0x20f, 0x2ff, 0x26f] {
            assert!(list.0.binary_search(&number).is_ok(), "{number:#x}");
        }
    }

    #[test]
    fn a_timer_that_has_fired_fires_again() {
        let mut msrs = [(TSC, 77), (TSC_DEADLINE, 0)];
        keep_deadline(&mut msrs);
        assert_eq!(msrs[1].1, 77);
        let mut msrs = [(TSC, 77), (TSC_DEADLINE, 99)];
        keep_deadline(&mut msrs);
        assert_eq!(msrs[1].1, 99);
    }

    #[test]
    fn only_named_registers_may_be_refused() {
        assert!(reason_to_miss(0x3a).is_some());
        assert!(reason_to_miss(0xc001_0201).is_some());
        // EFER, STAR, kvmclock, TSC.
        for msr in [0xc000_0080, 0xc000_0081, 0x4b56_4d01, TSC] {
            assert!(reason_to_miss(msr).is_none(), "{msr:#x}");
        }
    }
}
