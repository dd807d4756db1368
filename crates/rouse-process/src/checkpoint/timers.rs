//! Interval timers and POSIX timers.

use rouse_snapshot::model::{IntervalTimer, PosixTimer};

use super::error::{CheckpointError, Obstacle, Subject};
use super::inject::{Remote, RemoteThread};
use super::proc_files;

/// `MAKE_PROCESS_CPUCLOCK(0, CPUCLOCK_SCHED)`.
const OWN_CPU_CLOCK: i32 = (!0 << 3) | 2;

/// `ITIMER_REAL`, `ITIMER_VIRTUAL`, `ITIMER_PROF`.
pub(super) fn interval_timers(
    remote: &Remote<'_>,
    leader: &RemoteThread<'_>,
) -> Result<[IntervalTimer; 3], CheckpointError> {
    let mut timers = [IntervalTimer::default(); 3];
    for (which, timer) in (0u64..).zip(&mut timers) {
        leader.call("getitimer", libc::SYS_getitimer, &[which, remote.scratch()])?;
        // struct itimerval: interval, then value, each seconds and microseconds.
        let [interval, value] = pairs(&remote.result()?, 1_000_000);
        *timer = IntervalTimer {
            value_us: value,
            interval_us: interval,
        };
    }
    Ok(timers)
}

/// Timers of `timer_create`. `threads` are pairs of thread ids, on the host and in the sandbox.
pub(super) fn posix_timers(
    pid: i32,
    remote: &Remote<'_>,
    leader: &RemoteThread<'_>,
    threads: &[(i32, i32)],
) -> Result<Vec<PosixTimer>, CheckpointError> {
    let text = proc_files::read_text(pid, "timers")?;
    let mut timers = parse(&text).ok_or_else(|| CheckpointError::Format {
        path: format!("/proc/{pid}/timers"),
        what: "list of timers",
    })?;
    for timer in &mut timers {
        let obstacle =
            |reason: &str| CheckpointError::from(Obstacle::new(Subject::Timer(timer.id), reason));
        // The kernel keeps the process's own CPU clock in the form that holds a process id, 0.
        if timer.clock == OWN_CPU_CLOCK {
            timer.clock = libc::CLOCK_PROCESS_CPUTIME_ID;
        }
        if timer.clock < 0 {
            return Err(obstacle(
                "runs on the CPU clock of one thread, or of another process",
            ));
        }
        if timer.notify_tid != 0 {
            let target = threads.iter().find(|(host, _)| *host == timer.notify_tid);
            timer.notify_tid = target
                .ok_or_else(|| obstacle("notifies a thread that has ended"))?
                .1;
        }
        leader.call(
            "timer_gettime",
            libc::SYS_timer_gettime,
            &[timer.id as u64, remote.scratch()],
        )?;
        let [interval, value] = pairs(&remote.result()?, 1_000_000_000);
        timer.interval_ns = interval;
        timer.remaining_ns = value;
    }
    timers.sort_by_key(|timer| timer.id);
    Ok(timers)
}

/// Two times, each of seconds and a fraction.
fn pairs(bytes: &[u8; 32], fractions: u64) -> [u64; 2] {
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|index| bytes[at * 8 + index]));
    [
        word(0).saturating_mul(fractions) + word(1),
        word(2).saturating_mul(fractions) + word(3),
    ]
}

/// Four lines a timer: `ID: 0`, `signal: 60/00007fff86e452a8`, `notify: signal/pid.2634`, `ClockID: 0`.
/// Without the times, and with the thread's id on the host.
fn parse(text: &str) -> Option<Vec<PosixTimer>> {
    let mut timers: Vec<PosixTimer> = Vec::new();
    for line in text.lines() {
        let (key, value) = line.split_once(": ")?;
        if key == "ID" {
            timers.push(PosixTimer {
                id: value.parse().ok()?,
                clock: 0,
                notify: 0,
                signal: 0,
                value: 0,
                notify_tid: 0,
                remaining_ns: 0,
                interval_ns: 0,
            });
            continue;
        }
        let timer = timers.last_mut()?;
        match key {
            "signal" => {
                let (signal, pointer) = value.split_once('/')?;
                timer.signal = signal.parse().ok()?;
                timer.value = u64::from_str_radix(pointer, 16).ok()?;
            }
            "notify" => {
                let (how, target) = value.split_once('/')?;
                timer.notify = match how {
                    "signal" => libc::SIGEV_SIGNAL,
                    "none" => libc::SIGEV_NONE,
                    "thread" => libc::SIGEV_THREAD,
                    _ => return None,
                };
                if let Some(tid) = target.strip_prefix("tid.") {
                    timer.notify |= libc::SIGEV_THREAD_ID;
                    timer.notify_tid = tid.parse().ok()?;
                }
            }
            "ClockID" => timer.clock = value.parse().ok()?,
            _ => {}
        }
    }
    Some(timers)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed step of a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn reads_the_list() {
        let text = "ID: 0\nsignal: 60/00007fff86e452a8\nnotify: signal/pid.2634\nClockID: 1\n\
                    ID: 7\nsignal: 32/0000000000000005\nnotify: signal/tid.2635\nClockID: -6\n";
        let timers = parse(text).unwrap();
        assert_eq!(timers.len(), 2);
        assert_eq!(
            (
                timers[0].id,
                timers[0].signal,
                timers[0].value,
                timers[0].clock
            ),
            (0, 60, 0x7fff_86e4_52a8, 1)
        );
        assert_eq!(
            (timers[0].notify, timers[0].notify_tid),
            (libc::SIGEV_SIGNAL, 0)
        );
        assert_eq!(
            (timers[1].notify, timers[1].notify_tid, timers[1].clock),
            (libc::SIGEV_THREAD_ID, 2635, -6)
        );
        assert_eq!(parse(""), Some(vec![]));
        assert_eq!(parse("signal: 60/0\n"), None);
    }
}
