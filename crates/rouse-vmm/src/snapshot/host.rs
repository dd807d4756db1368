//! What ties a machine's snapshot to its host.
//!
//! Everything that a guest's kernel has made up its mind about must be the same: the features that KVM can offer, of which the
//! guest was told some, and KVM itself, which is a part of the kernel. Another kind of KVM keeps other state.

use std::path::Path;
use std::sync::OnceLock;

use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::Kvm;
use rouse_snapshot::model::MachineHost;

use crate::vcpu::state;

/// The modules that can be behind `/dev/kvm`.
const KINDS: [&str; 3] = ["kvm_amd", "kvm_intel", "kvm_pvm"];

/// A snapshot does not belong to this host.
#[derive(Debug, thiserror::Error)]
pub enum OtherHost {
    /// Another kernel.
    #[error("the snapshot was taken on kernel {found:?}, this one is {expected:?}")]
    Kernel {
        /// In the snapshot.
        found: String,
        /// Of this host.
        expected: String,
    },
    /// Another kind of KVM.
    #[error("the snapshot was taken with {found:?}, this host has {expected:?}")]
    Kvm {
        /// In the snapshot.
        found: String,
        /// Of this host.
        expected: String,
    },
    /// A processor that can do other things.
    #[error("the snapshot was taken on a processor with other features")]
    Cpu,
}

/// This host.
///
/// # Errors
/// If KVM does not tell what it can offer.
pub fn this_host(kvm: &Kvm) -> Result<MachineHost, kvm_ioctls::Error> {
    let name = rustix::system::uname();
    let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    let mut hasher = blake3::Hasher::new();
    for mut entry in state::entries(&supported) {
        // Leaves that tell which of the host's processors is asking.
        match entry.function {
            1 => entry.ebx &= 0x00ff_ffff,
            0xb | 0x1f => entry.edx = 0,
            0x8000_001e => {
                (entry.eax, entry.ebx, entry.ecx) = (0, entry.ebx & !0xff, entry.ecx & !0xff)
            }
            _ => {}
        }
        // What XSAVE takes depends on what the asking processor has switched on at that moment.
        if entry.function == 0xd {
            entry.ebx = 0;
        }
        for number in [
            entry.function,
            entry.index,
            entry.flags,
            entry.eax,
            entry.ebx,
            entry.ecx,
            entry.edx,
        ] {
            hasher.update(&number.to_le_bytes());
        }
    }
    Ok(MachineHost {
        kernel: format!(
            "{} {}",
            name.release().to_string_lossy(),
            name.version().to_string_lossy()
        ),
        kvm: kind().to_owned(),
        cpu: *hasher.finalize().as_bytes(),
    })
}

/// Which KVM this is. Looked up once: whoever is jailed sees no `/sys`, and has asked before.
pub fn kind() -> &'static str {
    static KIND: OnceLock<&str> = OnceLock::new();
    let find = || {
        let there = |kind: &&str| Path::new("/sys/module").join(kind).exists();
        KINDS.into_iter().find(there).unwrap_or("kvm")
    };
    KIND.get_or_init(find)
}

/// Does a snapshot belong to the host?
///
/// # Errors
/// What is different.
pub fn check(found: &MachineHost, expected: &MachineHost) -> Result<(), OtherHost> {
    if found.kvm != expected.kvm {
        return Err(OtherHost::Kvm {
            found: found.kvm.clone(),
            expected: expected.kvm.clone(),
        });
    }
    if found.kernel != expected.kernel {
        return Err(OtherHost::Kernel {
            found: found.kernel.clone(),
            expected: expected.kernel.clone(),
        });
    }
    match found.cpu == expected.cpu {
        true => Ok(()),
        false => Err(OtherHost::Cpu),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_host_is_named() {
        let host = MachineHost {
            kernel: "6.12 #1".into(),
            kvm: "kvm_amd".into(),
            cpu: [1; 32],
        };
        assert!(check(&host, &host).is_ok());
        let other = |change: fn(&mut MachineHost)| {
            let mut other = host.clone();
            change(&mut other);
            check(&host, &other).expect_err("it is another").to_string()
        };
        assert_eq!(
            other(|host| host.kvm = "kvm_intel".into()),
            "the snapshot was taken with \"kvm_amd\", this host has \"kvm_intel\""
        );
        assert!(other(|host| host.kernel.push('2')).contains("\"6.12 #12\""));
        assert!(other(|host| host.cpu[0] = 0).contains("other features"));
    }
}
