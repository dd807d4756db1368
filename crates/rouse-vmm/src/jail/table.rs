//! What a jailed VMM may ask of the kernel, by kind of thread, each with the reason.

use rouse_pool::uffd::USERFAULTFD_IOC_NEW;

/// One system call.
#[derive(Debug)]
pub struct Rule {
    pub call: libc::c_long,
    pub only: Only,
    /// Why it is needed.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "read by people, and by the test that demands one")
    )]
    pub reason: &'static str,
}

/// With which arguments. Low halves are compared.
#[derive(Debug, Clone, Copy)]
pub enum Only {
    /// Any.
    Any,
    /// This argument is one of these.
    OneOf(u8, &'static [u64]),
    /// Of this argument, the masked bits are these.
    Masked(u8, u64, u64),
}

const fn rule(call: libc::c_long, only: Only, reason: &'static str) -> Rule {
    Rule { call, only, reason }
}

const fn any(call: libc::c_long, reason: &'static str) -> Rule {
    rule(call, Only::Any, reason)
}

/// The C library asks for these and has another way.
pub const ABSENT: &[libc::c_long] = &[
    // Its flags lie in memory, where no filter sees them; `clone` has them in a register.
    libc::SYS_clone3,
    // Sizes of stacks are asked by opening a file, which is not there.
    libc::SYS_openat,
    // `fstat` says the same.
    libc::SYS_statx,
];

/// `_IO(KVMIO, 0x80)`.
const KVM_RUN: u64 = 0xae80;
/// `_IOW(KVMIO, 0x8b, struct kvm_signal_mask)`.
const KVM_SET_SIGNAL_MASK: u64 = 0x4004_ae8b;
/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: u64 = 0xc060_6610;
/// `pthread_create`, and nothing that makes a process or a namespace.
const THREAD: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID) as u64;
const PROT_EXEC: u64 = libc::PROT_EXEC as u64;

const NO_CODE: Only = Only::Masked(2, PROT_EXEC, 0);

/// The main thread, and through it all others.
pub const VMM: &[Rule] = &[
    rule(
        libc::SYS_ioctl,
        Only::Masked(1, 0xff00, 0xae00),
        "all of KVM: the main thread makes, reads and sets the machine that it holds descriptors of",
    ),
    rule(
        libc::SYS_ioctl,
        Only::OneOf(1, &[USERFAULTFD_IOC_NEW, PAGEMAP_SCAN]),
        "guest memory is watched when it is restored, and asked what was written when it is put back",
    ),
    any(libc::SYS_recvmsg, "orders of whoever started the VMM"),
    any(libc::SYS_sendmsg, "answers to it, with the userfaultfd"),
    any(
        libc::SYS_read,
        "eventfds of devices, and the snapshot that it is given",
    ),
    any(libc::SYS_readv, "requests of devices in several pieces"),
    any(libc::SYS_pread64, "the snapshot, and blocks of a disk"),
    any(libc::SYS_preadv, "blocks of a disk in several pieces"),
    any(libc::SYS_write, "the console, and interrupts by eventfd"),
    any(libc::SYS_writev, "the console in several pieces"),
    any(
        libc::SYS_pwrite64,
        "pages of a snapshot, into a memory file",
    ),
    any(libc::SYS_close, "what a machine had, when it ends"),
    any(libc::SYS_fstat, "lengths of files that it is given"),
    rule(
        libc::SYS_newfstatat,
        Only::OneOf(3, &[libc::AT_EMPTY_PATH as u64]),
        "the same, as newer C libraries ask; no file is named",
    ),
    any(libc::SYS_lseek, "the snapshot that it is given"),
    any(libc::SYS_eventfd2, "interrupts of devices"),
    any(
        libc::SYS_memfd_create,
        "the pool of a snapshot that is taken",
    ),
    any(libc::SYS_ftruncate, "its length"),
    rule(
        libc::SYS_fcntl,
        Only::OneOf(
            1,
            &[
                libc::F_DUPFD_CLOEXEC as u64,
                libc::F_GETFD as u64,
                libc::F_SETFD as u64,
                libc::F_GETFL as u64,
                libc::F_ADD_SEALS as u64,
                libc::F_GET_SEALS as u64,
            ],
        ),
        "copies of eventfds, and seals of pools",
    ),
    rule(
        libc::SYS_mmap,
        NO_CODE,
        "guest memory, pools, stacks; nothing of it can be executed",
    ),
    rule(
        libc::SYS_mprotect,
        NO_CODE,
        "guard pages of stacks, and the heap",
    ),
    any(libc::SYS_munmap, "the same, given back"),
    any(libc::SYS_mremap, "the heap of this program"),
    any(libc::SYS_brk, "the heap of this program"),
    any(
        libc::SYS_madvise,
        "stacks that are given back, and guest memory that is put back",
    ),
    any(libc::SYS_futex, "locks, and threads that are waited for"),
    rule(
        libc::SYS_clone,
        Only::OneOf(0, &[THREAD]),
        "threads of processors and devices; no processes",
    ),
    any(libc::SYS_set_robust_list, "beginning of a thread"),
    any(libc::SYS_rseq, "beginning of a thread"),
    any(
        libc::SYS_sched_getaffinity,
        "beginning of a thread: where its stack is",
    ),
    rule(
        libc::SYS_prctl,
        Only::OneOf(
            0,
            &[
                libc::PR_SET_NAME as u64,
                libc::PR_SET_NO_NEW_PRIVS as u64,
                libc::PR_SET_VMA as u64,
            ],
        ),
        "names of threads, and a processor's own filter",
    ),
    rule(
        libc::SYS_seccomp,
        Only::OneOf(0, &[libc::SECCOMP_SET_MODE_FILTER as u64]),
        "a processor's own filter; filters can only forbid more",
    ),
    any(
        libc::SYS_sigaltstack,
        "Rust's guard against stack overflows",
    ),
    any(
        libc::SYS_rt_sigprocmask,
        "the signal that stops a processor",
    ),
    any(
        libc::SYS_rt_sigaction,
        "Rust's guard against stack overflows",
    ),
    any(libc::SYS_rt_sigreturn, "the end of a handler"),
    rule(
        libc::SYS_tgkill,
        Only::OneOf(0, &[1]),
        "stops processors: pid 1 of its own namespace is this process",
    ),
    any(libc::SYS_getpid, "whom to stop"),
    any(libc::SYS_gettid, "names of locks"),
    any(libc::SYS_sched_yield, "a lock that is about to be free"),
    rule(
        libc::SYS_socketpair,
        Only::OneOf(0, &[libc::AF_UNIX as u64]),
        "a connection of the guest, whose other end is handed to the supervisor",
    ),
    any(libc::SYS_recvfrom, "what the node sends to the guest"),
    rule(
        libc::SYS_sendto,
        Only::OneOf(4, &[0]),
        "what the guest sends to the node; to no address",
    ),
    any(libc::SYS_shutdown, "the guest has sent all"),
    any(libc::SYS_poll, "events of devices"),
    any(libc::SYS_epoll_create1, "events of devices"),
    any(libc::SYS_epoll_ctl, "events of devices"),
    any(libc::SYS_epoll_wait, "events of devices"),
    any(libc::SYS_epoll_pwait, "events of devices"),
    any(
        libc::SYS_clock_gettime,
        "where it is not answered without the kernel",
    ),
    any(libc::SYS_clock_nanosleep, "timers of devices"),
    any(libc::SYS_nanosleep, "timers of devices"),
    any(libc::SYS_restart_syscall, "a sleep that was interrupted"),
    any(
        libc::SYS_getrandom,
        "identities of machines, and keys of hash tables",
    ),
    any(libc::SYS_uname, "whether a snapshot belongs to this kernel"),
    any(libc::SYS_exit, "the end of a thread"),
    any(libc::SYS_exit_group, "the end of the VMM"),
];

/// The thread of a processor: where a guest's bugs are met first.
pub const VCPU: &[Rule] = &[
    rule(
        libc::SYS_ioctl,
        Only::OneOf(1, &[KVM_RUN, KVM_SET_SIGNAL_MASK]),
        "runs its guest",
    ),
    any(libc::SYS_read, "eventfds of devices"),
    any(libc::SYS_write, "the console, and interrupts by eventfd"),
    any(libc::SYS_writev, "the console in several pieces"),
    any(
        libc::SYS_close,
        "connections, when the guest resets their device",
    ),
    rule(
        libc::SYS_fcntl,
        Only::OneOf(1, &[libc::F_GETFD as u64]),
        "Rust asks whether a descriptor is open before it closes it, if it was built to check itself",
    ),
    rule(libc::SYS_mmap, NO_CODE, "the heap of this program"),
    rule(libc::SYS_mprotect, NO_CODE, "the heap of this program"),
    any(
        libc::SYS_munmap,
        "the heap, and the thread's stack for signals",
    ),
    any(libc::SYS_mremap, "the heap of this program"),
    any(libc::SYS_brk, "the heap of this program"),
    any(
        libc::SYS_madvise,
        "the heap, and the thread's stack at its end",
    ),
    any(libc::SYS_futex, "locks of devices"),
    any(libc::SYS_sched_yield, "a lock that is about to be free"),
    any(libc::SYS_sigaltstack, "the end of a thread"),
    any(libc::SYS_rt_sigprocmask, "the signal that stops it"),
    any(libc::SYS_rt_sigreturn, "the end of a handler"),
    rule(
        libc::SYS_tgkill,
        Only::OneOf(0, &[1]),
        "an abort says so to this process",
    ),
    any(libc::SYS_getpid, "an abort of this program"),
    any(libc::SYS_gettid, "an abort of this program"),
    any(
        libc::SYS_clock_gettime,
        "where it is not answered without the kernel",
    ),
    any(libc::SYS_restart_syscall, "a wait that was interrupted"),
    any(libc::SYS_exit, "the end of the thread"),
    any(libc::SYS_exit_group, "an abort of this program"),
];
