//! What was spent: time by the clock, and processor time of processes.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// Milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Spent {
    /// By the clock.
    pub wall_ms: f64,
    /// Of processors, in all processes that took part.
    pub cpu_ms: f64,
}

/// Measures from when it was made.
#[derive(Debug, Clone)]
pub struct Meter {
    begin: Instant,
    cpu: Duration,
    /// Processes beside this one.
    others: Vec<u32>,
}

impl Meter {
    /// Begins, with the processor time of this process and of `others`.
    pub fn begin(others: &[u32]) -> io::Result<Self> {
        Ok(Self {
            cpu: cpu(others)?,
            others: others.to_vec(),
            begin: Instant::now(),
        })
    }

    /// What was spent since.
    pub fn read(&self) -> io::Result<Spent> {
        let wall = self.begin.elapsed();
        let cpu = cpu(&self.others)?.saturating_sub(self.cpu);
        Ok(Spent {
            wall_ms: wall.as_secs_f64() * 1e3,
            cpu_ms: cpu.as_secs_f64() * 1e3,
        })
    }
}

/// Processor time of this process and of others, whose threads must all live still.
fn cpu(others: &[u32]) -> io::Result<Duration> {
    let own = clock_gettime(ClockId::ProcessCPUTime);
    let mut sum = Duration::try_from(own).map_err(io::Error::other)?;
    for pid in others {
        sum += of_threads(*pid)?;
    }
    Ok(sum)
}

/// Time in a guest counts as time of the thread that runs it.
fn of_threads(pid: u32) -> io::Result<Duration> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(thread?.path().join("schedstat"))?;
        let nanoseconds = text.split(' ').next();
        let nanoseconds: Option<u64> = nanoseconds.and_then(|text| text.parse().ok());
        sum += nanoseconds.ok_or_else(|| io::Error::other("no time in schedstat"))?;
    }
    Ok(Duration::from_nanos(sum))
}

/// Where the processor time of this process went, milliseconds, as finely as the kernel counts it (10 ms).
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Split {
    /// In the guest.
    pub guest_ms: u64,
    /// In the VMM itself.
    pub vmm_ms: u64,
    /// In the host's kernel on its behalf: KVM, reads, faults.
    pub host_kernel_ms: u64,
}

impl Split {
    /// Until now.
    pub fn now() -> io::Result<Self> {
        Self::parse(&fs::read_to_string("/proc/self/stat")?)
            .ok_or_else(|| io::Error::other("/proc/self/stat is too short"))
    }

    /// Since `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            guest_ms: self.guest_ms.saturating_sub(before.guest_ms),
            vmm_ms: self.vmm_ms.saturating_sub(before.vmm_ms),
            host_kernel_ms: self.host_kernel_ms.saturating_sub(before.host_kernel_ms),
        }
    }

    /// Of `/proc/PID/stat`, whose second field may hold anything, but is the last one in parentheses.
    fn parse(stat: &str) -> Option<Self> {
        /// Of all Linux interfaces, 100 a second.
        const TICK_MS: u64 = 10;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        // Fields are numbered from 1; the third one is the first here.
        let field = |number: usize| Some(fields.get(number - 3)?.parse::<u64>().ok()? * TICK_MS);
        let (user, system, guest) = (field(14)?, field(15)?, field(43)?);
        Some(Self {
            guest_ms: guest,
            vmm_ms: user.saturating_sub(guest),
            host_kernel_ms: system,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_of_a_guest_is_no_time_of_the_vmm() {
        // 41 fields follow the name: from the state on.
        let fields: Vec<String> = (3..=52).map(|number| number.to_string()).collect();
        let stat = format!("1 (a) b) {}", fields.join(" "));
        let mut wanted = Split {
            guest_ms: 430,
            vmm_ms: 0,
            host_kernel_ms: 150,
        };
        assert_eq!(Split::parse(&stat), Some(wanted));
        wanted.vmm_ms = 70;
        assert_eq!(
            Split::parse(&stat.replacen(" 14 ", " 50 ", 1)),
            Some(wanted)
        );
        assert_eq!(Split::parse("1 (a) R 1 2"), None);
        assert!(Split::now().is_ok());
    }

    #[test]
    fn a_meter_sees_what_this_process_and_others_do() {
        let meter = Meter::begin(&[std::process::id()]).expect("it can be read");
        let before = meter.read().expect("it can be read");
        while meter.read().expect("it can be read").cpu_ms <= before.cpu_ms {}
    }
}
