//! What the threads of a process share.

use super::FileId;

/// State of the process that its threads share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessState {
    /// Executable, what `/proc/self/exe` must show.
    pub exe: FileId,
    /// Layout fields of the address space, as `PR_SET_MM_MAP` takes them.
    pub mm: MmLayout,
    /// Working directory, path in the sandbox.
    pub cwd: Vec<u8>,
    /// File mode creation mask.
    pub umask: u32,
    /// Signal actions that differ from the default.
    pub signal_actions: Vec<SignalAction>,
    /// Signals pending for the process: raw `siginfo_t` (128 bytes each).
    pub pending: Vec<Vec<u8>>,
    /// `ITIMER_REAL`, `ITIMER_VIRTUAL`, `ITIMER_PROF`, in microseconds left and interval.
    pub interval_timers: [IntervalTimer; 3],
    /// POSIX timers (`timer_create`).
    pub posix_timers: Vec<PosixTimer>,
    /// Resource limits that differ from those of a new sandbox: (resource, soft, hard).
    pub rlimits: Vec<(u32, u64, u64)>,
    /// `PR_GET_CHILD_SUBREAPER`.
    pub child_subreaper: bool,
    /// `PR_GET_THP_DISABLE`.
    pub thp_disable: bool,
    /// `PR_GET_DUMPABLE` (0 or 1).
    pub dumpable: u32,
    /// Protection keys that `pkey_alloc` has given out, one bit each; never bit 0.
    pub protection_keys: u16,
    /// `MEMBARRIER_CMD_REGISTER_*` bits, as `MEMBARRIER_CMD_GET_REGISTRATIONS` returns them.
    pub membarrier: u32,
    /// `CLOCK_MONOTONIC` of the function when it was stopped, nanoseconds.
    pub monotonic_ns: u64,
    /// `CLOCK_BOOTTIME` of the function when it was stopped, nanoseconds.
    pub boottime_ns: u64,
}

/// The fields of the kernel's `struct prctl_mm_map`, in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(
    missing_docs,
    reason = "named after the kernel's fields, see prctl(2) PR_SET_MM_MAP"
)]
pub struct MmFields {
    pub start_code: u64,
    pub end_code: u64,
    pub start_data: u64,
    pub end_data: u64,
    pub start_brk: u64,
    pub brk: u64,
    pub start_stack: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
}

/// Address-space layout: `prctl_mm_map` and the auxiliary vector.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MmLayout {
    /// The numeric fields.
    pub fields: MmFields,
    /// Raw contents of `/proc/self/auxv`.
    pub auxv: Vec<u8>,
}

/// A `sigaction` in the kernel's layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignalAction {
    /// Signal number, 1 to 64.
    pub signal: u32,
    /// Handler address, or 0 (`SIG_DFL`), 1 (`SIG_IGN`).
    pub handler: u64,
    /// `SA_*` flags, with `SA_RESTORER` as the program had set it.
    pub flags: u64,
    /// Restorer address.
    pub restorer: u64,
    /// Mask while the handler runs.
    pub mask: u64,
}

/// An interval timer, microseconds. All zero: not armed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IntervalTimer {
    /// Time to the next expiry.
    pub value_us: u64,
    /// Interval of repetition.
    pub interval_us: u64,
}

/// A POSIX timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PosixTimer {
    /// Kernel id, kept at restore.
    pub id: i32,
    /// Clock, `CLOCK_*`.
    pub clock: i32,
    /// `sigev_notify`; with `SIGEV_THREAD_ID` the target is `notify_tid`.
    pub notify: i32,
    /// Signal number.
    pub signal: i32,
    /// `sigev_value`.
    pub value: u64,
    /// Target thread for `SIGEV_THREAD_ID`, else 0.
    pub notify_tid: i32,
    /// Time to next expiry (ns); 0 means disarmed.
    pub remaining_ns: u64,
    /// Interval (ns).
    pub interval_ns: u64,
}
