//! The clocks of a process, which may live in a time namespace.

use std::fs;

use super::error::CheckpointError;
use super::proc_files;

/// `CLOCK_MONOTONIC` and `CLOCK_BOOTTIME` as the process sees them now, nanoseconds.
pub(super) fn now(pid: i32) -> Result<(u64, u64), CheckpointError> {
    let theirs = offsets(&proc_files::read_text(pid, "timens_offsets").unwrap_or_default());
    let own = offsets(&fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default());
    let read = |id: rustix::time::ClockId, offset: i128| {
        let time = rustix::time::clock_gettime(id);
        (i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec) + offset).max(0) as u64
    };
    Ok((
        read(rustix::time::ClockId::Monotonic, theirs.0 - own.0),
        read(rustix::time::ClockId::Boottime, theirs.1 - own.1),
    ))
}

/// One clock as the process sees it, nanoseconds: the clock of a timer that waits for a time.
pub(super) fn now_of(pid: i32, clock: i32) -> Result<u64, CheckpointError> {
    let (monotonic, boottime) = now(pid)?;
    Ok(match clock {
        libc::CLOCK_MONOTONIC => monotonic,
        libc::CLOCK_BOOTTIME | libc::CLOCK_BOOTTIME_ALARM => boottime,
        _ => {
            let time = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
            (i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)).max(0) as u64
        }
    })
}

/// Offsets of the two clocks to those of the host, nanoseconds. The file is missing where the kernel has no time namespaces.
fn offsets(text: &str) -> (i128, i128) {
    let of = |clock: &str| {
        text.lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .find(|fields| fields.first() == Some(&clock))
            .and_then(|fields| {
                Some(
                    fields.get(1)?.parse::<i128>().ok()? * 1_000_000_000
                        + fields.get(2)?.parse::<i128>().ok()?,
                )
            })
            .unwrap_or(0)
    };
    (of("monotonic"), of("boottime"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_offsets() {
        assert_eq!(
            offsets("monotonic           -2         5\nboottime             3         0\n"),
            (-1_999_999_995, 3_000_000_000)
        );
        assert_eq!(offsets(""), (0, 0));
    }
}
