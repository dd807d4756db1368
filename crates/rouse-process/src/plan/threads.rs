//! Signals, timers, threads, privileges, and the return into the function.

use rouse_restorer::op::Op;
use rouse_restorer::sigframe;
use rouse_snapshot::model::Thread;

use super::Context;

const ARCH_SET_GS: u64 = 0x1001;
const ARCH_SET_FS: u64 = 0x1002;
const PR_TIMER_CREATE_RESTORE_IDS: u64 = 77;
const SIGEV_THREAD_ID: i32 = 4;
pub(super) const SIGNAL_SET_LEN: u64 = 8;
/// Capabilities that the kernel knows, or more.
const CAPABILITIES: u64 = 48;
const IOPRIO_WHO_PROCESS: u64 = 1;
const SECCOMP_SET_MODE_FILTER: u64 = 1;
const SECCOMP_FILTER_FLAG_TSYNC: u64 = 1;
/// Timer slack that every process starts with, ns.
const DEFAULT_SLACK: u64 = 50_000;
/// Size of the first version of `struct clone_args` that has `set_tid`.
const CLONE_ARGS_SIZE: usize = 80;

impl Context<'_> {
    /// The rest of a process, up to its first own instruction. Constraints:
    /// - threads are made while the process still has the capability to choose their ids;
    /// - privileges are per thread, so each drops its own before it waits at the gate;
    /// - seccomp comes when all threads wait: one filter, put on all of them at once (TSYNC);
    ///   nothing after it may need a call that the filter denies;
    /// - timers start last, so that none expires before the function can see it; an instance that is parked waits before
    ///   that, so that none of its time passes either;
    /// - all signals stay blocked until `rt_sigreturn` sets the thread's own mask.
    pub(super) fn threads_and_resume(&mut self, list: &mut Vec<Op>) {
        let snapshot = self.snapshot;
        let leader = &snapshot.threads[0];
        let others = &snapshot.threads[1..];
        let arrived = self.builder.cell(0);
        let gate = self.builder.cell(0);

        if !self.is_rewound {
            list.push(Op::syscall(libc::SYS_setsid, &[]).ignore_error());
        }
        self.process_attributes(list);
        for thread in others {
            if let Some(head) = self.thread_heads.remove(&thread.tid) {
                let ops = self.thread_list(head, thread, arrived, gate);
                self.thread_lists.insert(thread.tid, ops);
                continue;
            }
            let ops = self.thread_list(Vec::new(), thread, arrived, gate);
            let args = self.clone_args(thread.tid);
            list.push(Op::spawn(args, CLONE_ARGS_SIZE as u64, ops));
        }
        if self.is_rewound {
            self.let_threads_on(list);
        }
        self.thread_state(list, leader);
        self.queue_signals(list);
        if !others.is_empty() {
            list.push(Op::wait_equal(arrived, others.len() as u32));
        }
        self.stamp(list);
        self.drop_user(list);
        die_with_parent(list, leader);
        list.push(Op::syscall(
            libc::SYS_prctl,
            &[
                libc::PR_SET_DUMPABLE as u64,
                u64::from(snapshot.process.dumpable),
                0,
                0,
                0,
            ],
        ));
        if !self.filtered_ahead && !self.is_rewound {
            self.seccomp(list);
        }
        self.stamp(list);
        self.report(list);
        if self.is_parked {
            self.park(list);
        }
        list.push(Op::syscall(libc::SYS_close, &[self.fds.control()]));
        self.start_timers(list);
        if !others.is_empty() {
            list.push(Op::add_and_wake(gate, 1));
        }
        let sp = self.frame(leader);
        list.push(Op::sigreturn(sp));
    }

    fn process_attributes(&mut self, list: &mut Vec<Op>) {
        let process = &self.snapshot.process;
        let cwd = self.builder.string(&process.cwd);
        list.push(Op::syscall(libc::SYS_chdir, &[cwd]));
        list.push(Op::syscall(libc::SYS_umask, &[u64::from(process.umask)]));
        if process.child_subreaper {
            list.push(Op::syscall(
                libc::SYS_prctl,
                &[libc::PR_SET_CHILD_SUBREAPER as u64, 1, 0, 0, 0],
            ));
        }
        for command in (0..u32::BITS).map(|bit| 1 << bit) {
            if process.membarrier & command != 0 {
                list.push(Op::syscall(libc::SYS_membarrier, &[u64::from(command)]));
            }
        }
        // What a new sandbox has is given to one that is rewound from outside: it may not raise its limits.
        let mut rlimits = match self.is_rewound {
            true => Vec::new(),
            false => self.environment.rlimits.clone(),
        };
        rlimits.extend_from_slice(&process.rlimits);
        for (resource, soft, hard) in rlimits {
            let limit = self.builder.words(&[soft, hard]);
            list.push(Op::syscall(
                libc::SYS_prlimit64,
                &[0, u64::from(resource), limit, 0],
            ));
        }
        for action in &process.signal_actions {
            let raw =
                self.builder
                    .words(&[action.handler, action.flags, action.restorer, action.mask]);
            let args = [u64::from(action.signal), raw, 0, SIGNAL_SET_LEN];
            list.push(Op::syscall(libc::SYS_rt_sigaction, &args));
        }
        if !self.filtered_ahead && !self.is_rewound {
            self.drop_groups(list);
        }
    }

    /// What can be given up before threads are made: groups, and the right to gain any.
    pub(super) fn drop_groups(&mut self, list: &mut Vec<Op>) {
        let gid = u64::from(self.environment.ids.1);
        list.push(Op::syscall(libc::SYS_setgroups, &[0, 0]));
        list.push(Op::syscall(libc::SYS_setresgid, &[gid, gid, gid]));
        list.push(Op::syscall(
            libc::SYS_prctl,
            &[libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0],
        ));
    }

    fn clone_args(&mut self, tid: i32) -> u64 {
        let tid = self.builder.cell(tid as u32);
        let flags = libc::CLONE_VM
            | libc::CLONE_FS
            | libc::CLONE_FILES
            | libc::CLONE_SIGHAND
            | libc::CLONE_THREAD
            | libc::CLONE_SYSVSEM;
        // flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size
        self.builder
            .words(&[flags as u64, 0, 0, 0, 0, 0, 0, 0, tid, 1])
    }

    /// What a thread that is not the leader runs; `list` is its beginning.
    fn thread_list(&mut self, mut list: Vec<Op>, thread: &Thread, arrived: u64, gate: u64) -> u64 {
        self.thread_state(&mut list, thread);
        self.drop_user(&mut list);
        die_with_parent(&mut list, thread);
        list.push(Op::add_and_wake(arrived, 1));
        list.push(Op::wait_equal(gate, 1));
        let sp = self.frame(thread);
        list.push(Op::sigreturn(sp));
        self.builder.list(&list)
    }

    /// What belongs to one thread and is not in its signal frame.
    fn thread_state(&mut self, list: &mut Vec<Op>, thread: &Thread) {
        if self.is_rewound {
            reset_thread(list);
        }
        if thread.regs.fs_base != 0 {
            list.push(Op::syscall(
                libc::SYS_arch_prctl,
                &[ARCH_SET_FS, thread.regs.fs_base],
            ));
        }
        if thread.regs.gs_base != 0 {
            list.push(Op::syscall(
                libc::SYS_arch_prctl,
                &[ARCH_SET_GS, thread.regs.gs_base],
            ));
        }
        list.push(Op::syscall(
            libc::SYS_set_tid_address,
            &[thread.clear_child_tid],
        ));
        let (head, len) = thread.robust_list;
        if head != 0 {
            list.push(Op::syscall(libc::SYS_set_robust_list, &[head, len]));
        }
        if let Some(rseq) = &thread.rseq {
            let args = [
                rseq.address,
                u64::from(rseq.len),
                u64::from(rseq.flags),
                u64::from(rseq.signature),
            ];
            list.push(Op::syscall(libc::SYS_rseq, &args));
        }
        let name = self.builder.string(&thread.name);
        list.push(Op::syscall(
            libc::SYS_prctl,
            &[libc::PR_SET_NAME as u64, name, 0, 0, 0],
        ));
        if thread.sched.policy != 0 {
            let parameter = self.builder.words(&[u64::from(thread.sched.priority)]);
            list.push(Op::syscall(
                libc::SYS_sched_setscheduler,
                &[0, u64::from(thread.sched.policy), parameter],
            ));
        }
        if thread.sched.nice != 0 {
            let args = [
                libc::PRIO_PROCESS as u64,
                0,
                thread.sched.nice as i64 as u64,
            ];
            list.push(Op::syscall(libc::SYS_setpriority, &args));
        }
        if thread.timer_slack_ns != 0 && thread.timer_slack_ns != DEFAULT_SLACK {
            list.push(Op::syscall(
                libc::SYS_prctl,
                &[
                    libc::PR_SET_TIMERSLACK as u64,
                    thread.timer_slack_ns,
                    0,
                    0,
                    0,
                ],
            ));
        }
        if thread.io_priority != 0 {
            let args = [IOPRIO_WHO_PROCESS, 0, u64::from(thread.io_priority)];
            list.push(Op::syscall(libc::SYS_ioprio_set, &args));
        }
        if !thread.affinity.is_empty() {
            let set = self.builder.bytes(&thread.affinity, 8);
            let args = [0, thread.affinity.len() as u64, set];
            // The sandbox may by now be confined to other CPUs.
            list.push(Op::syscall(libc::SYS_sched_setaffinity, &args).ignore_error());
        }
        for info in &thread.pending {
            let info_at = self.builder.bytes(info, 8);
            let pid = self.snapshot.threads[0].tid as u64;
            let signal = signal_of(info);
            list.push(Op::syscall(
                libc::SYS_rt_tgsigqueueinfo,
                &[pid, thread.tid as u64, signal, info_at],
            ));
        }
    }

    fn queue_signals(&mut self, list: &mut Vec<Op>) {
        for info in &self.snapshot.process.pending {
            let info_at = self.builder.bytes(info, 8);
            let pid = self.snapshot.threads[0].tid as u64;
            list.push(Op::syscall(
                libc::SYS_rt_sigqueueinfo,
                &[pid, signal_of(info), info_at],
            ));
        }
    }

    /// From root of the user namespace to the function's user: all capabilities go with it.
    fn drop_user(&mut self, list: &mut Vec<Op>) {
        let uid = u64::from(self.environment.ids.0);
        list.push(Op::syscall(libc::SYS_setresuid, &[uid, uid, uid]));
    }

    pub(super) fn seccomp(&mut self, list: &mut Vec<Op>) {
        let filter: Vec<u8> = self.environment.seccomp.concat();
        let filter_at = self.builder.bytes(&filter, 8);
        let program = self
            .builder
            .words(&[self.environment.seccomp.len() as u64, filter_at]);
        let args = [SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, program];
        // With TSYNC a positive result is the id of a thread that could not be brought along.
        list.push(Op::syscall(libc::SYS_seccomp, &args).exact(0));
    }

    /// Sends the time stamps: the node learns that the instance is up, and where its time went.
    fn report(&mut self, list: &mut Vec<Op>) {
        let len = (super::STAMP * self.stamped) as u64;
        list.push(Op::syscall(
            libc::SYS_write,
            &[self.fds.control(), self.stamps, len],
        ));
    }

    fn start_timers(&mut self, list: &mut Vec<Op>) {
        let process = &self.snapshot.process;
        if !process.posix_timers.is_empty() {
            list.push(Op::syscall(
                libc::SYS_prctl,
                &[PR_TIMER_CREATE_RESTORE_IDS, 1, 0, 0, 0],
            ));
        }
        for timer in &process.posix_timers {
            let id = self.builder.cell(timer.id as u32);
            let mut event = timer.value.to_le_bytes().to_vec();
            event.extend_from_slice(&timer.signal.to_le_bytes());
            event.extend_from_slice(&timer.notify.to_le_bytes());
            let target = if timer.notify & SIGEV_THREAD_ID != 0 {
                timer.notify_tid
            } else {
                0
            };
            event.extend_from_slice(&target.to_le_bytes());
            event.resize(64, 0);
            let event = self.builder.bytes(&event, 8);
            list.push(Op::syscall(
                libc::SYS_timer_create,
                &[timer.clock as i64 as u64, event, id],
            ));
        }
        if !process.posix_timers.is_empty() {
            list.push(Op::syscall(
                libc::SYS_prctl,
                &[PR_TIMER_CREATE_RESTORE_IDS, 0, 0, 0, 0],
            ));
        }
        for timer in &process.posix_timers {
            // A repeating timer that has just expired has nothing left, but is armed.
            let remaining = if timer.interval_ns > 0 {
                timer.remaining_ns.max(1)
            } else {
                timer.remaining_ns
            };
            if remaining > 0 {
                let value = self.timespec_pair(timer.interval_ns, remaining);
                list.push(Op::syscall(
                    libc::SYS_timer_settime,
                    &[timer.id as u64, 0, value, 0],
                ));
            }
        }
        for (which, timer) in process.interval_timers.iter().enumerate() {
            let left = if timer.interval_us > 0 {
                timer.value_us.max(1)
            } else {
                timer.value_us
            };
            if left > 0 {
                const SECOND: u64 = 1_000_000;
                let value = self.builder.words(&[
                    timer.interval_us / SECOND,
                    timer.interval_us % SECOND,
                    left / SECOND,
                    left % SECOND,
                ]);
                list.push(Op::syscall(libc::SYS_setitimer, &[which as u64, value, 0]));
            }
        }
    }

    fn frame(&mut self, thread: &Thread) -> u64 {
        let r = &thread.regs;
        let frame = sigframe::Frame {
            registers: [
                r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rdi, r.rsi, r.rbp, r.rbx,
                r.rdx, r.rax, r.rcx, r.rsp, r.rip, r.eflags,
            ],
            signal_mask: thread.signal_mask,
            alt_stack: (
                thread.alt_stack.sp,
                thread.alt_stack.flags,
                thread.alt_stack.size,
            ),
            xsave: &thread.xsave,
        };
        sigframe::build(&mut self.builder, &frame)
    }
}

/// Takes back what a thread may have set of what is not set in any case.
fn reset_thread(list: &mut Vec<Op>) {
    const ROBUST_LIST_LEN: u64 = 24;
    list.push(Op::syscall(libc::SYS_arch_prctl, &[ARCH_SET_FS, 0]));
    list.push(Op::syscall(libc::SYS_arch_prctl, &[ARCH_SET_GS, 0]));
    list.push(Op::syscall(
        libc::SYS_set_robust_list,
        &[0, ROBUST_LIST_LEN],
    ));
    for option in [libc::PR_SET_TIMERSLACK, libc::PR_SET_PDEATHSIG] {
        list.push(Op::syscall(libc::SYS_prctl, &[option as u64, 0, 0, 0, 0]));
    }
}

/// A change of the user takes this back, so it comes behind that.
fn die_with_parent(list: &mut Vec<Op>, thread: &Thread) {
    if thread.parent_death_signal != 0 {
        let args = [
            libc::PR_SET_PDEATHSIG as u64,
            thread.parent_death_signal as u64,
        ];
        list.push(Op::syscall(libc::SYS_prctl, &args));
    }
}

/// Takes every capability out of the bounding set; more than the kernel knows is no error.
pub(super) fn drop_bounding_set(list: &mut Vec<Op>) {
    for capability in 0..CAPABILITIES {
        let args = [libc::PR_CAPBSET_DROP as u64, capability, 0, 0, 0];
        list.push(Op::syscall(libc::SYS_prctl, &args).ignore_error());
    }
}

/// Signal number of a raw `siginfo_t`.
fn signal_of(info: &[u8]) -> u64 {
    info.first_chunk()
        .map_or(0, |bytes| u32::from_le_bytes(*bytes).into())
}
