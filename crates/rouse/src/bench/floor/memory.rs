//! Memory of a process, from `/proc`.

use std::fs;
use std::io;

/// Memory of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Memory {
    /// Proportional set size, KiB: pages divided by the number of processes that map them.
    pub pss_kib: u64,
    /// Unique set size, KiB: pages that only this process maps at this moment, clean ones of files included.
    pub uss_kib: u64,
    /// Pages that it has written and shares with nobody, KiB: what one more such process costs, also when others
    /// map the same files. For a forked child: what it copied.
    pub copied_kib: u64,
    /// Page faults that needed no input, since the process exists.
    pub minor_faults: u64,
}

impl Memory {
    /// Reads it for the process `pid`.
    pub fn of(pid: u32) -> io::Result<Self> {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let field = |name: &str| {
            field_kib(&rollup, name).ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("smaps_rollup has no {name}"),
                )
            })
        };
        let minor_faults = minor_faults(&stat).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "stat has no minor faults")
        })?;
        Ok(Self {
            pss_kib: field("Pss:")?,
            uss_kib: field("Private_Clean:")? + field("Private_Dirty:")?,
            copied_kib: field("Private_Dirty:")?,
            minor_faults,
        })
    }
}

fn field_kib(rollup: &str, name: &str) -> Option<u64> {
    let line = rollup.lines().find(|line| line.starts_with(name))?;
    line[name.len()..]
        .trim()
        .strip_suffix("kB")?
        .trim()
        .parse()
        .ok()
}

fn minor_faults(stat: &str) -> Option<u64> {
    // The name is in parentheses and may hold spaces and parentheses; field 10 is the eighth after it.
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(7)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_fields() {
        let rollup = "55d0 ---p 0 00:00 0 [rollup]\nRss:  9000 kB\nPss:  4321 kB\nPss_Dirty:  1 kB\nPrivate_Clean:  12 kB\nPrivate_Dirty:  340 kB\n";
        assert_eq!(field_kib(rollup, "Pss:"), Some(4321));
        assert_eq!(field_kib(rollup, "Private_Dirty:"), Some(340));
        assert_eq!(field_kib(rollup, "Swap:"), None);
        assert_eq!(
            minor_faults("42 (a) b) S 1 42 42 0 -1 4194304 577 0 3 0 1"),
            Some(577)
        );
    }

    #[test]
    fn reads_our_own() {
        let memory = Memory::of(std::process::id()).expect("own memory");
        assert!(memory.pss_kib >= memory.uss_kib && memory.uss_kib > 0 && memory.minor_faults > 0);
    }
}
