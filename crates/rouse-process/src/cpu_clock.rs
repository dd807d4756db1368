//! Processor time of another process, by its clock: one system call, nothing is parsed.

use std::io;
use std::time::Duration;

/// `CPUCLOCK_SCHED` of a whole process, see clock_getcpuclockid(3): the pid's complement above three bits of kind.
fn clock_of(pid: i32) -> libc::clockid_t {
    (!pid << 3) | 2
}

/// Processor time of all threads of a process, those that ended included. ESRCH or EINVAL when there is none.
pub(crate) fn cpu_time(pid: i32) -> io::Result<Duration> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes one `timespec` to the pointer, which is valid for that.
    if unsafe { libc::clock_gettime(clock_of(pid), &raw mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Ok(Duration::from_secs(seconds) + Duration::from_nanos(time.tv_nsec.unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_time_grows_and_a_process_that_is_not_there_has_none() {
        let own = i32::try_from(std::process::id()).expect("a pid");
        let before = cpu_time(own).expect("our own clock");
        let mut sum = 0u64;
        while cpu_time(own).expect("our own clock") == before {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(cpu_time(i32::MAX >> 3).is_err());
    }
}
