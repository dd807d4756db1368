//! What ties a snapshot to the host that it was taken on.

use std::arch::x86_64::__cpuid_count;
use std::fs;

use rouse_snapshot::model::HostFingerprint;

use super::error::CheckpointError;
use super::mappings::{self, Vma};
use super::memory::Memory;

/// The fingerprint of this host, for comparison with that of a snapshot.
pub fn fingerprint() -> Result<HostFingerprint, CheckpointError> {
    let own_pid = std::process::id() as i32;
    let name = rustix::system::uname();
    let boot_id_path = "/proc/sys/kernel/random/boot_id";
    Ok(HostFingerprint {
        kernel: format!(
            "{} {}",
            name.release().to_string_lossy(),
            name.version().to_string_lossy()
        ),
        vdso: vdso_hash(&Memory::open(own_pid)?, &mappings::read(own_pid)?)?,
        cpu: cpu_hash(&read("/proc/cpuinfo")?),
        xsave_len: xsave_len(),
        boot_id: parse_uuid(&read(boot_id_path)?).ok_or_else(|| CheckpointError::Format {
            path: boot_id_path.to_owned(),
            what: "boot id",
        })?,
    })
}

/// BLAKE3 of the vDSO of a process; that of no bytes where it has none.
pub(super) fn vdso_hash(memory: &Memory, vmas: &[Vma]) -> Result<[u8; 32], CheckpointError> {
    let mut hasher = blake3::Hasher::new();
    for vma in vmas.iter().filter(|vma| vma.path == b"[vdso]") {
        hasher
            .update(&memory.read_vec(vma.range.start, (vma.range.end - vma.range.start) as usize)?);
    }
    Ok(*hasher.finalize().as_bytes())
}

fn cpu_hash(cpuinfo: &str) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    let first_processor = cpuinfo.split("\n\n").next().unwrap_or_default();
    for line in first_processor.lines() {
        let key = line.split(':').next().unwrap_or_default().trim_end();
        if matches!(
            key,
            "vendor_id" | "cpu family" | "model" | "model name" | "flags"
        ) {
            hasher.update(line.as_bytes());
            hasher.update(b"\n");
        }
    }
    *hasher.finalize().as_bytes()
}

/// Length of the standard XSAVE area for the features that the kernel has enabled, which is what ptrace uses.
fn xsave_len() -> u32 {
    __cpuid_count(0xd, 0).ebx
}

fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    (digits.len() == 32)
        .then(|| {
            u128::from_str_radix(&digits, 16)
                .ok()
                .map(u128::to_be_bytes)
        })
        .flatten()
}

fn read(path: &str) -> Result<String, CheckpointError> {
    fs::read_to_string(path).map_err(|source| CheckpointError::Read {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed step of a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_equal_to_itself() {
        let first = fingerprint().unwrap();
        assert_eq!(first, fingerprint().unwrap());
        assert_ne!(first.boot_id, [0; 16]);
        assert_ne!(first.vdso, *blake3::hash(b"").as_bytes());
    }

    #[test]
    fn only_model_and_features_of_the_cpu_count() {
        let with = |mhz: &str, flags: &str| {
            cpu_hash(&format!(
                "model\t\t: 207\ncpu MHz\t\t: {mhz}\nflags\t\t: {flags}\n\nmodel\t\t: 9\n"
            ))
        };
        assert_eq!(with("2000", "fpu avx"), with("1000", "fpu avx"));
        assert_ne!(with("2000", "fpu avx"), with("2000", "fpu"));
    }

    #[test]
    fn parses_boot_ids() {
        let id = parse_uuid("00112233-4455-6677-8899-aabbccddeeff\n").unwrap();
        assert_eq!(id[..3], [0x00, 0x11, 0x22]);
        assert_eq!(parse_uuid("0011"), None);
    }
}
