//! Registers and other state of threads.

use rouse_snapshot::model::{AltStack, Sched};

use super::subject::{Subject, thread};

const SYSCALL: [u8; 2] = [0x0f, 0x05];
const SS_DISABLE: i32 = 2;

/// Asserts that the threads, which are named after the numbers of their system calls, are about to make them.
fn assert_wound_back(subject: &Subject, calls: &[i64]) {
    let taken = subject.try_checkpoint(0).unwrap();
    for call in calls {
        let regs = thread(&taken, &call.to_string()).regs;
        assert_eq!(regs.rax as i64, *call, "thread in {call}");
        assert_eq!(
            subject.memory(regs.rip, 2).unwrap(),
            SYSCALL,
            "thread in {call}"
        );
    }
}

const SLEEPERS: &str = r#"
r, w = os.pipe()
a, b = socket.socketpair()
c, d = socket.socketpair()
epoll = select.epoll()
epoll.register(r, select.EPOLLIN)
poll = select.poll()
poll.register(r, select.POLLIN)
held = threading.Lock()
held.acquire()
timed = socket.socketpair()
timed[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 1000, 0))
class Timespec(ctypes.Structure):
    _fields_ = [("s", ctypes.c_long), ("ns", ctypes.c_long)]
spawn("230", time.sleep, 1000)
spawn("7", poll.poll, 1000000)
spawn("202", held.acquire, True, 1000)
spawn("232", epoll.poll, 1000)
spawn("45", a.recv, 10)
spawn("0", os.read, r, 1)
spawn("23", lambda: libc.select(0, None, None, None, ctypes.byref(Timespec(1000, 0))))
spawn("128", signal.sigtimedwait, [signal.SIGUSR2], 1000)
spawn("35", libc.nanosleep, ctypes.byref(Timespec(1000, 0)), None)
spawn("47", lambda: timed[0].recvmsg(10))
ready()
park()
"#;

/// What a thread of that name may sleep in: what the library makes of select and nanosleep differs between versions.
fn calls_of(name: &str) -> Vec<i64> {
    match name {
        "23" => vec![libc::SYS_select, libc::SYS_pselect6],
        "35" => vec![libc::SYS_nanosleep, libc::SYS_clock_nanosleep],
        number => number
            .parse()
            .map_or(vec![libc::SYS_pause], |number| vec![number]),
    }
}

#[test]
fn interrupted_calls_are_made_again() {
    let subject = Subject::start(SLEEPERS);
    subject.wait_until_each(|name, call| calls_of(name).contains(&call));
    let taken = subject.try_checkpoint(0).unwrap();
    assert_eq!(taken.snapshot.threads.len(), 11);
    for thread in &taken.snapshot.threads {
        let name = String::from_utf8_lossy(&thread.name);
        assert!(
            calls_of(&name).contains(&(thread.regs.rax as i64)),
            "{name}: {}",
            thread.regs.rax as i64
        );
        assert_eq!(
            subject.memory(thread.regs.rip, 2).unwrap(),
            SYSCALL,
            "{name}"
        );
    }
}

/// After a first interruption the kernel has replaced the number of the call by `restart_syscall`.
#[test]
fn calls_that_were_interrupted_before_are_made_again() {
    let subject = Subject::start(
        r#"
r, w = os.pipe()
poll = select.poll()
poll.register(r, select.POLLIN)
spawn("7", poll.poll, 1000000)
ready()
park()
"#,
    );
    subject.wait_until_in(&[libc::SYS_poll, libc::SYS_pause]);
    subject.signal(libc::SIGSTOP);
    subject.wait_until_state('T');
    subject.signal(libc::SIGCONT);
    subject.wait_until_in(&[libc::SYS_restart_syscall, libc::SYS_pause]);
    assert_wound_back(&subject, &[libc::SYS_poll]);
}

/// Two threads that are in what is named like the program of a restore. Neither gets out of it while the other stands still.
const IN_PROGRAM: &str = r#"
code = bytes.fromhex(
    "31c9"          #    xor ecx, ecx
    "48ffc1"        # 1: inc rcx
    "48890f"        #    mov [rdi], rcx
    "483b0a"        # 2: cmp rcx, [rdx]
    "7310"          #    jae 3
    "48390e"        #    cmp [rsi], rcx
    "73f0"          #    jae 1
    "51b8180000000f0559"  # sched_yield, rcx kept
    "ebeb"          #    jmp 2
    "c3"            # 3: ret
)
fd = libc.memfd_create(b"rouse-program", 0)
os.write(fd, code)
program = map_file(fd, 1, mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC)
os.close(fd)
one, other, limit = (ctypes.c_uint64(n) for n in (0, 0, 1 << 62))
run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(program)
address = ctypes.addressof
def inside(mine, other):
    run(mine, other, address(limit))
    park()
spawn("one", inside, address(one), address(other))
spawn("other", inside, address(other), address(one))
ready(address(one), address(limit))
park()
"#;

#[test]
fn threads_leave_the_program_of_a_restore_together() {
    let subject = Subject::start(IN_PROGRAM);
    subject.wait_until_in(&[libc::SYS_pause]);
    let word = |address| {
        let bytes = subject.memory(address, 8).unwrap();
        u64::from_le_bytes(bytes.try_into().unwrap())
    };
    let (one, limit) = (subject.number(0), subject.number(1));
    while word(one) == 0 {
        std::thread::yield_now();
    }
    // From here on they take some 10,000 turns until they leave.
    let end = word(one) + 10_000;
    subject.write_memory(limit, &end.to_le_bytes());
    let taken = subject.try_checkpoint(0).unwrap();
    assert_eq!(taken.snapshot.threads.len(), 3);
    assert!(word(one) >= end);
}

#[test]
fn a_process_that_a_signal_has_stopped_is_read_as_well() {
    let subject = Subject::start("spawn('230', time.sleep, 1000); ready(); park()");
    subject.wait_until_in(&[libc::SYS_clock_nanosleep, libc::SYS_pause]);
    subject.signal(libc::SIGSTOP);
    subject.wait_until_state('T');
    assert_wound_back(&subject, &[libc::SYS_clock_nanosleep]);
}

#[test]
fn a_computing_thread_is_where_it_was() {
    let subject = Subject::start(
        r#"
def count():
    n = 0
    while True:
        n += 1
spawn("count", count)
ready()
park()
"#,
    );
    let taken = subject.checkpoint();
    let regs = thread(&taken, "count").regs;
    assert_eq!(
        taken.snapshot.threads[0].regs.rax as i64,
        libc::SYS_pause,
        "the leader is the first"
    );
    assert!(subject.memory(regs.rip, 1).is_some());
    assert_ne!(regs.fs_base, taken.snapshot.threads[0].regs.fs_base);
}

#[test]
fn state_of_a_thread() {
    let subject = Subject::start(
        r#"
import faulthandler
faulthandler.enable()
libc.prctl(1, signal.SIGUSR1, 0, 0, 0)
def work():
    signal.pthread_sigmask(signal.SIG_SETMASK, [signal.SIGUSR1, signal.SIGRTMIN + 3])
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 7)
    libc.prctl(29, 12345, 0, 0, 0)
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
    ready()
    park()
spawn("worker", work)
park()
"#,
    );
    subject.wait_until_in(&[libc::SYS_pause, libc::SYS_pause]);
    let taken = subject.checkpoint();
    let leader = &taken.snapshot.threads[0];
    let worker = thread(&taken, "worker");
    let bit = |signal: i32| 1u64 << (signal - 1);
    assert_eq!(
        worker.signal_mask,
        bit(libc::SIGUSR1) | bit(libc::SIGRTMIN() + 3)
    );
    assert_eq!(leader.signal_mask, 0);
    assert_eq!(
        worker.sched,
        Sched {
            policy: 0,
            nice: 7,
            priority: 0
        }
    );
    assert_eq!((worker.timer_slack_ns, leader.timer_slack_ns), (12345, 0));
    assert_eq!(
        (worker.parent_death_signal, leader.parent_death_signal),
        (0, libc::SIGUSR1)
    );
    assert_eq!(worker.pending.len(), 1);
    assert_eq!(
        i32::from_le_bytes(*worker.pending[0].first_chunk().unwrap()),
        libc::SIGUSR1
    );
    assert!(leader.alt_stack.sp != 0 && leader.alt_stack.size > 0 && leader.alt_stack.flags == 0);
    assert_eq!(
        worker.alt_stack,
        AltStack {
            sp: 0,
            flags: SS_DISABLE,
            size: 0
        }
    );
    for thread in [leader, worker] {
        assert_eq!(
            thread.rseq.unwrap().signature,
            0x5305_3053,
            "glibc registers rseq"
        );
        assert!(thread.robust_list.0 != 0 && thread.robust_list.1 == 24);
        assert_ne!(thread.clear_child_tid, 0);
        assert_eq!(thread.xsave.len(), taken.snapshot.host.xsave_len as usize);
    }
    assert_eq!(
        taken.snapshot.host,
        rouse_process::checkpoint::fingerprint().unwrap()
    );
}

#[test]
fn many_threads_that_come_and_go_are_all_stopped() {
    let subject = Subject::start(
        r#"
def churn():
    while True:
        thread = threading.Thread(target=time.sleep, args=(0.0001,))
        thread.start()
        thread.join()
for n in range(8):
    spawn("churn", churn)
ready()
park()
"#,
    );
    let taken = subject.checkpoint();
    assert!(taken.snapshot.threads.len() >= 9);
    let still_running = std::fs::read_dir(format!("/proc/{}/task", subject.pid))
        .unwrap()
        .count();
    assert_eq!(still_running, taken.snapshot.threads.len());
}
