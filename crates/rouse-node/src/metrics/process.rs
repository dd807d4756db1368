//! The node's own process, in the words of Prometheus' client libraries.

use std::fs;

use serde::Serialize;

/// What the kernel knows of this process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct ProcessUse {
    /// Processor time, seconds.
    pub cpu_s: f64,
    /// Resident memory, bytes.
    pub resident_bytes: u64,
    /// Address space, bytes.
    pub virtual_bytes: u64,
    /// Threads.
    pub threads: u64,
    /// Open file descriptors.
    pub open_fds: u64,
    /// When it was started, seconds since the epoch.
    pub start_time_s: f64,
}

impl ProcessUse {
    /// Looks at `/proc`. What cannot be read is 0.
    pub fn read() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let boot = fs::read_to_string("/proc/stat").unwrap_or_default();
        let boot_s = boot
            .lines()
            .find_map(|line| line.strip_prefix("btime ")?.trim().parse::<f64>().ok());
        Self {
            open_fds: fs::read_dir("/proc/self/fd").map_or(0, |fds| fds.count() as u64),
            ..Self::parse(&stat, boot_s.unwrap_or(0.0)).unwrap_or_default()
        }
    }

    /// `stat` is `/proc/PID/stat`. Its fields are counted from 1; the second is the name, which may hold anything.
    fn parse(stat: &str, boot_s: f64) -> Option<Self> {
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        Some(Self {
            cpu_s: (field(14)? + field(15)?) as f64 / ticks,
            threads: field(20)?,
            start_time_s: boot_s + field(22)? as f64 / ticks,
            virtual_bytes: field(23)?,
            resident_bytes: field(24)? * rustix::param::page_size() as u64,
            open_fds: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_found_behind_any_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 9 0 0 0 150 50 0 0 20 0 3 0 400 8192 2 184467 1";
        let found = ProcessUse::parse(stat, 1000.0).unwrap();
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        assert_eq!(found.cpu_s, 200.0 / ticks);
        assert_eq!((found.threads, found.virtual_bytes), (3, 8192));
        assert_eq!(found.start_time_s, 1000.0 + 400.0 / ticks);
        assert_eq!(found.resident_bytes, 2 * rustix::param::page_size() as u64);
        assert_eq!(ProcessUse::parse("7 (a", 0.0), None);
    }

    #[test]
    fn this_process_is_seen() {
        let found = ProcessUse::read();
        assert!(
            found.resident_bytes > 0 && found.threads > 0 && found.open_fds > 0,
            "{found:?}"
        );
        assert!(found.start_time_s > 1e9, "{found:?}");
    }
}
