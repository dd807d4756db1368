//! One thread.

/// One thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thread {
    /// Thread id in the sandbox's pid namespace.
    pub tid: i32,
    /// General registers, ready to be resumed: an interrupted system call is already wound back.
    pub regs: Registers,
    /// XSAVE area in standard (non-compacted) format, `HostFingerprint::xsave_len` bytes.
    pub xsave: Vec<u8>,
    /// Blocked signals.
    pub signal_mask: u64,
    /// Alternate signal stack.
    pub alt_stack: AltStack,
    /// Signals pending for this thread: raw `siginfo_t` (128 bytes each).
    pub pending: Vec<Vec<u8>>,
    /// Head and length of the robust futex list, 0 when not set.
    pub robust_list: (u64, u64),
    /// Registered restartable sequence area.
    pub rseq: Option<Rseq>,
    /// `set_tid_address` pointer, 0 when not set.
    pub clear_child_tid: u64,
    /// Name, at most 15 bytes.
    pub name: Vec<u8>,
    /// Scheduling policy, nice and real-time priority.
    pub sched: Sched,
    /// `PR_GET_PDEATHSIG`.
    pub parent_death_signal: i32,
    /// Timer slack in ns, 0 when default.
    pub timer_slack_ns: u64,
    /// `ioprio_get`, 0 when default.
    pub io_priority: u32,
    /// CPUs that it may run on, as `sched_setaffinity` takes them; empty when default.
    pub affinity: Vec<u8>,
}

/// x86-64 registers of a thread, in the order of `user_regs_struct` where that matters to nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "register names")]
pub struct Registers {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rip: u64,
    pub eflags: u64,
    pub rsp: u64,
    pub fs_base: u64,
    pub gs_base: u64,
}

/// `stack_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(
    missing_docs,
    reason = "named after the fields of stack_t, see sigaltstack(2)"
)]
pub struct AltStack {
    pub sp: u64,
    pub flags: i32,
    pub size: u64,
}

/// A registered rseq area.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "named after the arguments of rseq(2)")]
pub struct Rseq {
    pub address: u64,
    pub len: u32,
    pub signature: u32,
    pub flags: u32,
}

/// Scheduling parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(
    missing_docs,
    reason = "named after the fields of sched_attr, see sched_setattr(2)"
)]
pub struct Sched {
    pub policy: u32,
    pub nice: i32,
    pub priority: u32,
}
