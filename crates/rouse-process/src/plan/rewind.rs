//! The program of a rewind: puts a process that has served a request back to its snapshot.
//!
//! It ends like a parked instance's program, in the wait for the next request. What comes before that is a restore
//! with another beginning: the process has memory, descriptors and threads already, and no rights any more.
//!
//! ```text
//!  leader                                      each other thread
//!    waits until all are here <-----------------  gives up its restartable sequence
//!    descriptors: all closed, what is sent received
//!    memory: what differs is taken away, made again, copied or dropped
//!    /tmp, descriptors, process ------------->  its own state
//!    report, wait (`parking`) ... the request   waits at the gate
//! ```

use std::collections::BTreeMap;
use std::ops::Range;

use rouse_restorer::op::Op;
use rouse_restorer::program::Program;
use rouse_sandbox::seccomp::memory_calls::PASS;
use rouse_snapshot::model::{Backing, Mapping, PAGE_SIZE, PageRun, ProcessSnapshot, Rseq};

use super::address_space::{KEEP_EXE, live_stack, populate};
use super::copied::{Copies, CopyPolicy, Layout};
use super::free_base;
use super::threads::SIGNAL_SET_LEN;
use super::waiting_room::{ANCILLARY_LEN, CONTROL_LEN, receiver};
use super::{Context, Environment, Input, Kind, PAGE, PlanError, RECEIVE_BASE, mapped_files};
use crate::working_set::WorkingSet;

/// `RSEQ_FLAG_UNREGISTER`.
const RSEQ_UNREGISTER: u64 = 1;
/// Signals have the numbers 1 to this.
const SIGNALS: u64 = 64;
/// Protection keys have the numbers 1 to this.
const PROTECTION_KEYS: u64 = 15;

/// What a process has that its snapshot has not.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Addresses that are mapped otherwise than in the snapshot, or are not mapped there.
    pub(crate) unmap: Vec<Range<u64>>,
    /// Mappings of the snapshot (by index) that must be made again.
    pub(crate) remake: Vec<usize>,
    /// Pages of its own in the others: dropped, so that the snapshot's show up again.
    pub(crate) drop: Vec<Range<u64>>,
    /// Pages of its own that the next request will write again: they get the snapshot's contents.
    pub(crate) copy: Vec<PageRun>,
    /// POSIX timers, by their ids.
    pub(crate) timers: Vec<i32>,
    /// Its descriptors.
    pub(crate) descriptors: Vec<i32>,
    /// Restartable sequences of its threads, by thread id.
    pub(crate) rseq: BTreeMap<i32, Rseq>,
}

/// The program of one rewind, and what threads are to run.
#[derive(Debug)]
pub(crate) struct RewindProgram {
    /// The leader's list is its entry.
    pub(crate) program: Program,
    /// The cell that must hold the process's number of its control socket.
    pub(crate) control: u64,
    /// Lists of the other threads of the snapshot, by thread id.
    pub(crate) threads: BTreeMap<i32, u64>,
    /// The list of a thread that the snapshot does not have: it ends.
    pub(crate) end: u64,
}

/// Compiles the program that undoes `changes`.
pub(crate) fn compile(
    snapshot: &ProcessSnapshot,
    environment: &Environment,
    working_set: &WorkingSet,
    copying: CopyPolicy,
    changes: &Changes,
) -> Result<RewindProgram, PlanError> {
    let files = mapped_files(snapshot);
    let input = Input::new(snapshot, environment, working_set, copying, &files);
    let length = build(input, PAGE, changes).program.image.len();
    Ok(build(input, free_base(snapshot, length as u64)?, changes))
}

fn build(input: Input<'_>, base: u64, changes: &Changes) -> RewindProgram {
    let mut context = Context::new(input, base, Kind::Rewind);
    let control = context.builder.cell(0);
    let mut list = Vec::new();
    context.stamp(&mut list);
    context.gather_threads(&mut list, changes);
    context.exchange_descriptors(&mut list, changes, control);
    context.undo_mappings(&mut list, changes);
    context.stamp(&mut list);
    context.undo_pages(&mut list, changes);
    context.stamp(&mut list);
    context.private_memory(&mut list);
    context.tmp(&mut list);
    context.descriptors(&mut list);
    context.undo_process(&mut list, changes);
    context.stamp(&mut list);
    context.threads_and_resume(&mut list);
    let entry = context.builder.list(&list);
    let end = context.ended_thread();
    RewindProgram {
        control,
        threads: std::mem::take(&mut context.thread_lists),
        end,
        program: context.builder.finish(entry),
    }
}

impl Context<'_> {
    /// Has all threads give up their restartable sequences, which they get anew: the kernel writes there when it is
    /// given up, so it comes before any memory is put back.
    fn gather_threads(&mut self, list: &mut Vec<Op>, changes: &Changes) {
        let arrived = self.builder.cell(0);
        self.memory_gate = self.builder.cell(0);
        let unregister = |tid: i32| {
            let rseq = changes.rseq.get(&tid)?;
            let args = [
                rseq.address,
                u64::from(rseq.len),
                RSEQ_UNREGISTER,
                u64::from(rseq.signature),
            ];
            Some(Op::syscall(libc::SYS_rseq, &args))
        };
        let (leader, others) = self.snapshot.threads.split_at(1);
        for thread in others {
            let mut head: Vec<Op> = unregister(thread.tid).into_iter().collect();
            head.push(Op::add_and_wake(arrived, 1));
            head.push(Op::wait_equal(self.memory_gate, 1));
            self.thread_heads.insert(thread.tid, head);
        }
        list.extend(unregister(leader[0].tid));
        if !others.is_empty() {
            list.push(Op::wait_equal(arrived, others.len() as u32));
        }
    }

    /// Its memory is back: the other threads may take their own state.
    pub(super) fn let_threads_on(&self, list: &mut Vec<Op>) {
        if self.snapshot.threads.len() > 1 {
            list.push(Op::add_and_wake(self.memory_gate, 1));
        }
    }

    /// Closes everything and receives what a restore receives, at the same numbers. Connections end by a reset, so that
    /// the kernel remembers nothing of them.
    fn exchange_descriptors(&mut self, list: &mut Vec<Op>, changes: &Changes, control: u64) {
        let linger = self.builder.words(&[1]);
        for fd in &changes.descriptors {
            let args = [
                *fd as u64,
                libc::SOL_SOCKET as u64,
                libc::SO_LINGER as u64,
                linger,
                8,
            ];
            list.push(Op::syscall(libc::SYS_setsockopt, &args).ignore_error());
        }
        let base = RECEIVE_BASE as u64;
        list.push(Op::syscall(libc::SYS_dup2, &[control, base]).indirect(0));
        for number in 0..base {
            list.push(Op::syscall(libc::SYS_dup2, &[base, number]));
        }
        let others = [base + 1, u64::from(u32::MAX), 0];
        list.push(Op::syscall(libc::SYS_close_range, &others));
        let buffer = self.builder.words(&[0]);
        let header = receiver(&mut self.builder, buffer, 8);
        list.push(Op::set_cell(header + CONTROL_LEN, ANCILLARY_LEN as u32));
        let args = [base, header, libc::MSG_CMSG_CLOEXEC as u64];
        list.push(Op::syscall(libc::SYS_recvmsg, &args).exact(1));
        self.move_descriptors(list);
    }

    /// Takes away what the snapshot does not map, and what it maps otherwise, and makes that again. What may have been
    /// advised about the rest is taken back; `private_memory` says it again where the snapshot has it.
    fn undo_mappings(&mut self, list: &mut Vec<Op>, changes: &Changes) {
        list.push(Op::syscall(libc::SYS_munlockall, &[]));
        for range in &changes.unmap {
            let args = [range.start, range.end - range.start];
            list.push(Op::syscall(libc::SYS_munmap, &args));
        }
        let snapshot = self.snapshot;
        for index in &changes.remake {
            self.map(list, &snapshot.mappings[*index]);
        }
        self.forget_advice(list);
        self.memory_layout(list, KEEP_EXE);
        self.disable_huge_pages(list, snapshot.process.thp_disable);
    }

    /// One call goes over many mappings and over the gaps between them, but ends at those that refuse it.
    fn forget_advice(&self, list: &mut Vec<Op>) {
        let refuses = |mapping: &Mapping| {
            matches!(mapping.backing, Backing::Vdso | Backing::Vvar { .. })
                || mapping.flags.droppable
        };
        for group in self.snapshot.mappings.split(refuses) {
            if let (Some(first), Some(last)) = (group.first(), group.last()) {
                forget(list, first.range.start..last.range.end);
            }
        }
    }

    fn undo_pages(&mut self, list: &mut Vec<Op>, changes: &Changes) {
        for range in &changes.drop {
            let args = [
                range.start,
                range.end - range.start,
                libc::MADV_DONTNEED as u64,
                0,
                0,
                PASS,
            ];
            list.push(Op::syscall(libc::SYS_madvise, &args));
        }
        let snapshot = self.snapshot;
        for mapping in &snapshot.mappings {
            if mapping.backing != Backing::Stack {
                let by = self.copies;
                let layout = Layout::copying(mapping, self.working_set, by, &self.copying);
                let copied = layout.copied;
                self.read_copied(list, &copied);
            }
        }
        for run in &changes.copy {
            let (offset, len) = (run.page_in_pool() * PAGE_SIZE, run.pages * PAGE_SIZE);
            let args = [self.pool_of(run), run.address, len, offset];
            list.push(Op::syscall(libc::SYS_pread64, &args).exact(len));
        }
    }

    /// What belongs to the whole process and is not set by a restore. Ignoring a signal discards those that wait.
    fn undo_process(&mut self, list: &mut Vec<Op>, changes: &Changes) {
        for id in &changes.timers {
            list.push(Op::syscall(libc::SYS_timer_delete, &[*id as u64]));
        }
        let never = self.builder.words(&[0; 4]);
        for which in 0..3 {
            list.push(Op::syscall(libc::SYS_setitimer, &[which, never, 0]));
        }
        let ignored = self.builder.words(&[libc::SIG_IGN as u64, 0, 0, 0]);
        for signal in
            (1..=SIGNALS).filter(|s| ![libc::SIGKILL as u64, libc::SIGSTOP as u64].contains(s))
        {
            for action in [ignored, never] {
                let args = [signal, action, 0, SIGNAL_SET_LEN];
                list.push(Op::syscall(libc::SYS_rt_sigaction, &args));
            }
        }
        let subreaper = [libc::PR_SET_CHILD_SUBREAPER as u64, 0, 0, 0, 0];
        list.push(Op::syscall(libc::SYS_prctl, &subreaper));
        if self.snapshot.process.protection_keys == 0 {
            for key in 1..=PROTECTION_KEYS {
                list.push(Op::syscall(libc::SYS_pkey_free, &[key]).ignore_error());
            }
        }
    }

    /// A thread ends without a trace in memory: nobody is told, and none of its locks is given back.
    fn ended_thread(&mut self) -> u64 {
        self.builder.list(&[
            Op::syscall(libc::SYS_set_tid_address, &[0]),
            Op::syscall(libc::SYS_set_robust_list, &[0, 24]),
            Op::syscall(libc::SYS_exit, &[0]),
        ])
    }
}

fn forget(list: &mut Vec<Op>, range: Range<u64>) {
    for advice in [
        libc::MADV_DOFORK,
        libc::MADV_DODUMP,
        libc::MADV_KEEPONFORK,
        libc::MADV_NORMAL,
        libc::MADV_UNMERGEABLE,
    ] {
        populate(list, std::slice::from_ref(&range), advice);
    }
}

/// What becomes of the pages that a process has of its own in a mapping that is as the snapshot has it: dropped, or
/// given the snapshot's contents where the next request is known to write them again. A copy in place costs less than
/// the fault that it spares. `private` are the pages, sorted.
pub(crate) fn sort_pages(
    snapshot: &ProcessSnapshot,
    (working_set, copying): (&WorkingSet, &CopyPolicy),
    mapping: &Mapping,
    private: &[Range<u64>],
    changes: &mut Changes,
) {
    let (copied, can_copy) = match mapping.backing {
        // Its pages can only be copied.
        Backing::Stack => {
            let live = live_stack(snapshot, mapping);
            changes.copy.extend(&live);
            (live, false)
        }
        _ => {
            let layout = Layout::copying(mapping, working_set, Copies::Restore, copying);
            let is_writable = mapping.prot & libc::PROT_WRITE as u32 != 0;
            (layout.copied, is_writable && mapping.pkey == 0)
        }
    };
    let run_with = |runs: &[PageRun], address: u64| -> Option<PageRun> {
        let after = runs.partition_point(|run| run.address <= address);
        let run = *runs.get(after.checked_sub(1)?)?;
        (address < run.address + run.pages * PAGE_SIZE).then_some(run)
    };
    for range in private {
        for address in (range.start..range.end).step_by(PAGE_SIZE as usize) {
            if run_with(&copied, address).is_some() {
                continue;
            }
            let hot =
                can_copy && rouse_snapshot::working_set::contains(&working_set.written, address);
            match run_with(&mapping.saved, address).filter(|_| hot) {
                Some(run) => {
                    let page = run.pool_page + (address - run.address) / PAGE_SIZE;
                    push_run(&mut changes.copy, address, page);
                }
                None => match changes.drop.last_mut() {
                    Some(last) if last.end == address => last.end += PAGE_SIZE,
                    _ => changes.drop.push(address..address + PAGE_SIZE),
                },
            }
        }
    }
}

fn push_run(runs: &mut Vec<PageRun>, address: u64, pool_page: u64) {
    match runs.last_mut() {
        Some(last)
            if last.address + last.pages * PAGE_SIZE == address
                && last.pool_page + last.pages == pool_page =>
        {
            last.pages += 1;
        }
        _ => runs.push(PageRun {
            address,
            pages: 1,
            pool_page,
        }),
    }
}
