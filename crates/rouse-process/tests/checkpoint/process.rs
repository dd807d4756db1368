//! State of the process as a whole.

use rouse_snapshot::model::{IntervalTimer, PosixTimer};

use super::subject::Subject;

#[test]
fn signals_limits_and_names() {
    let subject = Subject::start(
        r#"
import resource
os.chdir("/usr/lib")
os.umask(0o027)
resource.setrlimit(resource.RLIMIT_NOFILE, (123, 456))
libc.prctl(36, 1, 0, 0, 0)
libc.prctl(41, 1, 0, 0, 0)
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.signal(signal.SIGUSR2, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
os.kill(os.getpid(), signal.SIGTERM)
ready(os.getpid())
park()
"#,
    );
    let taken = subject.checkpoint();
    let process = &taken.snapshot.process;
    assert_eq!(process.cwd, b"/usr/lib");
    assert_eq!(process.umask, 0o027);
    assert!(process.rlimits.contains(&(libc::RLIMIT_NOFILE, 123, 456)));
    assert!(process.child_subreaper && process.thp_disable);
    assert_eq!(process.dumpable, 1);
    let action = |signal: i32| {
        process
            .signal_actions
            .iter()
            .find(|action| action.signal == signal as u32)
    };
    let caught = action(libc::SIGUSR1).unwrap();
    assert!(
        caught.handler > 1 && caught.restorer > 0 && caught.flags & 0x0400_0000 != 0,
        "{caught:?}"
    );
    assert_eq!(action(libc::SIGUSR2).unwrap().handler, 1);
    assert!(action(libc::SIGTERM).is_none());
    assert_eq!(process.pending.len(), 1);
    assert_eq!(
        i32::from_le_bytes(*process.pending[0].first_chunk().unwrap()),
        libc::SIGTERM
    );
    let exe = &taken.snapshot.files[process.exe.0 as usize];
    assert!(exe.path.starts_with(b"/usr/bin/python3"));
    let fields = process.mm.fields;
    assert!(fields.start_code < fields.end_code && fields.start_brk < fields.brk);
    let stack = taken
        .snapshot
        .mappings
        .iter()
        .find(|mapping| mapping.range.contains(&fields.start_stack))
        .unwrap();
    assert!(stack.range.contains(&fields.arg_start) && stack.range.contains(&(fields.env_end - 1)));
    let arguments = subject.memory(fields.arg_start, 16).unwrap();
    assert!(arguments.starts_with(b"/usr/bin/python3"));
    assert!(process.mm.auxv.len() > 16 && process.monotonic_ns > 0 && process.boottime_ns > 0);
}

#[test]
fn timers() {
    let subject = Subject::start(
        r#"
signal.setitimer(signal.ITIMER_REAL, 1000.5, 3)
signal.setitimer(signal.ITIMER_PROF, 2000)
class Event(ctypes.Structure):
    _fields_ = [("value", ctypes.c_long), ("signo", ctypes.c_int), ("notify", ctypes.c_int), ("tid", ctypes.c_int), ("pad", ctypes.c_byte * 44)]
def create(clock, event):
    timer = ctypes.c_int()
    syscall(222, clock, ctypes.byref(event), ctypes.byref(timer))
    return timer.value
deleted = create(1, Event(1, signal.SIGUSR1, 0))
first = create(1, Event(0x1122334455667788, signal.SIGRTMIN + 1, 0))
second = create(0, Event(2, signal.SIGUSR2, 4, threading.get_native_id()))
third = create(2, Event(3, 0, 1))
syscall(226, deleted)
syscall(223, first, 0, (ctypes.c_long * 4)(5, 6, 1000, 0), 0)
ready(first, second, third)
park()
"#,
    );
    let taken = subject.checkpoint();
    let process = &taken.snapshot.process;
    let [real, virtual_time, profile] = process.interval_timers;
    assert_eq!(real.interval_us, 3_000_000);
    assert!(real.value_us > 0 && real.value_us <= 1_000_500_000);
    assert_eq!(virtual_time, IntervalTimer::default());
    assert!(profile.value_us > 0 && profile.interval_us == 0);
    let timers = &process.posix_timers;
    assert_eq!(
        timers
            .iter()
            .map(|timer| timer.id as u64)
            .collect::<Vec<_>>(),
        [0, 1, 2].map(|at| subject.number(at))
    );
    assert!(timers[0].remaining_ns > 0 && timers[0].remaining_ns <= 1000 * 1_000_000_000);
    let without_time = |timer: &PosixTimer| PosixTimer {
        remaining_ns: 0,
        ..*timer
    };
    let expected = PosixTimer {
        id: timers[0].id,
        clock: 1,
        notify: 0,
        signal: libc::SIGRTMIN() + 1,
        value: 0x1122_3344_5566_7788,
        notify_tid: 0,
        remaining_ns: 0,
        interval_ns: 5_000_000_006,
    };
    assert_eq!(without_time(&timers[0]), expected);
    assert_eq!(
        (
            timers[1].notify,
            timers[1].notify_tid,
            timers[1].remaining_ns
        ),
        (4, subject.pid, 0)
    );
    assert_eq!(
        (timers[2].notify, timers[2].clock, timers[2].value),
        (1, 2, 3)
    );
}

#[test]
fn a_missing_api_connection_is_an_error() {
    let subject = Subject::start("ready(); park()");
    let error = subject.try_checkpoint(4242).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no connection from port 4242 to the runtime API is open"
    );
}

#[test]
fn a_process_that_has_ended_is_gone() {
    let subject = Subject::start("ready()");
    subject.signal(libc::SIGKILL);
    // Not waited for yet: it is a zombie, or about to be one.
    subject.wait_until_state('Z');
    let target_log = std::fs::metadata(format!("/proc/{}/fd/1", subject.pid));
    assert!(target_log.is_err());
    let error =
        rouse_process::checkpoint::checkpoint(&rouse_process::checkpoint::CheckpointTarget {
            pid: subject.pid,
            init_pid: 0,
            api_client_port: 0,
            log_inode: 0,
            host_path: &|_| None,
            baseline_rlimits: &[],
            lineage: &[],
            specimen: None,
            costs: Default::default(),
            afterwards: rouse_process::checkpoint::Afterwards::Ends,
        })
        .unwrap_err();
    assert_eq!(error.to_string(), "the process ended before it was stopped");
}

#[test]
fn children_are_obstacles() {
    let subject = Subject::start(
        r#"
import subprocess
child = subprocess.Popen(["/usr/bin/sleep", "1000"], stdout=subprocess.DEVNULL)
# It gets its name at the end of execve, when its parent goes on already.
while open(f"/proc/{child.pid}/comm").read() != "sleep\n":
    time.sleep(0.001)
# It dies with its parent.
ready(child.pid)
park()
"#,
    );
    let child = subject.number(0) as i32;
    let obstacle = subject.obstacle();
    // SAFETY: kill takes plain numbers; the stopped parent has not waited for its child, so the id is the child's.
    unsafe { libc::kill(child, libc::SIGKILL) };
    assert_eq!(
        obstacle,
        format!("process {child} (sleep): child processes cannot be snapshotted")
    );
}

#[test]
fn a_main_thread_that_has_ended_is_an_obstacle() {
    let subject = Subject::start(
        r#"
spawn("worker", park)
ready()
libc.pthread_exit(None)
"#,
    );
    subject.wait_until_in(&[libc::SYS_pause]);
    subject.wait_until_state('Z');
    let pid = subject.pid;
    let log = rouse_process::checkpoint::checkpoint(&rouse_process::checkpoint::CheckpointTarget {
        pid,
        init_pid: 0,
        api_client_port: 0,
        log_inode: 0,
        host_path: &|_| None,
        baseline_rlimits: &[],
        lineage: &[],
        specimen: None,
        costs: Default::default(),
        afterwards: rouse_process::checkpoint::Afterwards::Ends,
    });
    assert_eq!(
        log.unwrap_err().to_string(),
        format!("thread {pid} (python3): the main thread has ended before the others")
    );
}
