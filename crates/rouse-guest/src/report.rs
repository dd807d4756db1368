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
    let memory = kib(&read("/proc/meminfo")?, "MemTotal:")
        .map(|kib| kib / 1024)
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

/// The number in the line of `/proc/meminfo` that begins with `name`.
pub fn kib(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_is_read_from_its_line() {
        let meminfo = "MemTotal:         489216 kB\nMemFree: 1 kB\n";
        assert_eq!(kib(meminfo, "MemTotal:"), Some(489_216));
        assert_eq!(kib(meminfo, "MemFree:"), Some(1));
        assert_eq!(kib("MemTotal: many kB\n", "MemTotal:"), None);
        assert_eq!(kib("", "MemTotal:"), None);
    }
}
