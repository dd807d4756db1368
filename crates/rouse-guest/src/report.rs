//! What a guest can say of its machine.

use std::fs;
use std::thread;

/// One line: the kernel, the processors, the memory in MiB, and where time comes from.
///
/// # Errors
/// A sentence, if the kernel does not show one of them.
pub fn machine() -> Result<String, String> {
    let release = rustix::system::uname();
    let processors = thread::available_parallelism()
        .map_err(|error| format!("cannot count the processors: {error}"))?;
    let memory = memory_mib(&read("/proc/meminfo")?)
        .ok_or_else(|| "the kernel does not tell its memory".to_owned())?;
    let clock = read("/sys/devices/system/clocksource/clocksource0/current_clocksource")?;
    Ok(format!(
        "Linux {}, {processors} processors, {memory} MiB, clock {}",
        release.release().to_string_lossy(),
        clock.trim()
    ))
}

fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}"))
}

/// From the first line of `/proc/meminfo`.
fn memory_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_is_read_from_its_line() {
        assert_eq!(
            memory_mib("MemTotal:         489216 kB\nMemFree: 1 kB\n"),
            Some(477)
        );
        assert_eq!(memory_mib("MemTotal: many kB\n"), None);
        assert_eq!(memory_mib(""), None);
    }
}
